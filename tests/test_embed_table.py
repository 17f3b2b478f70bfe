"The embedding table: ids stay on their vectors, whatever is done to it."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.embed.table import EmbeddingTable, concat, _domains_of, hstack, _row_positions, _concat_domains

def numbered(n, d=3, source='t'):
    "A table whose vectors say which row they were."
    return EmbeddingTable([f'i{r}' for r in range(n)], torch.arange(n).float()[:, None].repeat(1, d), source)

def aligned(table):
    return all(f'i{int(v[0])}' == i for i, v in table)

@pytest.mark.parametrize('ids, matrix, found', [
    (['a', 'b'], [[1.], [float('nan')]], "id 'b'"),
    (['a', 'b', 'c'], [[1.], [float('-inf')], [float('nan')]], "id 'b' has NaN or infinite entries, as have 2 of 3"),
    (['a', 'a'], [[1.], [2.]], "'a' occurs twice"),
    (['a'], [[1.], [2.]], '1 ids for 2 rows'),
    (['a', 'b', 'c'], [[1.], [2.]], '3 ids for 2 rows'),
    (['a', None], [[1.], [2.]], 'type NoneType'),
    ([1.5], [[1.]], 'type float'),
    ([True], [[1.]], 'type bool'),
    (['a'], [1.], r'shape \(1,\)'),
    (['a'], torch.zeros(1, 0), r'shape \(1, 0\)'),
    (['a'], torch.zeros(1, 2, 2), r'shape \(1, 2, 2\)'),
    (['a'], torch.tensor([[1e300]], dtype=torch.float64), "id 'a'")])
def test_bad_tables_are_one_sentence(ids, matrix, found):
    with pytest.raises(ValueError, match=found) as e: EmbeddingTable(ids, matrix, 's')
    assert '\n' not in str(e.value) and str(e.value).endswith('.')

def test_repr_is_the_documented_one():
    assert repr(EmbeddingTable(range(2420), torch.zeros(2420, 128), 'lsa')) == "EmbeddingTable(2,420 items, d=128, 'lsa')"

def test_numpy_and_torch_ids_become_plain_ones():
    for ids in (np.array([3, 1]), torch.tensor([3, 1]), [np.int64(3), torch.tensor(1)], range(3, 5)):
        assert all(type(i) is int for i in EmbeddingTable(ids, torch.zeros(2, 1), 's').ids)
    assert type(EmbeddingTable(np.array(['a']), torch.zeros(1, 1), 's').ids[0]) is str

def test_matrix_has_no_gradient_and_is_float32():
    table = EmbeddingTable(['a'], torch.ones(1, 2, dtype=torch.float64, requires_grad=True), 's')
    assert table.matrix.dtype == torch.float32 and not table.matrix.requires_grad

def test_ids_and_matrix_cannot_be_exchanged():
    table = numbered(4)
    with pytest.raises(AttributeError): table.ids = ['x']*4
    with pytest.raises(AttributeError): table.matrix = torch.zeros(4, 3)
    table.ids.reverse()
    assert aligned(table)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.data())
def test_every_index_keeps_ids_attached(n, data):
    table, rows = numbered(n), data.draw(st.permutations(range(n)))
    k = data.draw(st.integers(0, n))
    some = rows[:k]
    expected = [f'i{r}' for r in some]
    for index in (some, torch.tensor(some, dtype=torch.long), np.array(some, dtype=int), [r - n for r in some]):
        assert table[index].ids == expected and aligned(table[index])
    mask = torch.zeros(n, dtype=torch.bool)
    mask[some] = True
    for m in (mask, mask.numpy(), mask.tolist()):
        assert table[m].ids == [f'i{r}' for r in sorted(some)] and aligned(table[m])

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.slices(20))
def test_slices_are_those_of_a_list(n, s):
    assert _row_positions(s, n).tolist() == list(range(n))[s]

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 25), st.randoms(use_true_random=False))
def test_cut_and_join_and_shuffle_give_the_table_back(n, cut, rng):
    table = numbered(n)
    assert concat([table[:cut], table[cut:]]).ids == table.ids
    order = table.ids
    rng.shuffle(order)
    shuffled = table.for_ids(order)
    assert shuffled.ids == order and aligned(shuffled)
    assert torch.equal(shuffled.for_ids(table.ids).matrix, table.matrix)

@pytest.mark.parametrize('index, found', [([4], 'Row 4'), ([-5], 'Row -5'), ([0, 0], 'occurs twice'),
    ([True], 'mask has 1'), (['i0'], 'for_ids'), ('i0', 'for_ids'), ([.5], 'whole numbers'), ([None], 'for_ids')])
def test_bad_indices_are_one_sentence(index, found):
    with pytest.raises(ValueError, match=found): numbered(4)[index]

def test_unknown_ids_are_named():
    with pytest.raises(KeyError, match="no vector for 'x'"): numbered(4).for_ids(['i1', 'x'])
    with pytest.raises(KeyError, match='1'): EmbeddingTable(['1'], torch.zeros(1, 1), 's').for_ids([1])
    with pytest.raises(ValueError, match='occurs twice'): numbered(4).for_ids(['i1', 'i1'])

def test_hstack_refuses_other_ids_and_other_orders():
    table = numbered(4)
    assert hstack([table, table]).dim == 6
    with pytest.raises(ValueError, match='another order'): hstack([table, table[[3, 2, 1, 0]]])
    with pytest.raises(ValueError, match='share 2 ids only'): hstack([table, table[:2]])
    with pytest.raises(ValueError, match='at least one'): hstack([])

def test_concat_refuses_repeats_and_widths():
    with pytest.raises(ValueError, match='occurs twice'): concat([numbered(2), numbered(3)])
    with pytest.raises(ValueError, match=r'widths \[2, 3\]'): concat([numbered(2), EmbeddingTable(['x'], torch.zeros(1, 2), 's')])
    with pytest.raises(ValueError, match='at least one'): concat([])
    assert EmbeddingTable.concat is concat and EmbeddingTable.hstack is hstack

@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.integers(-2**60, 2**60), st.text(st.characters(exclude_categories=['Cs']))), unique=True, max_size=8))
def test_ids_come_back_with_their_type(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp('table')
    table = EmbeddingTable(ids, torch.randn(len(ids), 2), 's')
    table.save(folder)
    loaded = EmbeddingTable.load(folder)
    assert loaded.ids == ids and [type(i) for i in loaded.ids] == [type(i) for i in ids]
    assert torch.equal(loaded.matrix, table.matrix) and loaded.source == 's'

def test_no_pickle_on_disk(tmp_path):
    numbered(3).save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['config.json', 'items.json', 'model.safetensors']

def test_damaged_folders_are_errors(tmp_path):
    numbered(3).save(tmp_path)
    items = json.loads((tmp_path/'items.json').read_text())
    (tmp_path/'items.json').write_text(json.dumps({'ids': items['ids'][:2]}))
    with pytest.raises(ValueError, match='2 ids for 3 rows'): EmbeddingTable.load(tmp_path)
    (tmp_path/'items.json').write_text('{"ids": [')
    with pytest.raises(ValueError, match='items.json'): EmbeddingTable.load(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)): EmbeddingTable.load(tmp_path/'nothing')

def test_other_folders_are_refused(tmp_path):
    from gentok.store.files import write_folder
    write_folder(tmp_path, dict(kind='Whitening'), {'mean': torch.zeros(2)})
    with pytest.raises(ValueError, match='Whitening'): EmbeddingTable.load(tmp_path)

@given(st.dictionaries(st.text(st.characters(exclude_characters='/', codec='utf-8'), min_size=1, max_size=4), st.integers(1, 5), min_size=1, max_size=4), st.randoms())
def test_domains_follow_their_items_in_any_order(counts, random):
    both = _concat_domains({name: numbered(n) for name, n in counts.items()})
    rows = random.sample(range(len(both)), len(both))
    names, number = _domains_of(both[rows].ids)
    assert names == tuple(sorted(counts)) and len(both) == sum(counts.values())
    for id, m in zip(both[rows].ids, number.tolist()): assert id.startswith(names[m] + '/')

def test_an_id_with_a_slash_of_its_own_keeps_its_domain():
    both = _concat_domains({'web': EmbeddingTable(['a/b', 'c'], torch.ones(2, 2), 't')})
    assert both.ids == ['web/a/b', 'web/c'] and _domains_of(both.ids).names == ('web',)
    with pytest.raises(ValueError, match='occurs twice'): _concat_domains({'x': EmbeddingTable([1, '1'], torch.ones(2, 2), 't')})
    for nameless in (3, 'c', '/c'):
        with pytest.raises(ValueError, match='name no domain'): _domains_of(['web/c', nameless])
