"A run goes on where it was cut: same weights, same curve; other settings are refused, and damage is named."
import math
import re
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gentok.store.checkpoints import _checkpoint_name, _checkpoint_paths, newest_checkpoint, _outdated
from gentok.data.splits import Examples
from gentok.ids.sequences import Sequences, batch_tokens
from gentok.train.loop import TrainConfig, Trainer, learning_rate, _pick_precision, weights_at, _weights_file

class Chain(nn.Module):
    "A model of a few hundred weights with all that can go wrong: dropout, a buffer that counts, and padding"
    def __init__(self, tokens=20, d=8, dropout=.2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inside, self.outside = nn.Embedding(tokens, d), nn.Linear(d, tokens)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, inputs, labels):
        if self.training: self.calls += 1
        seen = (inputs != 0).unsqueeze(-1)
        mean = (self.inside(inputs)*seen).sum(1)/seen.sum(1)
        return nn.functional.cross_entropy(self.outside(self.dropout(mean)), labels[:, 0])

def sequences(n_users=20, batch_size=16, seed=0):
    "Users of 4 to 9 items out of 15; every prefix is an example"
    gen = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 10, (n_users,), generator=gen)
    items = torch.randint(0, 15, (int(lengths.sum()),), generator=gen)
    begin = lengths.cumsum(0) - lengths
    stops = torch.cat([torch.arange(1, n) + b for n, b in zip(lengths.tolist(), begin.tolist())])
    users = torch.arange(n_users).repeat_interleave(lengths - 1)
    table = torch.cat([torch.arange(15)[:, None] + 2, torch.zeros(1, 1, dtype=torch.long)])
    return Sequences(Examples(items, begin[users], stops, users, 0), table, batch_size, seed)

def validate(model, process, processes):
    "Minus the loss, as a sum over this process's share"
    data = sequences()
    index = torch.arange(data.examples.n)[process::processes]
    model.eval()
    with torch.no_grad(): return {'n': len(index), 'score': -model(*data.batch(index)).item()*len(index)}

config = TrainConfig(epochs=20, batch_size=16, lr=.02, patience=30, validate_every=3, precision='float32', checkpoint_seconds=0, ema_decay=.9)
short = replace(config, epochs=4, validate_every=1)

def train(out, config=config, kind=Trainer):
    "The run that all tests here cut, damage and continue"
    trainer = kind(Chain(), sequences(), config, out, validate, 'score')
    return trainer, trainer.fit()

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def ends_equal(run, straight):
    "Curve, best weights, and everything in the last checkpoint but the seconds"
    (trainer, result), (expected, wanted) = run, straight
    assert result[:4] == wanted[:4]
    assert same(trainer.weights(), expected.weights())
    return True

class PowerCut(Exception): "The plug was pulled"

def cut(out, step, config=short):
    "Train up to a step and stop there without a farewell"
    class Cut(Trainer):
        def step(self, index):
            if self.progress.step == step: raise PowerCut
            return super().step(index)
    with pytest.raises(PowerCut): train(out, config, Cut)

@pytest.fixture(scope='module')
def straight(): return train(None, short)

# ---------------------------------------------------------------- going on

@pytest.mark.parametrize('where', ('first step', 'amid an epoch', 'last step of an epoch', 'first step of an epoch', 'last step'))
def test_cut_anywhere_ends_equal(where, straight, tmp_path):
    n = len(sequences())
    step = {'first step': 0, 'amid an epoch': n + 3, 'last step of an epoch': 2*n - 1, 'first step of an epoch': 2*n, 'last step': 4*n - 1}[where]
    cut(tmp_path, step)
    assert ends_equal(train(tmp_path, short), straight)

def test_cut_while_validating(straight, tmp_path):
    "Between an epoch's last step and its checkpoint lies the validation, whose best weights may be written already"
    calls = []
    class Cut(Trainer):
        def end_epoch(self, epoch):
            more = super().end_epoch(epoch)
            calls.append((self.out/'best.safetensors').stat().st_mtime_ns)
            if epoch == 2: raise PowerCut
            return more
    with pytest.raises(PowerCut): train(tmp_path, short, Cut)
    assert calls[0] < calls[1]
    assert newest_checkpoint(tmp_path/'checkpoints').step == 2*len(sequences()) - 1
    assert ends_equal(train(tmp_path, short), straight)

@pytest.mark.parametrize('seconds', (0, .02, 1e9))
def test_how_often_checkpoints_are_written_changes_nothing(seconds, straight, tmp_path):
    assert ends_equal(train(tmp_path, replace(short, checkpoint_seconds=seconds)), straight)
    assert ends_equal(train(tmp_path, short), straight)  # finished, so only given back

def test_a_finished_run_is_not_trained_again(straight, tmp_path, monkeypatch):
    train(tmp_path, short)
    monkeypatch.setattr(Trainer, 'step', lambda *args: pytest.fail('trained again'))
    assert ends_equal(train(tmp_path, short), straight)

def test_callers_randomness_changes_nothing(straight):
    torch.manual_seed(7)
    assert ends_equal(train(None, short), straight)

def test_seconds_of_all_starts_are_added(tmp_path):
    cut(tmp_path, 20)
    before = newest_checkpoint(tmp_path/'checkpoints').state['progress']['seconds']
    started = time.time()
    _, result = train(tmp_path, short)
    assert before < result.seconds <= before + time.time() - started

def test_without_validation_the_last_weights_stay(tmp_path):
    runs = []
    for out in (None, tmp_path):
        trainer = Trainer(Chain(), sequences(), short, out)
        runs.append((trainer, trainer.fit()))
    assert ends_equal(*runs) and runs[0][1].best_epoch == 0

def test_bf16_and_float32_in_one_process_and_both_go_on(tmp_path):
    low = replace(short, precision='bf16')
    expected = train(None, low)
    cut(tmp_path, 20, low)
    assert ends_equal(train(tmp_path, low), expected)
    other = train(None, short)[1].curve
    assert expected[1].curve != other and expected[1].curve[-1]['loss'] == pytest.approx(other[-1]['loss'], rel=.02)
    assert {t.dtype for t in expected[0].tensors().values()} == {torch.float32}

# ---------------------------------------------------------------- damage

def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    path.write_bytes(data)

damages = dict(cut_short=lambda p: p.write_bytes(p.read_bytes()[:-7]), flipped=flip, empty=lambda p: p.write_bytes(b''), gone=lambda p: p.unlink())

@pytest.mark.parametrize('damage', damages)
@pytest.mark.parametrize('file', ('tensors.safetensors', 'state.json', 'digest.json'))
def test_a_damaged_checkpoint_falls_back(damage, file, straight, tmp_path):
    cut(tmp_path, 20)
    damages[damage](tmp_path/'checkpoints'/_checkpoint_name(20)/file)
    with pytest.warns(UserWarning, match='step-0000000020 is damaged .* was passed over'):
        found = newest_checkpoint(tmp_path/'checkpoints')
    assert found.step == 19
    with pytest.warns(UserWarning, match='step-0000000020 is damaged'): run = train(tmp_path, short)
    assert ends_equal(run, straight)
    with warnings.catch_warnings(): warnings.simplefilter('error'); newest_checkpoint(tmp_path/'checkpoints')

def test_all_checkpoints_damaged_begins_again(straight, tmp_path):
    cut(tmp_path, 20)
    for path in _checkpoint_paths(tmp_path/'checkpoints'): flip(path/'tensors.safetensors')
    with pytest.warns(UserWarning, match='is damaged'): cut(tmp_path, 5)
    assert newest_checkpoint(tmp_path/'checkpoints').step == 5  # the damaged later ones did not push it out
    assert ends_equal(train(tmp_path, short), straight)

@pytest.mark.parametrize('damage', damages)
def test_damaged_best_weights_are_named(damage, tmp_path):
    run = train(tmp_path/'run', short)
    damages[damage](tmp_path/'run'/'best.safetensors')
    said = 'is missing' if damage == 'gone' else '(is damaged|is not what this run has written)'
    with pytest.raises(ValueError, match=f'best.safetensors {said}, expected the weights of epoch {run[1].best_epoch}; delete (.*) and run again') as e:
        train(tmp_path/'run', short)
    follow(e)
    assert ends_equal(train(tmp_path/'run', short), run)

def follow(error):
    "Do what the sentence says: delete the folder that it names"
    shutil.rmtree(re.search('; delete (.*) and ', str(error.value))[1])

def test_the_best_weights_of_another_run_are_refused(tmp_path):
    run, other = train(tmp_path/'run', short), train(tmp_path/'other', replace(short, lr=.01))
    shutil.copy(tmp_path/'other'/'best.safetensors', tmp_path/'run'/'best.safetensors')
    with pytest.raises(ValueError, match='best.safetensors is not what this run has written, expected the weights of epoch'): train(tmp_path/'run', short)

@pytest.mark.parametrize('damage', damages)
def test_damaged_weights_of_an_epoch_are_named(damage, tmp_path):
    def kept_run(): return Trainer(Chain(), sequences(), short, tmp_path/'run', validate, 'score').keeping((2, 3)).fit()
    kept_run()
    kept = weights_at(tmp_path/'run', 2)
    damages[damage](_weights_file(tmp_path/'run', 2))
    said = 'has no weights of epoch 2, expected .*epoch-000002' if damage == 'gone' else 'epoch-000002.safetensors is damaged, expected the weights of epoch 2'
    with pytest.raises(FileNotFoundError if damage == 'gone' else ValueError, match=said) as e: weights_at(str(tmp_path/'run'), 2)
    assert same(weights_at(tmp_path/'run', 3), weights_at(str(tmp_path/'run'), 3))
    follow(e)
    kept_run()
    assert same(weights_at(tmp_path/'run', 2), kept)

def test_outdated_keeps_the_newest_whole_ones():
    paths = [Path(_checkpoint_name(s)) for s in (1, 2, 3, 9)]
    assert _outdated(paths, _checkpoint_name(3), keep=2) == [paths[0], paths[3]]
    assert _outdated(paths, _checkpoint_name(9), keep=2) == paths[:2]
    assert _outdated(paths[:1], _checkpoint_name(1), keep=2) == []

# ---------------------------------------------------------------- other settings

@pytest.mark.parametrize('change', (dict(lr=.01), dict(epochs=5), dict(patience=1), dict(precision='bf16'), dict(weight_decay=0.)))
def test_other_settings_are_refused(change, tmp_path):
    cut(tmp_path, 3)
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f'holds a run with {name}={getattr(short, name)}, but {name}={value} was asked for; give the same settings'):
        train(tmp_path, replace(short, **change))
    assert newest_checkpoint(tmp_path/'checkpoints').step == 3

def test_other_data_and_other_models_are_refused(tmp_path):
    cut(tmp_path, 3)
    changed = sequences()
    changed.examples.items[0] += 1
    for model, data, said in ((Chain(), changed, 'data='), (Chain(d=9), sequences(), 'model='), (Chain(), sequences(21), 'data=')):
        with pytest.raises(ValueError, match=said): Trainer(model, data, short, tmp_path, validate, 'score').fit()
    with pytest.raises(ValueError, match="metric=score, but metric=n was"): Trainer(Chain(), sequences(), short, tmp_path, validate, 'n').fit()

def test_data_and_configuration_must_agree():
    with pytest.raises(ValueError, match=r'\(8, 0\) in the data, but \(16, 0\)'): Trainer(Chain(), sequences(batch_size=8), short)
    with pytest.raises(ValueError, match=r'\(16, 3\) in the data, but \(16, 0\)'): Trainer(Chain(), sequences(seed=3), short)

@pytest.mark.parametrize('wrong', (dict(epochs=0), dict(epochs=math.nan), dict(batch_size=0), dict(validate_every=0)))
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} is .*, expected'): TrainConfig(**wrong)

usual = dict(lr='0.001', weight_decay='0.05', clip='1', warmup='0.05', checkpoint_seconds='30')

@pytest.mark.parametrize('value', (math.nan, math.inf, -math.inf, -1., -1e-300))
@pytest.mark.parametrize('name', usual)
def test_numbers_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=f'^{name} is {value}, expected a finite number, .*; {usual[name]} is usual.$'): TrainConfig(**{name: value})

def test_zero_is_refused_where_nothing_would_be_learnt():
    for name in ('lr', 'clip'):
        with pytest.raises(ValueError, match=f'{name} is 0, expected a finite number, more than 0'): TrainConfig(**{name: 0})
    assert TrainConfig(weight_decay=0, warmup=0, checkpoint_seconds=0).clip == 1
    with pytest.raises(ValueError, match='warmup is 2, expected a share of all steps, at most 1; 0.05 is usual'): TrainConfig(warmup=2)

# ---------------------------------------------------------------- rate, stopping, precision, order

@pytest.mark.parametrize('total', (1, 2, 7, 100))
@pytest.mark.parametrize('warmup', (0., .1, 1.))
def test_learning_rate(total, warmup):
    c = TrainConfig(lr=2., warmup=warmup)
    rates = [learning_rate(s, total, c) for s in range(total)]
    w = max(1, round(warmup*total))
    assert rates == pytest.approx([2.*min(1, (s + 1)/w)*math.cos(math.pi*s/total/2)**2 for s in range(total)])
    assert all(0 < r <= 2 for r in rates)
    assert all(a > b for a, b in zip(rates[w:], rates[w+1:]))

def test_the_rate_reaches_the_optimiser():
    trainer, result = train(None, short)
    total = trainer.total
    assert trainer.optimiser.param_groups[0]['lr'] == result.curve[-1]['lr'] == learning_rate(total - 1, total, short)

def told(scores, **changes):
    scores, few = iter(scores), replace(short, epochs=9, **changes)
    trainer = Trainer(Chain(), sequences(), few, validate=lambda model, process, processes: {'n': 2, 'score': 2*next(scores)}, metric='score')
    return trainer.fit()

def test_early_stopping_follows_the_metric():
    result = told([.1, .3, .2, .25, .9], patience=2)
    assert (result.best_epoch, len(result.curve)) == (2, 4) and result.best == pytest.approx(.3)
    assert result.curve[-1]['loss'] < result.curve[1]['loss']  # the loss alone would have gone on
    assert len(told([.1]*9, patience=0).curve) == 9
    assert len(told([.1]*9, patience=3).curve) == 4  # equal is not better
    every_other = told([.5, .4, .4, .4], patience=2, validate_every=2)
    assert (every_other.best_epoch, len(every_other.curve)) == (2, 6)

def test_the_last_epoch_is_always_validated():
    result = told([.1, .2, .3], validate_every=4)
    assert [r['epoch'] for r in result.curve if 'score' in r] == [4, 8, 9] and result.best_epoch == 9

def test_validation_without_the_metric_is_refused():
    trainer = Trainer(Chain(), sequences(), short, validate=validate)
    with pytest.raises(ValueError, match=r"\['n', 'score'\] without 'ndcg@10'"): trainer.fit()

def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    data = sequences()
    class Sick(Chain):
        def forward(self, *batch): return super().forward(*batch)*(math.nan if self.calls > 4 else 1)
    with pytest.raises(ValueError, match=r'the loss is nan at step 5, expected a number; lower lr \(now 0.02\)'):
        Trainer(Sick(), data, short, tmp_path).fit()
    found = newest_checkpoint(tmp_path/'checkpoints')
    assert found.step == 4 and all(t.isfinite().all() for t in found.tensors.values())

@pytest.mark.parametrize('native', (True, False))
def test_auto_precision_asks_the_processor(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'): monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    assert _pick_precision('auto') == ('bf16' if native else 'no')
    assert (_pick_precision('float32'), _pick_precision('bf16')) == ('no', 'bf16')
    with pytest.raises(ValueError, match="'fp16', expected 'auto'"): _pick_precision('fp16')

def test_an_epoch_has_every_example_once():
    data = sequences()
    for epoch in range(3):
        batches = data.epoch(epoch)
        assert torch.cat(batches).sort().values.tolist() == list(range(data.examples.n)) and len(batches) == len(data)
    expected = batch_tokens(data.examples, batches[0], data.table)
    assert all(torch.equal(a, b) for a, b in zip(data.batch(batches[0]), expected))
    with pytest.raises(ValueError, match='no training examples'): Sequences(data.examples.select([]), data.table)
