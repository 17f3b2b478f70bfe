"kill -9 at ten random moments of one run, and the same command again: nothing of it shows in the end."
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from gentok.store.checkpoints import _checkpoint_paths, newest_checkpoint
from gentok.train.loop import Trainer
from test_train import same, train

class Teller(Trainer):
    "Says each step, so that the test knows when to kill"
    def step(self, index):
        print(self.progress.step, flush=True)
        return super().step(index)

program = '''
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_train_killed import Teller, save_file, train
trainer, result = train(sys.argv[2], kind=Teller)
save_file(trainer.weights(), sys.argv[2] + '/final.safetensors')
'''

def start(out):
    here = str(Path(__file__).resolve().parent)
    env = dict(os.environ, GENTOK_QUIET='1', OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', program, here, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

def test_killed_at_ten_random_moments(tmp_path):
    expected, wanted = train(tmp_path/'straight')
    total, chance = wanted.steps, random.Random()
    moments = sorted(chance.sample(range(1, total - 10), 10))
    print('killed at', moments, 'of', total)
    for moment in moments:  # the same command each time; a fresh process each time
        with start(tmp_path/'killed') as run:
            for line in run.stdout:
                if int(line) >= moment: break
            time.sleep(chance.random()*.03)  # anywhere within a step: forward, backward, half-way through writing
            run.kill()
            run.stdout.read(), run.stderr.read()
        assert run.returncode == -signal.SIGKILL
    with start(tmp_path/'killed') as run: said, error = run.communicate()
    assert run.returncode == 0, error
    assert int(said.split()[0]) > 0  # it went on, and did not begin again
    assert same(load_file(tmp_path/'killed/final.safetensors'), expected.weights())
    last, other = (newest_checkpoint(tmp_path/name/'checkpoints') for name in ('killed', 'straight'))
    assert same(last.tensors, other.tensors) and last.step == other.step == total
    assert last.state['curve'] == other.state['curve'] == wanted.curve
    seconds = [c.state['progress'].pop('seconds') for c in (last, other)]
    assert last.state == other.state and min(seconds) > 0
    assert not list((tmp_path/'killed/checkpoints').glob('.*')) and len(_checkpoint_paths(tmp_path/'killed/checkpoints')) == 2
