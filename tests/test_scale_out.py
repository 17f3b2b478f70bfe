"One process or two: the same curve, the same validation, the same run."
import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from gentok.data.splits import leave_one_out
from gentok.data.toyshop import toyshop
from gentok.ids.collisions import resolve
from gentok.ids.sequences import Sequences, item_tokens
from gentok.ids.vocabulary import Vocabulary
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig
from gentok.train.loop import TrainConfig, Trainer
from gentok.train.scale_out import launch
from two import torchrun

class PowerCut(Exception): "The plug was pulled"

cases = dict(even=dict(examples=96, batch_size=32), # every batch divides by two
             uneven=dict(examples=91, batch_size=33), # shares of 17 and 16, and of 13 and 12
             lonely=dict(examples=61, batch_size=20)) # one batch of a single example: one process has none

def problem(examples, batch_size):
    "Training data, a validation of 31 users, and the model"
    shop = toyshop(n_items=60, n_users=60, domains=1)[0]
    split = leave_one_out(shop)
    ids = resolve(torch.arange(60)[:, None] // torch.tensor([20, 5, 1]) % torch.tensor([3, 4, 5]), 'none')
    vocabulary = Vocabulary(ids.sizes)
    data = Sequences(split.train.select(torch.arange(examples)), item_tokens(ids, vocabulary), batch_size)
    valid = Sequences(split.valid.select(torch.arange(31)), data.table)
    def validate(model, process, processes):
        index = torch.arange(31)[process::processes]
        model.eval()
        with torch.no_grad(): return {'n': len(index), 'minus': -model(*valid.batch(index)).item()*len(index), 'ones': len(index)}
    return data, validate, GenerativeRecommender(vocabulary, RecommenderConfig(16, 32, 2, 8, 1, dropout=0.))

def train(folder, name, case, cut=None):
    "One run; leaves its curve and its weights, and says by how many processes"
    data, validate, model = problem(**cases[case])
    config = TrainConfig(epochs=2, batch_size=data.batch_size, lr=3e-3, precision='float32', checkpoint_seconds=0)
    out = Path(folder)/f'{name}-run' if cut is not None else None
    class Cut(Trainer):
        def step(self, index):
            if self.progress.step == cut: raise PowerCut
            return super().step(index)
    if cut is not None:
        try: Cut(model, data, config, out, validate, 'minus').fit()
        except PowerCut: model = problem(**cases[case])[2]
    trainer = Trainer(model, data, config, out, validate, 'minus')
    result = trainer.fit()
    if trainer.leads:
        save_file({k: t.contiguous() for k, t in trainer.weights().items()}, Path(folder)/f'{name}.safetensors')
        found = dict(curve=result.curve, processes=PartialState().num_processes, best_epoch=result.best_epoch)
        (Path(folder)/f'{name}.json').write_text(json.dumps(found))

def read(folder, name): return json.loads((Path(folder)/f'{name}.json').read_text()), load_file(Path(folder)/f'{name}.safetensors')

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "All runs of two processes, by one torchrun"
    folder = tmp_path_factory.mktemp('two')
    torchrun(folder, f'''
from test_scale_out import cases, train
for case in cases: train({str(folder)!r}, f'two-{{case}}', case)
train({str(folder)!r}, 'two-cut', 'uneven', cut=4)
''')
    return folder

@pytest.mark.parametrize('case', cases)
def test_two_processes_follow_the_curve_of_one(case, two, tmp_path):
    train(tmp_path, 'one', case)
    (one, weights), (both, other) = read(tmp_path, 'one'), read(two, f'two-{case}')
    assert (one['processes'], both['processes']) == (1, 2) and one['best_epoch'] == both['best_epoch']
    for a, b in zip(one['curve'], both['curve'], strict=True):
        assert a == pytest.approx(b, abs=1e-4), 'loss and validation of an epoch'
        assert b['ones'] == 1  # the shares of validation add to all users, each of them once
    assert all(torch.allclose(weights[k], other[k], atol=1e-3) for k in weights)

def test_two_processes_go_on_where_they_were_cut(two):
    "The checkpoint is the first process's; what the second has seen must not be lost with it"
    assert read(two, 'two-cut')[0] == read(two, 'two-uneven')[0]
    assert all(torch.equal(a, b) for a, b in zip(read(two, 'two-cut')[1].values(), read(two, 'two-uneven')[1].values()))

def test_launched_in_one_process_equals_direct(tmp_path):
    train(tmp_path, 'direct', 'uneven')
    launch(train, tmp_path, 'launched', 'uneven')
    assert read(tmp_path, 'direct')[0] == read(tmp_path, 'launched')[0]
    assert all(torch.equal(a, b) for a, b in zip(read(tmp_path, 'direct')[1].values(), read(tmp_path, 'launched')[1].values()))

def test_launched_in_two_processes_after_training_in_this_one(two, tmp_path):
    train(tmp_path, 'before', 'even')
    launch(train, tmp_path, 'launched', 'even', processes=2)
    found = read(tmp_path, 'launched')[0]
    assert found['processes'] == 2 and PartialState().num_processes == 1
    assert [r['loss'] for r in found['curve']] == pytest.approx([r['loss'] for r in read(two, 'two-even')[0]['curve']], abs=1e-4)

def test_a_share_may_be_empty():
    "The loss of one example is the same whether it comes alone or with a process that has none"
    data, _, model = problem(**cases['lonely'])
    assert 1 in [len(b) for b in data.epoch(0)]
    trainer = Trainer(model, data, TrainConfig(batch_size=20, precision='float32'))
    index = next(b for b in data.epoch(0) if len(b) == 1)
    expected = model(*data.batch(index)).item()
    assert trainer.step(index).item() == pytest.approx(expected)

@pytest.mark.parametrize('processes', (0, -1))
def test_no_process_is_refused(processes):
    with pytest.raises(ValueError, match='expected at least 1'): launch(print, processes=processes)
