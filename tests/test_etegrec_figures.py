"Both sides of the alignment are those of the loss, and the numbers beside the picture are what they say."
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from gentok.data.splits import Examples, hold_out, leave_one_out
from gentok.data.toyshop import toyshop
from gentok.ids.sequences import item_tokens
from gentok.papers.etegrec import EtegrecConfig, TargetSequences, _train_jointly, _joint_model, run
from gentok.papers.etegrec_figures import _AlignmentDistances, _at_start, _closeness, _draw_alignment, _alignment_distances, _meeting_points, _plane
from gentok.papers.tiger import tokenize_catalogue
from gentok.train.alignment import preference_semantic_alignment

small = EtegrecConfig(text='lsa', text_dim=8, levels=2, codebook_size=32, tokenizer_epochs=10, epochs=4, fine_tune_epochs=2, cycle=2, alignment_warmup=0, d_model=16, layers=1,
                      batch_size=32, tokenizer_lr=1e-3, sia=0., psa=1., beams=10)

def shop(): return toyshop(n_items=30, n_users=60, domains=1)[0]

def examples(targets):
    n = len(targets)
    items = torch.tensor([[0, t] for t in targets]).flatten()
    return Examples(items, 2*torch.arange(n), 2*torch.arange(n) + 1, torch.arange(n), 0)

@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 9), st.integers(0, 9), st.integers(0, 3))
def test_points_are_the_busiest_items_with_histories_of_their_own(targets, items, histories, seed):
    some, found = examples(targets), len(set(targets))
    if not 2 <= items <= found or histories < 1:
        with pytest.raises(ValueError, match=f'expected 2 to {found} items'): _meeting_points(some, items, histories, seed)
        return
    chosen = _meeting_points(some, items, histories, seed)
    kept = chosen.targets.tolist()
    assert len(set(kept)) == items and len(set(chosen.users.tolist())) == chosen.n
    assert all(kept.count(t) == min(histories, targets.count(t)) for t in set(kept))
    assert min(targets.count(t) for t in set(kept)) >= max((targets.count(t) for t in set(targets) - set(kept)), default=0)

def test_the_two_sides_are_those_of_the_loss():
    split, prepared = leave_one_out(shop()), tokenize_catalogue(shop(), small)
    pair, data, _ = _joint_model(split, prepared, small)
    points = _meeting_points(split.test, 10, 1)
    met = _alignment_distances(pair.eval(), prepared.item_ids, points)
    batch = TargetSequences(points, item_tokens(prepared.item_ids, pair.recommender['model'].vocabulary), 10).batch(torch.arange(10))
    pair.turn, pair.epoch = 'tokenizer', 9
    rows = batch[2].unique()
    alone = sum(pair.tokenizer.losses(pair.items[rows], rows).values())
    wanted = preference_semantic_alignment(met.semantics[met.own], met.preferences)
    assert (pair(*batch) - alone).item() == pytest.approx(wanted.item(), rel=1e-4)

@pytest.mark.parametrize('mode', (True, False))
def test_asking_changes_nothing_and_dropout_is_off(mode):
    split, prepared = leave_one_out(shop()), tokenize_catalogue(shop(), small)
    pair = _joint_model(split, prepared, replace(small, dropout=.5))[0].train(mode)
    points = _meeting_points(split.test, 5)
    one, two = (_alignment_distances(pair, prepared.item_ids, points) for _ in range(2))
    assert torch.equal(one.preferences, two.preferences) and pair.training is mode
    assert not one.preferences.requires_grad and not one.semantics.requires_grad
    order = torch.randperm(points.n)
    moved = _alignment_distances(pair, prepared.item_ids, points.select(order))
    torch.testing.assert_close(moved.preferences, one.preferences[order], rtol=1e-4, atol=1e-5)
    assert torch.equal(moved.items[moved.own], one.items[one.own][order])

def test_a_folder_gives_back_the_beginning(tmp_path):
    held = hold_out(shop(), .1)
    split, result = leave_one_out(held), run(held, small, tmp_path)
    start, item_ids = _at_start(held, small, tmp_path)
    fresh = _joint_model(split, tokenize_catalogue(held, small), small)[0]
    assert torch.equal(item_ids.table, result.first_ids.table)
    assert all(torch.equal(a, b) for a, b in zip(start.state_dict().values(), fresh.state_dict().values()))
    assert any(not torch.equal(a, b) for a, b in zip(start.state_dict().values(), result.pair.state_dict().values()))

@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 99))
def test_closeness_against_plain_loops(n, b, seed):
    gen = torch.Generator().manual_seed(seed)
    own = torch.cat([torch.arange(n), torch.randint(n, (b,), generator=gen)])
    met = _AlignmentDistances(torch.randn(n, 4, generator=gen), torch.randn(len(own), 4, generator=gen), torch.arange(n), own)
    cosine = [[F.cosine_similarity(h, z, dim=0).item() for z in met.semantics] for h in met.preferences]
    mine = [c[o] for c, o in zip(cosine, own.tolist())]
    others = [v for c, o in zip(cosine, own.tolist()) for i, v in enumerate(c) if i != o]
    got = _closeness(met)
    assert got['own'] == pytest.approx(sum(mine)/len(mine), abs=1e-5) and got['others'] == pytest.approx(sum(others)/len(others), abs=1e-5)
    assert got['margin'] == pytest.approx(got['own'] - got['others'])
    assert got['found'] == sum(max(range(n), key=c.__getitem__) == o for c, o in zip(cosine, own.tolist()))/len(own)

def test_lengths_do_not_matter_and_few_points_can_be_drawn():
    gen = torch.Generator().manual_seed(0)
    met = _AlignmentDistances(torch.randn(2, 4, generator=gen), torch.randn(3, 4, generator=gen), torch.arange(2), torch.tensor([0, 1, 1]))
    long = met._replace(preferences=4*met.preferences, semantics=.5*met.semantics)
    assert _closeness(long) == pytest.approx(_closeness(met))
    assert all((a == b).all() for a, b in zip(_plane(met), _plane(long)))
    panel = _draw_alignment(dict(one=met), 'a title')
    assert panel.get_title(loc='left') == 'a title' and [len(c.get_offsets()) for c in panel.collections] == [3, 2]
    plt.close('all')
