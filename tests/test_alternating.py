"Parts that take turns: who learns, how fast, what is untouched, and that neither a cut nor a second process shows."
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.train.alternating import AlternatingOptimization
from gentok.train.loop import Callback, TrainConfig, Trainer, learning_rate
from test_train import PowerCut, same, sequences
from two import torchrun

class Pair(nn.Module):
    "Two parts; a loss that needs both, and dropout in each"
    def __init__(self, dropout=.1):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (nn.Sequential(nn.Linear(8, 8), nn.Dropout(dropout)) for _ in range(2))
        self.two.append(nn.Linear(8, 1))
        self.register_buffer('table', torch.randn(64, 8))
    def forward(self, inputs, labels):
        x = self.table[inputs[:, :2] % 64].mean(1)  # as far as no history is padded
        return (self.two(self.one(x)).squeeze(1) - labels.float().mean(1)).square().mean()/100

plan = TrainConfig(epochs=6, batch_size=8, lr=1e-2, precision='float32', checkpoint_seconds=0.)
def trainer(out=None, config=plan, order=('one', 'two', 'two'), model=None, **more):
    return Trainer(model or Pair(), sequences(10, config.batch_size), config, out, callback=AlternatingOptimization(order, **more))

@given(st.lists(st.sampled_from('abc'), min_size=2, max_size=6).filter(lambda o: len(set(o)) > 1), st.integers(0, 30))
def test_counts_are_those_of_a_walk(order, epochs):
    turns = AlternatingOptimization(order)
    walked = [turns.who(e) for e in range(1, epochs + 1)]
    assert walked == [order[e % len(order)] for e in range(epochs)]
    assert all(turns.had(part, epochs) == walked.count(part) for part in turns.parts)

@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(['one', 'two']), min_size=2, max_size=4).filter(lambda o: len(set(o)) > 1), st.integers(2, 7))
def test_each_part_walks_its_own_schedule_once(order, epochs):
    t = trainer(config=replace(plan, epochs=epochs), order=order, rates=dict(two=3e-3))
    n, turns = len(t.data), t.callback
    for group in t.optimiser.param_groups:
        part, seen = group['turn'], []
        for step in range(t.total):
            t.progress.step = step
            if turns.who(step//n + 1) == part: seen.append(turns.rate(t, group))
        mine = replace(t.config, lr=dict(one=1e-2, two=3e-3)[part])
        assert seen == [learning_rate(s, len(seen), mine) for s in range(len(seen))]

def test_a_resting_part_is_left_alone():
    class Watch(Callback):
        def after(self, trainer, row):
            now = {k: v.clone() for k, v in trainer.weights().items()}
            changed = {k.split('.')[0] for k in now if not torch.equal(now[k], self.last[k])}
            assert changed == {row['turn']}, 'no step, no decay, and no buffer moves'
            self.last = now
            return {}
    watch = Watch()
    t = trainer(then=watch, config=replace(plan, weight_decay=.5))
    watch.last = {k: v.clone() for k, v in t.weights().items()}
    modes = []
    step = t.step
    t.step = lambda index: (modes.append((t.bare.turn, t.bare.one.training, t.bare.two.training)), step(index))[1]
    t.fit()
    assert set(modes) == {('one', True, False), ('two', False, True)}

@pytest.mark.parametrize('cut', range(0, 30, 4))
def test_cut_anywhere_ends_equal(cut, tmp_path):
    whole = trainer()
    wanted = whole.fit()
    first = trainer(tmp_path)
    step = first.step
    def until(index):
        if first.progress.step == cut: raise PowerCut
        return step(index)
    first.step = until
    with pytest.raises(PowerCut): first.fit()
    second = trainer(tmp_path)
    assert second.fit().curve == wanted.curve and same(second.weights(), whole.weights())

@pytest.mark.parametrize('change', (dict(order=('two', 'one')), dict(rates=dict(one=.5))))
def test_other_turns_are_refused(change, tmp_path):
    trainer(tmp_path).fit()
    with pytest.raises(ValueError, match='holds a run with turns='): trainer(tmp_path, **change).fit()

def test_weights_without_a_turn_and_weights_with_two():
    lonely, both = Pair(), Pair()
    lonely.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^weight 'extra.bias' belongs to no part of \['one', 'two'\]; [^.]*\.$"): trainer(model=lonely)
    both.two[0] = both.one[0]
    with pytest.raises(ValueError, match='share a weight'): trainer(model=both)
    with pytest.raises(AttributeError, match='three'): trainer(order=('one', 'two', 'three'))

def leave(out, name):
    t = trainer(model=Pair(dropout=0.))
    result = t.fit()
    save_file({**{k: v.contiguous() for k, v in t.weights().items()}, 'curve': torch.tensor([row['loss'] for row in result.curve])}, f'{out}/{name}-{os.environ.get("RANK", "0")}.safetensors')

def test_two_processes_take_the_same_turns(tmp_path):
    leave(tmp_path, 'one')
    torchrun(tmp_path, f"from test_alternating import leave; leave({str(tmp_path)!r}, 'two')")
    one, *two = (load_file(tmp_path/f'{name}.safetensors') for name in ('one-0', 'two-0', 'two-1'))
    assert same(*two)
    for k in one: assert torch.allclose(one[k], two[0][k], rtol=1e-3, atol=1e-4), k
