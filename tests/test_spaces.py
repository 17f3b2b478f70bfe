"Counting over identifiers and over items: what holds for every ranking and every tokenizer"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.evaluate.ranking import per_user
from gentok.evaluate.spaces import item_and_code_metrics, _in_groups, tie_aware_ndcg, tie_aware_recall
from gentok.data.splits import leave_one_out
from gentok.data.toyshop import toyshop

KS = (1, 3, 10)

@st.composite
def rankings(draw, alone=False):
    n, b, seed = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(0, 2**31))
    gen = torch.Generator().manual_seed(seed)
    most = n if alone else draw(st.integers(1, n))
    number = torch.randperm(n, generator=gen) if alone else torch.randint(most, (n,), generator=gen).unique(return_inverse=True)[1]
    groups = int(number.max()) + 1
    lists = torch.stack([torch.randperm(groups, generator=gen) for _ in range(b)])[:, :draw(st.integers(1, groups))]
    return lists, torch.randint(n, (b,), generator=gen), number

@settings(deadline=None)
@given(rankings())
def test_items_never_count_more_than_identifiers(ranking):
    spaces = item_and_code_metrics(*ranking, ks=KS)
    for name, value in spaces.item.items():
        assert -1e-9 <= value <= spaces.identifier[name] + 1e-6 <= 1 + 2e-6
    assert spaces.hit >= 1 and 0 <= spaces.collision_rate <= 1

@settings(deadline=None)
@given(rankings(alone=True))
def test_unique_identifiers_give_the_usual_metrics(ranking):
    lists, targets, number = ranking
    spaces = item_and_code_metrics(lists, targets, number, ks=KS)
    items = number.argsort()[lists]
    for name, values in per_user(items, targets, KS).items():
        assert spaces.item[name] == pytest.approx(values.double().mean().item(), abs=1e-6)
        assert spaces.identifier[name] == pytest.approx(spaces.item[name], abs=1e-6)
    assert spaces.collision_rate == 0 and spaces.hit == 1

@settings(deadline=None, max_examples=25)
@given(rankings())
def test_the_expectation_is_the_mean_over_random_orders(ranking):
    "Equals shuffled 400 times, and judged as items"
    lists, targets, number = ranking
    gen, n, total = torch.Generator().manual_seed(0), len(number), {}
    place = torch.full((len(lists), int(number.max()) + 1), lists.shape[1])
    place.scatter_(1, lists, torch.arange(lists.shape[1]).expand_as(lists))
    for _ in range(400):
        key = place[:, number].double() + torch.rand(n, generator=gen, dtype=torch.double)
        order = key.argsort(1).masked_fill(key.sort(1).values >= lists.shape[1], -1)
        for name, values in per_user(order, targets, KS).items(): total[name] = total.get(name, 0) + values.double().mean().item()/400
    for name, value in item_and_code_metrics(lists, targets, number, KS).item.items(): assert total[name] == pytest.approx(value, abs=.12)

@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_tied_metrics_by_counting(before, size, k):
    places = torch.arange(before + 1, before + size + 1)
    a, g = torch.tensor([before]), torch.tensor([size])
    assert tie_aware_recall(a, g, k).item() == pytest.approx((places <= k).double().mean().item(), abs=1e-6)
    gain = (places <= k)/torch.log2(places + 1.)
    assert tie_aware_ndcg(a, g, k).item() == pytest.approx(gain.mean().item(), abs=1e-5)

def test_histories_and_targets_in_groups():
    split = leave_one_out(toyshop(n_items=30, n_users=20, domains=1)[0])
    number = torch.arange(30)//3
    seen = _in_groups(split.test, number)
    assert torch.equal(seen.targets, number[split.test.targets])
    assert all(torch.equal(a, number[b]) for a, b in zip(seen.histories(), split.test.histories()))
    assert torch.equal(seen.users, split.test.users)

@pytest.mark.parametrize('lists,targets,message', [
    ([[0, 1]], [9], 'targets hold 9'), ([[0, 1]], [-1], '1 of 1 targets are negative'), ([[0, 3]], [0], 'lists hold 3'),
    ([[-2, 1]], [0], 'user 0 holds -2'), ([[1, 1]], [0], 'twice'), ([[0, 1]], [0, 1], 'one target per user'),
    ([[.5, 1.]], [0], 'not scores')])
def test_what_does_not_fit_is_named(lists, targets, message):
    with pytest.raises(ValueError, match=message): item_and_code_metrics(torch.tensor(lists), torch.tensor(targets), torch.tensor([0, 0, 1, 2]))
