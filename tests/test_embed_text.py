"Text encoders: counted words and pretrained models, alone or in a batch, before and after saving."
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import nn

from gentok.data.dataset import Catalogue
from gentok.data.files import write_folder
from gentok.embed.pretrained import (SentenceModel, batches_by_length, load_whole, masked_mean, pooled,
                                     read_layout, read_pooling, small_model)
from gentok.embed.text import Lsa, TextEncoder, tfidf

colours, shapes = ['red', 'amber', 'green', 'blue'], ['circle', 'square', 'star', 'heart']
texts = [f'{c} {s} number {i}' for i, (c, s) in enumerate((c, s) for c in colours for s in shapes)]

@pytest.fixture(scope='module')
def bert(tmp_path_factory): return small_model('bert', texts, tmp_path_factory.mktemp('bert'))

@pytest.fixture
def t5(tmp_path): return small_model('t5', texts, tmp_path/'t5')

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
    assert len(tfidf([f'only{i}' for i in range(250)]).vocabulary_) == 250

def test_rare_words_are_dropped_in_larger_catalogues():
    assert set(tfidf(['common']*250 + ['alone']).vocabulary_) == {'common', 'common common'} - {'common common'}

def test_lsa_keeps_most_of_the_matrix():
    x = tfidf(texts).transform(texts).toarray()
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
    with pytest.raises(ValueError, match='has 1 words'): TextEncoder.load(tmp_path)

def test_embed_keeps_ids_and_does_not_fit_again():
    catalogue = Catalogue([10 + i for i in range(16)], texts)
    encoder = TextEncoder('lsa', dim=4)
    table = encoder.embed(catalogue)
    assert table.ids == catalogue.ids and table.source == 'lsa'
    part = Catalogue([10], texts[:1])
    assert torch.equal(encoder.embed(part).matrix, table.matrix[:1])

# pretrained encoders

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.sampled_from(['mean', 'cls', 'max']))
def test_pooling_ignores_padding_on_either_side(b, t, pad, how):
    h = torch.randn(b, t, 3)
    rubbish, m = torch.full((b, pad, 3), 1e6), torch.ones(b, t)
    expected = pooled(h, m, how)
    for parts in ((h, rubbish), (rubbish, h)):
        mask = torch.cat([m if p is h else torch.zeros(b, pad) for p in parts], 1)
        torch.testing.assert_close(pooled(torch.cat(parts, 1), mask, how), expected)

def test_masked_mean_is_the_mean():
    h = torch.randn(4, 7, 5)
    torch.testing.assert_close(masked_mean(h, torch.ones(4, 7)), h.mean(1))

@given(st.lists(st.text(max_size=9), max_size=20), st.integers(1, 7))
def test_batches_hold_every_row_once_longest_first(some, size):
    batches = batches_by_length(some, size)
    assert sorted(sum(batches, [])) == list(range(len(some))) and all(len(b) <= size for b in batches)
    lengths = [len(some[row]) for rows in batches for row in rows]
    assert lengths == sorted(lengths, reverse=True)

@pytest.mark.parametrize('kind', ['bert', 't5'])
def test_mixed_lengths_equal_one_by_one(kind, tmp_path):
    model = SentenceModel(small_model(kind, texts, tmp_path))
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
    with pytest.raises(ValueError, match='lacks 16 weights'): load_whole(transformers.AutoModel, tmp_path)

def test_poolings_of_both_ages():
    assert read_pooling(dict(pooling_mode='mean')) == 'mean'
    assert read_pooling(dict(pooling_mode_max_tokens=True)) == 'max'
    for bad in ({}, dict(pooling_mode_mean_tokens=True, pooling_mode_cls_token=True), dict(pooling_mode='lasttoken')):
        with pytest.raises(ValueError, match='choose another model'): read_pooling(bad)

def test_limits_are_read_and_kept(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path/'m')
    (folder/'sentence_bert_config.json').write_text('{"max_seq_length": 5, "do_lower_case": true}')
    assert read_layout(folder).lower
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
    small_model('bert', texts, tmp_path)
    assert torch.equal(torch.rand(1), expected)

def test_vectors_do_not_depend_on_the_number_of_threads():
    gen, found = torch.Generator().manual_seed(0), []
    texts = [' '.join(f'word{w}' for w in row) for row in torch.randint(0, 2000, (1500, 30), generator=gen).tolist()]
    for threads in (1, 2):
        with threadpool_limits(threads): found.append(TextEncoder('lsa', 64).fit(texts).encode(texts))
    assert torch.equal(*found)
