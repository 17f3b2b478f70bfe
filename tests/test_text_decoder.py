"The text decoder: Qwen2's layer to the last digits, blind to padding only, and a loss that asks for what it should."
import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.tokenize.text_decoder import (_BidirectionalLayer, _Corrupted, TextDecoder, _corrupt, _ordinary, _rotary,
                                          _word_loss)

def wild(module, seed=0):
    "Weights large enough that nothing is nearly linear, biases and gains among them."
    draw = torch.Generator().manual_seed(seed)
    for p in module.parameters(): p.data = .5*torch.randn(p.shape, generator=draw).to(p.dtype)
    return module

def normal(seed, *shape): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def lengths(*n, t): return torch.arange(t) < torch.tensor(n)[:, None]

# ---------------------------------------------------------------- the layer

@pytest.mark.parametrize('heads, kv_heads, theta', [(6, 2, 1e6), (4, 4, 1e4), (2, 1, 1e6)])
def test_the_layer_is_that_of_qwen2(heads, kv_heads, theta):
    "Weights under the same names, an additive mask at padding keys, plain rotary positions, and the final norm."
    transformers = pytest.importorskip('transformers')
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding
    config = transformers.Qwen2Config(hidden_size=24, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=40,
                                      num_hidden_layers=1, rope_parameters=dict(rope_type='default', rope_theta=theta), attn_implementation='eager')
    ours = wild(_BidirectionalLayer(24, heads, kv_heads, 40, theta)).double()
    weights = dict(ours.state_dict())
    norm, theirs = Qwen2RMSNorm(24, 1e-6).double(), Qwen2DecoderLayer(config, 0).double().eval()
    norm.load_state_dict({'weight': weights.pop('norm.weight')}), theirs.load_state_dict(weights)
    x, there = normal(1, 3, 37, 24), lengths(37, 20, 1, t=37)
    mask = torch.zeros(3, 1, 37, 37, dtype=x.dtype).masked_fill(~there[:, None, None], torch.finfo(x.dtype).min)
    y = theirs(x, attention_mask=mask, position_embeddings=Qwen2RotaryEmbedding(config)(x, torch.arange(37)[None]))
    y = norm(y[0] if isinstance(y, tuple) else y)
    assert (ours(x, there) - y).abs().max() < 1e-5 and y.abs().max() > 1

def test_every_position_hears_every_other():
    layer, x = wild(_BidirectionalLayer(16, 4, 2)).double(), normal(0, 1, 9, 16)
    before = layer(x)
    for j in range(9):
        moved = x.clone()
        moved[:, j] += 1
        assert (layer(moved) - before).abs().amax(-1).min() > 1e-4

def test_padding_is_not_heard():
    layer, x = wild(_BidirectionalLayer(16, 4, 2)).double(), normal(0, 2, 9, 16).requires_grad_()
    there = lengths(9, 5, t=9)
    out = layer(x, there)
    assert torch.allclose(out[1, :5], layer(x[1:, :5])[0], atol=1e-12) and torch.allclose(out[0], layer(x[:1])[0], atol=1e-12)
    slope, = torch.autograd.grad(out[1, :5].sum(), x)
    assert not slope[1, 5:].any() and not slope[0].any() and slope[1, :5].abs().min() > 0
    filled = x.masked_fill(~there[..., None], 1e4)
    assert torch.equal(layer(filled, there)[1, :5], out[1, :5])

def test_a_row_of_padding_is_finite():
    layer, x = wild(_BidirectionalLayer(16, 4, 2)), torch.randn(2, 4, 16, requires_grad=True)
    out = layer(x, lengths(4, 0, t=4))
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()

def test_order_counts_and_the_batch_does_not():
    layer, x = wild(_BidirectionalLayer(16, 4, 2)).double(), normal(0, 5, 6, 16)
    perm = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(layer(x[perm]), layer(x)[perm], atol=1e-12)
    assert (layer(x[:, [1, 0, 2, 3, 4, 5]])[:, [1, 0, 2, 3, 4, 5]] - layer(x)).abs().max() > .01

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 40), st.sampled_from([1e2, 1e4, 1e6]))
def test_rotary_keeps_lengths_and_knows_distances_only(half, t, theta):
    q, k = normal(half, 2*half), normal(t, 2*half)
    Q, K = _rotary(q.expand(t, -1), theta), _rotary(k.expand(t, -1), theta)
    assert torch.allclose(Q.norm(dim=1), q.norm().expand(t), atol=1e-5) and torch.equal(Q[0], q)
    products = Q @ K.T
    for distance in (0, 1, -1, t - 1): assert products.diagonal(distance).std(correction=0) < 1e-4

def test_start_and_size():
    torch.manual_seed(0)
    layer = _BidirectionalLayer(64, 4, 2)
    for name, p in layer.named_parameters():
        if 'norm' in name: assert (p == 1).all()
        elif 'bias' in name: assert (p == 0).all()
        else: assert abs(p.std() - .02) < .002 and abs(p.mean()) < .002
    assert {n for n, _ in layer.self_attn.named_parameters() if 'bias' in n} == {'q_proj.bias', 'k_proj.bias', 'v_proj.bias'}
    with torch.device('meta'): assert sum(p.numel() for p in _BidirectionalLayer().parameters()) == 33_823_232

@pytest.mark.parametrize('width, heads, kv_heads', [(16, 3, 1), (12, 4, 2), (16, 4, 3)])
def test_heads_that_do_not_fit(width, heads, kv_heads):
    with pytest.raises(ValueError, match='do not go together'): _BidirectionalLayer(width, heads, kv_heads)

def test_half_precision():
    layer, x = _BidirectionalLayer(32, 4, 2), torch.randn(2, 5, 32)
    there = lengths(5, 3, t=5)
    low = copy.deepcopy(layer).bfloat16()(x.bfloat16(), there)
    with torch.autocast('cpu', dtype=torch.bfloat16): mixed = layer(x, there)
    assert low.dtype == torch.bfloat16
    for other in (low, mixed): assert (other.float() - layer(x, there)).abs().max() < .1

# ---------------------------------------------------------------- what is asked for

special = (0, 1, 7)

def some_texts(seed, b=6, t=30, v=20):
    draw = torch.Generator().manual_seed(seed)
    there = torch.arange(t) < torch.randint(1, t + 1, (b, 1), generator=draw)
    return torch.randint(1, v, (b, t), generator=draw).masked_fill(~there, 0), there

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from(['mask', 'bert']), st.integers(1, 40))
def test_only_words_are_asked_for_and_the_rest_stays(seed, kind, most):
    tokens, there = some_texts(seed)
    text = _corrupt(tokens, there, special, 2, kind, 20, most, torch.Generator().manual_seed(seed))
    asked, words = text.labels >= 0, there & ~torch.isin(tokens, torch.tensor([*special, 2]))
    assert torch.equal(text.labels[asked], tokens[asked]) and (text.labels[~asked] == -100).all()
    assert torch.equal(text.inputs[~asked], tokens[~asked]) and text.there is there
    if kind == 'mask': assert torch.equal(asked, words) and (text.inputs[asked] == 2).all()
    else:
        assert not (asked & ~words).any() and torch.equal(asked.sum(1), words.sum(1).clamp(max=most))
        assert not torch.isin(text.inputs[asked], torch.tensor(special)).any() and text.inputs.max() < 20

def test_padding_that_is_no_special_token_is_not_asked_for():
    tokens, there = torch.full((1, 4), 5), lengths(2, t=4)
    assert _corrupt(tokens, there, (), 2).labels.tolist() == [[5, 5, -100, -100]]

def test_shares_of_the_published_code():
    "900 words, of which 512 are asked for: .803 masked and .098 kept in a run of its collator."
    tokens, there = torch.randint(10, 5000, (100, 900)), torch.ones(100, 900, dtype=torch.bool)
    text = _corrupt(tokens, there, special, 2, 'bert', 5000, generator=torch.Generator().manual_seed(0))
    asked = text.labels >= 0
    seen, true = text.inputs[asked], tokens[asked]
    assert (asked.sum(1) == 512).all()
    masked, kept = (seen == 2).float().mean(), (seen == true).float().mean()
    assert abs(masked - .8) < .006 and abs(kept - .1) < .004
    assert abs(asked.float().mean(0) - 512/900).max() < .25  # anywhere in the text
    other = seen[(seen != 2) & (seen != true)].float()
    assert abs(other.mean() - 2500) < 60  # from the whole vocabulary

def test_seeds_and_nothing_global():
    tokens, there = some_texts(0)
    def once(seed): return _corrupt(tokens, there, special, 2, 'bert', 20, generator=torch.Generator().manual_seed(seed)).inputs
    state = torch.get_rng_state()
    assert torch.equal(once(3), once(3)) and not torch.equal(once(3), once(4))
    assert torch.equal(torch.get_rng_state(), state)

@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 30)), st.integers(31, 40))
def test_ordinary_tokens_are_those_left(struck, v):
    left = [t for t in range(v) if t not in struck]
    assert _ordinary(torch.arange(len(left)), torch.tensor(sorted(struck), dtype=torch.long)).tolist() == left

@pytest.mark.parametrize('how, says', [(dict(kind='half'), "choose 'mask' or 'bert'"), (dict(kind='bert', vocabulary=20), 'torch.Generator'),
                                       (dict(kind='bert', generator=torch.Generator()), 'give vocabulary')])
def test_corruptions_that_cannot_be(how, says):
    with pytest.raises(ValueError, match=says): _corrupt(*some_texts(0), special, 2, **how)

# ---------------------------------------------------------------- the decoder

def made(width=None, seed=0, v=20, d=16):
    decoder = wild(TextDecoder(_BidirectionalLayer(d, 4, 2), width), seed)
    w = width or d
    draw = torch.Generator().manual_seed(seed)
    tokens, there = some_texts(seed)
    states, embedding, head = (torch.randn(s, generator=draw) for s in ((6, 3, w), (v, w), (v, w)))
    return decoder, states, _corrupt(tokens, there, special, 2), embedding, head

@pytest.mark.parametrize('width', [None, 10])
def test_loss_is_the_mean_over_the_words_of_the_batch_at_their_own_positions(width):
    decoder, states, text, embedding, head = made(width)
    x = torch.cat([states, embedding[text.inputs]], 1)
    y = decoder.back(decoder.layer(decoder.into(x), torch.cat([torch.ones(6, 3).bool(), text.there], 1)))
    log_p = (y[:, 3:] @ head.T).log_softmax(-1)
    asked = [(i, t) for i in range(6) for t in range(30) if text.labels[i, t] >= 0]
    want = -sum(log_p[i, t, text.labels[i, t]] for i, t in asked)/len(asked)
    assert torch.allclose(decoder(states, text, embedding, head), want, rtol=1e-4)
    best = decoder.predict(states, text, embedding, head)
    assert all(best[i, t] == log_p[i, t].argmax() for i, t in asked)
    assert torch.equal(best[text.labels < 0], text.inputs[text.labels < 0])

def test_the_batch_may_be_shuffled_and_padded():
    decoder, states, text, embedding, head = made()
    loss = decoder(states, text, embedding, head)
    perm = torch.tensor([4, 2, 0, 1, 5, 3])
    assert torch.allclose(decoder(states[perm], _Corrupted(*(p[perm] for p in text)), embedding, head), loss, rtol=1e-5)
    longer = _Corrupted(F.pad(text.inputs, (0, 7), value=3), F.pad(text.labels, (0, 7), value=-100), F.pad(text.there, (0, 7)))
    assert torch.allclose(decoder(states, longer, embedding, head), loss, rtol=1e-5)
    assert torch.equal(decoder.predict(states, longer, embedding, head)[:, :30], decoder.predict(states, text, embedding, head))

@pytest.mark.parametrize('rows', [1, 7, 50, 10_000])
def test_pieces_change_nothing(rows):
    decoder, states, text, embedding, head = made()
    leaves = [states.requires_grad_(), embedding.requires_grad_(), head.requires_grad_(), *decoder.parameters()]
    one, many = decoder(states, text, embedding, head), decoder(states, text, embedding, head, rows)
    assert torch.allclose(one, many, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(loss, leaves) for loss in (one, many))): assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    assert torch.equal(decoder.predict(states, text, embedding, head, rows), decoder.predict(states, text, embedding, head))

def test_no_logits_but_those_asked_for_are_kept():
    "A vocabulary of 50,000 and 4 words of 40: nothing of size 40 × v is held for the way back."
    decoder = TextDecoder(_BidirectionalLayer(16, 4, 2))
    text = _corrupt(torch.full((1, 40), 5), torch.ones(1, 40).bool(), (), 2)
    text.labels[:, 4:] = -100
    largest = []
    def pack(x): return largest.append(x.numel()) or x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        decoder(torch.randn(1, 3, 16), text, torch.randn(50_000, 16), torch.randn(50_000, 16, requires_grad=True)).backward()
    assert max(largest) <= 16*50_000

def test_a_batch_without_words_is_zero_and_trains_nothing():
    decoder, states, text, embedding, head = made()
    empty = text._replace(labels=torch.full_like(text.labels, -100))
    loss = decoder(states.requires_grad_(), empty, embedding, head.requires_grad_())
    loss.backward()
    assert loss == 0 and loss.dtype == torch.float32
    assert all(p.grad is not None and not p.grad.any() for p in [states, head, *decoder.parameters()])
    assert torch.equal(decoder.predict(states, empty, embedding, head), text.inputs)

def test_states_embeddings_and_head_are_trained():
    decoder, states, text, embedding, head = made(10)
    leaves = [states.requires_grad_(), embedding.requires_grad_(), head.requires_grad_(), *decoder.parameters()]
    slopes = torch.autograd.grad(decoder(states, text, embedding, head), leaves)
    assert all(s.any() for s in slopes) and slopes[1][2].any() and not slopes[1][3].any()  # the mask's row, and no word's

def test_without_codes_every_mask_gives_the_same():
    decoder, states, text, embedding, _ = made()
    h = decoder.read(states[:, :0], text._replace(inputs=torch.full_like(text.inputs, 2)), embedding, embedding)
    assert torch.allclose(h, h[:, :1].expand_as(h), atol=1e-3)
    assert (decoder.read(states, text, embedding, embedding).diff(dim=1)[:, :1].abs().amax(-1) > .01).any()

def test_saved_and_loaded(tmp_path):
    decoder, states, text, embedding, head = made(10)
    save_file(decoder.state_dict(), tmp_path/'decoder.safetensors')
    other = made(10, seed=5)[0]
    other.load_state_dict(load_file(tmp_path/'decoder.safetensors'))
    assert torch.equal(other(states, text, embedding, head), decoder(states, text, embedding, head))

@pytest.mark.parametrize('wrong', [dict(states=(6, 3, 15)), dict(states=(5, 3, 16)), dict(embedding=(20, 15)), dict(head=(20, 15))])
def test_sizes_that_do_not_fit(wrong):
    decoder, states, text, embedding, head = made()
    given_ = {**dict(states=states, embedding=embedding, head=head), **{k: torch.randn(s) for k, s in wrong.items()}}
    with pytest.raises(ValueError, match=r'give states \(b, l, 16\)'): decoder(given_['states'], text, given_['embedding'], given_['head'])

def test_mixed_precision_loss_is_float32():
    decoder, states, text, embedding, head = made()
    plain = decoder(states, text, embedding, head)
    with torch.autocast('cpu', dtype=torch.bfloat16): mixed = decoder(states, text, embedding, head, rows=20)
    low = copy.deepcopy(decoder).bfloat16()(states.bfloat16(), text, embedding, head)
    for loss in (mixed, low): assert loss.dtype == torch.float32 and abs(loss - plain) < .05*plain

def test_it_learns_to_read_codes():
    "Two words, a code for each: read back from the codes, and wrong with another item's."
    torch.manual_seed(0)
    codes, tokens = torch.cartesian_prod(torch.arange(3), torch.arange(3)), torch.cartesian_prod(torch.arange(3) + 2, torch.arange(3) + 5)
    text = _corrupt(tokens, torch.ones_like(tokens).bool(), (), 1)
    decoder, values = TextDecoder(_BidirectionalLayer(32, 4, 2)), nn.Parameter(torch.randn(2, 3, 32))
    embedding, head = (nn.Parameter(torch.randn(8, 32)*.02) for _ in range(2))
    optim = torch.optim.AdamW([*decoder.parameters(), values, embedding, head], 5e-3)
    def states(): return torch.stack([values[0][codes[:, 0]], values[1][codes[:, 1]]], 1)
    for _ in range(150):
        optim.zero_grad(), decoder(states(), text, embedding, head).backward(), optim.step()
    assert torch.equal(decoder.predict(states(), text, embedding, head), tokens)
    assert torch.equal(decoder.predict(states().roll(1, 0), text, embedding, head), tokens.roll(1, 0))
