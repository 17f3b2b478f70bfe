"""Refuses what must not land: a dirty export, unclean notebooks, conflict markers, a stale README, a slow page.

    python tools/check_repo.py              # export, cleanliness, conflict markers, README; seconds, changes nothing
    python tools/check_repo.py notebooks    # runs nbdev_test with two workers and holds every page to its time

The checks work on a copy of what git knows or would add; the tree itself is never written.
"""
import argparse, os, re, subprocess, sys, tempfile, time
from pathlib import Path

from pages import copy_tree, pages, root
from readme import readme_troubles

page_seconds = float(os.environ.get('GENTOK_PAGE_SECONDS', 30))  # the aim is 20 on a free core; half again for a busy one
book_seconds = float(os.environ.get('GENTOK_BOOK_SECONDS', 450)) # the aim is 300 on two free cores; half again for busy ones
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

def time_troubles(log:str, seconds:float) -> list:
    "Pages over their time, from what nbdev_test --timing prints."
    out = [f'{name}: {t} s in nbdev_test, more than {page_seconds:.0f}; make it smaller, or mark its long cells `#| slow`.'
           for name, t in re.findall(r'^(\S+\.ipynb): (\d+) secs$', log, flags=re.M) if int(t) > page_seconds]
    if seconds > book_seconds: out.append(f'The book: {seconds:.0f} s, more than {book_seconds:.0f}; make its slowest pages smaller.')
    return out

def status(top:Path) -> str:
    return subprocess.run(['git', 'status', '--porcelain'], cwd=top, capture_output=True, text=True).stdout

def run_notebooks(top:Path=root, workers:int=2) -> list:
    "Runs every page with nbdev_test; what fails, what is slow, and what leaves files behind."
    before, start = status(top), time.time()
    done = nbdev('nbdev_test', top, args=['--n_workers', str(workers), '--timing'], stdout=subprocess.PIPE)
    print(done.stdout, flush=True)
    if done.returncode: return ['nbdev_test fails; the pages that failed are named above.']
    out = time_troubles(done.stdout, time.time() - start)
    if status(top) != before: out.append(f'Running the pages changed the tree; write to a temporary folder instead.\n{status(top)}')
    return out

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', choices=['repo', 'notebooks'], default='repo')
    what = parser.parse_args().what
    if what == 'notebooks': troubles = run_notebooks()
    else:
        troubles = marker_troubles()
        troubles = troubles or export_troubles() + clean_troubles() + readme_troubles()
    print('\n'.join(troubles) or {'repo': 'Export, notebooks and README are clean.', 'notebooks': 'Every page runs in its time.'}[what])
    sys.exit(bool(troubles))

if __name__ == '__main__': main()
