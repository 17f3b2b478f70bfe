"What tests of two processes share."
import os
import subprocess
import sys
from pathlib import Path

def torchrun(folder: Path, program: str):
    "Run a program, which may import the tests, in two processes on one processor; it must end well"
    script = folder/'run.py'
    script.write_text(f'import sys, torch\nsys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\ntorch.set_num_threads(1)\n{program}\n'
                      'from accelerate import PartialState\nassert PartialState().num_processes == 2, "each ran alone"\nfrom gentok.train.scale_out import _end_processes\n_end_processes()\n')
    env = dict(os.environ, GENTOK_QUIET='1', OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='1')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
