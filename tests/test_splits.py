"Leave-one-out against a naive reference, the published vector, and the counts of real data."
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.dataset import Catalogue, Dataset, Histories
from gentok.data.splits import Examples, hold_out, leave_one_out, _shortest_users, _training_items, unseen_users
from gentok.store.files import read_json

def naive(sequences, max_history):
    "The three sets as lists of (user, history, target), straight from the definition."
    cut = lambda h: h if max_history is None else h[-max_history:]
    train, valid, test = [], [], []
    for u, s in enumerate(sequences):
        part = s[:-2]
        train += [(u, cut(part[:i]), part[i]) for i in range(1, len(part))]
        if len(s) >= 3: valid.append((u, cut(s[:-2]), s[-2]))
        if len(s) >= 2: test.append((u, cut(s[:-1]), s[-1]))
    return train, valid, test

def listed(part):
    return [(u, h.tolist(), t) for u, h, t in zip(part.users.tolist(), part.histories(), part.targets.tolist())]

def dataset(sequences, n=None):
    n = n or 1 + max(map(max, sequences))
    catalogue = Catalogue(list(range(n)), [f'item {i}' for i in range(n)])
    return Dataset('d', catalogue, {f'u{u}': s for u, s in enumerate(sequences)})

sequences = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=8)

@settings(max_examples=150, deadline=None)
@given(sequences, st.one_of(st.none(), st.integers(1, 25)))
def test_split_equals_the_naive_reference(sequences, max_history):
    split, expected = leave_one_out(dataset(sequences, 10), max_history), naive(sequences, max_history)
    for part, want, shortest in zip(split, expected, (4, 3, 2)):
        assert listed(part) == want
        assert part.n == len(want) == len(part.lengths)
        assert part.skipped == sum(len(s) < shortest for s in sequences)

@settings(max_examples=80, deadline=None)
@given(sequences)
def test_training_never_sees_the_last_two(sequences):
    data = dataset(sequences, 10)
    seen = {i for s in sequences for i in s[:-2]}
    assert set(_training_items(data).nonzero().flatten().tolist()) == seen
    train = leave_one_out(data).train
    stops = data.histories.offsets[1:][train.users]
    assert bool((train.stop < stops - 2).all())

@settings(max_examples=80, deadline=None)
@given(sequences, st.data())
def test_select_keeps_examples_whole(sequences, data):
    test = leave_one_out(dataset(sequences, 10)).test
    idx = data.draw(st.lists(st.integers(0, test.n - 1), max_size=12)) if test.n else []
    every = listed(test)
    assert listed(test.select(torch.tensor(idx, dtype=torch.long))) == [every[i] for i in idx]
    mask = torch.tensor([u % 2 == 0 for u in test.users.tolist()], dtype=torch.bool)
    assert listed(test.select(mask)) == [e for e in every if e[0] % 2 == 0]
    assert test.select(mask).skipped == test.skipped

def test_an_empty_selection_and_users_too_short_for_anything():
    split = leave_one_out(dataset([[1], [2], [0]]))
    assert [p.n for p in split] == [0, 0, 0] and [p.skipped for p in split] == [3, 3, 3]
    assert split.test.targets.tolist() == [] and split.test.histories() == []
    assert '0 of 0 users' in repr(split.test)
    some = leave_one_out(dataset([[1, 2, 3]])).test
    assert some.select([]).n == 0

def test_nothing_is_copied():
    data = dataset([[1, 2, 3, 4, 5]] * 3)
    split = leave_one_out(data)
    assert all(p.items is data.histories.items for p in split)
    assert split.train.histories()[0].data_ptr() == data.histories.items.data_ptr()

@pytest.mark.parametrize('bad', [0, -1])
def test_a_history_keeps_at_least_one_item(bad):
    with pytest.raises(ValueError, match='expected at least 1'): leave_one_out(dataset([[1, 2, 3]]), bad)

def test_a_catalogue_without_histories_cannot_be_split():
    none = Histories([], torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match='Yelp has no histories'):
        leave_one_out(SimpleNamespace(name='Yelp', histories=none))

def test_letter_vector(vectors):
    case = vectors('letter')['data']
    histories, index = case['inputs']['inter.json'], case['inputs']['index.json']
    catalogue = Catalogue([int(i) for i in index], [''.join(c) for c in index.values()])
    split = leave_one_out(Dataset('letter', catalogue, histories), case['inputs']['max_his_len'])
    for name, part in zip(split._fields, split):
        got = [dict(input_ids=''.join(catalogue.text[i] for i in h), labels=catalogue.text[t])
               for h, t in zip(part.histories(), part.targets)]
        assert got == case['samples'][name], name

@pytest.mark.parametrize('name, train, users', [('Office_Products', 38543, 4905), ('Instruments', 131837, 24772),
                                                ('Beauty', 131413, 22363)])
def test_counts_of_real_data(shared, name, train, users):
    histories = read_json(shared/'data'/name/f'{name}.inter.json')
    n = 1 + max(map(max, histories.values()))
    data = Dataset(name, Catalogue(range(n), [''] * n), histories)
    split = leave_one_out(data)
    assert [p.n for p in split] == [train, users, users]
    assert [p.skipped for p in split] == [0, 0, 0]
    assert max(int(p.lengths.max()) for p in split) == 20
    free = leave_one_out(data, None)
    assert free.train.n == train and int(free.test.lengths.max()) > 20

# ---------------------------------------------------------------- users whom training never meets

@settings(max_examples=150, deadline=None)
@given(sequences, st.floats(.01, .99), st.integers(0, 5))
def test_held_out_users_are_the_shortest_and_train_nothing(sequences, share, seed):
    data, lengths = dataset(sequences, 10), [len(s) for s in sequences]
    n = round(share*sum(l >= 2 for l in lengths))
    try: held = hold_out(data, share, seed)
    except ValueError as e:
        kept = sorted(l for l in lengths if l >= 2)[n:]
        assert str(e).count('.') >= 1 and (n == 0 or not any(l >= 4 for l in kept))
        return
    out = held.held_out.tolist()
    assert sum(out) == n and data.held_out is None and held.histories is data.histories
    inside, outside = ([l for l, o in zip(lengths, out) if o == side and l >= 2] for side in (True, False))
    assert max(inside) <= min(outside) and not any(o for l, o in zip(lengths, out) if l < 2)
    split, whole = leave_one_out(held), leave_one_out(data)
    assert listed(split.train) == [e for e in listed(whole.train) if not out[e[0]]]
    assert listed(split.valid) == listed(whole.valid) and listed(split.test) == listed(whole.test)
    assert split.train.skipped == sum(l < 4 or o for l, o in zip(lengths, out))
    assert unseen_users(split).tolist() == [out[u] or lengths[u] < 4 for u in split.test.users.tolist()]
    seen = {i for s, o in zip(sequences, out) if not o for i in s[:-2]}
    assert set(_training_items(held).nonzero().flatten().tolist()) == seen

@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 3))
def test_as_many_of_the_shortest_as_can_be_asked(lengths, n, seed):
    mask = _shortest_users(torch.tensor(lengths), n, seed)
    assert mask.sum() == min(n, sum(l >= 2 for l in lengths))
    assert torch.equal(mask, _shortest_users(torch.tensor(lengths), n, seed))

def test_among_equals_every_user_has_the_same_chance():
    drawn = torch.stack([_shortest_users(torch.full((10,), 5), 3, seed) for seed in range(2000)]).double().mean(0)
    assert (drawn - .3).abs().max() < .05

@pytest.mark.parametrize('share', (0, 1, -.1, 5, float('nan'), .01))
def test_a_share_that_is_nobody_is_refused(share):
    with pytest.raises(ValueError, match='of 10 users is nobody, expected one user or more; give a share between 0.1 and 1'):
        hold_out(dataset([[0, 1, 2, 3, 4]]*10), share)

def test_nothing_to_learn_from_and_holding_out_twice_are_refused():
    few = dataset([[0, 1, 2, 3], [0, 1], [1, 2], [1]])
    assert hold_out(few, .5).held_out.tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match='none of the 1 with four items or more is left'): hold_out(few, .9)
    with pytest.raises(ValueError, match='already holds out 2 users'): hold_out(hold_out(few, .5), .5)
    with pytest.raises(ValueError, match='of 0 users is nobody'): hold_out(dataset([[1], [2]]), .5)
