"The curriculum: probabilities by the reference, draws by the probabilities, and a run that goes on drawing where it was cut."
import json
import math
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare

from gentok.store.checkpoints import newest_checkpoint
from gentok.train.curriculum import Curriculum, MixedSequences, sampling_probabilities
from gentok.train.loop import TrainConfig, Trainer
from test_influence import tokenized
from test_train import Chain, PowerCut, same, sequences
from two import torchrun

# ---------------------------------------------------------------- probabilities

@pytest.mark.parametrize('tau', (.1, 1., 3.))
def test_mtgrec_curriculum_probabilities(vectors, tau):
    want = vectors('mtgrec')['curriculum_probabilities']['output']
    stages = [np.random.default_rng(111 + s).standard_normal((3, 3)) for s in range(3)]
    rates = [.004, .003, .001]
    for k, row in enumerate(want, 1):
        p = sampling_probabilities(stages[:k], rates[:k], tau)
        assert p.tolist() == pytest.approx(row[f'probabilities_tau_{tau}'], abs=1e-9)
        assert torch.equal(p, sampling_probabilities([s.mean(1) for s in stages[:k]], rates[:k], tau))

def test_the_papers_sum_is_practically_uniform():
    stages, rates = [[0., 1., 2.]]*3, [.004, .003, .001]
    p = sampling_probabilities(stages, rates, total='sum')
    assert p.tolist() == pytest.approx((torch.tensor([0., 1, 2]).double()*.008).softmax(0).tolist())
    assert (p - 1/3).abs().max() < .004 < (sampling_probabilities(stages, rates) - 1/3).abs().max()

@pytest.mark.parametrize('large', ([112., 118., 125.], [-125., 0., 125.], [1e4, 0., -1e4], [1e300, 0., -1e300]))
def test_influences_that_overflow_stay_finite(large):
    for tau in (.1, 1.):
        p = sampling_probabilities([torch.tensor(large, dtype=torch.double)], [.005], tau)
        assert p.isfinite().all() and p.sum() == pytest.approx(1) and p.argmax() == np.argmax(large)

@pytest.mark.parametrize('value', (math.nan, math.inf, -math.inf))
def test_an_influence_that_is_no_number_is_one_sentence(value):
    with pytest.raises(ValueError, match=rf'^the influence of tokenizer 1 after stage 1 is {value}, expected a number; [^.]*\.$'):
        sampling_probabilities([[0., 1.], [0., value]], [.1, .1])

def test_what_neighbours_differ_by_moves_probabilities_at_a_low_temperature_only():
    near = [[5 + x/100 for x in range(-10, 11, 2)]]
    reach = {tau: sampling_probabilities(near, [1.], tau).aminmax() for tau in (.1, 1., 10.)}
    assert reach[1.].max - reach[1.].min < .02 < .1 < reach[.1].max - reach[.1].min
    assert reach[10.].max - reach[10.].min < .002

# ---------------------------------------------------------------- drawing

def mixed(n=4, users=20, batch_size=16, seed=0):
    data = sequences(users, batch_size, seed)
    return MixedSequences(data.examples, [d.table for d in tokenized(data, n)], batch_size, seed)

@pytest.mark.parametrize('p', ([.25]*4, [.1, .2, .3, .4], [.97, .01, .01, .01]))
def test_draws_follow_the_probabilities(p):
    data = mixed(users=500)
    data.probabilities = torch.tensor(p, dtype=torch.double)
    counts = sum(data.draw(epoch).bincount(minlength=4) for epoch in range(20))
    assert chisquare(counts, counts.sum()*data.probabilities).pvalue > 1e-3

def test_draws_of_neighbours_and_of_epochs_are_independent():
    data = mixed(users=500)
    a, b = data.draw(0), data.draw(1)
    for pair in (torch.stack([a, b]), torch.stack([a[:-1], a[1:]])):
        table = torch.zeros(4, 4).index_put(tuple(pair), torch.ones(pair.shape[1]), accumulate=True)
        assert chisquare(table.flatten()).pvalue > 1e-3

def test_probability_zero_is_never_drawn():
    data = mixed()
    for i in range(4):
        data.probabilities = torch.eye(4).double()[i]
        assert all((data.draw(epoch) == i).all() for epoch in range(5))

def test_history_and_target_are_written_by_one_tokenizer():
    data = mixed()
    N, alone = data.examples.n, data.alone()
    assert sorted((torch.cat(data.epoch(2)) % N).tolist()) == list(range(N)) and len(data.epoch(2)) == len(data)
    for index in data.epoch(2):
        inputs, labels = data.batch(index)
        for row, e in enumerate(index.tolist()):
            wanted = alone[e // N].batch(torch.tensor([e % N]))
            assert torch.equal(inputs[row][:wanted.inputs.shape[1]], wanted.inputs[0]) and torch.equal(labels[row], wanted.labels[0])
            assert not inputs[row][wanted.inputs.shape[1]:].any()

def test_two_processes_draw_different_tokenizers_at_one_position():
    data = mixed(users=200)
    shares = [torch.cat([b[p::2][:8] // data.examples.n for b in data.epoch(0) if len(b) == 16]) for p in range(2)]
    assert .65 < (shares[0] != shares[1]).float().mean() < .85  # three in four, with four tokenizers
    again = mixed(users=200)
    assert all(torch.equal(a, b) for a, b in zip(data.epoch(0), again.epoch(0)))
    other = mixed(users=200, seed=1)
    assert not torch.equal(other.draw(0), data.draw(0))

# ---------------------------------------------------------------- training

config = TrainConfig(epochs=6, batch_size=16, lr=.02, precision='float32', checkpoint_seconds=0)

def run(out=None, kind=Trainer, dropout=.2, stages=(2, 1, 1, 9), **changes):
    data = mixed()
    callback = Curriculum(data, sequences(9).examples, stages, **dict(dict(temperature=3., sample=24), **changes))
    return kind(Chain(dropout=dropout), data, config, out, callback=callback)

def cut(at):
    class Cut(Trainer):
        def step(self, index):
            if self.progress.step == at: raise PowerCut
            return super().step(index)
    return Cut

@pytest.fixture(scope='module')
def straight():
    trainer = run()
    return trainer, trainer.fit()

def test_stages_end_where_they_should(straight):
    trainer, result = straight
    assert [row['epoch'] for row in result.curve if 'probabilities' in row] == [2, 3, 4] == list(accumulate((2, 1, 1)))
    callback = trainer.callback
    assert callback.rates == [row['lr'] for row in result.curve[1:4]] and len(callback.influences) == 3
    for k in range(1, 4):
        p = sampling_probabilities(callback.influences[:k], callback.rates[:k], 3.)
        assert result.curve[k]['probabilities'] == p.tolist()
    assert trainer.data.probabilities.tolist() == p.tolist() and (p - .25).abs().max() > .01

def test_a_low_temperature_really_moves_what_is_drawn():
    "The paper's grid from end to end, on the influences of a run"
    reach, drawn = {}, {}
    for tau in (.1, .3, 1., 3., 5., 10.):
        trainer = run(temperature=tau, stages=(2,))
        trainer.fit()
        p = trainer.data.probabilities
        reach[tau] = (p.max() - p.min()).item()
        counts = sum(trainer.data.draw(epoch).bincount(minlength=4) for epoch in range(2, 40))
        drawn[tau] = chisquare(counts).pvalue
    assert list(reach.values()) == sorted(reach.values(), reverse=True)
    assert reach[.1] > .5 > .1 > reach[10.] and drawn[.1] < 1e-6

@pytest.mark.parametrize('where', ('before', 'first step after a stage', 'amid a stage', 'last step of a stage', 'last stage'))
def test_cut_anywhere_ends_equal(where, straight, tmp_path):
    trainer, result = straight
    n = len(trainer.data)
    step = {'before': 3, 'first step after a stage': 2*n, 'amid a stage': 2*n + 2, 'last step of a stage': 3*n - 1, 'last stage': 5*n + 1}[where]
    with pytest.raises(PowerCut): run(tmp_path, cut(step)).fit()
    again = run(tmp_path)
    assert again.fit().curve == result.curve
    assert same(again.tensors(), trainer.tensors()) and again.callback.state() == trainer.callback.state()
    assert torch.equal(again.data.probabilities, trainer.data.probabilities)
    assert newest_checkpoint(tmp_path/'checkpoints').state['callback'] == json.loads(json.dumps(trainer.callback.state()))

@pytest.mark.parametrize('change', (dict(temperature=1.), dict(total='sum'), dict(sample=25), dict(stages=(2, 2))))
def test_another_curriculum_is_refused(change, tmp_path):
    with pytest.raises(PowerCut): run(tmp_path, cut(3)).fit()
    with pytest.raises(ValueError, match='holds a run with curriculum='): run(tmp_path, **change).fit()
    with pytest.raises(ValueError, match='holds a run with curriculum='): Trainer(Chain(), mixed(), config, tmp_path).fit()

def test_a_nan_in_the_weights_stops_the_run():
    trainer = run()
    class Sick(Curriculum):
        def after(self, trainer, row):
            if row['epoch'] in self.ends: trainer.bare.outside.bias.data.fill_(math.nan)
            return super().after(trainer, row)
    trainer.callback.__class__ = Sick
    with pytest.raises(ValueError, match='the influence of tokenizer 0 after stage 0 is nan, expected a number'): trainer.fit()

def leave(folder, name):
    "One run without dropout; what it drew, found and learned"
    torch.set_num_threads(1)
    trainer = run(dropout=0.)
    trainer.fit()
    found = dict(p=trainer.data.probabilities, influences=torch.tensor(trainer.callback.influences), weight=trainer.weights()['inside.weight'],
                 drawn=torch.cat(trainer.data.epoch(5)), processes=torch.tensor(trainer.accelerator.num_processes))
    save_file({k: t.detach().clone() for k, t in found.items()}, Path(folder)/f'{name}{trainer.accelerator.process_index}')

def test_two_processes_follow_one(tmp_path):
    "Who draws does not depend on how many there are, so the whole run agrees"
    torchrun(tmp_path, f"from test_curriculum import leave; leave({str(tmp_path)!r}, 'two')")
    leave(tmp_path, 'one')
    one, *both = (load_file(tmp_path/name) for name in ('one0', 'two0', 'two1'))
    assert all(torch.equal(both[0][k], both[1][k]) for k in one)  # the two agree to the bit
    assert (one['processes'], both[0]['processes']) == (1, 2)
    for k in ('p', 'influences', 'weight'): assert torch.allclose(one[k], both[0][k], rtol=1e-2, atol=1e-2), k
    assert (one['drawn'] == both[0]['drawn']).float().mean() > .98
