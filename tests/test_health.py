"Health over all items, against counting by hand."
from collections import Counter
from math import log2, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.quantize.health import _groups, health

tables = st.integers(1, 4).flatmap(lambda L: st.lists(st.tuples(*[st.integers(0, 3)]*L), min_size=1, max_size=40))

@settings(max_examples=80, deadline=None)
@given(tables)
def test_against_counting(rows):
    h, n = health(torch.tensor(rows), sizes=(5,)*len(rows[0])), len(rows)
    full = Counter(rows)
    assert h.items == n and h.distinct == len(full) and h.largest_group == max(full.values())
    assert h.collision_rate == pytest.approx(sum(c for c in full.values() if c > 1)/n)
    assert h.code_entropy == pytest.approx(-sum(c/n*log2(c/n) for c in full.values()), abs=1e-9)
    for l, level in enumerate(zip(*rows)):
        count = Counter(level)
        bits = -sum(c/n*log2(c/n) for c in count.values())
        assert h.usage[l] == len(count)/5
        assert h.entropy[l] == pytest.approx(bits, abs=1e-9) and h.perplexity[l] == pytest.approx(2**bits)

@settings(max_examples=50, deadline=None)
@given(tables, st.randoms())
def test_order_of_items_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert health(torch.tensor(shuffled)) == health(torch.tensor(rows))

def test_groups_are_lexicographic_and_do_not_overflow():
    torch.manual_seed(0)
    codes = torch.randint(2**30, (50, 6)).repeat(2, 1)
    order = sorted(map(tuple, codes.tolist()))
    rank = {row: i for i, row in enumerate(dict.fromkeys(order))}
    assert _groups(codes).tolist() == [rank[tuple(row)] for row in codes.tolist()]

def test_unique_codes_are_healthy():
    codes = torch.cartesian_prod(*[torch.arange(4)]*3)
    h = health(codes, (4, 4, 4))
    assert h.collision_rate == 0 and h.largest_group == 1 and h.warnings == () and h.code_entropy == log2(prod((4, 4, 4)))
    assert h.usage == (1., 1., 1.) and h.perplexity == (4., 4., 4.)

def test_a_collapsed_level_is_named_with_remedies():
    codes = torch.stack([torch.arange(512) % 64, torch.zeros(512).long()], -1)
    h = health(codes, (64, 64))
    text = repr(h)
    assert len(h.warnings) == 2 and 'Level 2 has collapsed: 1 of 64' in text and 'initialise' in text and 'Level 1' not in text
    assert 'first cure' in h.warnings[1] and h.verdict().startswith('Level 2 has collapsed')

def test_few_items_in_large_codebooks_are_no_collapse():
    assert health(torch.arange(12)[:, None].repeat(1, 3), (256,)*3).warnings == ()
    assert health(torch.zeros(1, 2).long(), (256, 256)).warnings == ()

def test_one_code_per_level_cannot_collapse():
    assert health(torch.tensor([[0, 0], [0, 1], [0, 2]]), (1, 3)).warnings == ()

def test_numpy_and_lists_are_accepted():
    assert health([[0, 1], [0, 1]]).collision_rate == 1
    assert health(torch.tensor([[0, 1], [0, 1]]).numpy()).largest_group == 2
    assert health(torch.tensor([[0, 1]], dtype=torch.int32)).items == 1

def test_the_numbers_are_plain_python():
    import json
    assert json.dumps(health([[0, 1], [1, 1]])._asdict())

def test_bad_codes_are_sentences():
    for codes, sizes, words in (([0, 1], None, 'at least one of each'), ([[.5]], None, 'whole numbers'), ([[-1]], None, 'negative'),
                                ([[3]], (3,), 'K = 3'), ([[3]], (4, 4), '1 levels and sizes 2'), ([[True]], None, 'whole numbers')):
        with pytest.raises(ValueError, match=words): health(torch.tensor(codes), sizes)

def test_a_figure_is_drawn():
    ax = health([[0, 1], [1, 1]], (2, 2)).plot()
    assert len(ax.patches) == 4 and 'share a code' in ax.get_title(loc='left') + ax.get_title()
