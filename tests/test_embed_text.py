"Text encoders: counted words and pretrained models, alone or in a batch, before and after saving."
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import nn

from gentok.data.dataset import Catalogue
from gentok.store.files import write_folder
from gentok.embed.pretrained import (SentenceModel, _batches_by_length, _load_whole, _masked_mean, _pooled,
                                     _read_layout, _read_pooling, _small_model)
from gentok.embed.table import EmbeddingTable
from gentok.embed.text import Lsa, TextEncoder, _characters_for, _lost_texts, _terms, _tfidf, _unspaced, _vectoriser, _words_of
from gentok.tokenize.tokenizer import ResidualKMeans

colours, shapes = ['red', 'amber', 'green', 'blue'], ['circle', 'square', 'star', 'heart']
texts = [f'{c} {s} number {i}' for i, (c, s) in enumerate((c, s) for c in colours for s in shapes)]

@pytest.fixture(scope='module')
def bert(tmp_path_factory): return _small_model('bert', texts, tmp_path_factory.mktemp('bert'))

@pytest.fixture
def t5(tmp_path): return _small_model('t5', texts, tmp_path/'t5')

def layout(folder, dense=None, pooling=dict(pooling_mode_mean_tokens=True), normalise=True, activation='torch.nn.modules.activation.Tanh'):
    "Write a sentence-transformers list of modules into a model folder."
    kinds = {'': 'Transformer', '1_Pooling': 'Pooling'} | ({'2_Dense': 'Dense'} if dense else {}) | ({'3_Normalize': 'Normalize'} if normalise else {})
    Path(folder, 'modules.json').write_text(json.dumps([dict(path=p, type=f'sentence_transformers.models.{k}') for p, k in kinds.items()]))
    write_folder(Path(folder, '1_Pooling'), pooling)
    if dense: write_folder(Path(folder, '2_Dense'), dict(in_features=dense.in_features, out_features=dense.out_features,
        activation_function=activation), {f'linear.{k}': v for k, v in dense.state_dict().items()})

# counted words

def test_lsa_is_deterministic_and_float32():
    a, b = (TextEncoder('lsa', dim=8).fit(texts).encode(texts) for _ in range(2))
    assert a.dtype == torch.float32 and a.shape == (16, 8) and torch.equal(a, b)

@settings(max_examples=30, deadline=None)
@given(st.lists(st.text('abc de', max_size=20), min_size=1, max_size=12), st.integers(1, 40))
def test_any_small_catalogue_works_or_says_why(some, dim):
    encoder = TextEncoder('lsa', dim=dim)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        try: z = encoder.fit(some).encode(some)
        except ValueError as e: assert 'no word' in str(e)
        else:
            assert z.shape == (len(some), encoder.dim) and encoder.dim <= min(dim, len(some)) and torch.isfinite(z).all()
            assert torch.equal(TextEncoder('lsa', dim=dim).fit(some).encode(some), z)

def test_rows_do_not_depend_on_their_neighbours():
    encoder = TextEncoder('lsa', dim=6).fit(texts)
    assert torch.equal(encoder.encode(texts)[3:5], encoder.encode(texts[3:5]))

def test_dimension_is_capped_and_told():
    encoder = TextEncoder('lsa', dim=128).fit(texts)
    assert encoder.dim <= 16 and 'of 128 asked' in repr(encoder)
    assert TextEncoder('lsa', dim=4).fit(['same text']*6).dim == 1

def test_min_df_gives_way_where_every_word_is_alone():
    assert len(_tfidf([f'only{i}' for i in range(250)]).vocabulary_) == 250

def test_rare_words_are_dropped_in_larger_catalogues():
    assert set(_tfidf(['common']*250 + ['alone']).vocabulary_) == {'common', 'common common'} - {'common common'}

def test_lsa_keeps_most_of_the_matrix():
    x = _tfidf(texts).transform(texts).toarray()
    lsa = Lsa(16).fit(texts)
    np.testing.assert_allclose(lsa.encode(texts).numpy() @ lsa.directions.T, x, atol=1e-4)

def test_empty_texts_are_zero_and_counted():
    encoder = TextEncoder('lsa', dim=4).fit(texts)
    with pytest.warns(UserWarning, match="3 of 4 texts say nothing"): z = encoder.encode(['', '   ', 'zebra', 'red'])
    assert (z == 0).all(1).tolist() == [True, True, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder.encode(texts)

def test_empty_list_gives_an_empty_matrix(bert):
    assert TextEncoder('lsa', dim=4).fit(texts).encode([]).shape == (0, 4)
    assert TextEncoder(bert).encode([]).shape == (0, 32)

def test_misuse_is_one_sentence(tmp_path):
    encoder = TextEncoder('lsa')
    for call, found in ((lambda: encoder.encode(texts), 'call .fit'), (lambda: encoder.save(tmp_path), 'nothing to save'),
                        (lambda: encoder.fit(['a', 3]), 'Text 1 is 3'), (lambda: encoder.fit('red'), 'list of texts'),
                        (lambda: encoder.fit([]), 'no word'), (lambda: TextEncoder('lsa', dim=0), 'at least 1'),
                        (lambda: TextEncoder('no/such/folder'), 'no folder here')):
        with pytest.raises(ValueError, match=found) as e: call()
        assert '\n' not in str(e.value) and str(e.value).endswith('.')

def test_lsa_survives_saving_without_pickle(tmp_path):
    encoder = TextEncoder('lsa', dim=8, normalise=True).fit(texts)
    encoder.save(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {'.json', '.safetensors'}
    loaded, new = TextEncoder.load(tmp_path), ['blue star', 'red red heart']
    assert torch.equal(loaded.encode(texts + new), encoder.encode(texts + new)) and repr(loaded) == repr(encoder)

def test_damaged_encoder_is_refused(tmp_path):
    TextEncoder('lsa', dim=4).fit(texts).save(tmp_path)
    (tmp_path/'items.json').write_text('{"vocabulary": ["red"]}')
    with pytest.raises(ValueError, match='has other words than were saved'): TextEncoder.load(tmp_path)

def test_embed_keeps_ids_and_does_not_fit_again():
    catalogue = Catalogue([10 + i for i in range(16)], texts)
    encoder = TextEncoder('lsa', dim=4)
    table = encoder.embed(catalogue)
    assert table.ids == catalogue.ids and table.source == 'lsa'
    part = Catalogue([10], texts[:1])
    assert torch.equal(encoder.embed(part).matrix, table.matrix[:1])

# texts without spaces

hues, sizes = dict(zh=['红色', '蓝色', '白色', '黑色', '粉色'], ja=['赤い', '青い', '白い', '黒い', '緑の'], th=['สีแดง', 'สีฟ้า', 'สีขาว', 'สีดำ', 'สีเขียว'],
                   en=['red', 'blue', 'white', 'black', 'pink']), dict(zh=['小号', '中号', '大号', '套装'], ja=['小', '中', '大', 'セット'],
                   th=['เล็ก', 'กลาง', 'ใหญ่', 'ชุด'], en=['small', 'medium', 'large', 'set'])
things = dict(zh=['玻璃花瓶', '棉质衬衫', '登山帐篷', '电动牙刷', '儿童雨伞', '皮革钱包'], ja=['ガラス花瓶', 'シャツ', '登山用テント', '電動歯ブラシ', '子供傘', '革財布'],
              th=['แจกันแก้ว', 'เสื้อเชิ้ต', 'เต็นท์เดินป่า', 'แปรงสีฟันไฟฟ้า', 'ร่มเด็ก', 'กระเป๋าหนัง'],
              en=['glass vase', 'cotton shirt', 'hiking tent', 'electric toothbrush', 'child umbrella', 'leather wallet'])
shelf = [kind for kind in range(6) for _ in range(20)]

def titles(language):
    "120 titles of six kinds of thing; English ones without spaces are 'joined'"
    at, space = ('en', '') if language == 'joined' else (language, ' ' if language == 'en' else '')
    return [space.join((h, t if space else t.replace(' ', ''), s)) for t in things[at] for h in hues[at] for s in sizes[at]]

def fitted(some, dim=32):
    "The encoder, and the warnings that fitting gave"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        return TextEncoder('lsa', dim=dim).fit(some), [str(w.message) for w in told]

def purity(vectors, kinds, K=32):
    "Share of items whose first code is that of more items of their kind than of any other"
    tokenizer = ResidualKMeans(levels=2, K=K).fit(EmbeddingTable(range(len(vectors)), vectors, 'lsa'))
    code = tokenizer.encode(EmbeddingTable(range(len(vectors)), vectors, 'lsa'))[:, 0].tolist()
    votes = {c: Counter(kind for kind, own in zip(kinds, code) if own == c) for c in set(code)}
    return sum(max(v.values()) for v in votes.values())/len(kinds)

def like(vectors, kinds):
    "Share of items whose nearest neighbour is of their kind"
    z, kinds = nn.functional.normalize(vectors, dim=1), torch.tensor(kinds)
    return (kinds[(z @ z.T).fill_diagonal_(-2).argmax(1)] == kinds).float().mean().item()

def read_case(folder): return [line.split(',', 1)[1] for line in (folder/'items.csv').read_text(encoding='utf-8').split('\n')[1:] if line]

@pytest.mark.parametrize('language', ['zh', 'ja', 'th', 'joined'])
def test_titles_without_spaces_show_their_kinds(language):
    encoder, told = fitted(titles(language))
    assert encoder.model.characters == (('spaced',) if language == 'joined' else ('unspaced',))
    assert 'character n-grams (1-2)' in repr(encoder) and ' words' not in repr(encoder)
    assert len(told) == 1 and told[0].startswith('120 of 120 texts') and told[0].endswith('.')
    z = encoder.encode(titles(language))
    assert purity(z, shelf) >= .9 and like(z, shelf) >= .9
    words = _tfidf(titles(language)).transform(titles(language)).toarray()
    if language in ('zh', 'joined'): np.testing.assert_allclose(words @ words.T, np.eye(120), atol=1e-6)

def test_the_case_of_chinese_titles(shared):
    if not (shared/'cases'/'cjk_titles').is_dir(): pytest.skip('the case cjk_titles is not there')
    en, zh = (read_case(shared/'cases'/'cjk_titles'/n) for n in ('en', 'zh'))
    kinds = [' '.join(t.split()[1:-1]) for t in en]
    assert len(set(kinds)) == 12
    for some, of, chosen in ((en, kinds, ()), (zh, kinds, ('unspaced',)), (zh[::2] + en[1::2], kinds[::2] + kinds[1::2], ('unspaced',))):
        encoder, told = fitted(some)
        assert encoder.model.characters == chosen and bool(told) == bool(chosen)
        assert purity(encoder.encode(some), of) >= .9

def test_the_english_half_keeps_its_words():
    both, kinds = titles('zh') + titles('en'), shelf*2
    encoder, told = fitted(both)
    assert encoder.model.characters == ('unspaced',) and told[0].startswith('120 of 240 texts')
    alone = set(_tfidf(titles('en')*2).get_feature_names_out())
    assert alone <= set(encoder.model.words.get_feature_names_out()) | {w for w in alone if ' ' in w}
    z = encoder.encode(both)
    assert purity(z, kinds) >= .9 and like(z[:120], shelf) >= .9
    assert like(z[120:], shelf) >= like(fitted(titles('en'))[0].encode(titles('en')), shelf) >= .9

@pytest.mark.parametrize('some', [texts, ['red mug', 'blue star', 'a lamp', 'green chair', 'two spoons'], ['Unforgettable', 'Heat', 'Alien', 'Seven', 'Big'],
                                  [f'only{i}' for i in range(250)], [f'B{i:012d}' for i in range(50)],
                                  [' '.join((h, t[:2], t[2:], s)) for t in things['zh'] for h in hues['zh'] for s in sizes['zh']],
                                  titles('en') + titles('zh')[:9], ['', '', 'red'], ['빨간 머그컵 작은', '파란 유리꽃병 큰'], ['Donaudampfschifffahrt auf der schönen blauen Donau', 'Fahrt im Boot']])
def test_words_are_kept_where_there_are_spaces(some):
    encoder, told = fitted(some)
    assert encoder.model.characters == () and not told and 'words' in repr(encoder)
    assert set(encoder.model.words.get_feature_names_out()) == set(_tfidf(some).get_feature_names_out())

def test_a_tiny_catalogue_without_spaces_has_neighbours():
    encoder, _ = fitted(['红色陶瓷杯', '蓝色陶瓷杯', '羊毛围巾'])
    z = nn.functional.normalize(encoder.encode(['红色陶瓷杯', '蓝色陶瓷杯', '羊毛围巾', '白色陶瓷杯']), dim=1)
    assert z[0] @ z[1] > .4 and z[0] @ z[3] > .4 and z[0] @ z[2] < .1

@pytest.mark.parametrize('some', [['茶杯', '水杯', '茶壶'], ['红 杯', '蓝 鞋'], ['红'], ['木椅'], ['木椅']*5, ['木椅 chair', '木桌 table']])
def test_the_shortest_titles_without_spaces_work_too(some):
    encoder, told = fitted(some)
    z = encoder.encode(some)
    assert len(told) == (encoder.model.characters == ('unspaced',)) == 1 and torch.isfinite(z).all() and (z != 0).any(1).all()

def test_copies_do_not_make_words_shared():
    assert _lost_texts(titles('zh')*3) == dict(unspaced=120, spaced=0) and _characters_for(titles('zh')*3) == ('unspaced',)
    assert _characters_for([]) == () and _lost_texts(['', '!', '7']) == dict(unspaced=0, spaced=0)

@given(st.text('ab 红色杯ーกำ,-7é_', max_size=30))
def test_terms_are_those_of_scikit_learn_where_words_are_kept(text):
    plain = _unspaced.sub(' ', text)
    assert _terms(plain, ['unspaced']) == _vectoriser().build_analyzer()(plain)
    runs, grams = _words_of(text)['unspaced'], [t for t in _terms(text, ['unspaced']) if _unspaced.fullmatch(t)]
    assert len(grams) == sum(2*len(w) - 1 for w in runs) and set(''.join(runs)) == set(''.join(grams))

@settings(max_examples=30, deadline=None)
@given(st.sampled_from(['zh', 'ja', 'en', 'joined', 'mixed']), st.integers(2, 120), st.randoms(use_true_random=False))
def test_the_order_of_texts_changes_nothing(language, n, random):
    some = (titles('zh')[::2] + titles('en')[::2] if language == 'mixed' else titles(language))[:n]
    other = random.sample(some, len(some))
    (a, told), (b, again) = fitted(some, 16), fitted(other, 16)
    assert np.array_equal(a.model.directions, b.model.directions) and np.array_equal(a.model.words.idf_, b.model.words.idf_)
    assert a.model.words.vocabulary_ == b.model.words.vocabulary_ and a.model.characters == b.model.characters and told == again
    assert torch.equal(a.encode(some), b.encode(some))

@pytest.mark.parametrize('some', [titles('zh'), titles('joined'), titles('zh') + titles('en'), titles('en')])
def test_characters_survive_saving(some, tmp_path):
    encoder, new = fitted(some)[0], ['红色杯 red vase', 'bluecottonshirt', '衬衫']
    encoder.save(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    assert config.get('characters', []) == list(encoder.model.characters) and ('characters' in config) == bool(encoder.model.characters)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='(?!.*say nothing)')
        loaded = TextEncoder.load(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*say nothing')
        assert torch.equal(loaded.encode(some + new), encoder.encode(some + new)) and repr(loaded) == repr(encoder)
    loaded.save(tmp_path/'again')
    assert repr(TextEncoder.load(tmp_path/'again')) == repr(encoder)

def test_an_older_folder_means_words(tmp_path):
    tensors = dict(idf=torch.ones(2), directions=torch.eye(2))
    config = dict(kind='TextEncoder', name='lsa', normalise=False, dim=2, seed=0)
    write_folder(tmp_path, config, tensors, dict(vocabulary=['blue', 'red']))
    assert repr(TextEncoder.load(tmp_path)) == "TextEncoder('lsa', d=2, 2 words)"
    assert TextEncoder.load(tmp_path).encode(['red']).tolist() == [[0, 1]]
    write_folder(tmp_path, dict(config, characters=['letters']), tensors, dict(vocabulary=['blue', 'red']))
    with pytest.raises(ValueError, match=r"\['letters'\], expected some of \['unspaced', 'spaced'\]; save .*\.$"): TextEncoder.load(tmp_path)

def test_a_failed_fit_leaves_the_encoder_as_it_was():
    encoder = fitted(titles('zh'))[0]
    before = repr(encoder), encoder.encode(titles('zh'))
    with pytest.raises(ValueError, match='no word'): encoder.fit(['', '!'])
    assert repr(encoder) == before[0] and torch.equal(encoder.encode(titles('zh')), before[1])

# pretrained encoders

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.sampled_from(['mean', 'cls', 'max']))
def test_pooling_ignores_padding_on_either_side(b, t, pad, how):
    h = torch.randn(b, t, 3)
    rubbish, m = torch.full((b, pad, 3), 1e6), torch.ones(b, t)
    expected = _pooled(h, m, how)
    for parts in ((h, rubbish), (rubbish, h)):
        mask = torch.cat([m if p is h else torch.zeros(b, pad) for p in parts], 1)
        torch.testing.assert_close(_pooled(torch.cat(parts, 1), mask, how), expected)

def test_masked_mean_is_the_mean():
    h = torch.randn(4, 7, 5)
    torch.testing.assert_close(_masked_mean(h, torch.ones(4, 7)), h.mean(1))

@given(st.lists(st.text(max_size=9), max_size=20), st.integers(1, 7))
def test_batches_hold_every_row_once_longest_first(some, size):
    batches = _batches_by_length(some, size)
    assert sorted(sum(batches, [])) == list(range(len(some))) and all(len(b) <= size for b in batches)
    lengths = [len(some[row]) for rows in batches for row in rows]
    assert lengths == sorted(lengths, reverse=True)

@pytest.mark.parametrize('kind', ['bert', 't5'])
def test_mixed_lengths_equal_one_by_one(kind, tmp_path):
    model = SentenceModel(_small_model(kind, texts, tmp_path))
    mixed = ['red', ' '.join(texts), 'blue star number', 'amber', 'heart heart heart heart heart']
    alone = torch.cat([model.encode([t]) for t in mixed])
    for size in (1, 2, 5): torch.testing.assert_close(model.encode(mixed, size), alone, atol=1e-5, rtol=1e-5)

def test_equal_to_transformers_by_hand(bert):
    import transformers
    model, tokenizer = transformers.AutoModel.from_pretrained(bert), transformers.AutoTokenizer.from_pretrained(bert)
    with torch.no_grad(): h = model(**tokenizer(texts[:1], return_tensors='pt')).last_hidden_state
    torch.testing.assert_close(TextEncoder(bert).encode(texts[:1]), h.mean(1))

def test_sentence_t5_layout(t5):
    dense = nn.Linear(32, 12, bias=False)
    plain = SentenceModel(t5).encode(texts)
    layout(t5, dense, activation='torch.nn.modules.linear.Identity')
    model = SentenceModel(t5)
    assert type(model.model).__name__ == 'T5EncoderModel' and model.dim == 12
    torch.testing.assert_close(model.encode(texts), nn.functional.normalize(plain @ dense.weight.T, dim=1))

def test_dense_with_offset_and_activation_and_cls(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'m')
    dense = nn.Linear(32, 5)
    layout(folder, dense, dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), normalise=False)
    model = SentenceModel(folder)
    tokens = model.tokenizer(texts[:3], padding=True, return_tensors='pt')
    h = model.model(tokens['input_ids'], tokens['attention_mask']).last_hidden_state
    torch.testing.assert_close(model.encode(texts[:3]), dense(h[:, 0]).tanh())

def test_dense_from_the_older_file(bert, tmp_path):
    folder, dense = shutil.copytree(bert, tmp_path/'m'), nn.Linear(32, 5)
    layout(folder, dense)
    new = SentenceModel(folder).encode(texts)
    (folder/'2_Dense/model.safetensors').unlink()
    torch.save({f'linear.{k}': v for k, v in dense.state_dict().items()}, folder/'2_Dense/pytorch_model.bin')
    assert torch.equal(SentenceModel(folder).encode(texts), new)

def test_a_pickle_that_runs_code_is_refused(bert, tmp_path):
    class Trap:
        def __reduce__(self): return (Path.touch, (tmp_path/'sprung',))
    folder = shutil.copytree(bert, tmp_path/'m')
    layout(folder, nn.Linear(32, 5))
    (folder/'2_Dense/model.safetensors').unlink()
    torch.save({'linear.weight': Trap()}, folder/'2_Dense/pytorch_model.bin')
    with pytest.raises(Exception): SentenceModel(folder)
    assert not (tmp_path/'sprung').exists()

def test_folders_that_lack_things(bert, tmp_path):
    def broken(change):
        folder = shutil.copytree(bert, tmp_path/change.__name__)
        layout(folder, nn.Linear(32, 5))
        change(folder)
        with pytest.raises(ValueError) as e: TextEncoder(folder)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')
        return str(e.value)
    def no_pooling(f): shutil.rmtree(f/'1_Pooling')
    def no_dense(f): (f/'2_Dense/model.safetensors').unlink()
    def no_config(f): (f/'config.json').unlink()
    def no_weights(f): (f/'model.safetensors').unlink()
    def cut_weights(f): (f/'model.safetensors').write_bytes((f/'model.safetensors').read_bytes()[:5000])
    def no_tokenizer(f): [(f/n).unlink(missing_ok=True) for n in ('tokenizer.json', 'vocab.txt')]
    def odd_module(f): (f/'modules.json').write_text('[{"path": "", "type": "x.WordWeights"}]')
    def bad_json(f): (f/'modules.json').write_text('[{]')
    def other_size(f): write_folder(f/'2_Dense', dict(in_features=9, out_features=5), {'linear.weight': torch.zeros(5, 32)})
    for change, found in ((no_pooling, '1_Pooling'), (no_dense, 'no model.safetensors'), (no_config, 'config.json'),
                          (no_weights, 'holds no model'), (cut_weights, 'holds no model'), (no_tokenizer, 'no tokenizer'),
                          (odd_module, 'WordWeights'), (bad_json, 'line 1'), (other_size, 'from 9 to 5')):
        assert found in broken(change), change.__name__

def test_missing_weights_are_not_drawn_at_random(bert, tmp_path):
    import transformers
    model = transformers.AutoModel.from_pretrained(bert)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if 'layer.1' not in k})
    with pytest.raises(ValueError, match='lacks 16 weights'): _load_whole(transformers.AutoModel, tmp_path)

def test_poolings_of_both_ages():
    assert _read_pooling(dict(pooling_mode='mean')) == 'mean'
    assert _read_pooling(dict(pooling_mode_max_tokens=True)) == 'max'
    for bad in ({}, dict(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True), dict(pooling_mode='lasttoken')):
        with pytest.raises(ValueError, match='choose another model'): _read_pooling(bad)

def test_limits_are_read_and_kept(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'m')
    (folder/'sentence_bert_config.json').write_text('{"max_seq_length": 5, "do_lower_case": true}')
    assert _read_layout(folder).lower
    model = SentenceModel(folder)
    assert model.max_tokens == 5
    torch.testing.assert_close(model.encode(['RED star']), model.encode(['red star']))
    torch.testing.assert_close(model.encode(['red star number blue']), model.encode(['red star number green']))

def test_text_encoder_over_a_folder(bert, tmp_path):
    encoder = TextEncoder(bert, normalise=True)
    assert encoder.fitted and encoder.fit(texts) is encoder
    with pytest.warns(UserWarning, match='1 of 2 texts'): z = encoder.encode(['', 'red'])
    assert (z[0] == 0).all() and z[1].norm() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match='dim=64 was asked'): TextEncoder(bert, dim=64)
    encoder.save(tmp_path)
    assert torch.equal(TextEncoder.load(tmp_path).encode(texts), encoder.encode(texts))

def test_loading_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    _small_model('bert', texts, tmp_path)
    assert torch.equal(torch.rand(1), expected)

def test_vectors_do_not_depend_on_the_number_of_threads():
    gen, found = torch.Generator().manual_seed(0), []
    texts = [' '.join(f'word{w}' for w in row) for row in torch.randint(0, 2000, (1500, 30), generator=gen).tolist()]
    for threads in (1, 2):
        with threadpool_limits(threads): found.append(TextEncoder('lsa', 64).fit(texts).encode(texts))
    assert torch.equal(*found)
