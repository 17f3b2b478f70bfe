"""Refuses what must not land: a dirty export, unclean notebooks, conflict markers, a stale README, a page that fails.

    python tools/check_repo.py              # export, cleanliness, conflict markers, README; seconds, changes nothing
    python tools/check_repo.py notebooks    # runs every page as nbdev_test does, in two processes; prints their CPU seconds

The checks work on a copy of what git knows or would add; the tree itself is never written.
A page over its CPU budget is a warning, and refused where GENTOK_STRICT_BUDGETS is 1.
"""
import argparse, multiprocessing, os, re, subprocess, sys, tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from budget import over_budget, strict, table
from pages import copy_tree, pages, root
from readme import readme_troubles

_marker = re.compile(r'^[\s"]*(<{7}|>{7}|\|{7})(\s|\\n|$)', flags=re.M)

def nbdev(command:str, cwd:Path, **kwargs) -> subprocess.CompletedProcess:
    "Runs one of nbdev's commands, by the Python that runs this."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    return subprocess.run([Path(sys.executable).parent/command, *kwargs.pop('args', [])], cwd=cwd, env=env, text=True, **kwargs)

def marker_troubles(top:Path=root) -> list:
    "Conflict markers below nbs/: nbdev would export both sides and still print Success."
    out = []
    for path in sorted(p for p in (top/'nbs').rglob('*') if p.is_file() and '.ipynb_checkpoints' not in p.parts):
        try: text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found = _marker.search(text)
        if found:
            line = text.count('\n', 0, found.start(1)) + 1
            out.append(f'{path.relative_to(top)}: line {line} is a conflict marker; resolve the merge (nbdev_fix helps).')
    return out

def export_troubles(top:Path=root) -> list:
    "Where gentok/ is not what nbdev_export makes of nbs/."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/top.name
        copy_tree(top, copy)
        committed = {p.relative_to(copy): p.read_bytes() for p in (copy/'gentok').rglob('*.py')}
        for name in committed:
            if name.name != '__init__.py': (copy/name).unlink()
        done = nbdev('nbdev_export', copy, capture_output=True)
        if done.returncode: return [f'nbdev_export fails: {done.stderr.strip().splitlines()[-1]}']
        made = {p.relative_to(copy): p.read_bytes() for p in (copy/'gentok').rglob('*.py')}
    out = [f'{n}: no notebook exports it; delete it or write its page.' for n in sorted(committed.keys() - made.keys())]
    out += [f'{n}: missing, though a notebook exports it; run nbdev_export and commit it.' for n in sorted(made.keys() - committed.keys())]
    return out + [f'{n}: differs from its notebook; change the notebook, run nbdev_export and commit both.'
                  for n in sorted(made.keys() & committed.keys()) if made[n] != committed[n]]

def clean_troubles(top:Path=root) -> list:
    "Notebooks that nbdev_clean would change."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/top.name
        copy_tree(top, copy)
        before = {p.name: p.path.read_bytes() for p in pages(copy)}
        done = nbdev('nbdev_clean', copy, capture_output=True)
        if done.returncode or 'Failed to clean' in done.stderr: return [f'nbdev_clean fails: {done.stderr.strip()}']
        return [f'nbs/{p.name}: not clean; run nbdev_clean and commit it.' for p in pages(copy)
                if p.path.read_bytes() != before[p.name]]

def status(top:Path) -> str:
    return subprocess.run(['git', 'status', '--porcelain'], cwd=top, capture_output=True, text=True).stdout

def run_notebooks(top:Path=root, workers:int=2) -> list:
    "Runs every page; what fails, what leaves files behind, and, where budgets are strict, what is over its own."
    from run_notebook import passes # from a module of its own: a page may put another in the place of __main__
    before, spent, failed, unknown = status(top), {}, [], []
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, spawn, initializer=os.chdir, initargs=(top,)) as pool:
        for name, run in [(p.name, pool.submit(passes, p.path)) for p in pages(top)]:
            try:
                passed, spent[name] = run.result()
                if not passed: failed.append(name)
            except BrokenProcessPool: unknown.append(name)
    print(table(spent, 'pages'), flush=True)
    out = [f'nbs/{n}: fails; its error stands above.' for n in failed]
    if unknown: out.append(f'A process that ran the pages was ended from outside, often for want of memory; run again. Not run: {", ".join(unknown)}.')
    if status(top) != before: out.append(f'Running the pages changed the tree; write to a temporary folder instead.\n{status(top)}')
    over = over_budget(spent)
    if over and not strict(): print(*(f'Warning: {line}' for line in over), sep='\n', flush=True)
    return out + over*strict()

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', choices=['repo', 'notebooks'], default='repo')
    what = parser.parse_args().what
    if what == 'notebooks': troubles = run_notebooks()
    else:
        troubles = marker_troubles()
        troubles = troubles or export_troubles() + clean_troubles() + readme_troubles()
    print('\n'.join(troubles) or {'repo': 'Export, notebooks and README are clean.', 'notebooks': 'Every page runs.'}[what])
    sys.exit(bool(troubles))

if __name__ == '__main__': main()
