"A vote counts what a loop over users and items would count."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.search.beam import Ranked
from gentok.search.vote import _items_only, vote

def answers(runs, users, k, items, seed, lost):
    gen = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(runs):
        rows = torch.stack([torch.randperm(items, generator=gen)[:k] for _ in range(users)])
        if lost: rows = rows.masked_fill(torch.rand(users, k, generator=gen) < .3, -1)
        scores = -5*torch.rand(users, k, generator=gen).sort(1).values
        made.append(Ranked(rows, scores, (rows < 0).float().mean(1)))
    return made

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 999), st.booleans(), st.integers(1, 8))
def test_like_a_loop(runs, users, k, seed, lost, keep):
    given_answers = answers(runs, users, k, 8, seed, lost)
    found = vote(given_answers, keep)
    for user in range(users):
        named, nonsense = {}, []
        for a in given_answers:
            for item, score in zip(a.items[user].tolist(), a.scores[user].tolist()):
                if item >= 0: named.setdefault(item, []).append(score)
                else: nonsense.append(score)
        wanted = sorted([len(s) + sum(s)/len(s) for s in named.values()] + nonsense, reverse=True)[:keep]
        real = found.scores[user] > -torch.inf
        assert found.scores[user][real].tolist() == pytest.approx(wanted, abs=1e-5)
        for item, score in zip(found.items[user][real].tolist(), found.scores[user][real].tolist()):
            if item >= 0: assert score == pytest.approx(len(named[item]) + sum(named[item])/len(named[item]), abs=1e-5)
        kept = found.items[user][found.items[user] >= 0].tolist()
        assert len(kept) == len(set(kept)), 'no item twice'
        assert (found.items[user][~real] == -1).all()

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99))
def test_copies_of_one_answer_keep_its_order(copies, seed):
    one, = answers(1, 3, 5, 8, seed, False)
    assert torch.equal(vote([one]*copies, 5).items, one.items)

def test_users_are_independent():
    both = answers(3, 4, 5, 8, 0, True)
    for user in range(4):
        alone = [Ranked(*(part[user:user + 1] for part in a)) for a in both]
        assert torch.equal(vote(alone).items, vote(both).items[user:user + 1])

def test_other_users_are_refused():
    with pytest.raises(ValueError, match=r'^the answers are for \[2, 3\] users, expected one answer or more for the same users; search them together\.$'):
        vote([*answers(1, 2, 5, 8, 0, False), *answers(1, 3, 5, 8, 0, False)])

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 999), st.integers(1, 6))
def test_items_only_moves_items_up_in_their_order(users, k, seed, keep):
    one, = answers(1, users, k, 8, seed, True)
    found = _items_only(one, keep)
    for user in range(users):
        wanted = [(i, s) for i, s in zip(one.items[user].tolist(), one.scores[user].tolist()) if i >= 0][:keep]
        assert [(i, s) for i, s in zip(found.items[user].tolist(), found.scores[user].tolist()) if i >= 0] == wanted
    assert torch.equal(found.invalid, one.invalid)
