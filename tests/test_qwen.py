"Qwen2-VL as an encoder: the prompt, what is trained, what is never computed, and a folder that holds all of it."
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('transformers')
pytest.importorskip('peft')
import torch.nn.functional as F  # noqa: E402
import transformers as hf  # noqa: E402
from hypothesis import given, settings, strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from gentok.store.files import read_folder, write_folder  # noqa: E402
from gentok.data.toyshop import toyshop  # noqa: E402
from gentok.embed.multimodal import ItemEncoder  # noqa: E402
from gentok.embed.pretrained import _load_whole  # noqa: E402
from gentok.embed.qwen import (LoraSettings, QwenEncoder, _base_mark, _fit_rows, _need_peft, _opaque, _qwen_folder, _request,  # noqa: E402
                               small_qwen)

budget = (4*28*28, 16*28*28)
catalogue = toyshop(n_items=12, n_users=5, domains='kites', seed=2)[0].catalogue
texts, images = catalogue.text[:6], [catalogue.images[r] if r != 2 else None for r in range(6)]

@pytest.fixture(scope='module')
def base(tmp_path_factory): return small_qwen(tmp_path_factory.mktemp('base'), catalogue.text)

@pytest.fixture(scope='module')
def encoder(base): return QwenEncoder(base, pixels=budget).eval()

@pytest.fixture
def fresh(base): return QwenEncoder(base, pixels=budget).eval()

def states(encoder, *columns):
    with torch.no_grad(): return encoder(**encoder.prepare(*columns))

# ---------------------------------------------------------------- the prompt

def test_order_of_the_prompt(encoder):
    text = encoder.words.tokenizer.decode(encoder.prompt('a sheer kite', 5), skip_special_tokens=False)
    parts = ['<|im_start|>system', '<|im_start|>user', '<|vision_start|>' + '<|image_pad|>'*5 + '<|vision_end|>', 'a sheer kite',
             '3 tokens, from coarse to fine', '<|im_start|>assistant\n<|code_0|><|code_1|><|code_2|>']
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and text.endswith(parts[-1])

def test_two_wordings():
    seen, unseen = (_request('a kite', p, 4)[0]['content'] for p in (True, False))
    assert [part['type'] for part in seen] == ['image', 'text'] and [part['type'] for part in unseen] == ['text']
    assert 'no picture' in unseen[0]['text'] and 'picture shows' in seen[1]['text']
    assert all('a kite' in part[-1]['text'] and '4 tokens' in part[-1]['text'] for part in (seen, unseen))

literal = st.sampled_from(['<|code_0|>', '<|code_2|>', '<mask>', '<|image_pad|>', '<|im_end|>', '<|endoftext|>', '<|co', 'de_0|>', '<|', '|>', 'kite ', '凧'])

@given(st.lists(literal, max_size=9).map(''.join))
@settings(max_examples=60, deadline=None)
def test_no_item_text_moves_a_code_or_adds_a_picture(encoder, text):
    ids, plain = encoder.prompt(text, 2), encoder.prompt('', 2)
    for token in encoder.words.special: assert ids.count(token) == plain.count(token)
    assert ids[-3:] == encoder.code_ids.tolist()

def test_long_texts_are_cut_by_tokens(base):
    encoder = QwenEncoder(base, lora=None, max_tokens=6)
    [ids] = encoder.words.ids(['sheer violet moon kite 凧凧凧凧凧凧'])
    kept = encoder.words.tokenizer.decode(ids[:6])
    assert len(ids) > 6 and kept.rstrip('\ufffd') in encoder.words.tokenizer.decode(encoder.prompt(encoder.words.decode(torch.tensor([ids]))[0]))
    lengths = {len(encoder.prompt('kite '*n)) for n in (10, 100, 1000)}
    assert len(lengths) == 1
    assert '\ufffd' not in encoder.words.tokenizer.decode(encoder.prompt('凧'*9))
    assert QwenEncoder.__init__.__defaults__[2] == 1024

@pytest.mark.parametrize('size', [(1, 1), (48, 48), (300, 200), (4000, 3000), (40, 2000)])
def test_the_pixel_budget(base, size):
    encoder = QwenEncoder(base, lora=None)
    tokens = int(encoder.see([Image.new('RGB', size)])['grid'].prod())//4
    assert 128 <= tokens <= 1024

def test_transparent_pictures_lie_on_white(encoder):
    clear, white = Image.new('RGBA', (60, 60), (9, 9, 9, 0)), Image.new('RGB', (60, 60), 'white')
    assert torch.equal(encoder.see([clear])['pixels'], encoder.see([white])['pixels'])
    assert _opaque(Image.new('P', (3, 3))).mode == 'RGB'

# ---------------------------------------------------------------- states

def test_neighbours_padding_and_order_do_not_matter(encoder):
    h = states(encoder, texts, images)
    assert h.shape == (6, 3, 64) and h.dtype == torch.float32
    back = states(encoder, texts[::-1], images[::-1])
    torch.testing.assert_close(back.flip(0), h, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode(texts, images, batch_size=1), h, atol=1e-5, rtol=1e-4)
    longer = states(encoder, [*texts, 'kite '*80], [*images, None])
    torch.testing.assert_close(longer[:6], h, atol=1e-5, rtol=1e-4)

def test_states_are_those_of_transformers(base, encoder):
    plain = _fit_rows(_load_whole(hf.Qwen2VLForConditionalGeneration, Path(base)), encoder.words.size)
    for rows in (range(6), [2]):
        prepared = encoder.prepare([texts[r] for r in rows], [images[r] for r in rows])
        seen = dict(pixel_values=prepared['pixels'], image_grid_thw=prepared['grid']) if 'pixels' in prepared else {}
        visual = (prepared['tokens'] == plain.config.image_token_id).int()
        with torch.no_grad():
            h = plain(input_ids=prepared['tokens'], attention_mask=prepared['there'], mm_token_type_ids=visual,
                      output_hidden_states=True, **seen).hidden_states[-1]
            mine = encoder(**prepared)
        for b, row in enumerate(prepared['tokens']):
            for l, code in enumerate(encoder.code_ids):
                first = row.tolist().index(int(code))
                torch.testing.assert_close(mine[b, l], h[b, first], atol=1e-5, rtol=1e-4)

def test_pictures_and_words_matter(encoder):
    cases = [([texts[0]], [images[0]]), ([texts[0]], [images[1]]), ([texts[1]], [images[0]]), ([texts[0]], None)]
    found = torch.cat([states(encoder, *case) for case in cases]).flatten(1)
    assert torch.cdist(found, found)[~torch.eye(4, dtype=torch.bool)].min() > 1e-3

def test_the_head_is_never_computed(fresh):
    def forbidden(*_): raise AssertionError('the vocabulary head was computed')
    fresh.qwen.lm_head.forward = forbidden
    fresh.train()(**fresh.prepare(texts, images)).sum().backward()
    assert fresh.encode(texts, images).isfinite().all()
    with torch.no_grad(), pytest.raises(AssertionError): fresh.qwen(input_ids=fresh.prepare(texts[:1])['tokens'])

@pytest.mark.parametrize('L', [1, 5])
def test_other_numbers_of_codes(base, L):
    encoder = QwenEncoder(base, L=L, pixels=budget)
    assert states(encoder, texts[:2], images[:2]).shape == (2, L, 64)
    assert len(set(encoder.code_ids.tolist()) | {encoder.words.mask}) == L + 1
    assert encoder.words.size == len(encoder.embedding) == len(encoder.head) == encoder.words.mask + 1

def test_vectors_are_refused(encoder):
    with pytest.raises(ValueError, match='takes no vectors'): encoder.prepare(texts, images, torch.ones(6, 2))

# ---------------------------------------------------------------- what is trained

def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else(fresh):
    from peft.tuners.lora import Linear
    found = {name: m for name, m in fresh.qwen.named_modules() if isinstance(m, Linear)}
    linear = 'self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj'.split()
    assert set(found) == {f'model.language_model.layers.{i}.{name}' for i in range(2) for name in linear}
    for m in found.values():
        assert m.r['default'] == 8 and m.scaling['default'] == 4 and m.lora_dropout['default'].p == .1
        assert m.lora_A['default'].bias is None and not m.lora_B['default'].weight.any() and m.lora_A['default'].weight.any()

def test_one_step_changes_what_is_trained_and_nothing_else(fresh):
    before = {name: t.clone() for name, t in fresh.qwen.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in fresh.parameters() if p.requires_grad], lr=1.)
    fresh.train()
    for _ in range(2):
        loss = F.cross_entropy(fresh(**fresh.prepare(texts, images)).flatten(0, 1) @ fresh.head.T, torch.arange(18))
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    changed = {name for name, t in fresh.qwen.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == fresh.trained == set(fresh.weights())
    assert {'lm_head.weight', 'model.language_model.embed_tokens.weight'} < changed

def test_reading_and_writing_part_ways(fresh):
    h = states(fresh, texts, images)
    assert torch.equal(fresh.head, fresh.embedding)
    with torch.no_grad(): fresh.head.add_(1)
    assert torch.equal(states(fresh, texts, images), h)
    with torch.no_grad(): fresh.embedding[fresh.code_ids[0]] += 1
    assert not torch.equal(states(fresh, texts, images), h)

def test_without_lora_the_language_model_is_trained_and_peft_is_not_needed(base, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    encoder = QwenEncoder(base, lora=None, pixels=budget)
    assert encoder.head is encoder.embedding
    free = {name for name, p in encoder.qwen.named_parameters() if not p.requires_grad}
    assert free and all(name.startswith('model.visual.') for name in free)
    with pytest.raises(ImportError, match=r"pip install 'gentok\[multimodal\]'"): QwenEncoder(base)
    with pytest.raises(ImportError, match='LoRA'): _need_peft()

def test_checkpointing_changes_no_number_and_dropout_is_drawn_once(base):
    found = []
    for checkpointing in (True, False):
        encoder = QwenEncoder(base, pixels=budget, lora=LoraSettings(dropout=.3), checkpointing=checkpointing).train()
        with torch.no_grad():
            for name, p in encoder.weights().items():
                if 'lora_B' in name: p.copy_(.05*torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        with torch.random.fork_rng():
            torch.manual_seed(7)
            h = encoder(**encoder.prepare(texts, images))
            h.square().sum().backward()
        found.append((h.detach(), [p.grad for name, p in encoder.weights().items() if 'lm_head' not in name]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)

def test_the_vision_tower_keeps_nothing_for_the_backward_pass(fresh):
    outputs = []
    fresh.qwen.model.visual.register_forward_hook(lambda m, args, out: outputs.append(out))
    fresh.train()(**fresh.prepare(texts, images))
    assert not outputs[0].last_hidden_state.requires_grad

def test_bfloat16_is_for_what_is_frozen(base, encoder):
    half = QwenEncoder(base, pixels=budget, bf16=True).train()
    for name, p in half.qwen.named_parameters(): assert p.dtype == (torch.float32 if name in half.trained else torch.bfloat16)
    h = half(**half.prepare(texts, images))
    h.sum().backward()
    assert h.dtype == torch.float32 and half.embedding.grad.dtype == torch.float32
    exact = states(encoder, texts, images)
    assert 0 < (half.encode(texts, images) - exact).abs().max() < .1*exact.abs().max()
    assert half.mark == encoder.mark

def test_rows_that_the_checkpoint_lacks_are_drawn_with_the_seed(base):
    grown = [_fit_rows(_load_whole(hf.Qwen2VLForConditionalGeneration, Path(base)), 600, seed).lm_head.weight for seed in (0, 0, 1)]
    old = len(_load_whole(hf.Qwen2VLForConditionalGeneration, Path(base)).lm_head.weight)
    assert old < 600 and torch.equal(grown[0], grown[1])
    assert torch.equal(grown[0][:old], grown[2][:old]) and not torch.equal(grown[0][old:], grown[2][old:])
    assert .01 < grown[0][old:].std() < .03

def test_seeds_are_private(base, encoder, fresh):
    state = torch.get_rng_state()
    other = QwenEncoder(base, pixels=budget, lora=LoraSettings(seed=5))
    assert torch.equal(torch.get_rng_state(), state)
    first = next(name for name in encoder.trained if 'lora_A' in name)
    assert torch.equal(fresh.weights()[first], encoder.weights()[first]) and not torch.equal(other.weights()[first], encoder.weights()[first])

# ---------------------------------------------------------------- on disk

@pytest.mark.parametrize('lora', [LoraSettings(rank=4, alpha=8), None])
def test_every_trained_tensor_comes_back(tmp_path, base, lora):
    encoder = QwenEncoder(base, L=2, lora=lora, pixels=budget, max_tokens=50).eval()
    with torch.no_grad():
        for k, p in enumerate(encoder.weights().values()): p += .02*torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    encoder.save_pretrained(tmp_path)
    loaded = ItemEncoder.from_pretrained(tmp_path)
    assert type(loaded) is QwenEncoder and loaded.to_config() == encoder.to_config()
    assert set(loaded.weights()) == set(encoder.weights()) and not loaded.training
    for name, p in encoder.weights().items(): assert torch.equal(loaded.weights()[name], p), name
    assert torch.equal(loaded.encode(texts, images), encoder.encode(texts, images))
    assert torch.equal(loaded.head, encoder.head) and (loaded.head is loaded.embedding) == (lora is None)
    config = json.loads((tmp_path/'config.json').read_text())
    assert config['module'] == 'gentok.embed.qwen' and not any('visual' in name for name in read_folder(tmp_path).tensors)

def test_each_tensor_counts(tmp_path, fresh, base):
    fresh.save_pretrained(tmp_path)
    config, tensors = read_folder(tmp_path)
    for name in ('lm_head.weight', 'model.language_model.embed_tokens.weight', next(n for n in tensors if 'lora_B' in n)):
        write_folder(tmp_path, config, {k: v for k, v in tensors.items() if k != name})
        with pytest.raises(ValueError, match='has nothing for'): ItemEncoder.from_pretrained(tmp_path)
    frozen = dict(fresh.qwen.named_parameters())['model.visual.patch_embed.proj.weight']
    write_folder(tmp_path, config, {**tensors, 'model.visual.patch_embed.proj.weight': frozen})
    with pytest.raises(ValueError, match='asks for nothing'): ItemEncoder.from_pretrained(tmp_path)

def test_what_is_frozen_for_a_while_is_saved_all_the_same(tmp_path, fresh):
    with torch.no_grad(): fresh.embedding.add_(.1)
    fresh.embedding.requires_grad_(False)
    fresh.save_pretrained(tmp_path)
    assert torch.equal(ItemEncoder.from_pretrained(tmp_path).embedding, fresh.embedding)

def test_another_checkpoint_is_noticed(tmp_path, fresh):
    fresh.save_pretrained(tmp_path/'saved')
    other = small_qwen(tmp_path/'other', catalogue.text, seed=9)
    with pytest.raises(ValueError, match='not the checkpoint that this encoder was trained on'):
        ItemEncoder.from_pretrained(tmp_path/'saved', base=other)
    config, tensors = read_folder(tmp_path/'saved')
    write_folder(tmp_path/'saved', {**config, 'name': str(tmp_path/'gone')}, tensors)
    with pytest.raises(ValueError, match='give its folder as base'): ItemEncoder.from_pretrained(tmp_path/'saved')
    assert torch.equal(ItemEncoder.from_pretrained(tmp_path/'saved', base=fresh.name).head, fresh.head)
    write_folder(tmp_path/'saved', {**config, 'depth': 3}, tensors)
    with pytest.raises(ValueError, match='settings that QwenEncoder does not understand'): ItemEncoder.from_pretrained(tmp_path/'saved')

def test_a_mark_belongs_to_weights_not_to_precision(base, tmp_path):
    kind = hf.Qwen2VLForConditionalGeneration
    marks = {_base_mark(_load_whole(kind, Path(base), dtype=d)) for d in (torch.float32, torch.bfloat16)}
    assert len(marks) == 1 and _base_mark(_load_whole(kind, Path(small_qwen(tmp_path, catalogue.text, seed=3)))) not in marks

def test_missing_checkpoints_say_what_to_do(tmp_path, base):
    with pytest.raises(ValueError, match='give the path of its folder'): QwenEncoder('Qwen/No-Such-Checkpoint')
    (tmp_path/'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model 'bert', expected 'qwen2_vl'"): _qwen_folder(tmp_path)
    (tmp_path/'config.json').write_text((Path(base)/'config.json').read_text())
    with pytest.raises(ValueError, match='has no tokenizer'): QwenEncoder(tmp_path)
