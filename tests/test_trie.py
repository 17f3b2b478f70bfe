"A trie holds exactly the identifiers: no path more, none less."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.ids.item_ids import ItemIds, random_ids
from gentok.ids.trie import Trie

@st.composite
def catalogues(draw):
    L = draw(st.integers(1, 5))
    sizes = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 256, 300, 65_536]), min_size=L, max_size=L)))
    row = st.tuples(*[st.integers(0, min(K, 4) - 1) | st.integers(0, K - 1) for K in sizes])
    return ItemIds(draw(st.lists(row, min_size=1, max_size=40, unique=True)), sizes)

def paths(trie):
    "All root-to-leaf paths, walked with `children` alone, as {identifier: item}."
    nodes, codes = trie.root, torch.empty(1, 0, dtype=torch.long)
    for l in range(trie.L):
        child, valid = trie.children(l, nodes)
        assert child.shape == (len(nodes), trie.degree[l])
        parent, _ = valid.nonzero(as_tuple=True)
        nodes = child[valid]
        codes = torch.cat([codes[parent], trie.code[l][nodes].long()[:, None]], 1)
    return {tuple(c): int(trie.item[leaf]) for c, leaf in zip(codes.tolist(), nodes.tolist())}

@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_paths_are_the_identifiers(ids):
    trie = Trie(ids)
    assert paths(trie) == {tuple(c): i for i, c in enumerate(ids.table.tolist())}

@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_find_and_codes_are_inverse(ids):
    trie, rows = Trie(ids), torch.arange(len(ids))
    assert torch.equal(trie.codes(rows), ids.table)
    leaf = trie.find(ids.table)
    assert torch.equal(trie.item[leaf].long(), rows)
    assert torch.equal(trie.leaf.long(), leaf)

@settings(max_examples=100, deadline=None)
@given(catalogues(), st.data())
def test_find_knows_prefixes_and_nothing_else(ids, data):
    trie = Trie(ids)
    for m in range(ids.L + 1):
        level = sorted(set(map(tuple, ids.table[:, :m].tolist())))
        choice = st.tuples(*[st.sampled_from(sorted({*ids.table[:, l].tolist(), -1, 0, K - 1, K})) for l, K in enumerate(ids.sizes[:m])])
        asked = data.draw(st.lists(choice, min_size=1, max_size=8))
        expected = [level.index(p) if p in level else -1 for p in asked]
        assert trie.find(torch.tensor(asked).view(len(asked), m)).tolist() == expected

@settings(max_examples=50, deadline=None)
@given(catalogues())
def test_nodes_are_numbered_in_order(ids):
    trie = Trie(ids)
    for l in range(ids.L):
        prefixes = sorted(set(map(tuple, ids.table[:, :l+1].tolist())))
        assert trie.nodes[l] == len(prefixes)
        assert trie.code[l].tolist() == [p[-1] for p in prefixes]
        assert len(trie.first[l]) == (trie.nodes[l-1] if l else 1) + 1
        assert trie.degree[l] == int(trie.first[l].diff().max())

def test_one_item():
    trie = Trie(ItemIds([[3, 1, 4]]))
    assert trie.nodes == (1, 1, 1) and trie.degree == [1, 1, 1]
    assert paths(trie) == {(3, 1, 4): 0}

def test_one_level():
    trie = Trie(ItemIds([[5], [0], [2]]))
    assert paths(trie) == {(5,): 0, (0,): 1, (2,): 2}
    assert trie.children(0, trie.root)[0].tolist() == [[0, 1, 2]]

def test_wide_levels():
    ids = ItemIds([[65_535, 0], [0, 65_535], [32_768, 32_767], [255, 256]], (65_536, 65_536))
    assert paths(Trie(ids)) == {tuple(c): i for i, c in enumerate(ids.table.tolist())}
    assert torch.equal(Trie(ids).codes(torch.arange(4)), ids.table)

def test_children_keep_the_shape_they_are_asked_in():
    trie = Trie(random_ids(500, (8, 8, 16)))
    nodes = torch.randint(trie.nodes[1], (3, 5))
    child, valid = trie.children(2, nodes)
    assert child.shape == valid.shape == (3, 5, trie.degree[2])
    flat, _ = trie.children(2, nodes.flatten().int())
    assert torch.equal(flat.view_as(child), child)
    assert (child < trie.nodes[2]).all() and valid.any(-1).all()

def test_other_sizes_of_question():
    trie = Trie(random_ids(50, (4, 4, 4)))
    assert trie.find(torch.empty(0, 3, dtype=torch.long)).shape == (0,)
    assert trie.find(torch.empty(7, 0, dtype=torch.long)).tolist() == [0]*7
    assert trie.find(torch.zeros(2, 3, 2, dtype=torch.long)).shape == (2, 3)
    with pytest.raises(ValueError, match='longer than 3 levels'): trie.find([0, 0, 0, 0])

@pytest.mark.parametrize('sizes', [(256,)*3, (256,)*4, (64, 64, 64, 24)])
def test_memory(sizes):
    trie = Trie(random_ids(100_000, sizes, seed=1))
    assert trie.nbytes <= 16*trie.n_items
    trie.leaf
    assert trie.nbytes <= 20*trie.n_items

def test_moving_keeps_the_original():
    trie = Trie(random_ids(50, (4, 4, 4)))
    there = trie.to('meta')
    assert there.children(0, there.root)[0].device.type == 'meta'
    assert trie.item.device.type == 'cpu' and there.n_items == 50
