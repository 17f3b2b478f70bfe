"Positives: whose neighbours, from which part, drawn how; and the loss of a batch that several processes share."
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.data.dataset import Catalogue, Dataset
from gentok.data.splits import hold_out, _training_items
from gentok.data.toyshop import toyshop
from gentok.tokenize.co_occurrence import (Positives, co_occurrence_alignment, co_occurrences, _concat_positives, _gather_rows,
                                           info_nce, _neighbours, _training_entries)
from gentok.train.scale_out import process_state
from two import torchrun

def shop(histories, n=None):
    "A data set of rows 0 to n-1, or of the names that occur"
    ids = list(range(n)) if n is not None else sorted({i for h in histories.values() for i in h})
    return Dataset('shop', Catalogue(ids, [str(i) for i in ids]), histories)

def brute(dataset, window=1):
    "The sets of positives, item by item"
    n, h = len(dataset.catalogue), dataset.histories
    found = [set() for _ in range(n)]
    for u, items in enumerate(h):
        if dataset.unseen is not None and dataset.unseen[u]: continue
        kept = items.tolist()[:-2]
        for i, a in enumerate(kept):
            for j, b in enumerate(kept):
                if i != j and abs(i - j) <= window: found[a].add(b)
    return [sorted(f or {i}) for i, f in enumerate(found)]

def listed(positives): return [positives.of(i).tolist() for i in range(positives.n)]

people = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=8)

# ---------------------------------------------------------------- which

def test_utgrec_co_occurrence(vectors):
    case = vectors('utgrec')['co_occurrence']
    data = shop(case['input'])
    names, positives = data.catalogue.ids, co_occurrences(data)
    found = {name: [names[j] for j in positives.of(i)] for i, name in enumerate(names)}
    wanted = case['output']
    assert {name: found[name] for name in wanted['train_items']} == wanted['positives']
    assert [names[i] for i in _training_items(data).nonzero()[:, 0]] == wanted['train_items']
    assert all(found[name] == [name] for name in set(names) - set(wanted['train_items']))

@given(people, st.integers(1, 10))
@settings(deadline=None)
def test_positives_are_the_sets_by_definition(histories, window):
    data = shop(dict(enumerate(histories)), n=7)
    positives = co_occurrences(data, window)
    assert listed(positives) == brute(data, window)
    assert positives.counts.min() >= 1 and int(positives.offsets[-1]) == len(positives.items)

@given(people, people)
@settings(deadline=None)
def test_nobodys_last_two_are_looked_at(histories, others):
    data = [shop({u: [*h, *(i % 7 for i in end)] for u, h in enumerate(histories)}, n=7) for end in ((0, 1), (len(others), 5))]
    a, b = map(co_occurrences, data)
    assert torch.equal(a.items, b.items) and torch.equal(a.offsets, b.offsets)

@given(people)
@settings(deadline=None)
def test_order_of_people_and_direction_of_time_are_indifferent(histories):
    whole = [[*h, 0, 0] for h in histories]
    a = co_occurrences(shop(dict(enumerate(whole)), n=7))
    b = co_occurrences(shop(dict(enumerate([[*h[::-1], 0, 0] for h in histories[::-1]])), n=7))
    assert listed(a) == listed(b)
    assert all(i in a.of(j) for i in range(7) for j in a.of(i).tolist())  # who is my positive, has me

def test_a_single_training_entry_is_no_error():
    positives = co_occurrences(shop({'u': [3, 1, 2], 'v': [0, 1], 'w': [4]}, n=5))
    assert listed(positives) == [[0], [1], [2], [3], [4]]

def test_an_item_repeated_is_its_own_positive():
    assert listed(co_occurrences(shop({'u': [1, 1, 2, 0, 0]}, n=3))) == [[0], [1, 2], [1]]

def test_a_catalogue_without_histories_has_itself():
    found = co_occurrences(Dataset('shelf', Catalogue(list('abc'), list('abc')), None))
    assert found.items.tolist() == [0, 1, 2] and found.counts.tolist() == [1, 1, 1]

def test_held_out_users_teach_nothing():
    data = hold_out(toyshop(n_items=40, n_users=60, domains=1)[0], .3)
    assert listed(co_occurrences(data)) == brute(data)
    assert not torch.isin(_training_entries(data)[1], data.unseen.nonzero()[:, 0]).any()

def test_real_histories(shared):
    from gentok.data.formats import load
    if not (shared/'data'/'Office_Products').is_dir(): pytest.skip('Office_Products is not there')
    data = load(shared/'data'/'Office_Products')
    positives = co_occurrences(data)
    assert listed(positives) == brute(data)
    lonely = positives.counts == 1
    assert (positives.items[positives.offsets[:-1]][lonely & ~_training_items(data)] == torch.arange(positives.n)[lonely & ~_training_items(data)]).all()

@pytest.mark.parametrize('window', (0, -1))
def test_a_window_of_nothing_is_refused(window):
    with pytest.raises(ValueError, match=f'window is {window}, expected at least 1'): co_occurrences(shop({'u': [1, 2, 0]}, n=3), window)

# ---------------------------------------------------------------- one of them

@pytest.fixture(scope='module')
def taken(): return co_occurrences(toyshop(n_items=80, n_users=200, domains=1)[0])

def test_a_draw_is_a_positive_and_all_are_drawn(taken):
    items = torch.arange(80).repeat(2000)
    drawn = taken.draw(items, 0)
    seen = [drawn[i::80].unique().tolist() for i in range(80)]
    assert seen == listed(taken)

def test_draws_are_uniform(taken):
    i = int(taken.counts.argmax())
    own, n = taken.of(i), 200 * len(taken.of(i))
    counts = torch.bincount(taken.draw(torch.full((n,), i), 1), minlength=80)[own]
    chi = ((counts - 200)**2/200).sum()
    degrees = len(own) - 1
    assert degrees > 10 and abs(chi - degrees) < 4*(2*degrees)**.5

def test_a_seed_repeats_and_a_generator_goes_on(taken):
    items, gen = torch.arange(80), torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    first, second = taken.draw(items, gen), taken.draw(items, gen)
    assert torch.equal(first, taken.draw(items, 5)) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert taken.draw(items[:0], gen).shape == (0,) and taken.draw(items.view(8, 10), 0).shape == (8, 10)

@pytest.mark.parametrize('rows', ([80], [-1, 3]))
def test_rows_of_another_catalogue_are_refused(taken, rows):
    with pytest.raises(ValueError, match='expected 0 to 79; give rows of the same catalogue'): taken.draw(torch.tensor(rows), 0)

def test_domains_below_each_other():
    parts = [co_occurrences(d) for d in (*toyshop(n_items=30, n_users=40), shop({'u': [0, 0, 0]}, n=2))]
    whole = _concat_positives(parts)
    assert whole.n == 92 and isinstance(whole, Positives)
    shifts = (0, 30, 60, 90)
    assert listed(whole) == [[j + s for j in of] for p, s in zip(parts, shifts) for of in listed(p)]
    assert listed(_concat_positives(parts[:1])) == listed(parts[0])
    with pytest.raises(ValueError, match='at least one domain'): _concat_positives([])

# ---------------------------------------------------------------- the loss

def normal(seed, *shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape))

def test_utgrec_alignment(vectors):
    want = vectors('utgrec')['alignment_infonce']['output']
    a, b = normal(11, 6, 3, 8).requires_grad_(), normal(12, 6, 3, 8)
    loss = co_occurrence_alignment(a, b, gather=_gather_rows)
    slope, = torch.autograd.grad(loss, a)
    assert loss.item() == pytest.approx(want['total'], abs=1e-9)
    assert slope[0, 0].tolist() == pytest.approx(want['grad_wrt_a_level0_item0'], abs=1e-9)
    assert slope.abs().sum().item() == pytest.approx(want['grad_wrt_a_abs_sum'], abs=1e-9)
    for l in range(3): assert info_nce(a[:, l], b[:, l], .1).item() == pytest.approx(want['per_level'][l], abs=1e-9)

def test_order_and_lengths_play_no_part():
    a, b, order = normal(11, 6, 3, 8), normal(12, 6, 3, 8), torch.tensor([4, 0, 5, 2, 1, 3])
    loss = co_occurrence_alignment(a, b)
    assert torch.allclose(loss, co_occurrence_alignment(a[order]*7, b[order]/3))
    assert torch.allclose(loss, co_occurrence_alignment(a[:, [2, 0, 1]], b[:, [2, 0, 1]]))
    assert not torch.allclose(loss, co_occurrence_alignment(b, a))  # one direction only

def test_cosines_are_of_float32_under_autocast():
    a, b = normal(11, 6, 3, 8).bfloat16(), normal(12, 6, 3, 8).bfloat16()
    with torch.autocast('cpu', torch.bfloat16): found = co_occurrence_alignment(a, b)
    assert found.dtype == torch.float32 and torch.equal(found, co_occurrence_alignment(a.float(), b.float()))

def test_alone_the_rows_are_as_they_are():
    x = torch.randn(3, 2)
    assert _gather_rows(x) is x

# ---------------------------------------------------------------- two processes

shares = dict(even=(4, 4), uneven=(5, 3), lonely=(8, 0)) # rows of the first and the second process

def steps(rows, gather, parallel=False):
    "Three steps of descent: losses, first gradients and last weights"
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Unflatten(1, (2, 4)))
    model = nn.parallel.DistributedDataParallel(encoder) if parallel else encoder
    optim, losses, first = torch.optim.SGD(model.parameters(), .5), [], None
    anchor, companion = normal(1, 8, 6).float(), normal(2, 8, 6).float()
    for _ in range(3):
        both = model(torch.cat([anchor[rows], companion[rows]]))
        loss = co_occurrence_alignment(*both.split(len(rows)) if len(rows) else (both, both), gather=gather)
        optim.zero_grad()
        loss.backward()
        first = first if first is not None else torch.cat([p.grad.flatten() for p in encoder.parameters()])
        optim.step()
        losses.append(loss.detach())
    return dict(losses=torch.stack(losses), slope=first, weights=torch.cat([p.detach().flatten() for p in encoder.parameters()]))

def each_its_share(folder):
    "Called in both processes: every way to share eight rows, and the gather without its gradient"
    state = process_state()
    assert state.num_processes == 2
    for name, (a, b) in shares.items():
        rows = torch.arange(a) if state.process_index == 0 else torch.arange(a, a + b)
        found = steps(rows, _gather_rows, parallel=True)
        save_file({**found, 'processes': torch.tensor(dist.get_world_size())}, f'{folder}/{name}-{state.process_index}')
    rows = torch.arange(8)[4*state.process_index:][:4]
    def cut(x):
        everyone = _gather_rows(x.detach())
        everyone[4*state.process_index:][:4] = x
        return everyone
    save_file(steps(rows, cut, parallel=True), f'{folder}/cut-{state.process_index}')
    x = torch.randn(2 + state.process_index, 3, 2)
    with pytest.raises(ValueError, match=r'\(5, 3, 2\) and \(5, 1, 2\)'): co_occurrence_alignment(x, x[:, :1], gather=_gather_rows)
    with pytest.raises(ValueError, match=r'\(0, 3, 2\)'): co_occurrence_alignment(x[:0], x[:0], gather=_gather_rows)

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "All that two processes do, by one torchrun"
    folder = tmp_path_factory.mktemp('two')
    torchrun(folder, f'from test_co_occurrence import each_its_share\neach_its_share({str(folder)!r})')
    return folder

@pytest.mark.parametrize('share', shares)
def test_two_processes_learn_what_one_does(share, two):
    one, both = steps(torch.arange(8), _gather_rows), [load_file(two/f'{share}-{k}') for k in (0, 1)]
    for found in both:
        assert found['processes'] == 2
        assert torch.allclose(found['losses'], one['losses'], atol=1e-5)
        assert torch.allclose(found['slope'], one['slope'], atol=1e-6) and one['slope'].norm() > .1
        assert torch.allclose(found['weights'], one['weights'], atol=1e-5)

def test_a_gather_without_gradient_learns_something_else(two):
    "Same first loss, other gradient: the test above can tell"
    one, cut = steps(torch.arange(8), _gather_rows), load_file(two/'cut-0')
    assert torch.allclose(cut['losses'][0], one['losses'][0], atol=1e-5)
    assert (cut['slope'] - one['slope']).norm() > .1*one['slope'].norm()
