"Vocabulary, token batches, and the order in which examples come."
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.splits import Examples
from gentok.ids.item_ids import ItemIds, random_ids
from gentok.ids.sequences import batch_tokens, _budget_batches, item_tokens, _length_batches
from gentok.ids.vocabulary import Vocabulary

sizes_of = st.lists(st.integers(1, 300), min_size=1, max_size=5).map(tuple)

@settings(max_examples=100, deadline=None)
@given(sizes_of, st.integers(0, 50), st.data())
def test_tokens_and_codes_are_inverse(sizes, users, data):
    v = Vocabulary(sizes, users)
    codes = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(0, K - 1) for K in sizes]), min_size=1, max_size=9)))
    tokens = v.tokens(codes)
    assert torch.equal(v.codes(tokens), codes)
    assert tokens.min() >= 2 and tokens.max() < v.size - users
    for l in range(v.L): assert (tokens[:, l] >= v.level_slice(l).start).all() and (tokens[:, l] < v.level_slice(l).stop).all()
    assert Vocabulary.from_config(json.loads(json.dumps(v.to_config()))) == v

def test_every_token_has_one_meaning():
    v = Vocabulary((3, 2, 4), n_user_tokens=5)
    levels = [t for l in range(3) for t in range(v.size)[v.level_slice(l)]]
    users = v.user_tokens(torch.arange(17)).unique().tolist()
    assert [v.pad, v.start, *levels, *users] == list(range(v.size))

@pytest.mark.parametrize('call, says', [
    (lambda v: v.tokens([0, 3]), 'level 2 holds code 3, but has 3 codes'),
    (lambda v: v.tokens([[0, 0], [0, -1]]), 'level 2 holds code -1'),
    (lambda v: v.tokens([0, 0, 0]), 'does not end in 2 levels'),
    (lambda v: v.codes([2, 2]), 'token 2 stands at level 2, whose tokens run from 6 to 8'),
    (lambda v: v.codes([0, 0]), 'token 0 stands at level 1'),
    (lambda v: v.codes(5), 'does not end in 2 levels'),
    (lambda v: v.user_tokens([0]), 'no user tokens'),
    (lambda v: v.level_slice(2), 'level 2 of 2'),
    (lambda v: Vocabulary((4, 0)), 'at least one level'),
    (lambda v: Vocabulary.from_config({'sizes': [4], 'start': 1}), r"unknown keys \['start'\]"),
    (lambda v: Vocabulary.from_config({'n_user_tokens': 1}), 'no sizes'),
    (lambda v: item_tokens(random_ids(4, (4, 4)), v), 'but the vocabulary'),
])
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call(Vocabulary((4, 3)))

@st.composite
def cases(draw):
    n, L = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    ids = random_ids(n, (16,)*L, draw(st.integers(0, 99)))
    sequences = draw(st.lists(st.lists(st.integers(0, n - 1), min_size=1, max_size=7), min_size=1, max_size=6))
    cut = draw(st.integers(1, 6))
    rows, at = [], 0
    for u, s in enumerate(sequences):
        rows += [(max(at, at + i - cut), at + i, u) for i in range(len(s))]
        at += len(s)
    start, stop, users = torch.tensor(rows).T
    return ids, Examples(torch.tensor([i for s in sequences for i in s]), start, stop, users, 0)

@settings(max_examples=100, deadline=None)
@given(cases(), st.booleans(), st.data())
def test_batches_agree_with_their_definition(case, with_users, data):
    "History tokens, then start, then padding; user token first where there is one. Empty histories too."
    ids, examples = case
    v = Vocabulary(ids.sizes, 3)
    table = item_tokens(ids, v)
    users = v.user_tokens(torch.arange(6)) if with_users else None
    index = torch.tensor(data.draw(st.lists(st.integers(0, examples.n - 1), min_size=1, max_size=9)))
    batch = batch_tokens(examples, index, table, users)
    rows = []
    for e in index.tolist():
        history = examples.items[examples.start[e]:examples.stop[e]]
        rows.append(([int(users[examples.users[e]])] if with_users else []) + v.tokens(ids.codes(history)).flatten().tolist() + [v.start])
    width = max(map(len, rows))
    assert batch.inputs.tolist() == [row + [v.pad]*(width - len(row)) for row in rows]
    assert torch.equal(batch.labels, v.tokens(ids.codes(examples.targets[index])))

@settings(max_examples=50, deadline=None)
@given(cases(), st.data())
def test_several_tables_write_each_its_own_examples(case, data):
    "A batch of two tokenizers is the rows of two batches of one"
    ids, examples = case
    table = item_tokens(ids, Vocabulary(ids.sizes))
    both = torch.stack([table, torch.cat([table[:-1].flip(0), table[-1:]])])
    index = torch.tensor(data.draw(st.lists(st.integers(0, examples.n - 1), min_size=1, max_size=9)))
    which = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(index), max_size=len(index))))
    mixed, alone = batch_tokens(examples, index, both, which=which), [batch_tokens(examples, index, t) for t in both]
    for row, g in enumerate(which.tolist()):
        assert torch.equal(mixed.inputs[row], alone[g].inputs[row]) and torch.equal(mixed.labels[row], alone[g].labels[row])

lengths_of = st.lists(st.integers(0, 20), max_size=80).map(lambda x: torch.tensor(x, dtype=torch.long))

@settings(max_examples=100, deadline=None)
@given(lengths_of, st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_every_example_once(lengths, batch_size, seed, epoch):
    batches = _length_batches(lengths, batch_size, seed, epoch)
    assert sorted(i for b in batches for i in b.tolist()) == list(range(len(lengths)))
    assert sum(len(b) < batch_size for b in batches) <= 1 and all(len(b) <= batch_size for b in batches)
    again = _length_batches(lengths, batch_size, seed, epoch)
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]
    spans = sorted((int(lengths[b].min()), int(lengths[b].max())) for b in batches)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))

def test_order_depends_on_seed_and_epoch_only():
    lengths = torch.randint(1, 21, (500,), generator=torch.Generator().manual_seed(0))
    order = lambda *a: [b.tolist() for b in _length_batches(lengths, 16, *a)]
    torch.manual_seed(1); first = order(0, 1)
    torch.manual_seed(2); second = order(0, 1)
    assert first == second
    assert len({str(order(s, e)) for s in range(3) for e in range(3)}) == 9

@settings(max_examples=100, deadline=None)
@given(lengths_of, st.integers(20, 100), st.integers(0, 3))
def test_budgets_hold(lengths, budget, seed):
    batches = _budget_batches(lengths, budget, seed)
    assert sorted(i for b in batches for i in b.tolist()) == list(range(len(lengths)))
    for b in batches: assert len(b)*int(lengths[b].max()) <= budget or len(b) == 1

def test_a_history_over_budget():
    with pytest.raises(ValueError, match='a history has 9 items and the budget is 8'): _budget_batches(torch.tensor([3, 9]), 8)

def test_sorting_saves_padding_on_real_data(shared):
    from gentok.data.formats import load
    from gentok.data.splits import leave_one_out
    lengths = leave_one_out(load(shared/'data'/'Office_Products')).train.lengths
    work = lambda batches: sum(len(b)*int(lengths[b].max()) for b in batches)
    by_length, at_random = work(_length_batches(lengths, 256)), work(torch.randperm(len(lengths)).split(256))
    assert 1 - int(lengths.sum())/by_length < .03 < .4 < 1 - int(lengths.sum())/at_random
