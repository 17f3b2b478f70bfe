"The ranking metrics against reference numbers, a plain Python twin, and every list that must be refused."
from math import log2

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.evaluate.ranking import metrics, ndcg, per_user, _rank_of_target, recall

def test_the_reference_vector(vectors):
    "Three users: first, fifth, absent (botta_metrics)."
    known = vectors('tiger')['botta_metrics']['value']
    ranked = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 0, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    ours = metrics(ranked, torch.zeros(3, dtype=torch.long), ks=(1, 5, 10))
    for k in (1, 5, 10): assert ours[f'recall@{k}'] == pytest.approx(known[f'h@{k}'], abs=1e-6)
    assert ours['ndcg@10'] == pytest.approx(known['ndcg'], abs=1e-5)  # the place is in the first ten: no cut to differ by

def test_names_and_order_of_the_table():
    values = metrics(torch.tensor([[1, 0]]), torch.tensor([0]))
    assert list(values) == ['recall@5', 'recall@10', 'ndcg@5', 'ndcg@10'] and all(type(v) is float for v in values.values())

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**31), st.floats(0, 1))
def test_equal_to_plain_python(n_items, k, seed, empty):
    "Lists with gaps, catalogues smaller than k, targets that may be absent."
    g = torch.Generator().manual_seed(seed)
    ranked = torch.rand(7, n_items, generator=g).argsort(1)[:, :10]
    ranked = torch.where(torch.rand(ranked.shape, generator=g) < empty, -1, ranked)
    targets = torch.randint(n_items + 2, (7,), generator=g)
    gains = [1/log2(l[:k].index(t)+2) if t in l[:k] else 0. for l, t in zip(ranked.tolist(), targets.tolist())]
    assert torch.allclose(ndcg(ranked, targets, k), torch.tensor(gains), atol=1e-6)
    assert recall(ranked, targets, k).tolist() == [float(v > 0) for v in gains]

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_only_the_place_counts(seed):
    "Order of users, names of items and what stands below the target change nothing."
    g = torch.Generator().manual_seed(seed)
    ranked, targets = torch.rand(9, 20, generator=g).argsort(1)[:, :10], torch.randint(20, (9,), generator=g)
    users, names = torch.randperm(9, generator=g), torch.randperm(20, generator=g)
    first, again = per_user(ranked, targets), per_user(names[ranked][users], names[targets][users])
    for name in first: assert torch.equal(first[name][users], again[name])

def test_more_places_never_hurt():
    ranked, targets = torch.rand(50, 30).argsort(1)[:, :20], torch.randint(30, (50,))
    values = per_user(ranked, targets, ks=range(1, 21))
    for name in ('recall', 'ndcg'):
        curve = torch.stack([values[f'{name}@{k}'] for k in range(1, 21)])
        assert (curve.diff(dim=0) >= 0).all() and (curve <= 1).all()

def test_nothing_is_never_a_hit():
    assert _rank_of_target(torch.full((3, 5), -1), torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match='negative'): recall(torch.full((1, 5), -1), torch.tensor([-1]))

def test_gaps_repeat_but_items_do_not():
    assert recall([[-1, -1, 4]], [4]).tolist() == [1.]
    with pytest.raises(ValueError, match='1 of 2 lists hold an item twice .first: user 1, item 4.'):
        recall([[1, 2, 3], [4, 0, 4]], [1, 1])

@pytest.mark.parametrize('ranked, targets, words', [
    ([[1, 2]], [1, 2], 'one list and one target'), ([1, 2], [1, 2], 'one list and one target'),
    ([[1., 2.]], [1], 'not scores'), ([[1, 2]], [1.], 'not scores'), ([[1, -2]], [1], 'user 0 holds -2'),
    ([[1, 2]], [-5], '1 of 1 targets')])
def test_bad_input_is_one_sentence(ranked, targets, words):
    with pytest.raises(ValueError, match=words) as error: ndcg(ranked, targets)
    assert '\n' not in str(error.value) and str(error.value).endswith('.')

@pytest.mark.parametrize('k', [0, -1, 2.5, True])
def test_k_is_a_number_of_places(k):
    with pytest.raises(ValueError, match='1 or more'): recall([[1]], [1], k)

def test_no_users_is_an_error_and_no_places_is_not():
    with pytest.raises(ValueError, match='No user'): metrics(torch.empty(0, 10, dtype=torch.long), torch.empty(0, dtype=torch.long))
    assert metrics(torch.empty(2, 0, dtype=torch.long), torch.tensor([0, 1]))['recall@10'] == 0.
