"Popularity counts training only, groups never part equal counts, and group means add up."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.splits import Examples
from gentok.evaluate.long_tail import by_group, popularity_groups, quantile_groups, training_counts

def test_counts_cover_windows_once_and_never_the_test_items():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (40,), generator=g).tolist()
    sequences = [torch.randint(30, (n,), generator=g) for n in lengths]
    start, stop, begin = [], [], 0
    for n in lengths:
        for k in range(1, n-2): start.append(begin + max(0, k-4)); stop.append(begin + k)
        begin += n
    part = Examples(torch.cat(sequences), torch.tensor(start), torch.tensor(stop), torch.zeros(len(start), dtype=torch.long), 0)
    covered = torch.cat([s[:-2] for s in sequences if len(s) > 3])
    assert torch.equal(training_counts(part, 30), torch.bincount(covered, minlength=30))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(1, 8))
def test_groups_are_ordered_and_whole(counts, n):
    count = torch.tensor(counts)
    group = quantile_groups(count, n)
    order = count.argsort()
    assert (group[order].diff() >= 0).all() and group.unique().tolist() == list(range(int(group.max()) + 1))
    for v in count.unique(): assert group[count == v].unique().numel() == 1
    assert group.max() < n + bool((count == 0).any())
    if (count == 0).any(): assert set(count[group == 0].tolist()) == {0}

def test_distinct_counts_make_even_groups():
    sizes = quantile_groups(torch.randperm(100) + 1, 4).bincount()
    assert sizes.tolist() == [25]*4

def test_rows_add_up_and_name_their_groups():
    targets, counts = torch.randint(50, (300,)), torch.randint(0, 9, (50,))
    groups, values = popularity_groups(counts, targets), dict(x=torch.rand(300))
    rows = by_group(values, groups)
    assert sum(r['users'] for r in rows) == 300
    assert sum(r['users']*r['x'] for r in rows)/300 == pytest.approx(values['x'].mean().item(), abs=1e-6)
    assert [r['group'] for r in rows] == groups.names and groups.names[0] == 'never seen'

def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match='training_counts'): popularity_groups(torch.ones(3), torch.tensor([3]))
    with pytest.raises(ValueError, match='training_counts'): popularity_groups(torch.ones(3), torch.tensor([], dtype=torch.long))
    groups = popularity_groups(torch.tensor([1, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match='same users'): by_group(dict(x=torch.ones(3)), groups)
