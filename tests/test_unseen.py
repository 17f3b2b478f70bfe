"What leaving out a history promises: the ranking of all items with the seen ones struck out, and k answers while there are any."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_search import rounding, shop, shops

from gentok.data.splits import Examples
from gentok.evaluate.full_ranking import _Seen, evaluate, _groups_of, rank_unseen, searcher, _seen_by, _without
from gentok.search.beam import Ranked, _as_examples
from gentok.search.exact import score_items

few = settings(max_examples=25, deadline=None, derandomize=True)

def struck_out(model, trie, examples, whole=None):
    "Brute force: the score of every item, -inf where the user had it."
    truth = score_items(model, trie, examples)
    for user, history in enumerate((whole or examples).histories()): truth[user, history] = -torch.inf
    return truth

def agrees(found, truth, k):
    "The k best by the truth, up to ties; nothing where nothing is left."
    eps, left = rounding(truth), truth.isfinite().sum(1)
    best = torch.nn.functional.pad(truth, (0, k), value=-torch.inf).topk(k).values
    assert found.items.shape == found.scores.shape == best.shape
    for items, scores, wanted, own, n in zip(found.items.tolist(), found.scores, best, truth, left.tolist()):
        n = min(n, k)
        assert len(set(items[:n])) == n and min(items[:n], default=0) >= 0 and set(items[n:]) <= {-1}
        assert torch.allclose(own[items[:n]], scores[:n], atol=eps) and torch.allclose(wanted[:n], scores[:n], atol=eps)
        assert (scores[n:] == -torch.inf).all()

def with_targets(histories, n_items, seed=0):
    "Examples in which about half of the users take an item again."
    gen = torch.Generator().manual_seed(seed)
    lists = [torch.as_tensor(h) for h in histories]
    again = torch.rand(len(lists), generator=gen) < .5
    targets = [int(h[0]) if a else int(torch.randint(n_items, (1,), generator=gen)) for h, a in zip(lists, again.tolist())]
    items = torch.cat([torch.cat([h, torch.tensor([t])]) for h, t in zip(lists, targets)])
    stop = torch.tensor([len(h) + 1 for h in lists]).cumsum(0) - 1
    start = torch.cat([torch.zeros(1, dtype=torch.long), stop[:-1] + 1])
    return Examples(items, start, stop, torch.arange(len(lists)), 0)

def crowd(n_users, n_items, longest=20, seed=0):
    "Users with few and with many items, some of them again and again."
    gen = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n_users,), generator=gen).tolist()
    return with_targets([torch.randint(n_items, (n,), generator=gen) for n in lengths], n_items, seed)

# ---------------------------------------------------------------- against brute force

@few
@given(shops(), st.sampled_from([1, 3, 10]))
def test_exact_is_the_ranking_without_the_seen(made, k):
    model, trie, histories = made
    examples = _as_examples(histories, trie.n_items)
    found = rank_unseen(searcher(model, trie, exact=True), examples, _seen_by(examples, trie.n_items), k)
    agrees(found, struck_out(model, trie, examples), k)

@few
@given(shops(), st.sampled_from([1, 3, 10]))
def test_wide_beams_are_the_ranking_without_the_seen(made, k):
    model, trie, histories = made
    examples = _as_examples(histories, trie.n_items)
    found = rank_unseen(searcher(model, trie), examples, _seen_by(examples, trie.n_items), k, beams=64)
    agrees(found, struck_out(model, trie, examples), k)

@few
@given(shops(), st.integers(1, 5), st.integers(1, 3))
def test_narrow_beams_still_find_as_many_as_there_are(made, k, batch_size):
    model, trie, histories = made
    examples = _as_examples(histories, trie.n_items)
    found = rank_unseen(searcher(model, trie), examples, _seen_by(examples, trie.n_items), k, beams=k, batch_size=batch_size)
    truth = struck_out(model, trie, examples)
    for items, scores, own in zip(found.items.tolist(), found.scores, truth):
        n = min(k, int(own.isfinite().sum()))
        assert len(set(items[:n])) == n and items[n:] == [-1]*(k - n) and own[items[:n]].isfinite().all()
        assert torch.allclose(own[items[:n]], scores[:n], atol=rounding(truth))

@pytest.mark.parametrize('exact', [True, False], ids=['exact', 'beams'])
def test_the_metrics_are_those_of_brute_force(exact):
    model, trie, _ = shop(40, peak=4.)
    examples = crowd(60, trie.n_items)
    truth = struck_out(model, trie, examples)
    ranks = [1 + int((own > own[t]).sum()) if own[t].isfinite() else None for own, t in zip(truth, examples.targets.tolist())]
    found = evaluate(model, trie, examples, beams=64, exact=exact, batch_size=7, unseen=True)
    for k in (5, 10): assert found.users[f'recall@{k}'].tolist() == [float(r is not None and r <= k) for r in ranks]
    repeats = [t in h for h, t in zip(map(torch.Tensor.tolist, examples.histories()), examples.targets.tolist())]
    assert 0 < sum(repeats) < 60 and found.metrics['repeats'] == pytest.approx(sum(repeats)/60)
    assert all(r is None for r, again in zip(ranks, repeats) if again) and found.metrics['invalid_rate'] == 0

def test_what_is_no_longer_read_is_still_left_out():
    model, trie, _ = shop(40)
    whole = crowd(20, trie.n_items)
    short = whole._replace(start=torch.maximum(whole.start, whole.stop - 2))
    found = evaluate(model, trie, short, exact=True, unseen=whole)
    agrees(found.ranked, struck_out(model, trie, short, whole), 10)
    less = evaluate(model, trie, short, exact=True, unseen=True)
    agrees(less.ranked, struck_out(model, trie, short), 10)
    assert not torch.equal(found.ranked.items, less.ranked.items)

# ---------------------------------------------------------------- nothing else changes

def test_without_the_word_nothing_changes():
    model, trie, _ = shop(40)
    examples = crowd(20, trie.n_items)
    before, after = evaluate(model, trie, examples), evaluate(model, trie, examples, unseen=False)
    assert before.metrics == after.metrics and list(after.metrics) == ['recall@5', 'recall@10', 'ndcg@5', 'ndcg@10', 'invalid_rate', 'users']
    search = searcher(model, trie)
    assert torch.equal(before.ranked.items, search(examples, 10, 50, 128).items)

def test_an_answer_does_not_depend_on_the_company():
    model, trie, _ = shop(60, peak=4.)
    examples = crowd(30, trie.n_items)
    seen = _seen_by(examples, trie.n_items)
    together = rank_unseen(searcher(model, trie), examples, seen, k=5, beams=5)
    for i in (0, 7, 29):
        one = examples.select([i])
        alone = rank_unseen(searcher(model, trie), one, _seen_by(one, trie.n_items), k=5, beams=5)
        assert torch.equal(alone.items[0], together.items[i])
        assert torch.allclose(alone.scores[0], together.scores[i], atol=1e-4)

def test_order_of_the_users_is_kept():
    model, trie, _ = shop(40)
    examples, turn = crowd(25, trie.n_items), torch.randperm(25, generator=torch.Generator().manual_seed(1))
    straight = evaluate(model, trie, examples, exact=True, unseen=True)
    turned = evaluate(model, trie, examples.select(turn), exact=True, unseen=True)
    assert torch.equal(straight.users['ndcg@10'][turn], turned.users['ndcg@10'])

# ---------------------------------------------------------------- edges

def test_all_seen_leaves_nothing():
    model, trie, _ = shop(5, (5,))
    for search in (searcher(model, trie), searcher(model, trie, exact=True)):
        examples = _as_examples([[0, 1, 2, 3, 4], [0, 1, 2, 3]], 5)
        found = rank_unseen(search, examples, _seen_by(examples, 5), k=3)
        assert found.items.tolist() == [[-1]*3, [4, -1, -1]] and found.invalid.tolist() == [0, 0]

def test_a_free_search_loses_the_seen_and_keeps_the_invalid():
    model, trie, _ = shop(20)
    examples = crowd(10, trie.n_items)
    found = evaluate(model, trie, examples, free=True, unseen=True)
    seen = _seen_by(examples, trie.n_items)
    assert not seen.has(torch.arange(10)[:, None], found.ranked.items).any()
    wrong = (found.ranked.items < 0) & (found.ranked.scores > -torch.inf)
    assert found.metrics['invalid_rate'] == pytest.approx(wrong.double().mean().item())

def test_no_search_is_wider_than_its_users_need_and_memory_is_bounded():
    asked = []
    def search(examples, k, beams, at_once):
        asked.append((k, beams, at_once))
        return Ranked(torch.arange(k).expand(examples.n, k), -torch.arange(k).float().expand(examples.n, k), torch.zeros(examples.n))
    many = with_targets([[0], [1], [2, 3], list(range(300))], 10_000)
    found = rank_unseen(search, many, _seen_by(many, 10_000), k=2, beams=50, batch_size=128)
    assert [k for k, _, _ in asked] == [3, 4, 514]
    assert all(beams >= k and (at_once == 1 or beams*at_once <= 50*128) for k, beams, at_once in asked)
    assert found.items.tolist() == [[1, 2], [0, 2], [0, 1], [300, 301]]

def test_groups_hold_everybody_once():
    counts = torch.randint(0, 3000, (5000,), generator=torch.Generator().manual_seed(0))
    groups = _groups_of(counts, at_once=100)
    assert torch.cat(groups).sort().values.tolist() == list(range(5000)) and max(map(len, groups)) <= 100
    assert all(counts[g].max() <= 2*counts[g].clamp(min=1).min() for g in groups)

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**31))
def test_equal_to_plain_python(n_items, k, seed):
    gen = torch.Generator().manual_seed(seed)
    examples = crowd(6, n_items, longest=6, seed=seed % 1000)
    lists = torch.rand(6, n_items, generator=gen).argsort(1)
    lists = torch.where(torch.rand(lists.shape, generator=gen) < .2, -1, lists)
    seen = _seen_by(examples, n_items)
    assert isinstance(seen, _Seen) and seen.counts.tolist() == [len(set(h.tolist())) for h in examples.histories()]
    found = _without(Ranked(lists, torch.zeros(lists.shape), torch.zeros(6)), seen, torch.arange(6), k)
    for mine, given_list, history in zip(found.items.tolist(), lists.tolist(), examples.histories()):
        left = [i for i in given_list if i not in set(history.tolist())]
        assert mine == (left + [-1]*n_items)[:min(k, n_items)]

def test_what_is_refused():
    model, trie, _ = shop(20)
    examples = crowd(10, trie.n_items)
    with pytest.raises(ValueError, match='unseen holds 3 histories, not those of the 10 examples'):
        evaluate(model, trie, examples, unseen=examples.select([0, 1, 2]))
    with pytest.raises(ValueError, match='0 histories'): evaluate(model, trie, examples.select([]), unseen=True)
    with pytest.raises(ValueError, match='row 20'): _seen_by(examples._replace(items=examples.items.clamp(max=0) + 20), 20)
    with pytest.raises(ValueError, match='exclude each other'): evaluate(model, trie, examples, exact=True, free=True, unseen=True)
