"MTGRec as a whole: its budget, its switches, and that nothing shows of a kill at any of its stages."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from gentok.data.splits import leave_one_out
from gentok.data.toyshop import toyshop
from gentok.ids.item_ids import ItemIds
from gentok.papers import mtgrec
from gentok.train import loop
from gentok.train.loop import weights_at
from gentok.ids.vocabulary import Vocabulary
from gentok.papers.protocol import RecommenderSpec, backbones, fit_recommender
from gentok.papers.mtgrec import MtgrecConfig, _Many, _candidates_of, _prepare_many, run, _shared_sizes, _sweep_recommenders, _wording_changes
from gentok.papers.sweeps import best_validation
from gentok.papers.tiger import RQVAETigerConfig, _codebooks_of, make_tokenizer
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from two import torchrun

small = MtgrecConfig(n_tokenizers=3, levels=2, codebook_size=8, tokenizer_epochs=12, text_dim=8, epochs=5, batch_size=64, candidates=2, fine_tune_epochs=1, stages=(1, 1),
                     sample=16, d_model=16, layers=1, validate_every=1, beams=10)

def shop(): return toyshop(n_items=30, n_users=40, domains=1)[0]

def left(result): return {k: v for k, v in result.metrics.items() if k != 'seconds'}

# ---------------------------------------------------------------- the plan

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(1, 6))
def test_a_plan_never_exceeds_its_budget(epochs, candidates, fine_tune_epochs, starts, n):
    tries = candidates*max(1, starts)
    settings = dict(epochs=epochs, candidates=candidates, fine_tune_epochs=fine_tune_epochs, n_tokenizers=n, starts=(1,)*starts)
    if candidates > n or epochs <= tries*fine_tune_epochs:
        with pytest.raises(ValueError, match=r'^[^.]*\.$'): MtgrecConfig(**settings)
    else: assert MtgrecConfig(**settings).pretraining_epochs + tries*fine_tune_epochs == epochs

@pytest.mark.parametrize('wrong, said', [(dict(n_tokenizers=0), 'n_tokenizers is 0'), (dict(candidates=0), 'candidates is 0'), (dict(fine_tune_epochs=-1), 'fine_tune_epochs is -1'),
                                         (dict(fine_tune_lr=float('nan')), 'fine_tune_lr is nan'), (dict(starts=(0,)), 'starts is (0,)'), (dict(epochs=0), 'epochs is 0')])
def test_a_plan_that_cannot_be_is_one_sentence(wrong, said):
    with pytest.raises(ValueError) as error: MtgrecConfig(**wrong)
    assert said in str(error.value) and str(error.value).endswith('.')

@pytest.mark.parametrize('backbone', ('decoder', 't5'))
def test_every_step_is_in_the_budget(backbone, tmp_path):
    "As many optimiser steps, over all candidates, as the protocol has epochs; whichever recommender it is"
    split, base = leave_one_out(shop()), replace(small, backbone=backbone)
    epoch = len(backbones[backbone][1](split.train, torch.zeros(31, 2, dtype=torch.long), base.batch_size))
    for config in (base, replace(base, starts=(1, 2), epochs=6, candidates=1, n_tokenizers=2), replace(base, pretrain=False)):
        home = tmp_path/str(hash(config))
        pretraining, tried = _candidates_of(split, _prepare_many(shop(), config, home), config, home)
        steps = sum(r.steps for r in (pretraining, *(c.fitted.result for c in tried)) if r)
        assert steps == config.epochs*epoch and all(type(c.fitted.model) is backbones[backbone][0] for c in tried)

# ---------------------------------------------------------------- identifiers

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3))
def test_one_vocabulary_for_all(sizes, L):
    made = [ItemIds(torch.cat([torch.zeros(K, L - 1, dtype=torch.long), torch.arange(K)[:, None]], 1), collisions=K) for K in sizes]
    for before, after in zip(made, _shared_sizes(made)):
        assert after.sizes == (1,)*(L - 1) + (max(sizes),) and torch.equal(after.table, before.table) and after.collisions == before.collisions

@pytest.mark.parametrize('policy', ('suffix', 'reassign'))
def test_unique_in_every_wording(policy, tmp_path):
    many = _prepare_many(shop(), replace(small, policy=policy), tmp_path)
    assert len({ids.sizes for ids in many.item_ids}) == 1
    for ids, codes in zip(many.item_ids, many.codes):
        assert len(ids.table.unique(dim=0)) == 30
        if policy == 'suffix': assert torch.equal(ids.table[:, :2], codes)

def test_the_difference_is_that_of_what_the_recommender_reads(tmp_path):
    result = run(shop(), replace(small, policy='suffix'), tmp_path)
    tables = [ids.table for ids in result.item_ids]
    assert torch.equal(tables[-1], _prepare_many(shop(), replace(small, policy='suffix'), tmp_path).item_ids[-1].table)
    for row in _wording_changes(result.codes, result.item_ids):
        gap = row['interval']
        pairs = [(tables[k][i], tables[k + gap][i]) for k in range(3 - gap) for i in range(30)]
        assert row['identifier'] == pytest.approx(sum(bool((a != b).any()) for a, b in pairs)/len(pairs))
        assert row['identifier'] >= row['any'] >= row['first']  # a suffix is added, and nothing else is touched

@pytest.mark.parametrize('tokenizer', ('rqvae', 'rqvae++'))
def test_neighbours_are_trained_at_a_rate_that_falls(tokenizer, tmp_path):
    many = _prepare_many(shop(), replace(small, tokenizer=tokenizer), tmp_path/'named')
    assert {t.fit_config.final for t in many.tokenizers} == {.15}
    own = RQVAE(RQVAEConfig(hidden=(8,), latent=4, levels=2, K=8), FitConfig(epochs=8, batch_size=16, measure=0, final=.5))
    assert _prepare_many(shop(), small, tmp_path/'own', own).tokenizers[0].fit_config.final == .5
    assert make_tokenizer(RQVAETigerConfig(tokenizer='rqvae++')).fit_config.final == .15  # TIGER++, its rival

# ---------------------------------------------------------------- one protocol

def start_of(books, item_ids, config):
    model = backbones[config.backbone][0](Vocabulary(item_ids.sizes), config.recommender(), config.seed)
    return model.start_at_codewords(books, config.codeword_init, config.seed).t5.shared.weight.detach()

@pytest.mark.parametrize('policy', ('suffix', 'reassign'))
def test_pretraining_starts_at_the_codewords_as_its_rival_does(policy, tmp_path):
    split, still = leave_one_out(shop()), replace(small, policy=policy, lr=1e-12, weight_decay=0.)
    many = _prepare_many(shop(), still, tmp_path)
    books = _codebooks_of(many.tokenizers[-1])
    for config, where in ((still, 'pretraining'), (replace(still, pretrain=False), 'training')):
        pretraining, tried = _candidates_of(split, many, config, tmp_path)
        weights = weights_at(tmp_path/where, 3) if pretraining else dict(tried[0].fitted.model.named_parameters())
        assert torch.allclose(weights['t5.shared.weight'], start_of(books, many.item_ids[-1], config), atol=1e-6)

def test_without_pretraining_it_is_tiger(tmp_path):
    split, config = leave_one_out(shop()), replace(small, pretrain=False)
    many = _prepare_many(shop(), config, tmp_path)
    _, (alone,) = _candidates_of(split, many, config, tmp_path)
    rival = fit_recommender(split, many.item_ids[-1], config, None, RecommenderSpec(codebooks=_codebooks_of(many.tokenizers[-1])))
    assert rival.result.curve == alone.fitted.result.curve
    assert all(torch.equal(a, b) for a, b in zip(rival.model.parameters(), alone.fitted.model.parameters()))

def test_the_rate_rises_for_as_many_epochs_in_every_part(tmp_path):
    split, config = leave_one_out(shop()), replace(small, epochs=10, fine_tune_epochs=4, fine_tune_lr=small.lr, candidates=1)
    many = _prepare_many(shop(), config, tmp_path)
    pretraining, tried = _candidates_of(split, many, config, tmp_path)
    _, alone = _candidates_of(split, many, replace(config, pretrain=False), tmp_path)
    whole = [row['lr'] for row in alone[0].fitted.result.curve]
    assert [row['lr'] for row in pretraining.curve] == pytest.approx(whole[:6]) and whole[0] < whole[1] == small.lr
    assert [row['lr'] for row in tried[0].fitted.result.curve] == pytest.approx(whole[:4])

# ---------------------------------------------------------------- curriculum and budgets

@pytest.mark.parametrize('epochs', (8, 25, 50, 100, 200))
def test_the_curriculum_looks_at_every_budget(epochs):
    "Looks after fixed epochs never came in a run of fewer, and nothing said so"
    config = MtgrecConfig(epochs=epochs)
    assert list(accumulate(config.all_stages))[-1] < config.pretraining_epochs or epochs < 10
    assert config.all_stages[0] < config.pretraining_epochs
    assert MtgrecConfig(epochs=epochs, stages=(3, 4)).all_stages == (3, 4)

def test_a_low_temperature_moves_the_probabilities(tmp_path):
    split, short = leave_one_out(shop()), replace(small, epochs=8, candidates=1, stages=())
    many = _prepare_many(shop(), short, tmp_path)
    def reach(tau):
        curve = mtgrec.pretrain(split, many.item_ids, replace(short, temperature=tau), tmp_path/str(tau)).curve
        looks = [row['probabilities'] for row in curve if 'probabilities' in row]
        return max(looks[0]) - min(looks[0])
    found = [reach(tau) for tau in (.1, 1., 10.)]
    assert found == sorted(found, reverse=True) and found[0] > .9 > .3 > found[2] > 0

def test_pretraining_chooses_nothing(tmp_path):
    "What a sweep compares is the validation of the weights that are kept"
    config = replace(small, epochs=6, candidates=1, fine_tune_epochs=1, fine_tune_lr=3., weight_decay=0., ema_decay=0.)  # fine-tuning that destroys
    result = run(shop(), config, tmp_path)
    curve = json.loads((tmp_path/'curve.json').read_text())
    assert best_validation(curve) == result.fitted.result.best
    assert max(row['ndcg@10'] for row in curve if 'ndcg@10' in row) > result.fitted.result.best

def test_runs_of_a_seed_share_their_tokenizers(tmp_path, monkeypatch):
    fits, learn = [], RQVAE.learn
    def counted(self, x, ids, out=None): fits.append((Path(out)/'config.json').exists()); return learn(self, x, ids, out)
    monkeypatch.setattr(RQVAE, 'learn', counted)
    config = replace(small, candidates=1, fine_tune_epochs=0, stages=())
    (tmp_path/'pretrain-True_epochs-4_seed-0'/'identifiers.part').mkdir(parents=True)  # of a copy that was cut
    rows = _sweep_recommenders(shop(), config, dict(pretrain=(True, False), epochs=(4, 6), seed=(0, 1)), tmp_path)
    assert len(rows) == 8 and fits.count(False) == 2 and not list(tmp_path.rglob('*.part'))
    tables = {s: {tuple(ItemIds.load(p/'identifiers'/'2').table.flatten().tolist()) for p in tmp_path.glob(f'*seed-{s}')} for s in (0, 1)}
    assert [len(t) for t in tables.values()] == [1, 1] and tables[0] != tables[1]
    spent = {(r['pretrain'], r['epochs']): len(json.loads((tmp_path/f"pretrain-{r['pretrain']}_epochs-{r['epochs']}_seed-0"/'curve.json').read_text())) for r in rows}
    assert all(used == epochs for (_, epochs), used in spent.items())
    alone = run(shop(), replace(config, epochs=4), tmp_path/'alone')
    assert alone.metrics['ndcg@10'] == rows[0]['ndcg@10']
    assert {f.name for f in fields(MtgrecConfig)} >= set(mtgrec._tokenizer_fields)
    for name in mtgrec._tokenizer_fields:
        with pytest.raises(ValueError, match=rf'^the tokenizers depend on {name}, and these runs share theirs; use sweep\.$'):
            _sweep_recommenders(shop(), config, {name: (getattr(config, name),)}, tmp_path/'no')

# ---------------------------------------------------------------- switches

def test_switches(tmp_path):
    split = leave_one_out(shop())
    def way(name, **change):
        config = replace(small, **change)
        many = _prepare_many(shop(), config, tmp_path/name)
        return many, *_candidates_of(split, many, config, tmp_path/name)
    many, pretraining, tried = way('all')
    assert [len(row['probabilities']) for row in pretraining.curve[:2]] == [3, 3] and 'probabilities' not in pretraining.curve[2]
    _, uniform, _ = way('uniform', curriculum=False)
    assert not any('probabilities' in row for row in uniform.curve)
    assert uniform.curve[0]['loss'] == pretraining.curve[0]['loss'] and uniform.curve[1]['loss'] != pretraining.curve[1]['loss']
    strangers, *_ = way('strangers', adjacent=False)
    def near(m): return (m.codes[1:] == m.codes[:-1]).all(-1).double().mean()
    assert near(many) > .3 > near(strangers)
    _, none, alone = way('alone', pretrain=False)
    assert none is None and len(alone) == 1 and len(alone[0].fitted.result.curve) == small.epochs

def test_the_best_by_validation_is_kept(tmp_path):
    result = run(shop(), small, tmp_path)
    best = max(result.tried, key=lambda c: c.fitted.result.best)
    assert result.fitted.result.best == best.fitted.result.best and result.fitted.item_ids is best.fitted.item_ids
    assert [row['epoch'] for row in result.fitted.result.curve] == [1, 2, 3, 4]

def test_a_tokenizer_of_ones_own(tmp_path):
    own = RQVAE(RQVAEConfig(hidden=(8,), latent=4, levels=3, K=4), FitConfig(epochs=8, batch_size=16, measure=0))
    result = run(shop(), replace(small, policy='suffix'), tmp_path, tokenizer=own)
    assert result.codes.shape == (3, 30, 3) and result.fitted.item_ids.sizes[:3] == (4, 4, 4)
    other = RQVAE(RQVAEConfig(hidden=(8,), latent=4, levels=3, K=5), FitConfig(epochs=8, batch_size=16, measure=0))
    with pytest.raises(ValueError, match='holds a run with tokenizer'): run(shop(), replace(small, policy='suffix'), tmp_path, tokenizer=other)
    with pytest.raises(ValueError, match='holds a run with tokenizer'): run(shop(), replace(small, policy='suffix'), tmp_path)

def test_the_same_seed_gives_the_same_everything(tmp_path):
    one, two, other = run(shop(), small), run(shop(), small, tmp_path), run(shop(), replace(small, seed=1))
    assert left(one) == left(two) and torch.equal(one.codes, two.codes) and one.out is None
    assert not torch.equal(one.codes, other.codes)

# ---------------------------------------------------------------- faults

words = ['epochs=5', 'n_tokenizers=3', 'levels=2', 'codebook_size=8', 'tokenizer_epochs=12', 'text_dim=5', 'batch_size=16', 'candidates=2', 'fine_tune_epochs=1', 'stages=1,1',
         'sample=16', 'd_model=16', 'layers=1', 'validate_every=1', 'beams=10']

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    home = tmp_path_factory.mktemp('data')/'crockery'
    home.mkdir()
    (home/'items.csv').write_text('item,text\n' + '\n'.join(f'{i},{c} {k}' for i, (c, k) in enumerate((c, k) for c in ('red', 'blue', 'green') for k in ('cup', 'plate', 'bowl', 'jug'))))
    (home/'interactions.csv').write_text('user,item,time\n' + '\n'.join(f'u{u},{(u + 4*t) % 12},{t}' for u in range(40) for t in range(6)))
    return home

def command(data, out): return [sys.executable, '-c', 'import sys; from gentok.cli import main; sys.exit(main())', 'run', 'mtgrec', str(data), '--out', str(out), '--json', *(f'--{s}' for s in words)]

def asked(data, out): return subprocess.run(command(data, out), capture_output=True, text=True, env=dict(os.environ, GENTOK_QUIET='1', OMP_NUM_THREADS='1'))

@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('straight')/'out'
    done = asked(data, out)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])

@pytest.mark.parametrize('moment', ('tokenizer/epochs', 'identifiers/1', 'pretraining/epochs', 'tuning-3-1/best.safetensors'))
def test_killed_at_every_stage(moment, data, uninterrupted, tmp_path):
    straight, said = uninterrupted
    running = subprocess.Popen(command(data, tmp_path/'out'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, GENTOK_QUIET='1', OMP_NUM_THREADS='1'))
    patience = time.time() + 1800
    while not (tmp_path/'out'/moment).exists() and running.poll() is None and time.time() < patience: time.sleep(.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (tmp_path/'out'/moment).exists()
    done = asked(data, tmp_path/'out')
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    different = {k for k in said if again[k] != said[k]} - {'seconds', 'report'}
    assert not different, different
    for name in ('model.safetensors', 'item_ids.safetensors'):
        one, two = load_file(straight/name), load_file(tmp_path/'out'/name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert json.loads((straight/'curve.json').read_text()) == json.loads((tmp_path/'out'/'curve.json').read_text())

def test_switches_and_lists_on_the_command_line(data, tmp_path, uninterrupted):
    straight, _ = uninterrupted
    config = json.loads((straight/'metrics.json').read_text())['config']
    assert config == json.loads(json.dumps(asdict(replace(small, batch_size=16, text_dim=5))))
    wrong = [*command(data, tmp_path/'no'), '--curriculum', 'perhaps']
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '') and 'perhaps is not known' in done.stderr and not (tmp_path/'no').exists()

def leave(out, name):
    loop._pick_precision = lambda wanted: 'no' # where the processor has bf16, its rounding would be compared
    config = replace(small, dropout=0., pretrain=True)
    result = run(shop(), config, Path(out)/name)
    (Path(out)/f'{name}-{os.environ.get("RANK", "0")}.json').write_text(json.dumps(dict(left(result), curve=result.fitted.result.curve)))

def test_two_processes_do_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, '_pick_precision', loop._pick_precision)
    leave(tmp_path, 'one')
    torchrun(tmp_path, f"from test_mtgrec import leave; leave({str(tmp_path)!r}, 'two')")
    one, *two = (json.loads((tmp_path/f'{name}.json').read_text()) for name in ('one-0', 'two-0', 'two-1'))
    assert two[0] == two[1]
    for a, b in zip(one['curve'], two[0]['curve']):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)
        if 'probabilities' in a: assert a['probabilities'] == pytest.approx(b['probabilities'], rel=1e-2)
