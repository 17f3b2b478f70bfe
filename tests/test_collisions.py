"No two items on one identifier, by either policy, and by the published procedure step for step."
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.ids.collisions import collides, _preferences, resolve, _suffixes
from gentok.ids.item_ids import random_ids

def distances(r, e): return torch.cdist(r.double(), e.double(), compute_mode='donot_use_mm_for_euclid_dist')

def quiet(*args, **kw):
    with warnings.catch_warnings(action='ignore'): return resolve(*args, **kw)

def by_the_book(codes, r, e):
    "The procedure of UTGRec as its text says it, with tuples and lists; None where its random last step is reached."
    codes, d = [tuple(c) for c in codes.tolist()], distances(r, e).tolist()
    K = len(e)
    rank = [sorted(range(K), key=lambda k: (k != c[-1], row[k], k)) for c, row in zip(codes, d)]
    groups = {}
    for i, c in enumerate(codes): groups.setdefault(c, []).append(i)
    final = {g[0]: c for c, g in groups.items() if len(g) == 1}
    pending = [(c, g, False) for c, g in groups.items() if len(g) > 1]
    for k in range(2, K):
        movers = []
        for c, g, owned in pending:
            if not owned:
                closest = min(g, key=lambda i: d[i][c[-1]])
                final[closest] = c
                g = [i for i in g if i != closest]
            movers += g
        groups = {}
        for i in movers: groups.setdefault((*codes[i][:-1], rank[i][k-1]), []).append(i)
        taken = set(final.values())
        pending = []
        for c, g in groups.items():
            if len(g) == 1 and c not in taken: final[g[0]] = c
            else: pending.append((c, g, c in taken))
        if not pending: return [final[i] for i in range(len(codes))]
    return None

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 24), st.sampled_from([3, 8, 16]), st.integers(1, 3))
def test_the_published_procedure(seed, n, K, prefixes):
    gen = torch.Generator().manual_seed(seed)
    r, e = torch.randn(n, 2, generator=gen), torch.randn(K, 2, generator=gen)
    prefix = torch.randint(prefixes, (n, 1), generator=gen)
    codes = torch.cat([prefix, distances(r, e).argmin(1, keepdim=True)], 1)
    expected = by_the_book(codes, r, e)
    if expected is None or max(prefix.flatten().bincount()) > K: return
    ids = quiet(codes, 'reassign', residuals=r, codebook=e)
    assert ids.table.tolist() == [list(c) for c in expected]

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
def test_always_different(seed, n, sizes, nearest_codes):
    "Whatever the codes are, also codes that are not the nearest, and prefixes that are overfull."
    gen, room = torch.Generator().manual_seed(seed), torch.tensor(sizes).prod()
    codes = torch.stack([torch.randint(K, (n,), generator=gen) for K in sizes], 1)
    r, e = torch.randn(n, 2, generator=gen), torch.randn(sizes[-1], 2, generator=gen)
    if nearest_codes: codes[:, -1] = distances(r, e).argmin(1)
    suffixed = resolve(codes, 'suffix', tuple(sizes))
    assert torch.equal(suffixed.table[:, :-1], codes) and suffixed.moved == 0
    assert suffixed.sizes == (*sizes, int(codes.unique(dim=0, return_counts=True)[1].max()))
    if n > room:
        with pytest.raises(ValueError, match='do not fit'): resolve(codes, 'reassign', tuple(sizes), r, e)
        return
    ids = quiet(codes, 'reassign', tuple(sizes), r, e, seed=seed)
    assert len(ids.table.unique(dim=0)) == n
    assert ids.collisions == suffixed.collisions == int(collides(codes).sum())
    assert ids.moved == int((ids.table != codes).any(1).sum())
    assert torch.equal(ids.table, quiet(codes, 'reassign', tuple(sizes), r, e, seed=seed).table)
    assert (ids.table == codes).all(1)[~collides(codes)].all()
    _, prefix, held = codes[:, :-1].unique(dim=0, return_inverse=True, return_counts=True) if len(sizes) > 1 else (0, torch.zeros(n).long(), torch.tensor([n]))
    if held.max() <= sizes[-1]: assert torch.equal(ids.table[:, :-1], codes[:, :-1])
    assert len(set(map(tuple, codes.tolist())) - set(map(tuple, ids.table.tolist()))) == 0 or held.max() > sizes[-1]

def test_without_collisions_nothing_changes():
    codes = random_ids(200, (8, 8, 8)).table
    r, e = torch.zeros(200, 1), torch.arange(8.)[:, None]
    for ids in (resolve(codes, 'none'), resolve(codes, 'reassign', residuals=r, codebook=e)):
        assert torch.equal(ids.table, codes) and (ids.collisions, ids.moved) == (0, 0)
    suffixed = resolve(codes, 'suffix')
    assert suffixed.sizes[-1] == 1 and suffixed.L == 4

@pytest.mark.parametrize('name', [f'collision_{x}' for x in ('A_line', 'B_two_prefixes_and_ties')])
def test_published_cases(vectors, name):
    case = vectors('utgrec')[name]
    r, e = (torch.tensor(case['input'][k])[:, None] for k in ('last_level_states', 'leaf_codebook'))
    before = torch.tensor(case['output']['before'])
    assert torch.equal(before[:, -1], distances(r, e).argmin(1))
    ids = resolve(before, 'reassign', residuals=r, codebook=e)
    assert ids.table.tolist() == case['output']['after']
    assert (ids.table + torch.tensor(case['output']['offset'])).tolist() == case['output']['written']
    assert ids.table.tolist() == resolve(before, 'reassign', distances=(r - e.T).abs()).table.tolist()

def test_grid_counts_from_one_where_items_collide(vectors):
    case = vectors('tiger')['grid_dedup']
    codes = torch.tensor(case['inputs'])
    ours = _suffixes(codes)
    theirs = (ours + 1)*collides(codes)
    assert torch.cat([codes, theirs[:, None]], 1).tolist() == case['output']

def test_mtgrec_counts_from_one(vectors):
    case = vectors('mtgrec')['collision_digit']
    ids = resolve(case['input']['codes'], 'suffix')
    one_based = ids.table + torch.tensor([0, 0, 0, 1])
    assert dict(zip(case['input']['items'], one_based.tolist())) == case['output']

def test_a_suffix_of_fixed_size_refuses_a_larger_group():
    codes = torch.tensor([[1, 1]]*3)
    assert resolve(codes, 'suffix', (2, 2, 8)).sizes == (2, 2, 8)
    with pytest.raises(ValueError, match='3 items share one row of codes, but the suffix has 2 values'):
        resolve(codes, 'suffix', (2, 2, 2))

def test_equal_items_are_parted_in_order():
    "Five identical items: the first keeps its code, the others take the next closest ones."
    codes, e = torch.zeros(5, 2, dtype=torch.long), torch.arange(8.)[:, None]
    ids = resolve(codes, 'reassign', residuals=torch.zeros(5, 1), codebook=e)
    assert ids.table[:, 1].tolist() == [0, 1, 2, 3, 4]

def test_an_overfull_prefix_is_reported_and_keeps_last_codes():
    codes = torch.zeros(6, 3, dtype=torch.long)
    e = torch.arange(4.)[:, None]
    with pytest.warns(UserWarning, match='2 of 6 items left their prefix'):
        ids = resolve(codes, 'reassign', (2, 8, 4), torch.zeros(6, 1), e)
    stayed = (ids.table[:, :2] == 0).all(1)
    assert stayed.sum() == 4 and ids.table[stayed, 2].sort().values.tolist() == [0, 1, 2, 3]
    assert (ids.table[~stayed][:, [0, 2]] == 0).all() and (ids.table[~stayed, 1] > 0).all()

def test_many_prefixes_with_wide_codebooks():
    "Seat numbers beyond a byte: 40 prefixes of 200 codes."
    gen = torch.Generator().manual_seed(0)
    r, e = torch.randn(4000, 3, generator=gen), torch.randn(200, 3, generator=gen)
    codes = torch.cat([torch.randint(40, (4000, 1), generator=gen), distances(r, e).argmin(1, keepdim=True)], 1)
    ids = resolve(codes, 'reassign', residuals=r, codebook=e)
    assert torch.equal(ids.table[:, 0], codes[:, 0]) and ids.moved < ids.collisions

def test_crowded_prefixes_with_wide_codebooks():
    "The same, nearly full: leftovers and expelled items in every prefix."
    gen = torch.Generator().manual_seed(0)
    r, e = torch.randn(3000, 3, generator=gen), torch.randn(150, 3, generator=gen)
    codes = torch.cat([torch.randint(20, (3000, 1), generator=gen), distances(r, e).argmin(1, keepdim=True)], 1)
    with pytest.warns(UserWarning, match='left their prefix'):
        ids = resolve(codes, 'reassign', (22, 150), residuals=r, codebook=e)
    full = codes[:, 0].bincount().clamp(max=150).sum()
    assert (ids.table[:, 0] == codes[:, 0]).sum() >= full - 1 and len(ids.table.unique(dim=0)) == 3000

def test_preferences_ties_take_the_lower_index():
    e = torch.tensor([[0.], [2.], [-2.], [2.]])
    rank = _preferences(torch.tensor([0, 3]), lambda rows: distances(torch.zeros(2, 1), e)[rows])
    assert rank.tolist() == [[0, 1, 2, 3], [3, 0, 1, 2]]

@pytest.mark.parametrize('kw, says', [
    (dict(policy='hash'), "policy 'hash' is not known"),
    (dict(policy='none'), '4 of 4 items share a code'),
    (dict(policy='reassign'), 'was given no distances'),
    (dict(policy='reassign', residuals=torch.zeros(3, 1), codebook=torch.zeros(8, 1)), '3 rows of residuals or distances for 4 items'),
    (dict(policy='reassign', residuals=torch.zeros(4, 2), codebook=torch.zeros(8, 1)), 'pass what the last level quantised'),
    (dict(policy='reassign', sizes=(1, 4), residuals=torch.zeros(4, 1), codebook=torch.zeros(8, 1)), 'last level has 4 codes and its codebook 8 rows'),
    (dict(policy='reassign', residuals=torch.full((4, 1), float('nan')), codebook=torch.zeros(8, 1)), 'not finite'),
    (dict(policy='reassign', distances=torch.zeros(4, 2)), '4 items do not fit into 2'),
])
def test_what_is_refused(kw, says):
    with pytest.raises(ValueError, match=says): resolve(torch.zeros(4, 2, dtype=torch.long), **kw)
