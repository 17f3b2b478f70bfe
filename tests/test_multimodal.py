"The light encoder and what every encoder of words and pictures promises: one row per item, whoever stands beside it."
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image

from gentok.store.files import read_folder, write_folder
from gentok.data.toyshop import toyshop
from gentok.embed.multimodal import (_Block, ItemEncoder, LightConfig, LightEncoder, _Words, _code_order, _columns, _fill, _picture_patches,
                                     _projection, _read_words)

small = LightConfig(width=32, heads=4, max_tokens=12, size=16, patch=8, dropout=0.)

@pytest.fixture(scope='module')
def shop(): return toyshop(n_items=40, n_users=5, domains='badges', seed=1)[0].catalogue

@pytest.fixture(scope='module')
def images(shop): return [shop.images[row] if row % 3 else None for row in range(len(shop))]

@pytest.fixture(scope='module')
def words(shop): return _Words.learn(shop.text, 400)

@pytest.fixture
def encoder(words): return LightEncoder(words, config=small).eval()

def states(encoder, *columns):
    with torch.no_grad(): return encoder(**encoder.prepare(*columns))

# ---------------------------------------------------------------- words

pieces = st.lists(st.sampled_from(['[PAD]', '[MASK]', '[', ']', 'PAD', 'MA', 'SK', 'ink ', '墨', 'é', ' ']) | st.characters(codec='utf-8'), max_size=12)

@given(pieces.map(''.join))
@settings(max_examples=150, deadline=None)
def test_no_text_becomes_a_special_token(words, text):
    ids = words.ids([text])[0]
    assert not set(ids) & set(words.special)
    assert all(0 <= i < words.size for i in ids)
    assert not words.literals.search(words.clean(text))

@given(st.text(st.characters(codec='utf-8', categories=['Ll', 'Nd', 'Zs']), max_size=30))
@settings(max_examples=60, deadline=None)
def test_texts_come_back_and_stay_so(words, text):
    once = words.decode(words.encode([text]))
    assert words.decode(words.encode(once)) == once
    if text.isascii(): assert once == [text.lower().strip()]

def test_learning_a_vocabulary_twice_gives_the_same(shop, words):
    again = _Words.learn(shop.text, 400)
    assert json.dumps(again.to_config(), sort_keys=True) == json.dumps(words.to_config(), sort_keys=True)
    assert torch.equal(_read_words(words.to_config()).encode(shop.text), words.encode(shop.text))

def test_padding_and_cutting(words):
    long, short = 'ink '*50, 'ink'
    tokens = words.encode([long, short, ''], most=7)
    assert tokens.shape == (3, 7) and tokens.dtype == torch.long
    n = len(words.ids([short])[0])
    assert (tokens[1, n:] == words.pad).all() and (tokens[1, :n] != words.pad).all() and (tokens[2] == words.pad).all()
    assert words.encode([]).shape == (0, 1)

def test_a_vocabulary_does_not_share_the_callers_tokenizer(words):
    outer = words.tokenizer.from_str(words.tokenizer.to_str())
    outer.enable_padding(length=50)
    outer.enable_truncation(2)
    inner = _Words(outer)
    assert len(inner.ids(['one two three four'])[0]) > 2
    outer.add_tokens(['later'])
    assert inner.size == words.size

# ---------------------------------------------------------------- pieces

def test_patches_put_together_are_the_picture():
    picture = Image.effect_mandelbrot((16, 16), (-2, -1.5, 1, 1.5), 50).convert('RGB')
    cut = _picture_patches(picture, 16, 4)
    rebuilt = cut.view(4, 4, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(16, 16, 3)
    assert rebuilt.flatten().tolist() == list(picture.tobytes())

def test_a_block_is_softmax_attention():
    torch.manual_seed(0)
    block, x = _Block(8, 2), torch.randn(3, 5, 8)
    seen = torch.rand(3, 1, 5, 5) > .4
    seen |= torch.eye(5, dtype=torch.bool)
    y = block.before(x)
    q, (k, v) = block.query(y), block.both(y).chunk(2, -1)
    mixed = []
    for h in (slice(0, 4), slice(4, 8)):
        score = (q[..., h] @ k[..., h].transpose(1, 2))/math.sqrt(4)
        mixed.append(score.masked_fill(~seen[:, 0], -torch.inf).softmax(-1) @ v[..., h])
    x1 = x + block.out(torch.cat(mixed, -1))
    torch.testing.assert_close(block(x, seen), x1 + block.mlp(block.between(x1)), atol=1e-5, rtol=1e-5)

@given(st.integers(0, 9), st.integers(1, 5))
def test_order_of_codes(n, L):
    order = _code_order(n, L)
    assert order.shape == (n + L, n + L)
    assert order[:, :n].all() and not order[:n, n:].any()
    assert torch.equal(order[n:, n:], torch.ones(L, L).tril().bool())

def test_projection_follows_its_equation_and_drops_before_each_layer():
    p = _projection(24, 6, dropout=.5, seed=3)
    assert [type(m).__name__ for m in p] == ['Dropout', 'Linear', 'SiLU', 'Dropout', 'Linear']
    assert p[1].weight.shape == (12, 24) and p[4].weight.shape == (6, 12)
    assert torch.equal(p[1].weight, _projection(24, 6, seed=3)[1].weight)
    wide = _projection(1536, 128)
    assert abs(float(wide[1].weight.detach().std()) - .02) < 1e-4 and not wide[1].bias.any()
    x = torch.ones(200, 24)
    assert (p.train()(x) != p.eval()(x)).any()

# ---------------------------------------------------------------- the encoder

def test_neighbours_and_order_do_not_matter(encoder, shop, images):
    h = states(encoder, shop.text, images)
    assert h.shape == (40, 3, 32) and h.isfinite().all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = states(encoder, [shop.text[r] for r in order], [images[r] for r in order])
    torch.testing.assert_close(mixed, h[order], atol=1e-5, rtol=1e-4)
    for r in (0, 1, 39): torch.testing.assert_close(states(encoder, [shop.text[r]], [images[r]])[0], h[r], atol=1e-5, rtol=1e-4)

def test_rows_of_what_was_prepared(encoder, shop, images):
    prepared = encoder.prepare(shop.text, images)
    assert {len(part) for part in prepared.values()} == {40}
    for rows in ([0, 3, 6], [1, 2], [5]):
        some = {k: v[rows] for k, v in prepared.items()}
        with torch.no_grad(): h = encoder(**some)
        torch.testing.assert_close(h, states(encoder, [shop.text[r] for r in rows], [images[r] for r in rows]), atol=1e-5, rtol=1e-4)

def test_words_pictures_and_their_absence_all_matter(encoder, shop, images):
    t, p = shop.text[1], images[1]
    cases = [([t], [p]), ([''], [p]), ([t], None), ([''], None), ([t], [images[2]]), ([shop.text[2]], [p])]
    found = torch.cat([states(encoder, *case) for case in cases]).flatten(1)
    assert found.isfinite().all()
    assert torch.cdist(found, found)[~torch.eye(len(cases), dtype=torch.bool)].min() > 1e-3
    torch.testing.assert_close(states(encoder, [t]), states(encoder, [t], [None]))

def test_word_order_matters_and_words_beyond_the_cut_do_not(encoder):
    a, b = states(encoder, ['ink red', 'red ink'])
    assert (a - b).abs().max() > 1e-4
    base = 'a b c d e f g h i j k l'
    torch.testing.assert_close(*states(encoder, [base + ' m', base + ' n o p']), atol=1e-6, rtol=1e-5)

def test_a_code_token_sees_the_earlier_ones_only(words, shop, images):
    encoder = LightEncoder(words, L=4, config=small).eval()
    before = states(encoder, shop.text[:6], images[:6])
    for l in range(4):
        with torch.no_grad():
            encoder.codes[l, ::2] += 1
            away = (states(encoder, shop.text[:6], images[:6]) - before).abs().amax((0, 2))
            encoder.codes[l, ::2] -= 1
        assert (away[:l] < 1e-5).all() and (away[l:] > 1e-5).all()

def test_every_weight_gets_a_gradient(words, shop, images):
    encoder = LightEncoder(words, config=LightConfig(width=32, heads=4, size=16, max_tokens=30, vector=5, tied=False)).train()
    h = encoder(**encoder.prepare(shop.text, images, torch.randn(40, 5)))
    F.cross_entropy(h.flatten(0, 1) @ encoder.head.T, torch.arange(120) % words.size).backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []

def test_a_given_vector_counts_by_its_direction(words, shop):
    encoder, v = LightEncoder(words, config=LightConfig(width=32, size=16, vector=5)).eval(), torch.randn(40, 5)
    h = states(encoder, shop.text, None, v)
    torch.testing.assert_close(states(encoder, shop.text, None, 1000*v), h, atol=1e-4, rtol=1e-3)
    assert (states(encoder, shop.text, None, -v) - h).abs().max() > .01
    assert states(encoder, shop.text, None, torch.zeros(40, 5)).isfinite().all()
    torch.testing.assert_close(encoder.encode(shop.text, None, v, batch_size=7), h, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('vectors', [torch.ones(40, 4), torch.ones(3, 5), torch.ones(5), None])
def test_vectors_that_do_not_fit(words, shop, vectors):
    encoder = LightEncoder(words, config=LightConfig(width=32, size=16, vector=5))
    with pytest.raises(ValueError, match='40 texts came with .* takes 5 numbers'): encoder.prepare(shop.text, None, vectors)

def test_columns_that_do_not_fit(encoder, images):
    with pytest.raises(ValueError, match='2 texts came with 1 pictures'): encoder.prepare(['a', 'b'], [None])
    with pytest.raises(ValueError, match='a text is 7'): encoder.prepare(['a', 7])
    with pytest.raises(ValueError, match='texts is one text'): _columns('a red tile')
    with pytest.raises(ValueError, match='row 2 is a str'): encoder.encode(['a', 'a long text', 'c'], [None, None, 'c.png'])

def test_transparent_and_grey_pictures(encoder):
    clear, white = Image.new('RGBA', (9, 9), (0, 0, 0, 0)), Image.new('RGB', (5, 50), 'white')
    torch.testing.assert_close(states(encoder, ['a', 'a'], [clear, white])[0], states(encoder, ['a'], [white])[0], atol=1e-6, rtol=1e-5)
    assert states(encoder, ['a'], [Image.new('1', (3, 3))]).isfinite().all()

def test_encode_restores_the_mode_also_after_an_error(words, shop, images):
    encoder = LightEncoder(words, config=LightConfig(width=32, size=16, dropout=.5)).train()
    torch.testing.assert_close(encoder.encode(shop.text, images, batch_size=7), encoder.encode(shop.text, images), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError): encoder.encode(['a'], ['b'])
    assert encoder.training
    assert encoder.encode([]).shape == (0, 3, 32)

def test_seeds_are_private(words):
    state = torch.get_rng_state()
    a, b, c = LightEncoder(words, config=small), LightEncoder(words, config=small), LightEncoder(words, config=small, seed=1)
    _projection(8, 4)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), c.parameters()):
        assert torch.equal(p, q)
        if p.dim() > 1: assert not torch.equal(p, r), name

def test_tied_and_untied_heads(words):
    tied, free = (LightEncoder(words, config=LightConfig(width=32, size=16, tied=t)) for t in (True, False))
    assert tied.head is tied.embedding and free.head is not free.embedding
    assert free.head.shape == free.embedding.shape == (words.size, 32)

def test_half_precision(encoder, shop, images):
    h = states(encoder, shop.text, images)
    with torch.autocast('cpu', dtype=torch.bfloat16): rough = states(encoder, shop.text, images)
    assert (rough.float() - h).abs().max() < .1*h.abs().max()

# ---------------------------------------------------------------- on disk

@pytest.mark.parametrize('tied', [True, False])
def test_everything_that_changes_is_saved(tmp_path, words, shop, images, tied):
    encoder = LightEncoder(words, L=2, config=LightConfig(width=32, size=16, tied=tied, vector=3), seed=4).eval()
    v = torch.randn(40, 3)
    with torch.no_grad():
        for k, p in enumerate(encoder.parameters()): p += .01*torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    encoder.save_pretrained(tmp_path)
    loaded = ItemEncoder.from_pretrained(tmp_path)
    assert type(loaded) is LightEncoder and not loaded.training
    assert torch.equal(loaded.encode(shop.text, images, v), encoder.encode(shop.text, images, v))
    assert torch.equal(loaded.head, encoder.head) and (loaded.head is loaded.embedding) == tied
    assert sorted(f.name for f in tmp_path.iterdir()) == ['config.json', 'model.safetensors']

def test_a_folder_that_does_not_fit_says_why(tmp_path, encoder, words):
    encoder.save_pretrained(tmp_path)
    config, tensors = read_folder(tmp_path)
    def refuse(match, config=config, tensors=tensors, kind=ItemEncoder):
        write_folder(tmp_path, config, tensors)
        with pytest.raises(ValueError, match=match): kind.from_pretrained(tmp_path)
    refuse('has nothing for codes', tensors={k: v for k, v in tensors.items() if k != 'codes'})
    refuse('asks for nothing', tensors={**tensors, 'more': torch.ones(1)})
    refuse(r'\(3, 32\) for codes', config={**config, 'L': 5})
    refuse('settings that LightEncoder does not understand', config={k: v for k, v in config.items() if k != 'words'})
    refuse("holds 'something else'", config={k: v for k, v in config.items() if k != 'kind'})
    refuse('expected a multiple of heads', config={**config, 'sizes': {**config['sizes'], 'heads': 5}})
    class Other(LightEncoder): "Another kind"
    write_folder(tmp_path, config, tensors)
    with pytest.raises(ValueError, match="holds 'LightEncoder', expected Other"): Other.from_pretrained(tmp_path)
    ItemEncoder.kinds.pop('Other')

def test_fill_copies_nothing_where_something_is_wrong():
    mine = dict(a=torch.zeros(2), b=torch.zeros(3))
    with pytest.raises(ValueError, match='for b'): _fill(mine, dict(a=torch.ones(2), b=torch.ones(4)), 'here')
    assert not mine['a'].any()

def test_the_interface_says_what_is_missing():
    class Half(ItemEncoder): "Not done"
    for ask in (lambda h: h.prepare([]), lambda h: h(), lambda h: h.to_config()):
        with pytest.raises(NotImplementedError, match='Half lacks'): ask(Half())
    ItemEncoder.kinds.pop('Half')

# ---------------------------------------------------------------- learning

def test_it_learns_what_only_the_picture_tells(words):
    colours = ['red', 'blue', 'green', 'black']
    pictures = [Image.new('RGB', (16, 16), colours[k % 4]) for k in range(32)]
    encoder = LightEncoder(words, L=1, config=small).train()
    answers, target = torch.zeros(4, 32, requires_grad=True), torch.arange(32) % 4
    optimiser = torch.optim.AdamW([*encoder.parameters(), answers], lr=3e-3)
    prepared = encoder.prepare(['the same words']*32, pictures)
    for _ in range(25):
        loss = F.cross_entropy(encoder(**prepared)[:, 0] @ answers.T, target)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    with torch.no_grad():
        right = (encoder.eval()(**prepared)[:, 0] @ answers.T).argmax(1) == target
        blind = (states(encoder, ['the same words']*32)[:, 0] @ answers.T).argmax(1)
    assert right.all() and len(blind.unique()) == 1
