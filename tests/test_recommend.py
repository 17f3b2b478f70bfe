"The recommender is transformers' T5 with a pass of its own: the same numbers, whatever is batched, cached, saved or shared."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.store.files import read_folder, write_folder
from gentok.ids.item_ids import random_ids
from gentok.ids.trie import Trie
from gentok.ids.vocabulary import Vocabulary
from gentok.recommend.decoder_only import DecoderOnly
from gentok.fast.cached_decoding import CachedDecoder
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig, load_weights, _t5_config, _tied_names
from gentok.search.beam import beam_search
from gentok.search.exact import score_items

few = settings(max_examples=12, deadline=None, derandomize=True)

def recommender(sizes=(5, 4, 3), n_user_tokens=0, layers=2, seed=0, **more):
    return GenerativeRecommender(Vocabulary(sizes, n_user_tokens), RecommenderConfig(16, 24, 2, 8, layers, **more), seed).eval()

def batch(model, b=4, items=3, seed=0):
    "Histories of different lengths, padded on the right, and targets."
    gen, v = torch.Generator().manual_seed(seed), model.vocabulary
    K = torch.tensor(v.sizes)
    codes = (torch.rand(b, items + 1, v.L, generator=gen)*K).long()
    tokens = v.tokens(codes)
    inputs = tokens[:, :-1].flatten(1)
    for i in range(b): inputs[i, (1 + i % items)*v.L:] = v.pad
    return inputs, tokens[:, -1]

def shifted(model, labels): return torch.cat([torch.full_like(labels[:, :1], model.vocabulary.start), labels[:, :-1]], 1)

def reference(model, inputs, labels):
    "transformers' own forward pass, log-probabilities b l v."
    seen = (inputs != model.vocabulary.pad).long()
    return model.t5(input_ids=inputs, attention_mask=seen, decoder_input_ids=shifted(model, labels)).logits.log_softmax(-1)

def test_sizes_that_are_no_object_are_one_sentence(tmp_path):
    model = recommender()
    model.save_pretrained(tmp_path)
    config, weights = read_folder(tmp_path)
    write_folder(tmp_path, dict(config, recommender=1.5), weights)
    with pytest.raises(ValueError, match=r'as recommender, expected an object of its sizes; put back a copy\.$'): type(model).from_pretrained(tmp_path)

@pytest.mark.parametrize('name, value', (('num_heads', ''), ('d_model', 16.5), ('dropout', 'x'), ('per_level', 1), ('num_layers', True), ('spread', [])))
def test_a_size_of_another_kind_is_one_sentence(name, value, tmp_path):
    model = recommender()
    model.save_pretrained(tmp_path)
    config, weights = read_folder(tmp_path)
    write_folder(tmp_path, dict(config, recommender=dict(config['recommender'], **{name: value})), weights)
    with pytest.raises(ValueError, match=rf'config\.json has .* as {name}, expected a value like .*; put back a copy\.$'): type(model).from_pretrained(tmp_path)

@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99), st.integers(1, 4))
def test_the_own_pass_equals_transformers(sizes, layers, seed, prefixes):
    model = recommender(tuple(sizes), layers=layers, seed=seed)
    inputs, labels = batch(model, seed=seed)
    others = [batch(model, seed=seed + 1 + i)[1] for i in range(prefixes - 1)]
    with torch.no_grad():
        many = torch.stack([shifted(model, x) for x in [labels, *others]], 1)  # b m l
        ours = CachedDecoder(model).log_probs(CachedDecoder(model).decode(many, CachedDecoder(model).encode(inputs))[0])
        for m, x in enumerate([labels, *others]):
            assert (ours[:, m] - reference(model, inputs, x)).abs().max() < 1e-4

@few
@given(st.integers(0, 99), st.integers(1, 3))
def test_the_cache_changes_nothing(seed, cut):
    model = recommender((4, 4, 4, 4), seed=seed)
    inputs, labels = batch(model, seed=seed)
    tokens = shifted(model, labels)[:, None].expand(-1, 2, -1)
    with torch.no_grad():
        model = CachedDecoder(model)
        encoded = model.encode(inputs)
        whole, _ = model.decode(tokens, encoded)
        first, cache = model.decode(tokens[..., :cut], encoded)
        rest, cache = model.decode(tokens[..., cut:], encoded, cache)
    assert (torch.cat([first, rest], 2) - whole).abs().max() < 1e-5
    assert [c.shape for c in cache] == [(4, 2, 2, 2, 2, 8)]*4

def test_padding_and_company_are_invisible():
    model = recommender()
    inputs, labels = batch(model)
    with torch.no_grad():
        together = CachedDecoder(model).log_probs(CachedDecoder(model).decode(shifted(model, labels)[:, None], CachedDecoder(model).encode(inputs))[0])
        for i in range(len(inputs)):
            alone = inputs[i:i+1, :int((inputs[i] != 0).sum())]
            out = CachedDecoder(model).log_probs(CachedDecoder(model).decode(shifted(model, labels)[i:i+1, None], CachedDecoder(model).encode(alone))[0])
            assert (out[0] - together[i]).abs().max() < 1e-5

def test_the_loss_is_the_mean_over_batch_and_levels():
    model = recommender()
    inputs, labels = batch(model)
    by_hand = -reference(model, inputs, labels).gather(-1, labels[..., None]).mean()
    assert torch.allclose(model(inputs, labels), by_hand, atol=1e-5)
    assert model(inputs, labels).ndim == 0

def test_smoothing_is_for_training_only():
    plain, smooth = recommender(dropout=0.), recommender(dropout=0., label_smoothing=.2)
    inputs, labels = batch(plain)
    assert torch.equal(plain(inputs, labels), smooth(inputs, labels))
    assert not torch.equal(plain.train()(inputs, labels), smooth.train()(inputs, labels))

def test_every_weight_learns():
    model = recommender(n_user_tokens=2).train()
    inputs, labels = batch(model)
    inputs = torch.cat([model.vocabulary.user_tokens(torch.arange(4))[:, None], inputs], 1)
    model(inputs, labels).backward()
    idle = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []
    assert (model.t5.shared.weight.grad[-2:].abs().sum(1) > 0).all()

def test_the_seed_decides_the_weights_and_leaves_the_callers_numbers_alone():
    torch.manual_seed(5); expected = torch.rand(1)
    torch.manual_seed(5); a, b, c = recommender(seed=1), recommender(seed=1), recommender(seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.t5.shared.weight, c.t5.shared.weight)

def test_configuration_of_the_paper():
    c = _t5_config(Vocabulary((256,)*4, 2000), RecommenderConfig())
    assert (c.vocab_size, c.d_model, c.d_ff, c.num_heads, c.d_kv, c.num_layers, c.num_decoder_layers) == (3026, 128, 1024, 6, 64, 4, 4)
    assert (c.pad_token_id, c.decoder_start_token_id, c.eos_token_id, c.dropout_rate) == (0, 1, None, .1)

def test_repr_says_how_large_it_is():
    model = recommender()
    assert f'{sum(p.numel() for p in model.parameters()):,} weights' in repr(model) and 'T5 2+2, d_model=16' in repr(model)

# ---------------------------------------------------------------- kept

@pytest.mark.parametrize('n_user_tokens', [0, 7])
def test_save_and_load(tmp_path, n_user_tokens):
    model = recommender(n_user_tokens=n_user_tokens, label_smoothing=.1, max_history=9).train()
    inputs, labels = batch(model)
    model.save_pretrained(tmp_path/'m', items={'0': 'a lamp'})
    assert model.training
    copy = GenerativeRecommender.from_pretrained(tmp_path/'m')
    assert not copy.training and copy.config == model.config and copy.vocabulary == model.vocabulary
    assert torch.equal(copy(inputs, labels), model.eval()(inputs, labels))
    assert copy.t5.lm_head.weight is copy.t5.shared.weight
    assert sorted(f.name for f in (tmp_path/'m').iterdir()) == ['config.json', 'items.json', 'model.safetensors']
    copy.save_pretrained(tmp_path/'again')
    for name in ('config.json', 'model.safetensors'):
        assert (tmp_path/'m'/name).read_bytes() == (tmp_path/'again'/name).read_bytes()

def test_tied_weights_are_written_once(tmp_path):
    model = recommender()
    model.save_pretrained(tmp_path)
    _, weights = read_folder(tmp_path)
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())
    assert not _tied_names(model) & weights.keys() and 't5.shared.weight' in weights

def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied():
    model, wider = recommender(), recommender((5, 4, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = {k: v for k, v in wider.state_dict().items() if k not in _tied_names(wider)}
    with pytest.raises(ValueError, match=r'there: 1 weights do not fit.*shared.*found \(15, 16\), expected \(14, 16\)'):
        load_weights(model, weights, 'there')
    weights = {k: v for k, v in model.state_dict().items() if k not in _tied_names(model)}
    lost = sorted(weights)[3]
    with pytest.raises(ValueError, match='found nothing'): load_weights(model, {k: v for k, v in weights.items() if k != lost}, 'there')
    with pytest.raises(ValueError, match='expected nothing'): load_weights(model, weights | {'odd': torch.zeros(2)}, 'there')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

def test_a_folder_of_something_else_is_refused(tmp_path):
    write_folder(tmp_path/'ids', dict(kind='ItemIds'))
    with pytest.raises(ValueError, match="holds a 'ItemIds'"): GenerativeRecommender.from_pretrained(tmp_path/'ids')
    write_folder(tmp_path/'none', dict(a=1))
    with pytest.raises(ValueError, match='folder without kind'): GenerativeRecommender.from_pretrained(tmp_path/'none')

@pytest.mark.parametrize('spoil, says', [
    (lambda c: c['recommender'].update(d_modell=3), 'd_modell'), (lambda c: c['recommender'].update(d_model=32), 'do not fit'),
    (lambda c: c['vocabulary'].update(sizes=[5, 4, 9]), 'do not fit'), (lambda c: c.pop('vocabulary'), 'no sizes')])
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, spoil, says):
    recommender().save_pretrained(tmp_path)
    config, weights = read_folder(tmp_path)
    spoil(config)
    write_folder(tmp_path/'spoilt', config, weights)
    with pytest.raises(ValueError, match=says): GenerativeRecommender.from_pretrained(tmp_path/'spoilt')

def test_a_configuration_edited_by_hand_is_refused(tmp_path):
    recommender().save_pretrained(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    config['recommender']['num_heads'] = 4
    (tmp_path/'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='one was edited'): GenerativeRecommender.from_pretrained(tmp_path)

@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99))
def test_gradients_are_those_of_transformers(sizes, layers, seed):
    model = recommender(tuple(sizes), layers=layers, seed=seed)
    inputs, labels = batch(model, seed=seed)
    found = []
    for loss in (model(inputs, labels), -reference(model, inputs, labels).gather(-1, labels[..., None]).mean()):
        model.zero_grad()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, g in found[1].items(): assert (found[0][name] - g).abs().max() < 1e-4*max(1., g.abs().max().item()), name

def test_what_was_kept_for_the_gradient_is_let_go_with_it():
    model = recommender().train()
    loss = model(*batch(model))
    loss.backward()
    with pytest.raises(RuntimeError, match='second time'): loss.backward()

def test_dropout_follows_the_seed_and_ends_with_training():
    model = recommender(dropout=.3).train()
    inputs, labels = batch(model)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(inputs, labels).item())
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert model(inputs, labels).item() == model(inputs, labels).item()

# ---------------------------------------------------------------- a softmax per level

def etegrec_model(case):
    "The reference's weights in ours, by the reference's own order of parameters; its tables per level are slices of our embedding."
    rng, found = np.random.default_rng(8), {}
    for name, shape in case['inputs']['parameter_order']:
        noise = rng.standard_normal(shape)
        found[name] = torch.tensor(1 + .1*noise if 'layer_norm' in name else .3*noise, dtype=torch.float32)
    model = GenerativeRecommender(Vocabulary((6,)*4), RecommenderConfig(16, 24, 2, 8, 2, per_level=True)).eval()
    table = torch.cat([found['model.shared.weight'].expand(2, -1), *(found[f'token_embeddings.{l}.weight'] for l in range(4))])
    own = {k: found[k.replace('t5.', 'model.', 1)] for k in model.state_dict() if k not in _tied_names(model) and k != 't5.shared.weight'}
    load_weights(model, {**own, 't5.shared.weight': table}, 'the reference')
    return model, found

def test_etegrec_model_forward(vectors):
    case = vectors('etegrec')['model_forward']
    model, found = etegrec_model(case)
    v, codes = model.vocabulary, torch.tensor(case['item_table'])[1:]
    rows = torch.tensor(case['input_ids_item'])
    inputs = v.tokens(codes[(rows - 1).clamp(min=0)]).masked_fill(rows[..., None] == 0, v.pad).flatten(1)
    labels = v.tokens(codes[torch.tensor(case['inputs']['targets']) - 1])
    with torch.no_grad():
        states, loss = model.states(inputs, labels), model(inputs, labels)
        hidden = states.decoder.view(4, 4, -1)
        logits = torch.stack([hidden[:, l] @ model.t5.shared.weight[v.level_slice(l)].T for l in range(4)], 1)
        seen = (inputs != v.pad)[..., None].float()
        mean = (states.encoder*seen).sum(1)/seen.sum(1)
        adapted = [x @ found[f'{side}_adapter.mlp_layers.1.weight'].T + found[f'{side}_adapter.mlp_layers.1.bias'] for side, x in (('enc', mean), ('dec', hidden[:, 0]))]
    assert torch.allclose(logits, torch.tensor(case['logits_[B,4,6]']), atol=1e-4)
    assert loss.item() == pytest.approx(case['code_loss'], abs=1e-5)
    for ours, name in ((mean, 'seq_mean_latent'), (adapted[0], 'seq_project_latents'), (adapted[1], 'dec_latents')):
        assert torch.allclose(ours, torch.tensor(case[name]), atol=1e-4), name

@few
@given(st.integers(0, 99), st.booleans())
def test_a_softmax_per_level_is_searched_as_it_is_trained(seed, free):
    "All items by hand, and the search's ten; free or under the trie, every answer is made of codes of its level"
    ids = random_ids(20, (4, 3, 5), seed)
    model, trie = recommender((4, 3, 5), seed=seed, per_level=True, spread=.5), Trie(ids)
    inputs, _ = batch(model, seed=seed)
    histories = [[0, 1], [2], [3, 4, 5]]
    scores = score_items(model, trie, histories)
    assert (scores.exp().sum(1) < 1 + 1e-4).all()
    found = beam_search(model, trie, histories, beams=60, k=10, free=free)
    if free: assert (found.invalid <= 1).all()
    else: assert torch.allclose(found.scores, scores.topk(10).values, atol=1e-4)
    items = found.items
    for b, i in (items >= 0).nonzero().tolist(): assert found.scores[b, i].item() == pytest.approx(scores[b, items[b, i]].item(), abs=1e-4)

def test_per_level_is_kept_with_the_model(tmp_path):
    model = recommender(per_level=True, spread=.1)
    model.save_pretrained(tmp_path)
    copy, (inputs, labels) = GenerativeRecommender.from_pretrained(tmp_path), batch(model)
    assert copy.config.per_level and copy(inputs, labels).item() == model(inputs, labels).item()
    with pytest.raises(ValueError, match='leave per_level out'): DecoderOnly(model.vocabulary, model.config)
