"""Stages the book, refuses what is broken in it, and builds it.

    python tools/book.py             # checks, stages into _proc/ as nbdev does, plain HTML of every page into _preview/
    python tools/book.py --check     # only the checks: sidebar, links, images, backticked names
    python tools/book.py --render    # besides all that, the site into _docs/, where Quarto is installed

Quarto is never installed from here; without it the staged book and the plain preview are what there is.
"""
import argparse, html, json, os, re, shutil, subprocess, sys, tempfile, uuid
from pathlib import Path

import yaml

from budget import cpu_seconds, measured, table
from pages import copy_tree, link_troubles, name_troubles, pages, root, sidebar, sidebar_troubles, symbols

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
        if found:
            c['source'] = found.group(1).splitlines(True)
            nb['cells'].insert(i+1, cell('markdown', found.group(2).strip('\n')))
        return

def add_anchors(nb:dict, names:list, site:str, up:str):
    "Puts an anchor above every exported name, makes links to the site relative, drops cells that staging has emptied."
    kept, left = [], {n: n.lower() for n in names}
    for c in nb['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown': c['source'] = source.replace(f']({site}/', f']({up}').splitlines(True)
        if c['cell_type'] == 'code':
            if not re.sub(r'^#\|.*$', '', source, flags=re.M).strip() and not c['outputs']: continue
            here = [n for n in left if re.search(rf'^\s*(def|class) {re.escape(n.rpartition(".")[2])}\b', source, flags=re.M)]
            if here: kept.append(cell('markdown', ''.join(f'<span id="{left.pop(n)}"></span>' for n in here)))
        kept.append(c)
    nb['cells'] = kept

def stage(top:Path=root) -> Path:
    "Stages the book as nbdev_proc_nbs does, from a copy, and returns the folder `_proc`."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)/top.name
        copy_tree(top, copy)
        for page in pages(copy):
            nb = load(page.path)
            split_opening(nb)
            save(nb, page.path)
        done = subprocess.run([sys.executable, '-c', _stage], cwd=copy, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f'Staging fails; the last lines are\n{done.stderr[-3000:]}')
        staged = copy/'_proc'
        site = yaml.safe_load((staged/'nbdev.yml').read_text(encoding='utf-8'))['website']['site-url']
        for page in pages(copy):
            path = staged/page.name
            if not path.exists(): raise RuntimeError(f'Staging left out nbs/{page.name}; run nbdev_proc_nbs by hand to see why.')
            nb = load(path)
            add_anchors(nb, [n for c in page.cells if c.exported for n in symbols(c)], site, '../'*page.name.count('/'))
            save(nb, path)
        missing = [href for _, _, href in sidebar(copy) if href and not (staged/href).exists()]
        if missing: raise RuntimeError(f'The sidebar lists pages that staging did not make: {", ".join(missing)}.')
        shutil.rmtree(top/'_proc', ignore_errors=True)
        shutil.move(staged, top/'_proc')
    return top/'_proc'

def render(proc:Path, top:Path=root):
    "Renders the staged book with Quarto into `_docs`."
    subprocess.run(['quarto', 'render', '--no-cache'], cwd=proc, check=True)
    shutil.rmtree(top/'_docs', ignore_errors=True)
    shutil.move(proc/'_docs', top/'_docs')

# ---------------------------------------------------------------- preview

_style = """
:root { --ink: #22272e; --soft: #f3f5f8; --line: #d5dae1; --blue: #2563a8 }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: #fff }
nav { padding: 1rem; background: var(--soft); font-size: .9rem }
nav a, nav span { display: block; padding: .12rem 0 } nav span { font-weight: 600; margin-top: .7rem }
nav .d1 { padding-left: .9rem } nav .here { font-weight: 600; text-decoration: none; color: inherit }
a { color: var(--blue) } main { padding: 1rem; max-width: 64rem; min-width: 0 } main > p, main li { max-width: 46rem }
pre { overflow-x: auto; margin: .3rem 0 } code { font-size: .9em } h1 { line-height: 1.2 }
.highlight { background: var(--soft); padding: .5rem .8rem; border-radius: 4px }
.output pre { border-left: 2px solid var(--line); padding-left: .8rem; font-size: .85em }
.prompt, .anchor-link { display: none }
img, svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9em; display: block; overflow-x: auto } td, th { border: 1px solid var(--line); padding: .2rem .6rem }
blockquote { margin: .5rem 0; padding-left: 1rem; border-left: 3px solid var(--blue) }
@media (min-width: 60rem) { body { display: grid; grid-template-columns: 18rem 1fr } nav { min-height: 100vh } main { padding: 1rem 3rem } summary { display: none } }
"""
_page = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · gentok</title><link rel="stylesheet" href="{up}preview.css"></head>
<body><nav><details open><summary>Contents</summary>{nav}</details></nav>
<script>if (innerWidth < 960) document.querySelector('nav details').open = false</script><main>{body}</main></body></html>
"""

def front_matter(nb:dict) -> dict:
    "Turns nbdev's front matter back into a title and its sentence, and returns it."
    first = nb['cells'][0] if nb['cells'] else None
    if not first or first['cell_type'] != 'raw': return {}
    meta = yaml.safe_load(''.join(first['source']).strip().strip('-')) or {}
    said = f"\n\n> {meta['description']}" if meta.get('description') else ''
    nb['cells'][0] = cell('markdown', f"# {meta.get('title', '')}{said}")
    return meta

def plain(nb:dict):
    "Follows the few of Quarto's directives that a page uses: `echo: false` hides the code, fences are dropped."
    for c in nb['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'code' and re.search(r'^#\|\s*echo:\s*false', text, flags=re.M):
            c['cell_type'], c['source'] = 'code', []
        elif c['cell_type'] == 'code': c['source'] = re.sub(r'^#\|.*\n?', '', text, flags=re.M).splitlines(True)
        else: c['source'] = re.sub(r'^:::.*$', '', text, flags=re.M).splitlines(True)

def nav(here:str, up:str, entries:list, where:dict) -> str:
    "The table of contents as HTML, seen from one page."
    rows = []
    for depth, text, href in entries:
        text = html.escape(text)
        if href is None: rows.append(f'<span class="d{depth}">{text}</span>')
        else: rows.append(f'<a class="d{depth}{" here" if href == here else ""}" href="{up}{where[href]}">{text}</a>')
    return '\n'.join(rows)

def math(body:str) -> str:
    "Turns the TeX of a page into MathML, which a browser shows without a script; code is left alone."
    from latex2mathml.converter import convert
    def turn(m):
        try: return convert(html.unescape(m.group(1) or m.group(2)).strip().replace('\\arg', r'\operatorname{arg}'), display='block' if m.group(1) else 'inline')
        except Exception: return m.group()  # what it cannot read stays readable as TeX
    parts = re.split(r'(<pre.*?</pre>|<code.*?</code>|<svg.*?</svg>|<img[^>]*>)', body, flags=re.S)
    return ''.join(p if i % 2 else re.sub(r'\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)', turn, p, flags=re.S) for i, p in enumerate(parts))

def preview(proc:Path, spent:dict, top:Path=root) -> Path:
    "Builds every staged page as plain HTML below `_preview`, beside its images, with the sidebar on each; notes the CPU seconds."
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    out = top/'_preview'
    shutil.rmtree(out, ignore_errors=True)
    exporter = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    book, entries = pages(top), sidebar(top)
    where = {p.name: p.html for p in book}
    for path in (p for p in proc.rglob('*') if p.suffix in ('.svg', '.png', '.jpg', '.gif')):
        (out/path.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, out/path.relative_to(proc))
    for page in book:
        start, nb = cpu_seconds(), load(proc/page.name)
        meta = front_matter(nb)
        plain(nb)
        body, _ = exporter.from_notebook_node(nbformat.reads(json.dumps(nb), as_version=4))
        body = re.sub(r'href="([^":]+)\.ipynb(#[^"]*)?"', lambda m: f'href="{_to_html(m.group(1))}{m.group(2) or ""}"', body)
        up, to = '../'*page.name.count('/'), out/page.html
        to.parent.mkdir(parents=True, exist_ok=True)
        title = html.escape(str(meta.get('title', page.title)))
        to.write_text(_page.format(title=title, up=up, nav=nav(page.name, up, entries, where), body=math(body)), encoding='utf-8')
        spent[f'{page.name} as HTML'] = cpu_seconds() - start
    (out/'preview.css').write_text(HtmlFormatter().get_style_defs('.highlight') + _style, encoding='utf-8')
    if not (out/'index.html').exists():
        listing = nav('', '', entries, where)
        (out/'index.html').write_text(_page.format(title='Contents', up='', nav=listing, body='<h1>gentok</h1>'), encoding='utf-8')
    return out

def _to_html(target:str) -> str:
    head, _, name = target.rpartition('/')
    return (f'{head}/' if head else '') + re.sub(r'^\d+[a-zA-Z0-9]*_', '', name.lower()) + '.html'

def preview_troubles(out:Path) -> list:
    "Links and images of the built pages that lead to no file, one sentence each."
    troubles = []
    for path in sorted(out.rglob('*.html')):
        text = re.sub(r'<pre>.*?</pre>|<svg.*?</svg>', '', path.read_text(encoding='utf-8'), flags=re.S)
        for target in re.findall(r'<(?:a|img|link)\b[^>]*?\b(?:href|src)="([^"]+)"', text):
            target = html.unescape(target).partition('#')[0]
            if not target or re.match(r'[a-z]+:', target): continue
            if not (path.parent/target).exists():
                troubles.append(f'{path.relative_to(out.parent)}: leads to {target}, which the preview does not have.')
    return troubles

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
    out = preview(proc, spent)
    with measured(spent, 'checks of the HTML'): fail(preview_troubles(out))
    print(table(spent, 'parts of the build'))
    print(f'Staged in {os.path.relpath(proc)}, plain HTML in {os.path.relpath(out)}/index.html.')
    if not args.render: return
    if not shutil.which('quarto'): return print('Quarto is not installed, so the site is not rendered; the plain HTML is complete.')
    render(proc)
    print('The site is in _docs/index.html.')

if __name__ == '__main__': main()
