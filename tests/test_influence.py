"The influence of a tokenizer: the reference numbers, what Adam would do, and one process or two."
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.train.influence import _adam_direction, adam_influence, _even_batches, influence_overhead, influences, _mean_gradient
from gentok.train.influence import _measuring, _moments_of, rank_agreement, _shared_out
from gentok.ids.sequences import Sequences
from gentok.train.loop import TrainConfig, Trainer
from test_train import Chain, sequences
from two import torchrun

def normal(seed, *shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape))

# ---------------------------------------------------------------- the reference

def reference_moments(): # of W1 and W2
    return {'W1': (.1*normal(93, 4, 3), .01*normal(94, 4, 3).abs()), 'W2': (.1*normal(95, 2, 4), .01*normal(96, 2, 4).abs())}

def reference_gradient(start, rows):
    "Mean of the batches' gradients, as `_mean_gradient` accumulates it"
    w = {'W1': normal(91, 4, 3).requires_grad_(), 'W2': normal(92, 2, 4).requires_grad_()}
    for j, n in enumerate(rows):
        x, y = normal(start + 10*j, n, 3), normal(start + 10*j + 5, n, 2)
        (nn.functional.mse_loss(x @ w['W1'].T @ w['W2'].T, y)/len(rows)).backward()
    return {name: p.grad for name, p in w.items()}

def flat(d): return torch.cat([d['W1'].flatten(), d['W2'].flatten()])

def test_mtgrec_adam_influence(vectors):
    want = {k: torch.tensor(v, dtype=torch.double) for k, v in vectors('mtgrec')['adam_influence']['output'].items()}
    train = [reference_gradient(1000 + 100*i, (4, 2)) for i in range(2)]
    valid = [reference_gradient(2000 + 100*i, (3, 3)) for i in range(2)]
    moments = reference_moments()
    near = dict(rtol=0, atol=1e-9)
    assert torch.allclose(torch.stack([flat(g) for g in train]), want['mean_train_gradient'], **near)
    assert torch.allclose(torch.stack([flat(u) for u in valid]), want['validation_gradient'], **near)
    directions = [flat({k: _adam_direction(g[k], *moments[k]) for k in g}) for g in train]
    assert torch.allclose(torch.stack(directions), want['adam_direction'], **near)
    assert torch.allclose(adam_influence(train, valid, moments), want['influence_matrix_train_by_valid'], **near)
    mean = {k: (valid[0][k] + valid[1][k])/2 for k in moments}
    assert torch.allclose(adam_influence(iter(train), [mean], moments)[:, 0], want['influence_per_train_tokenizer'], **near)

def test_names_decide_and_not_positions(vectors):
    train, valid, moments = [reference_gradient(1000, (4, 2))], [reference_gradient(2000, (3, 3))], reference_moments()
    turned = [{k: d[k] for k in ('W2', 'W1')} for d in (*train, *valid, moments)]
    assert torch.allclose(adam_influence(train, valid, moments), adam_influence(turned[:1], turned[1:2], turned[2]))
    for broken in (({'W1': train[0]['W1']}, valid, moments), (train[0], [{'W1': valid[0]['W1']}], moments), (train[0], valid, {'W1': moments['W1']})):
        with pytest.raises(ValueError, match="weight 'W2' is not in all gradients"): adam_influence([broken[0]], *broken[1:])

@pytest.mark.parametrize('steps', (0, 1, 7))
def test_corrected_direction_is_the_step_of_torch(steps):
    w = nn.Parameter(normal(0, 6))
    adam = torch.optim.Adam([w], lr=1e-2, eps=0.)
    for s in range(steps): w.grad = normal(s + 1, 6); adam.step()
    zero = torch.zeros(6).double()
    m, v = (adam.state[w][k].clone() if steps else zero for k in ('exp_avg', 'exp_avg_sq'))
    before, w.grad = w.detach().clone(), normal(99, 6)
    adam.step()
    assert torch.allclose((before - w.detach())/1e-2, _adam_direction(w.grad, m, v, eps=0., steps=steps))

# ---------------------------------------------------------------- with a trainer

def tokenized(data, n, seed=0):
    "The same examples with the items renamed n times"
    def renamed(i): return torch.cat([data.table[torch.randperm(15, generator=torch.Generator().manual_seed(seed + i))], data.table[-1:]])
    return [Sequences(data.examples, renamed(i), data.batch_size, data.seed) for i in range(n)]

def problem(n=3, trained=8, batch_size=16):
    data = sequences(batch_size=batch_size)
    trainer = Trainer(Chain(), data, TrainConfig(epochs=9, batch_size=batch_size, lr=.01, precision='float32'))
    for index in data.epoch(0)[:trained]: trainer.step(index)
    return trainer, tokenized(data, n), tokenized(sequences(9, batch_size=batch_size), n)

def test_matrix_agrees_with_its_definition():
    "One batch each, plain autograd, everything flattened"
    trainer, train, valid = problem()
    found = influences(trainer, train, valid, sample=None, mean=False)
    model, moments = trainer.bare.eval(), _moments_of(trainer)
    def slope(data):
        batches = _even_batches(data.examples.lengths, torch.arange(data.examples.n), 16)
        total = sum(model(*data.batch(b)) for b in batches)/len(batches)
        return dict(zip(moments, torch.autograd.grad(total, list(model.parameters()))))
    wanted = [[sum((_adam_direction(g[k], *moments[k])*u[k]).sum().item() for k in g) for u in map(slope, valid)] for g in map(slope, train)]
    assert found.tolist() == [pytest.approx(row, rel=1e-4) for row in wanted]
    assert influences(trainer, train, valid, sample=None).tolist() == pytest.approx(found.mean(1).tolist(), rel=1e-4)

@pytest.mark.parametrize('training', (True, False))
def test_measuring_leaves_no_trace(training):
    trainer, train, valid = problem()
    trainer.model.train(training)
    before, state = {k: t.clone() for k, t in trainer.tensors().items()}, torch.get_rng_state()
    progress = vars(trainer.progress).copy()
    one = influences(trainer, train, valid, sample=20)
    assert torch.equal(one, influences(trainer, train, valid, sample=20)), 'a sample follows from seed and step'
    assert not torch.equal(one, influences(trainer, train, valid, sample=20, seed=1))
    assert all(torch.equal(t, before[k]) for k, t in trainer.tensors().items()) and vars(trainer.progress) == progress
    assert trainer.model.training == training and all(p.grad is None for p in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)

def test_gradients_from_before_are_not_counted():
    trainer, train, valid = problem()
    clean = influences(trainer, train, valid, sample=None)
    trainer.model(*train[0].batch(torch.arange(9))).backward()
    assert torch.equal(influences(trainer, train, valid, sample=None), clean)

def test_eval_mode_has_no_noise_and_dropout_has():
    trainer, train, valid = problem()
    whole = [influences(trainer, train, valid, sample=None, dropout=d) for d in (False, False, True)]
    assert torch.equal(whole[0], whole[1]) and not torch.allclose(whole[0], whole[2])

def test_a_trainer_that_made_no_step_and_a_frozen_weight():
    trainer, train, valid = problem(trained=0)
    trainer.bare.inside.weight.requires_grad_(False)
    found = influences(trainer, train, valid, sample=None)
    assert 'inside.weight' not in _moments_of(trainer) and found.isfinite().all()

def test_one_gradient_lives_at_a_time(monkeypatch):
    "The training gradients are a stream: when the next one is made, the last one is gone"
    import weakref
    import gentok.train.influence as module
    made = []
    original = module._take_gradients
    def taken(trainer):
        found = original(trainer)
        made.append(weakref.ref(found['inside.weight']))
        return found
    monkeypatch.setattr(module, '_take_gradients', taken)
    alive = []
    class Watched(Sequences):
        def batch(self, index):
            alive.append(sum(r() is not None for r in made))
            return super().batch(index)
    trainer, train, valid = problem(n=6)
    watched = [Watched(d.examples, d.table, d.batch_size) for d in train]
    influences(trainer, watched, valid)
    assert len(made) == 7 and max(alive) <= 2  # the mean validation gradient, and the one before, while its successor begins

def test_shared_out_uses_everybody_once_and_batches_are_even():
    gen = torch.Generator().manual_seed(0)
    for n, parts, sample in ((10, 3, 2), (10, 3, 100), (2, 5, 7)):
        found = _shared_out(n, parts, sample, gen)
        together = torch.cat(list(found))
        assert len(together) == len(together.unique()) == min(n, parts*sample) and all(0 < len(p) <= sample for p in found)
    lengths = torch.randint(1, 20, (101,), generator=gen)
    cut = _even_batches(lengths, torch.arange(101), 16)
    assert {len(b) for b in cut} <= {14, 15} and torch.equal(torch.cat(cut).sort().values, torch.arange(101))

def test_gradient_of_a_mixture_is_the_mean():
    trainer, train, _ = problem()
    six = [torch.arange(6)]
    with _measuring(trainer):
        alone = [_mean_gradient(trainer, [d], [six]) for d in train]
        both = _mean_gradient(trainer, train, [six]*3)
    assert all(torch.allclose(both[k], sum(g[k] for g in alone)/3, atol=1e-6) for k in both)

def test_the_share_is_measured_and_the_trainer_put_back():
    trainer, train, valid = problem()
    before, step = {k: t.clone() for k, t in trainer.tensors().items()}, trainer.progress.step
    cost = influence_overhead(trainer, train, valid, epochs=20, sample=16, repeats=3, steps=2)
    assert cost.share == pytest.approx(cost.seconds_influence/cost.seconds_training) and cost.low <= cost.spearman <= cost.high
    assert all(torch.equal(t, before[k]) for k, t in trainer.tensors().items()) and trainer.progress.step == step

def test_agreement_of_equal_and_of_opposite_rankings():
    truth = torch.arange(5.)
    assert rank_agreement([truth, truth], truth) == pytest.approx((1, 1, 1))
    assert rank_agreement([-truth, -truth], truth) == pytest.approx((-1, -1, -1))

# ---------------------------------------------------------------- two processes

def measure(folder, name):
    "Train a little, measure, train on; leaves what it found, and the weights that show that training was not disturbed"
    torch.set_num_threads(1)
    data = sequences()
    trainer = Trainer(Chain(dropout=0.), data, TrainConfig(epochs=9, batch_size=16, lr=.01, precision='float32'))
    for index in data.epoch(0)[:6]: trainer.step(index)
    train, valid = tokenized(data, 3), tokenized(sequences(9), 3)
    found = dict(whole=influences(trainer, train, valid, None, mean=False), sample=influences(trainer, train, valid, 21),
                 lonely=influences(trainer, train, valid, 2))  # fewer batches than processes
    trainer.model.train()
    for index in data.epoch(1)[:3]: trainer.step(index)
    if trainer.leads: save_file({**found, 'after': trainer.bare.inside.weight.detach().clone(), 'processes': torch.tensor(trainer.accelerator.num_processes)}, Path(folder)/name)

def test_two_processes_give_the_influence_of_one(tmp_path):
    "Gradients are added exactly once: neither halved, nor doubled, nor squared in the direction"
    torchrun(tmp_path, f"from test_influence import measure; measure({str(tmp_path)!r}, 'two')")
    measure(tmp_path, 'one')
    one, two = load_file(tmp_path/'one'), load_file(tmp_path/'two')
    assert (one['processes'], two['processes']) == (1, 2)
    for name in ('whole', 'sample', 'lonely', 'after'): assert torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4), name
