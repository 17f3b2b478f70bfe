"A sweep runs each value once, goes on where it was stopped, and never takes another run's numbers."
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from gentok.data.splits import hold_out, leave_one_out, unseen_users
from gentok.data.toyshop import toyshop
from gentok.papers import tiger
from gentok.papers.sweeps import best_validation, convergence, draw_sweep, _finished, long_tail, _run_folder, seen_and_unseen_users, sweep
from gentok.papers.tiger import TigerConfig

tiny = TigerConfig(tokenizer='kmeans', codebook_size=8, text_dim=6, epochs=1, d_model=8, layers=1, validate_every=1, beams=10)

def shop(): return toyshop(n_items=30, n_users=30, domains=1)[0]

@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 99), st.floats(.001, 99), st.tuples(st.integers(0, 9), st.integers(0, 9)), st.booleans()), min_size=2, max_size=6, unique_by=repr))
def test_every_value_has_a_folder_of_its_own(values):
    names = [_run_folder('out', dict(key=v, seed=0)).name for v in values]
    assert len(set(names)) == len(values) and not any('/' in n for n in names)

def test_each_value_and_seed_runs_once(tmp_path, monkeypatch):
    asked, run = [], tiger.run
    def counted(dataset, config, out):
        asked.append((config.d_model, config.seed))
        if len(asked) == 3: raise KeyboardInterrupt
        return run(dataset, config, out)
    counted.__module__ = 'gentok.papers.tiger'
    with pytest.raises(KeyboardInterrupt): sweep(counted, shop(), tiny, dict(d_model=(8, 16), seed=(0, 1)), tmp_path)
    rows = sweep(counted, shop(), tiny, dict(d_model=(8, 16), seed=(0, 1)), tmp_path)
    assert asked == [(8, 0), (8, 1), (16, 0), (16, 0), (16, 1)]
    assert [(r['d_model'], r['seed']) for r in rows] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    alone = run(shop(), replace(tiny, d_model=16, seed=1))
    assert rows[-1]['ndcg@10'] == alone.metrics['ndcg@10'] and rows[-1]['valid'] == alone.fitted.result.best

def test_another_runs_folder_is_refused(tmp_path):
    sweep(tiger.run, shop(), tiny, dict(d_model=(8,)), tmp_path)
    with pytest.raises(ValueError, match='holds a run with lr='): sweep(tiger.run, shop(), replace(tiny, lr=.1), dict(d_model=(8,)), tmp_path)
    with pytest.raises(ValueError, match="holds a run with method='tiger'"): _finished(_run_folder(tmp_path, dict(d_model=8, seed=0)), 'letter', tiny, shop())

def test_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(TypeError, match='depth'): sweep(tiger.run, shop(), tiny, dict(depth=(1,)), tmp_path)
    assert not list(tmp_path.iterdir())

@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0, .5))
def test_convergence(values, near):
    curve = [dict(epoch=e, **({} if v is None else {'ndcg@10': v})) for e, v in enumerate(values, 1)]
    seen = [v for v in values if v is not None]
    if not seen:
        assert math.isnan(best_validation(curve))
        with pytest.raises(ValueError, match='set validate_every'): convergence(curve, near=near)
        return
    found = convergence(curve, near=near)
    assert found['best'] == max(seen) == best_validation(curve) and found['of'] == len(values)
    assert values[found['epoch'] - 1] >= (1 - near)*max(seen)
    assert all(v is None or v < (1 - near)*max(seen) for v in values[:found['epoch'] - 1])

def test_long_tail_groups_add_up():
    split = leave_one_out(shop())
    results = {seed: tiger.run(shop(), replace(tiny, seed=seed)).evaluation for seed in (0, 1)}
    rows = long_tail({f'seed {s}': e for s, e in results.items()}, split, 30, groups=3)
    for s, e in results.items(): assert sum(r['users']*r[f'seed {s}'] for r in rows)/30 == pytest.approx(e.metrics['recall@10'])
    for r in rows: assert math.isnan(r['gain of seed 1']) if r['seed 0'] == 0 else r['gain of seed 1'] == pytest.approx(r['seed 1']/r['seed 0'] - 1)

def test_unseen_users_of_any_split_add_up():
    held = hold_out(shop(), .3)
    split, run = leave_one_out(held), tiger.run(held, tiny)
    rows = seen_and_unseen_users(dict(one=run.evaluation, same=run.evaluation), split, 'ndcg@10')
    assert [(r['group'], r['users']) for r in rows] == [('seen', 21), ('unseen', 9)]
    assert sum(r['users']*r['one'] for r in rows)/30 == pytest.approx(run.metrics['ndcg@10'])
    values = run.evaluation.users['ndcg@10'][unseen_users(split)]
    assert rows[1]['one'] == pytest.approx(values.double().mean().item())
    for r in rows: assert math.isnan(r['gain of same']) if r['one'] == 0 else r['gain of same'] == 0
    assert [r['group'] for r in seen_and_unseen_users(dict(one=run.evaluation), leave_one_out(shop()))] == ['seen']

def test_a_run_without_some_users_has_a_folder_of_its_own(tmp_path):
    tiger.run(shop(), tiny, tmp_path)
    with pytest.raises(ValueError, match='holds a run on other data'): tiger.run(hold_out(shop(), .3), tiny, tmp_path)

def test_what_unseen_users_took_changes_no_weight():
    "Other early items of the unseen: behaviour vectors, identifiers and recommender are the same"
    held, other = hold_out(shop(), .3), shop()
    lengths, offsets = other.histories.lengths, other.histories.offsets
    for u in held.held_out.nonzero()[:, 0].tolist():
        other.histories.items[offsets[u]:offsets[u + 1] - 3] = 7
    other.held_out = held.held_out
    plan = replace(tiny, text='sasrec', validate_every=5)
    models = [tiger.run(d, plan).fitted.model.state_dict() for d in (held, other)]
    assert not leave_one_out(held).test.items.equal(leave_one_out(other).test.items)
    assert all(a.equal(b) for a, b in zip(models[0].values(), models[1].values()))

@pytest.mark.parametrize('values, log, scale', (((0., .1, 1.), True, 'linear'), ((.1, 1.), True, 'log'), ((0., 1.), False, 'linear')))
def test_zero_has_no_place_on_a_logarithmic_axis(values, log, scale):
    ax = draw_sweep([dict(w=v, valid=.1) for v in values], 'w', log=log)
    assert ax.get_xscale() == scale
    assert all(math.isfinite(x) for line in ax.lines for x in line.get_xdata())
