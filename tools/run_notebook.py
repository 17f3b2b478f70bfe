"""Run notebooks as the book needs them: export, execute, keep slow outputs, clean.

    python tools/run_notebook.py nbs/03_quantize/01_codebook.ipynb          # runs all but the slow and gpu cells
    python tools/run_notebook.py --slow nbs/11_papers/01_tiger.ipynb        # runs the slow cells too

Cells marked `#| slow` or `#| gpu` keep the outputs that are in the file unless `--slow` or `--gpu` is given.
"""
import argparse, sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.export import nb_export
from nbdev.test import test_nb

from budget import cpu_seconds

def flags_of(cell) -> set:
    "The quarto-style flags (`#| slow`) at the head of a code cell."
    heads = [l for l in ''.join(cell.source).splitlines() if l.replace(' ', '').startswith('#|')]
    return {l.split('|', 1)[1].strip().split(':')[0].split(' ')[0] for l in heads}

def run(path: Path, also: set) -> float:
    "Executes one notebook in place and returns its CPU seconds; stops with the failing cell's message."
    nb_export(path)
    nb, start = read_nb(path), cpu_seconds()
    skip = {'slow', 'gpu', 'notest'} - also
    shell = CaptureShell(path, mpl_format='svg')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code' or flags_of(cell) & skip or 'eval: false' in ''.join(cell.source): continue
        shell.cell(cell)
        if shell.exc:
            _, error, tb = shell.exc if isinstance(shell.exc, tuple) else (None, shell.exc, None)
            text = '\n'.join(''.join(o.get('traceback', [])) for o in cell.outputs if o.output_type == 'error')
            sys.exit(f'{path}: cell {i} failed\n{"".join(cell.source)}\n{text or error}')
    write_nb(nb, path)
    return cpu_seconds() - start

def passes(path: Path) -> tuple:
    "Executes one notebook as nbdev_test does and writes nothing: whether it passes, and its CPU seconds."
    config, start = get_config(), cpu_seconds()
    passed, _ = test_nb(path, skip_flags=config.tst_flags.split(), basepath=config.config_path)
    return passed, cpu_seconds() - start

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='+', type=Path)
    parser.add_argument('--slow', action='store_true', help='run the cells marked slow too')
    parser.add_argument('--gpu', action='store_true', help='run the cells marked gpu too')
    args = parser.parse_args()
    also = {f for f in ('slow', 'gpu') if getattr(args, f)}
    for path in args.notebooks:
        seconds = run(path, also)
        nbdev_clean(fname=str(path))
        print(f'{path}: {seconds:.1f} CPU seconds')

if __name__ == '__main__': main()
