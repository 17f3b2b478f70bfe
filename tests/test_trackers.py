"Every run of a command logs its curve, once and whole; a tracker that is not there is refused before anything is trained."
import builtins
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gentok.data.toyshop import toyshop
from gentok.embed.items import _items_of
from gentok.embed.multimodal import LightConfig
from gentok.embed.table import EmbeddingTable, _concat_domains
from gentok.papers import mtgrec
from gentok.store.tracking import _numbers, _open_trackers, _run_log
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from gentok.tokenize.unitok import ExpertsConfig, UniTok
from gentok.tokenize.utgrec import UTGRecTokenizer
from gentok.tokenize.utgrec_parts import UTGRecTokenizerConfig, UTGRecFitConfig
from gentok.train.loop import Trainer
from gentok.train.trackers import _run_name, tracking
from test_train import PowerCut, cut, same, sequences, short, train
from two import torchrun

here = str(Path(__file__).resolve().parent)
levels = ['usage/1', 'usage/2', 'collisions']

def curves(folder):
    "tag -> [(step, value)] of one run, as TensorBoard shows it"
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}

def expected(curve, kind='recommender'):
    "What of a curve should be shown"
    found = {}
    for row in curve:
        for tag, value in _numbers(row, kind).items(): found.setdefault(tag, []).append((row['epoch'], torch.tensor(value).item()))
    return found

def runs(out): return sorted(str(p.parent.relative_to(out/'logs')) for p in (out/'logs').rglob('events*'))

# ---------------------------------------------------------------- recommenders

def test_losses_rates_and_metrics_of_every_epoch(tmp_path):
    with tracking('tensorboard', tmp_path): _, result = train(tmp_path/'training', short)
    found = curves(tmp_path/'logs'/'recommender'/'training')
    assert list(found) == ['recommender/loss', 'recommender/lr', 'recommender/score']
    assert found == expected(result.curve) and len(found['recommender/lr']) == short.epochs

def test_being_watched_changes_nothing(tmp_path):
    alone, plain = train(None, short)
    with tracking('tensorboard', tmp_path): watched, result = train(tmp_path/'training', short)
    assert result.curve == plain.curve and same(watched.weights(), alone.weights())

@pytest.mark.parametrize('steps', ((0,), (3,), (20,), (20, 20), (5, 13, 22)))
def test_a_run_that_goes_on_shows_every_epoch_once(steps, tmp_path):
    for step in steps:
        with tracking('tensorboard', tmp_path): cut(tmp_path/'training', step)
    with tracking('tensorboard', tmp_path): _, result = train(tmp_path/'training', short)
    assert curves(tmp_path/'logs'/'recommender'/'training') == expected(result.curve)

def test_a_run_that_was_not_watched_at_first_shows_its_whole_curve(tmp_path):
    cut(tmp_path/'training', 20)
    with tracking('tensorboard', tmp_path): _, result = train(tmp_path/'training', short)
    assert curves(tmp_path/'logs'/'recommender'/'training') == expected(result.curve)

def test_a_finished_run_is_not_logged_again(tmp_path):
    for _ in range(2):
        with tracking('tensorboard', tmp_path): train(tmp_path/'training', short)
    assert len(runs(tmp_path)) == 1

def test_begun_again_from_nothing_the_old_curve_is_gone(tmp_path):
    with tracking('tensorboard', tmp_path): train(tmp_path/'a'/'training', short)
    with tracking('tensorboard', tmp_path): _, result = train(tmp_path/'b'/'training', replace(short, epochs=2))
    with tracking('tensorboard', tmp_path):
        shutil.rmtree(tmp_path/'a'/'training')
        _, result = train(tmp_path/'a'/'training', replace(short, epochs=2))
    assert curves(tmp_path/'logs'/'recommender'/'a'/'training') == expected(result.curve)

program = '''
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_train import config, train
from test_train_killed import Teller
from gentok.train.trackers import tracking
out = Path(sys.argv[2])
with tracking('tensorboard', out): train(out/'training', kind=Teller)
'''

def test_killed_and_started_again(tmp_path):
    _, wanted = train(None)
    env = dict(os.environ, GENTOK_QUIET='1', OMP_NUM_THREADS='1')
    for moment in (30, 95, None):
        with subprocess.Popen([sys.executable, '-c', program, here, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env) as run:
            for line in run.stdout:
                if moment and int(line) >= moment: run.kill(); break
            run.stdout.read()
        assert run.returncode == (-signal.SIGKILL if moment else 0)
    assert curves(tmp_path/'logs'/'recommender'/'training') == expected(wanted.curve)
    assert len(runs(tmp_path)) == 1  # one file for another

# ---------------------------------------------------------------- tokenizers

def table(n=60, seed=0, d=8):
    centres, gen = torch.randn(10, d, generator=torch.Generator().manual_seed(9)), torch.Generator().manual_seed(seed)
    return EmbeddingTable([f'item {i}' for i in range(n)], centres[torch.randint(10, (n,), generator=gen)] + .1*torch.randn(n, d, generator=gen), 'made')

small, plan = RQVAEConfig(hidden=(16,), latent=4, K=8, levels=2), FitConfig(epochs=6, batch_size=20, every=2, measure=3)

@pytest.mark.parametrize('select', ('last', 'collisions'))
def test_losses_collisions_and_usage_of_every_epoch(select, tmp_path):
    fit, data = replace(plan, select=select), table()
    alone = RQVAE(small, fit).fit(data)
    with tracking('tensorboard', tmp_path): watched = RQVAE(small, fit).fit(data, tmp_path/'tokenizer')
    found = curves(tmp_path/'logs'/'tokenizer')
    assert sorted(found) == sorted(f'tokenizer/{name}' for name in ('reconstruction', 'quantisation', *levels))
    assert found == expected(watched.history, 'tokenizer') and all(len(points) == 6 for points in found.values())
    assert same(alone.state_dict(), watched.state_dict())
    if select == 'last':
        health = watched.health(data)
        last = {tag.removeprefix('tokenizer/'): points[-1][1] for tag, points in found.items()}
        assert [last[name] for name in levels] == pytest.approx([*health.usage, health.collision_rate])
    assert [r['epoch'] for r in alone.history if 'collisions' in r] == [3, 6]

def test_watched_in_part_the_same_epoch_is_chosen(tmp_path):
    "Measurements that only a tracker asked for take no part in the choice of the best epoch"
    fit, data = replace(plan, epochs=12, select='collisions', lr=1e-2), table()
    alone = RQVAE(small, fit).fit(data)
    with tracking('tensorboard', tmp_path): RQVAE(small, replace(fit, epochs=5)).fit(data, tmp_path/'tokenizer')
    assert same(RQVAE(small, fit).fit(data, tmp_path/'tokenizer').state_dict(), alone.state_dict())

def test_a_tokenizer_that_goes_on_shows_every_epoch_once(tmp_path, monkeypatch):
    data, original = table(), RQVAE.train_epoch
    def train_epoch(self, x, optimizer, epoch):
        if epoch == 4: raise PowerCut
        return original(self, x, optimizer, epoch)
    with monkeypatch.context() as m, pytest.raises(PowerCut), tracking('tensorboard', tmp_path):
        m.setattr(RQVAE, 'train_epoch', train_epoch)
        RQVAE(small, plan).fit(data, tmp_path/'tokenizer')
    assert [step for step, _ in curves(tmp_path/'logs'/'tokenizer')['tokenizer/collisions']] == [1, 2, 3]  # the checkpoint is of epoch 2
    with tracking('tensorboard', tmp_path): again = RQVAE(small, plan).fit(data, tmp_path/'tokenizer')
    assert curves(tmp_path/'logs'/'tokenizer') == expected(again.history, 'tokenizer')

def test_experts_and_their_warm_up(tmp_path):
    both = _concat_domains(dict(a=table(40), b=table(40, 1)))
    make = lambda: UniTok(ExpertsConfig(('a', 'b')), replace(small, whiten=0), replace(plan, warm=2))
    with tracking('tensorboard', tmp_path): watched = make().fit(both, tmp_path/'tokenizers'/'all')
    found = curves(tmp_path/'logs'/'tokenizer'/'tokenizers'/'all')
    assert [step for step, _ in found['tokenizer/usage/3']] == [3, 4, 5, 6] and len(found['tokenizer/reconstruction']) == 6
    assert same(make().fit(both).state_dict(), watched.state_dict())

def test_words_and_pictures(tmp_path):
    shop = toyshop(n_items=24, n_users=10, domains=1)[0]
    items = _items_of(shop.catalogue, EmbeddingTable(shop.catalogue.ids, table(24).matrix, 'made'))
    sizes = UTGRecTokenizerConfig(sizes=(4, 6), levels=2, width=8, patch=0, mu=0., eta=0.)
    make = lambda: UTGRecTokenizer(sizes, UTGRecFitConfig(epochs=4, batch_size=12, warm=4, every=1), LightConfig(width=16))
    with tracking('tensorboard', tmp_path): watched = make().fit(items, tmp_path/'tokenizer')
    found = curves(tmp_path/'logs'/'tokenizer')
    assert [step for step, _ in found['tokenizer/collisions']] == [3, 4] and len(found['tokenizer/text']) == 4
    assert found == expected(watched.history, 'tokenizer') and same(make().fit(items).state_dict(), watched.state_dict())

# ---------------------------------------------------------------- a whole command

def test_the_stages_of_a_command_have_names_of_their_own(tmp_path):
    config = mtgrec.MtgrecConfig(text_dim=8, codebook_size=8, tokenizer_epochs=4, epochs=4, validate_every=1, d_model=8, layers=1, batch_size=64,
                                 beams=10, tokenizer='rqvae', n_tokenizers=2, candidates=2, fine_tune_epochs=1, stages=(1,), sample=16)
    with tracking('tensorboard', tmp_path/'out'): mtgrec.run(toyshop(n_items=40, n_users=40, domains=1)[0], config, tmp_path/'out')
    assert runs(tmp_path/'out') == ['recommender/pretraining', 'recommender/tuning-2-0', 'recommender/tuning-2-1', 'tokenizer']
    found = curves(tmp_path/'out'/'logs'/'recommender'/'pretraining')
    assert len(found['recommender/ndcg@10']) == 2 and len(found['recommender/probabilities/2']) == 1

@given(st.lists(st.tuples(st.sampled_from(('tokenizer', 'recommender')), st.sampled_from((None, '/a', '/b', '/o', '/o/a', '/o/tokenizer', '/o/x/a', '/p/a'))), max_size=12))
def test_names_follow_folders(asked):
    taken = {}
    found = [_run_name(kind, folder, Path('/o'), taken) for kind, folder in asked]
    for i, (a, name) in enumerate(zip(asked, found)):
        for b, other in zip(asked[:i], found[:i]): assert (name == other) == (a == b and a[1] is not None)
        assert name.startswith(a[0])

@given(st.dictionaries(st.text('abc', min_size=1, max_size=3), st.recursive(st.none()|st.booleans()|st.floats()|st.integers()|st.text(max_size=2), lambda x: st.lists(x, max_size=3), max_leaves=4)))
def test_only_numbers_are_logged(row):
    for name, value in _numbers(row | dict(epoch=7), 'tokenizer').items():
        assert name.startswith('tokenizer/') and type(value) in (int, float) and not name.endswith('epoch')

def test_two_processes_log_once(tmp_path):
    torchrun(tmp_path, f'''
from pathlib import Path
from test_train import short, train
from gentok.train.trackers import tracking
out = Path({str(tmp_path)!r})/'out'
with tracking('tensorboard', out): train(out/'training', short)
''')
    assert runs(tmp_path/'out') == ['recommender/training']
    assert [step for step, _ in curves(tmp_path/'out'/'logs'/'recommender'/'training')['recommender/loss']] == [1, 2, 3, 4]

# ---------------------------------------------------------------- trackers that are not there, and other ones

fake = '''
import json, os, sys
told = os.environ['TOLD']
def write(*line): print(json.dumps(line), file=open(told, 'a'))
class Run:
    def log(self, values, step=None): write(step, values)
    def finish(self): print('finished'); write('finish')
def init(**given):
    if os.environ.get('LOGGED_OUT'): raise RuntimeError('api_key not configured')
    print('hello'); write('init', {k: str(v) for k, v in given.items()}); return Run()
'''

@pytest.fixture
def others(tmp_path, monkeypatch):
    "Packages of the two other trackers' names, which write down what they are told"
    for name in ('wandb', 'trackio'):
        (tmp_path/'packages'/name).mkdir(parents=True)
        (tmp_path/'packages'/name/'__init__.py').write_text(fake)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path/'packages')
    monkeypatch.setenv('TOLD', str(tmp_path/'told'))
    yield lambda: [json.loads(line) for line in (tmp_path/'told').read_text().splitlines()]
    for name in ('wandb', 'trackio'): sys.modules.pop(name, None)

@pytest.mark.parametrize('names', (('wandb',), ('trackio',), ('tensorboard', 'trackio'), 'tensorboard, wandb,trackio'))
def test_other_trackers_and_several_at_once(names, others, tmp_path, capsys):
    with tracking(names, tmp_path/'out'): _, result = train(tmp_path/'out'/'training', short)
    told, n = others(), sum(name in names for name in ('wandb', 'trackio'))
    for said, how in told[:n]: assert said == 'init' and (how['project'], how['name'], how['group']) == ('gentok', 'recommender/training', 'out')
    assert [line[0] for line in told[n:]] == [1]*n + [2]*n + [3]*n + [4]*n + ['finish']*n
    assert told[n][1] == _numbers(result.curve[0], 'recommender')
    if 'tensorboard' in names: assert curves(tmp_path/'out'/'logs'/'recommender'/'training') == expected(result.curve)
    assert capsys.readouterr().out == ''  # standard output is the command's

def test_an_error_closes_the_trackers(others, tmp_path):
    with tracking('wandb', tmp_path/'out'): cut(tmp_path/'out'/'training', 13)
    assert [line[0] for line in others()] == ['init', 1, 'finish']

@pytest.mark.parametrize('log_with, said', [('tensorbord', "names 'tensorbord', expected trackers among tensorboard, wandb, trackio"), (('tensorboard', ''), "names ''"),
    ('tensorboard,surelynot', "names 'surelynot', expected trackers among"), ('all', "names 'all'")])
def test_unknown_trackers_are_refused(log_with, said, tmp_path):
    with pytest.raises(ValueError, match=f'^log_with {said}'):
        with tracking(log_with, tmp_path): pytest.fail('trained')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('name', ('tensorboard', 'wandb', 'trackio'))
def test_a_tracker_that_is_not_installed_is_refused(name, tmp_path, monkeypatch):
    (tmp_path/'here'/name).mkdir(parents=True)  # the folder that wandb leaves in the working directory is no package
    monkeypatch.setattr(sys, 'path', [str(tmp_path/'here')])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match=f"names '{name}', which is not installed, expected a package that is; pip install {name}, or leave it out"):
        with tracking(name, tmp_path/'out'): pytest.fail('trained')
    assert not (tmp_path/'out').exists()

def test_a_tracker_that_does_not_start_stops_the_run_before_its_first_step(others, tmp_path, monkeypatch):
    monkeypatch.setenv('LOGGED_OUT', '1')
    monkeypatch.setattr(Trainer, 'step', lambda *args: pytest.fail('trained'))
    with tracking('tensorboard,wandb', tmp_path), pytest.raises(ValueError, match=r'^wandb does not start \(api_key not configured\); set it up, or leave it out of log_with.$'):
        train(tmp_path/'training', short)

def test_blocks_within_blocks(tmp_path):
    with tracking('tensorboard', tmp_path/'one'):
        with tracking(None, None), _run_log('tokenizer', None, [], True) as log: assert log
        with tracking('tensorboard', tmp_path/'two'), _run_log('tokenizer', None, [dict(epoch=1, loss=1.)], True): pass
    assert _open_trackers.get() is None and runs(tmp_path/'two') == ['tokenizer']
    with pytest.raises(RuntimeError), tracking('tensorboard', tmp_path/'three'): raise RuntimeError
    assert _open_trackers.get() is None
    with _run_log('tokenizer', None, [], True) as log: assert not log

# ---------------------------------------------------------------- a terminal, a log, a notebook

def screen(text):
    "What a terminal shows in the end, line by line"
    shown = []
    for line in text.split('\n'):
        cells = []
        for part in line.split('\r'): cells[:len(part)] = part
        shown.append(''.join(cells).rstrip())
    return [line for line in shown if line]

class Shell:
    "What IPython's `get_ipython()` gives; a kernel, where there is a front end"
    config = {}
    def __init__(self, kernel): self.kernel = kernel

@pytest.fixture
def said(monkeypatch):
    "What a run writes to standard error"
    def run(terminal, shell=None, quiet=''):
        with monkeypatch.context() as m:
            m.setenv('GENTOK_QUIET', quiet)
            if shell: m.setattr(builtins, 'get_ipython', lambda: shell, raising=False)
            ours, theirs = pty.openpty() if terminal else os.pipe()
            if terminal: fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 25, 120, 0, 0))
            with os.fdopen(theirs, 'w', newline='') as stderr:
                m.setattr(sys, 'stderr', stderr)
                assert sys.stderr.isatty() == terminal
                with ThreadPoolExecutor(1) as pool:  # a pty holds four kilobytes only
                    reader = pool.submit(read_all, ours)
                    train(None, short)
                    stderr.write('the end')
                    stderr.flush()
                    return reader.result().removesuffix('the end').replace('\r\n', '\n')
    return run

def read_all(file):
    "All that is written to the other side until it says that it has ended"
    found = b''
    while not found.endswith(b'the end'): found += os.read(file, 1 << 16)
    os.close(file)
    return found.decode()

def test_a_terminal_gets_a_bar(said):
    text = said(terminal=True)
    assert text.count('\r') > 1 and screen(text)[-1].startswith('train: 100%') and 'loss' in screen(text)[-1]
    assert screen(said(terminal=True, shell=Shell(None)))[-1].startswith('train: 100%')  # IPython in a terminal

def test_a_log_gets_lines(said):
    text, total = said(terminal=False), 4*len(sequences())
    assert '\r' not in text and [line.split(',')[0] for line in text.splitlines()] == [f'train: step {total} of {total}']

@pytest.mark.parametrize('terminal', (True, False))
def test_a_notebook_gets_a_bar_that_goes(terminal, said):
    text = said(terminal, Shell('a kernel'))
    assert 'train: ' in text and text.count('\r') > 1 and screen(text) == []

def test_a_page_without_a_front_end_and_a_quiet_command_get_nothing(said):
    assert said(False, Shell(None)) == ''
    for terminal in (True, False): assert said(terminal, quiet='1') == said(terminal, Shell('a kernel'), quiet='1') == ''
