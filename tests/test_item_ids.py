"Identifiers: one to one, both ways, in bulk, and back from the disk."
import json
import pickle

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from gentok.ids.item_ids import (ItemIds, _different, _key_columns, _lower_bound, random_ids, _smallest,
                                 _sort_rows)

tiles = torch.tensor([[2, 0, 1], [0, 1, 1], [2, 0, 0], [0, 0, 2]])

@st.composite
def catalogues(draw):
    "Identifiers of any shape: few or many levels, narrow or very wide."
    L = draw(st.integers(1, 6))
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7, 256, 65_536, 2**31]), min_size=L, max_size=L)))
    row = st.tuples(*[st.integers(0, min(K, 2**31) - 1) | st.sampled_from([0, K - 1]) for K in sizes])
    rows = draw(st.lists(row, min_size=1, max_size=30, unique=True))
    return torch.tensor(rows), sizes

@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_both_ways_and_sorted(case):
    codes, sizes = case
    ids = ItemIds(codes, sizes)
    rows = torch.arange(len(codes))
    assert torch.equal(ids.codes(rows), codes)
    assert torch.equal(ids.items(codes), rows)
    assert codes[ids.order].tolist() == sorted(codes.tolist())

@settings(max_examples=100, deadline=None)
@given(catalogues(), st.data())
def test_find_agrees_with_a_dictionary(case, data):
    codes, sizes = case
    ids, known = ItemIds(codes, sizes), {tuple(c): i for i, c in enumerate(codes.tolist())}
    near = st.tuples(*[st.sampled_from(sorted({*codes[:, l].tolist(), -1, 0, K - 1, K, K + 3})) for l, K in enumerate(sizes)])
    asked = data.draw(st.lists(near, min_size=1, max_size=20))
    assert ids.find(torch.tensor(asked)).tolist() == [known.get(c, -1) for c in asked]

def test_more_bits_than_an_integer_has():
    sizes = (2**31,)*5
    codes = torch.tensor([[0, 0, 0, 0, 1], [2**31 - 1]*5, [0, 0, 0, 1, 0], [0]*5])
    ids = ItemIds(codes, sizes)
    assert _key_columns(codes, sizes).shape[1] == 3
    assert ids.order.tolist() == [3, 0, 2, 1]
    assert ids.find(codes.flip(0)).tolist() == [3, 2, 1, 0]
    assert ids.find([[0, 0, 0, 1, 1]]).tolist() == [-1]

def test_shapes_are_kept():
    ids = ItemIds(tiles)
    assert ids.codes(torch.zeros(5, 2, dtype=torch.long)).shape == (5, 2, 3)
    assert ids.items(tiles.view(2, 2, 3)).shape == (2, 2)
    assert ids.items(tiles[0]).shape == ()
    assert ids.find(torch.empty(0, 3, dtype=torch.long)).shape == (0,)
    assert ids.codes([]).shape == (0, 3)

@pytest.mark.parametrize('codes, sizes, says', [
    ([[0, 1], [0, 1], [1, 1]], None, "2 of 3 items share a code; call resolve"),
    ([[0, 1], [0, 1], [0, 1]], (8, 8), r'3 of 3 items share a code.*K \(now 8\)'),
    ([[0, -1]], None, 'item 0 has a negative code'),
    ([[0., 1.]], None, 'not whole numbers'),
    ([[True, False]], None, 'not whole numbers'),
    ([0, 1, 2], None, r'shape \(3,\)'),
    (torch.empty(0, 3, dtype=torch.long), None, 'one row of codes for each item'),
    ([[0, 1]], (2,), '1 sizes for 2 levels'),
    ([[0, 8]], (8, 8), 'level 2 holds code 8, but its size is 8'),
])
def test_what_is_refused(codes, sizes, says):
    with pytest.raises(ValueError, match=says): ItemIds(codes, sizes)

def test_unknown_questions():
    ids = ItemIds(tiles)
    with pytest.raises(KeyError, match='row 4 is not in this catalogue of 4 items'): ids.codes([0, 4])
    with pytest.raises(KeyError, match='row -1'): ids.codes(-1)
    with pytest.raises(KeyError, match=r'no item has the identifier \(2, 1, 1\)'): ids.items([[2, 0, 1], [2, 1, 1]])
    with pytest.raises(ValueError, match='3 levels'): ids.items([1, 2])

def test_repr():
    assert repr(ItemIds(tiles, (8, 8, 8))) == 'ItemIds(4 items, L=3, K=8, collisions=0)'
    assert repr(ItemIds(tiles, collisions=2)) == 'ItemIds(4 items, L=3, K=(3, 2, 3), collisions=2)'

@settings(max_examples=25, deadline=None)
@given(case=catalogues())
def test_disk(tmp_path_factory, case):
    codes, sizes = case
    folder = tmp_path_factory.mktemp('ids')
    ids = ItemIds(codes, sizes, collisions=3, moved=1)
    assert ids.save(folder) == folder/'item_ids.safetensors'
    again = ItemIds.load(folder)
    assert torch.equal(again.table, ids.table) and again.table.dtype == torch.long
    assert (again.sizes, again.collisions, again.moved) == (sizes, 3, 1)
    assert [f.name for f in folder.iterdir()] == ['item_ids.safetensors']

def test_damaged_files_are_named(tmp_path):
    file = ItemIds(tiles).save(tmp_path/'deep'/'down')
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:20], b'', pickle.dumps([1])):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match='item_ids.safetensors is damaged .* remove the file and run again what wrote it'): ItemIds.load(file)
    save_file({'codes': tiles}, file)
    with pytest.raises(ValueError, match='item_ids.safetensors holds codes and no item identifiers'): ItemIds.load(file)
    save_file({'codes': torch.zeros(2, 2, dtype=torch.long)}, file, {'item_ids': json.dumps({'sizes': [2, 2]})})
    with pytest.raises(ValueError, match='2 of 2 items share a code'): ItemIds.load(file)
    with pytest.raises(ValueError, match='does not exist'): ItemIds.load(tmp_path)

def test_smallest_type_holds_its_codes():
    for K in (1, 2, 256, 257, 2**15, 2**15 + 1, 65_536, 2**31, 2**31 + 1):
        assert int(torch.tensor(K - 1).to(_smallest(K))) == K - 1

@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=6), st.data())
def test_lower_bound_stays_in_its_stretch(stretches, data):
    column = torch.tensor([v for s in stretches for v in sorted(s)] + [0])
    hi = torch.tensor([len(s) for s in stretches]).cumsum(0)
    lo = hi - torch.tensor([len(s) for s in stretches])
    value = torch.tensor(data.draw(st.lists(st.integers(-1, 10), min_size=len(stretches), max_size=len(stretches))))
    expected = [int(a) + sum(v < x for v in s) for a, s, x in zip(lo, stretches, value.tolist())]
    assert _lower_bound(column, lo, hi, value).tolist() == expected

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5), st.data())
def test_random_ids_are_different_and_repeatable(sizes, seed, data):
    room = torch.tensor(sizes).prod().item()
    n = data.draw(st.integers(1, room))
    ids = random_ids(n, tuple(sizes), seed)
    assert len(ids) == n and ids.sizes == tuple(sizes)
    assert torch.equal(ids.table, random_ids(n, tuple(sizes), seed).table)
    with pytest.raises(ValueError, match='do not fit'): random_ids(room + 1, tuple(sizes))

def test_random_ids_favour_nobody():
    "Every place is taken equally often: 3,000 draws of 2 out of 18 places."
    counts = torch.zeros(18)
    for seed in range(3000): counts[_key_columns(random_ids(2, (2, 3, 3), seed).table, (2, 3, 3))[:, 0]] += 1
    expected = 3000*2/18
    assert ((counts - expected)**2/expected).sum() < 45  # chi-square with 17 degrees: p = 0.0003

def test_different_and_sorted():
    codes = torch.randint(3, (200, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_different(codes, (3, 3, 3)), codes.unique(dim=0))
    assert _sort_rows(torch.tensor([[1, 0], [0, 5], [1, 0], [0, 4]])).tolist() == [3, 1, 0, 2]
