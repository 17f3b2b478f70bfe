"""Stages the book, refuses what is broken in it, and builds it.

    python tools/book.py             # checks, stages into _proc/ as nbdev does, plain HTML of every page into _preview/
    python tools/book.py --check     # only the checks: sidebar, links, images, backticked names
    python tools/book.py --render    # besides all that, the site into _docs/, where Quarto is installed

Quarto is never installed from here; without it the staged book and the plain preview are what there is.
"""
import argparse, configparser, json, os, re, shutil, subprocess, sys, tempfile, uuid
from pathlib import Path

import yaml

import looks, overview, preview, reference
from budget import measured, table
from pages import copy_tree, home, labels, link_troubles, name_troubles, pages, root, sidebar_troubles, sidebars

# nbdev_proc_nbs would download and install a missing Quarto as root; staging does not need it
_stage = 'import nbdev.quarto as q; q._ensure_quarto = lambda: None; q.nbdev_proc_nbs(n_workers=2)'

def cell(kind:str, source:str) -> dict:
    "A new notebook cell."
    extra = dict(outputs=[], execution_count=None) if kind == 'code' else {}
    return dict(cell_type=kind, id=uuid.uuid4().hex[:8], metadata={}, source=source.splitlines(True), **extra)

def load(path:Path) -> dict: return json.loads(path.read_text(encoding='utf-8'))
def save(nb:dict, path:Path): path.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')

# ---------------------------------------------------------------- staging

def split_opening(nb:dict):
    "Gives the text below the title and its sentence a cell of its own: nbdev turns the first cell into front matter whole."
    for i, c in enumerate(nb['cells']):
        if c['cell_type'] != 'markdown': continue
        found = re.match(r'(#\s.*?(?:\n\s*\n>[^\n]*)?)(\n\s*\n.*)', ''.join(c['source']), flags=re.S)
        if found and not found.group(2).strip().startswith('>'):  # a title and its sentence alone stay together
            c['source'] = found.group(1).splitlines(True)
            nb['cells'].insert(i+1, cell('markdown', found.group(2).strip('\n')))
        return

def settle(nb:dict, site:str, page, where:dict):
    "Makes links to the site relative, those to names of other pages into the reference, and drops cells that staging has emptied."
    kept, up = [], '../'*page.name.count('/')
    def turn(m):
        entry = where.get((m[1], m[2]))
        return f']({up}{entry}#{m[2]})' if entry and m[1] != page.html else f']({up}{m[1]}#{m[2]})'
    for c in nb['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            source = re.sub(rf'\]\({re.escape(site)}/([^)#]*)#([^)]*)\)', turn, source)
            c['source'] = source.replace(f']({site}/', f']({up}').splitlines(True)
        if c['cell_type'] != 'code' or c['outputs'] or re.sub(r'^#\|.*$', '', source, flags=re.M).strip(): kept.append(c)
    nb['cells'] = kept

def repository(top:Path) -> str:
    "The address of the project, from settings.ini."
    settings = configparser.ConfigParser()
    settings.read(top/'settings.ini', encoding='utf-8')
    return settings['DEFAULT']['git_url']

def stage(top:Path=root) -> Path:
    "Stages the book as nbdev_proc_nbs does, from a copy, by the rules of tools/looks.py, and returns the folder `_proc`."
    repo, called = repository(top), labels(top)
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/top.name
        copy_tree(top, copy)
        book = pages(copy)
        for page in book:
            nb = load(page.path)
            page.cells  # as the author wrote them, before they are folded
            split_opening(nb)
            looks.prepare(nb, page, repo)
            save(nb, page.path)
        done = subprocess.run([sys.executable, '-c', _stage], cwd=copy, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f'Staging fails; the last lines are\n{done.stderr[-3000:]}')
        staged = copy/'_proc'
        site = yaml.safe_load((staged/'nbdev.yml').read_text(encoding='utf-8'))['website']['site-url']
        made = reference.write(copy, staged, repo, book, called)
        where = reference.places(staged, book)
        for page in book:
            path = staged/page.name
            if not path.exists(): raise RuntimeError(f'Staging left out nbs/{page.name}; run nbdev_proc_nbs by hand to see why.')
            nb = load(path)
            settle(nb, site, page, where)
            looks.finish(nb, page, repo, called[page.name])
            save(nb, path)
        config = yaml.safe_load((staged/'_quarto.yml').read_text(encoding='utf-8'))
        bars = {bar['id']: bar for bar in config['website']['sidebar']}
        bars['api']['contents'] = made
        for name, contents in overview.write(book, called, {n: bar['contents'] for n, bar in bars.items()}, staged).items():
            bars[name]['contents'] = contents
        save(overview.fill_home(load(staged/home), book, called, staged), staged/home)
        (staged/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=200), encoding='utf-8')
        missing = [href for rows in sidebars(copy).values() for _, _, href in rows if href and not (staged/href).exists()]
        if missing: raise RuntimeError(f'The sidebars list pages that staging did not make: {", ".join(missing)}.')
        shutil.rmtree(top/'_proc', ignore_errors=True)
        shutil.move(staged, top/'_proc')
    return top/'_proc'

_accents = {'\u0302': '^', '\u0303': '~', '\u0304': '¯', '\u0307': '˙'}

def mend_accents(text:str) -> str:
    "Pandoc writes accents over letters as combining characters, which browsers leave out; spacing ones are drawn."
    return re.sub('<mo accent="true">([\u0302\u0303\u0304\u0307])</mo>', lambda m: f'<mo accent="true" stretchy="false">{_accents[m[1]]}</mo>', text)

def render(proc:Path, top:Path=root):
    "Renders the staged book with Quarto into `_docs`."
    subprocess.run(['quarto', 'render', '--no-cache'], cwd=proc, check=True)
    for page in (proc/'_docs').rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        if (mended := mend_accents(text)) != text: page.write_text(mended, encoding='utf-8')
    shutil.rmtree(top/'_docs', ignore_errors=True)
    shutil.move(proc/'_docs', top/'_docs')

# ---------------------------------------------------------------- command line

def check(top:Path=root) -> list:
    "Everything that can be said of the book without building it."
    return sidebar_troubles(top) + link_troubles(top) + name_troubles(top)

def fail(troubles:list):
    if troubles: sys.exit('\n'.join([*troubles, f'The book has {len(troubles)} broken place{"s"*(len(troubles) > 1)}.']))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='only the checks, build nothing')
    parser.add_argument('--render', action='store_true', help='render the site with Quarto where it is installed')
    args = parser.parse_args()
    spent = {}
    with measured(spent, 'checks of the sidebar, links, images and names'): fail(check())
    print(f'{len(pages())} pages: every sidebar entry, link, image and name resolves.')
    if args.check: return
    try:
        with measured(spent, 'staging of all pages'): proc = stage()
    except RuntimeError as e: sys.exit(str(e))
    out = preview.build(proc, spent)
    with measured(spent, 'checks of the HTML'): fail(preview.troubles(out))
    print(table(spent, 'parts of the build'))
    print(f'Staged in {os.path.relpath(proc)}, plain HTML in {os.path.relpath(out)}/index.html.')
    if not args.render: return
    if not shutil.which('quarto'): return print('Quarto is not installed, so the site is not rendered; the plain HTML is complete.')
    render(proc)
    print('The site is in _docs/index.html.')

if __name__ == '__main__': main()
