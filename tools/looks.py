"""What a reader sees of a page: staging decides it here, by rule, and no notebook is changed for it.

`prepare` works on a copy of a notebook, while the `#| export` lines are still there: it moves and labels, and no statement
is lost. `finish` works on the staged page, after nbdev. An author's own `#| code-fold`, `#| fig-cap`, `#| echo` always win;
`#| hero` and `#| top` lift a cell below the title, `#| tests`, `#| figure` and `#| helper` say what a rule cannot see.

| cell | what the reader sees |
|:--|:--|
| imports, alone or at the top of a cell | a fold |
| exported | a frame with its module and a link to the source; over 24 lines a fold with its name and first sentence |
| checks alone | a fold, 'Tests (n)' |
| checks among other code | what shows something, with its output; below it the checks in a fold |
| a picture from more than two lines | the picture, and below it its code in a fold |
| definitions alone, without output | a fold with their names |
| a drawing | a light and a dark version, with an alternative text |
| HTML, a printed dict | a table that scrolls |
| warnings | nothing: they name folders of the machine |
"""
import ast, html, json, re
from typing import NamedTuple

import yaml

from pages import Cell, Page, home, slug, symbols

columns = 88      # of code, beside both margins at 1280 px
long_export = 24  # lines; an exported cell of more opens on demand

def source(raw:dict) -> str: return ''.join(raw['source'])

def put(raw:dict, text:str) -> dict:
    raw['source'] = text.splitlines(True)  # Quarto loses the line ends of a source that is one string
    return raw

def new(kind:str, text:str, outputs:list=()) -> dict:
    "A cell that staging adds; `prepare` numbers it."
    extra = dict(outputs=list(outputs), execution_count=None) if kind == 'code' else {}
    return put(dict(cell_type=kind, metadata={}, id='', **extra), text)

def raw_html(text:str) -> str: return f'```{{=html}}\n{text}\n```'

def give(raw:dict, **options):
    "Adds options of Quarto that the author has not set."
    have = Cell('code', source(raw)).options
    fresh = {k.replace('_', '-'): v for k, v in options.items()}
    put(raw, '\n'.join([f'#| {k}: {json.dumps(v, ensure_ascii=False)}' for k, v in fresh.items() if k not in have] + [source(raw)]))

# ---------------------------------------------------------------- checks

_check = re.compile(r'test_\w+|expect_fail|raises')

def called(node) -> str:
    f = getattr(node, 'func', node)
    return getattr(f, 'id', getattr(f, 'attr', ''))

def is_check(node) -> bool:
    "A statement that only tests: an assert, a `test_eq`, a `with expect_fail`, or a block of nothing but such."
    if isinstance(node, ast.Expr): return isinstance(node.value, ast.Call) and bool(_check.fullmatch(called(node.value)))
    if isinstance(node, ast.With): return any(_check.fullmatch(called(i.context_expr)) for i in node.items) or all(map(is_check, node.body))
    if isinstance(node, (ast.For, ast.If)): return all(map(is_check, node.body + node.orelse))
    return isinstance(node, ast.Assert)

def is_import(node) -> bool: return isinstance(node, (ast.Import, ast.ImportFrom))

def statements(code:str) -> list|None:
    "The statements of a cell; None where only IPython can read it."
    try: return ast.parse('\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in code.splitlines())).body
    except SyntaxError: return None

def count_checks(code:str) -> int:
    return sum(isinstance(n, ast.Assert) or isinstance(n, ast.Call) and bool(_check.fullmatch(called(n)))
               for s in statements(code) or [] for n in ast.walk(s))

def _names(node, context) -> set: return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}

def _on_shared_lines(nodes:list) -> list:
    "The statements in groups: those that share a line stand together."
    groups = []
    for n in nodes:
        if groups and groups[-1][-1].end_lineno >= n.lineno: groups[-1].append(n)
        else: groups.append([n])
    return groups

def _needed(nodes:list, outside:set) -> dict:
    "What is used after each statement, by statements that are not checks."
    uses = [set() if is_check(n) else _names(n, ast.Load) - _names(n, ast.Store) for n in nodes]
    return {id(n): outside.union(*uses[i+1:]) for i, n in enumerate(nodes)}

def _inside(node, lines:list, outside:set) -> tuple:
    "The lines of a block that are checks among other statements, and these checks below the head of their block."
    gone, tests = set(), []
    if not isinstance(node, (ast.With, ast.For, ast.If)) or node.body[0].lineno == node.lineno: return gone, tests
    for part in filter(None, (node.body, node.orelse if not isinstance(node, ast.With) else [])):
        needed, groups = _needed(part, outside), _on_shared_lines(part)
        moved = [g for g in groups if all(is_check(n) and not _names(n, ast.Store) & needed[id(n)] for n in g)]
        for g in groups if len(moved) < len(groups) else []:
            if g in moved: more = set(range(g[0].lineno - 1, g[-1].end_lineno)), lines[g[0].lineno - 1:g[-1].end_lineno]
            else: more = _inside(g[0], lines, needed[id(g[0])]) if len(g) == 1 else (set(), [])
            gone |= more[0]
            tests += more[1]
    head = lines[node.lineno - 1:node.body[0].lineno - 1]
    return gone, tests and head + [' '*node.body[0].col_offset + '...'] + tests

def split_checks(code:str) -> tuple:
    "The code in two: what shows something, and its checks. A check that binds what is used later stays where it is."
    nodes = statements(code)
    if nodes is None: return code, ''
    lines, shown, tests, done = code.splitlines(), [], [], 0
    needed = _needed(nodes, set())
    for group in _on_shared_lines(nodes):
        moved = [n for n in group if is_check(n) and not _names(n, ast.Store) & needed[id(n)]]
        first, last = group[0].lineno - 1, group[-1].end_lineno
        above, own, done = lines[done:first], lines[first:last], last
        if len(moved) == len(group):
            start = next((i for i in range(len(above), 0, -1) if not above[i-1].lstrip().startswith('#')), 0)
            shown += above[:start]
            tests += above[start:] + own  # with the comment above them
        elif moved and len(own) == 1:  # a = f(x); test_eq(a, 1)
            part = lambda ns: '; '.join(ast.get_source_segment(code, n) for n in ns)
            end = own[0].encode()[group[-1].end_col_offset:].decode()
            shown += above + [part([n for n in group if n not in moved]) + end]
            tests.append(part(moved))
        else:
            gone, inner = _inside(group[0], lines, needed[id(group[0])]) if len(group) == 1 else (set(), [])
            shown += above + [line for i, line in enumerate(own, first) if i not in gone]
            tests += inner
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(shown + lines[done:]).strip('\n')), '\n'.join(tests).strip('\n')

def split_imports(code:str) -> tuple:
    "The imports at the top of a cell, and the rest of it."
    nodes = statements(code) or []
    first = next((n for n in nodes if not is_import(n)), None)
    if not first or first is nodes[0] or nodes[nodes.index(first) - 1].end_lineno >= first.lineno: return '', code
    lines = code.splitlines()
    at = nodes[nodes.index(first) - 1].end_lineno
    return '\n'.join(lines[:at]), '\n'.join(lines[at:]).strip('\n')

# ---------------------------------------------------------------- what becomes of a cell

class Look(NamedTuple):
    "What staging makes of a code cell."
    kind: str   # hidden, imports, exported, tests, figure, helper, shown
    fold: str   # what the closed fold says; '' where the code is in sight
    shown: str  # the code of the cell itself
    tests: str  # its checks, for a fold of their own below it
    imports: str = ''  # those at its top, for a fold of their own above it

def _filled(code:str) -> int: return sum(bool(line.strip()) for line in code.splitlines())

def _tests(code:str) -> str: return f'Tests ({n})' if (n := count_checks(code)) else 'Tests'

def _said(node) -> str:
    doc = (ast.get_docstring(node) or '').split('\n')[0].replace('`', '')
    return ('class '*isinstance(node, ast.ClassDef)) + node.name + (f': {doc}' if doc else '')

def pictures(raw:dict) -> list:
    "The outputs of a cell that are pictures."
    data = [(o, o.get('data') or {}) for o in raw.get('outputs', [])]
    return [o for o, d in data if any(k.startswith('image/') for k in d) or re.search(r'<(img|svg)\b', ''.join(d.get('text/html', '')))]

def look(raw:dict) -> Look:
    "By which rule a code cell is shown."
    cell = Cell('code', source(raw))
    code, flags, nodes = cell.body, cell.flags, statements(cell.body) or []
    kind, fold, shown, tests, imported = 'shown', '', code, '', ''
    defined = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    if flags.keys() & {'hide', 'default_exp'} or not code or 'false' in (cell.options.get('echo'), cell.options.get('include')): kind = 'hidden'
    elif nodes and all(map(is_import, nodes)): kind, fold = 'imports', 'Imports of the module' if cell.exported else 'Imports of this page'
    elif cell.exported:
        kind = 'exported'
        if (n := _filled(code)) > long_export: fold = f'{_said(defined[0]) if defined else "Source"} ({n} lines)'
    elif 'tests' in flags or nodes and all(is_check(n) or is_import(n) for n in nodes): kind, fold = 'tests', _tests(code)
    else:
        shown, tests = split_checks(code)
        if 'code-fold' not in cell.options: imported, shown = split_imports(shown)
        images = any(k.startswith('image/') for o in raw.get('outputs', []) for k in o.get('data', {}))
        mere = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
        if flags.keys() & {'hero', 'figure'} or images and _filled(shown) > 2: kind, fold = 'figure', 'Code of this figure'
        elif 'helper' in flags or defined and not raw.get('outputs') and _filled(shown) > 3 and all(isinstance(n, mere) or is_check(n) for n in nodes):
            kind, fold = 'helper', 'Helper: ' + ', '.join(n.name for n in defined)
    own = cell.options.get('code-fold')
    if own: fold = '' if own == 'false' else cell.options.get('code-summary', '').strip('"\'') or fold or 'Code'
    return Look(kind, fold, shown, tests, imported)

# ---------------------------------------------------------------- drawings

fonts = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
dark = {'#22272e': '#dfe5ec', '#9aa3ad': '#76838f', '#2563a8': '#6aa7ea', '#d9822b': '#eda45c', '#3f8f5b': '#63b984',
        '#c23b3b': '#ea7878', '#000000': '#dfe5ec'}  # the house's palette, for the dark theme
_sheet = re.compile(r'(<g id="(?:figure|axes|legend)_\d+">\s*(?:<g id="patch_\d+">\s*)<path[^>]*?fill: )#ffffff')

def clear(svg:str) -> str:
    "A drawing without its white sheets, in the fonts of the page where its text is text."
    return _sheet.sub(r'\1none', svg).replace("'DejaVu Sans'", fonts)

def darkened(svg:str) -> str:
    "The same drawing in the colours of the dark theme."
    return re.sub('|'.join(dark), lambda m: dark[m[0].lower()], svg, flags=re.I)

def alt_of(svg:str) -> str:
    "An alternative text from what stands in a drawing: its title, then the names of its axes."
    found = re.findall(r'<text\b[^>]*>(.*?)</text>', svg, flags=re.S) or re.findall(r'<!--(.*?)-->', svg, flags=re.S)  # outlines are named by comments
    said = [' '.join(html.unescape(re.sub(r'<[^>]+>|\$', '', t)).split()) for t in found]
    words = list(dict.fromkeys(w for w in said if re.search(r'[^\W\d_]{3}', w)))
    if not words: return ''
    title = max(words, key=len)
    rest = ', '.join([w for w in words if w != title][:6])
    return f'Figure: {title}.' + (f' It says: {rest}.' if rest else '')

def in_two_modes(raw:dict) -> list:
    "Drawings first, each in a cell of its own that holds a light and a dark version (Quarto pairs exactly two); then the rest."
    drawn = [''.join(o['data']['image/svg+xml']) for o in raw['outputs'] if 'image/svg+xml' in o.get('data', {})]
    if not drawn: return [raw]
    cell, rest = Cell('code', source(raw)), [o for o in raw['outputs'] if 'image/svg+xml' not in o.get('data', {})]
    caption, alt = (cell.options.get(k, '').strip('"') for k in ('fig-cap', 'fig-alt'))
    first = put(dict(raw), '\n'.join(line for line in source(raw).splitlines() if not re.match(r'#\|\s*fig-(cap|alt)\b', line)))
    more = '\n'.join([f'#| {f}' for f in ('hero', 'top') if f in cell.flags] + ['#| echo: false'])
    cells = [first, *(new('code', more) for _ in drawn[1:] + [rest]*bool(rest))]
    for c, svg in zip(cells, drawn):
        c['outputs'] = [dict(output_type='display_data', metadata={}, data={'image/svg+xml': s.splitlines(True)})
                        for s in (clear(svg), darkened(clear(svg)))]
        give(c, renderings=['light', 'dark'], fig_alt=alt or alt_of(svg))
        if caption: give(c, fig_cap=[caption]*2)  # one for each version, or the dark one has none
    if rest: cells[-1]['outputs'] = rest
    return cells

# ---------------------------------------------------------------- other outputs

def table_of(text:str) -> str:
    "A printed dict of plain values as a table in markdown; '' for everything else."
    if not text.startswith('{'): return ''
    try: rows = ast.literal_eval(text)
    except (ValueError, SyntaxError): return ''
    if not isinstance(rows, dict) or not 1 < len(rows) <= 40: return ''
    cell = lambda v: (f'{v:.4g}' if isinstance(v, float) else str(v)).replace('|', '\\|').replace('\n', ' ')
    inner = list(rows.values())
    heads = list(inner[0]) if isinstance(inner[0], dict) else None
    if heads and all(isinstance(v, dict) and list(v) == heads for v in inner) and len(heads) <= 8:
        lines = [['', *heads], [':--', *['--:']*len(heads)], *[[k, *v.values()] for k, v in rows.items()]]
    elif any(isinstance(v, dict) for v in inner): return ''
    else: lines = [['', ''], [':--', '--:' if all(isinstance(v, (int, float)) for v in inner) else ':--'],
                   *[[k, ', '.join(map(cell, v)) if isinstance(v, (list, tuple)) else v] for k, v in rows.items()]]
    if any(len(cell(v)) > columns for row in lines for v in row): return ''
    return '\n'.join('| ' + ' | '.join(map(cell, row)) + ' |' for row in lines)

def tame(raw:dict):
    "Outputs without warnings; HTML as a raw block (for text/html Quarto asks a CDN for jquery), dicts as tables, one format a picture."
    raw['outputs'] = [o for o in raw.get('outputs', []) if o.get('name') != 'stderr']
    last, drawn = None, any(k.startswith('image/') for o in raw['outputs'] for k in o.get('data', {}))
    for data in (o['data'] for o in raw['outputs'] if o.get('data')):
        if page := ''.join(data.pop('text/html', '')):
            page = re.sub(r'<style scoped>.*?</style>\s*| border="1"| style="text-align: right;"', '', page, flags=re.S)
            data['text/markdown'] = raw_html(f'<div class="wide">{page}</div>').splitlines(True)
            last = data
        elif table := table_of(''.join(data.get('text/plain', ''))): data['text/markdown'] = table.splitlines(True)
        if 'image/png' in data: data.pop('image/jpeg', None)
    if last and not drawn: caption_html(raw, last)

def caption_html(raw:dict, data:dict):
    "The caption of pictures that are HTML becomes a figcaption; Quarto would make a paragraph of it."
    cell = Cell('code', source(raw))
    if not (caption := cell.options.get('fig-cap', '').strip('"')): return
    page = ''.join(data['text/markdown']).removeprefix('```{=html}\n').removesuffix('\n```')
    alt = html.escape(cell.options.get('fig-alt', '').strip('"'), quote=True)
    named = f' role="group" aria-label="{alt}"' if alt else ''
    parts = raw_html(f'<figure{named}>{page}<figcaption>'), caption, raw_html('</figcaption></figure>')
    data['text/markdown'] = '\n\n'.join(parts).splitlines(True)
    put(raw, '\n'.join(line for line in source(raw).splitlines() if not re.match(r'#\|\s*fig-(cap|alt)\b', line)))

# ---------------------------------------------------------------- pages

def lift(cells:list) -> list:
    "Cells marked `#| hero`, then those marked `#| top`, stand below the title, wherever the notebook can run them."
    flag = lambda c: next((f for f in ('hero', 'top') if c['cell_type'] == 'code' and f in Cell('code', source(c)).flags), None)
    first = [c for f in ('hero', 'top') for c in cells if flag(c) == f]
    rest = [c for c in cells if flag(c) is None]
    at = next((i for i, c in enumerate(rest) if c['cell_type'] == 'markdown'), -1) + 1
    return rest[:at] + first + rest[at:]

def frame(raw:dict, page:Page, repo:str, seen:set) -> list:
    "An exported cell in its frame: anchors of what it defines, its module, a link to the source."
    names = [n for n in dict.fromkeys(n.lower() for n in symbols(Cell('code', source(raw)))) if n not in seen]
    seen.update(names)
    where = f'{repo}/blob/main/gentok/{page.default_exp.replace(".", "/")}.py'
    head = ''.join(f'<span id="{n}"></span>' for n in names)
    head += f'<p class="tag">exported to <a href="{where}"><code>gentok.{page.default_exp}</code></a></p>'
    return [new('markdown', '::: {.export-frame}'), new('markdown', raw_html(head)), raw, new('markdown', ':::')]

_classes = dict(imports='imports', exported='exported', tests='tests', helper='helper', figure='figure-cell')

def prepare(nb:dict, page:Page, repo:str):
    "Folds, frames, labels and lifts the cells of one page."
    cells, seen = [], set()
    for raw in nb['cells']:
        if raw['cell_type'] != 'code': cells.append(raw); continue
        cell, it = Cell('code', source(raw)), look(raw)
        if cell.flags.keys() & {'default_exp', 'hide'}: cells.append(raw); continue
        tame(raw)
        if it.imports:
            cells.append(new('code', it.imports))
            give(cells[-1], code_fold=True, code_summary='Imports', classes=['imports'])
        if it.tests or it.imports: put(raw, source(raw)[:source(raw).index(cell.body)] + it.shown)
        if it.kind == 'tests': raw['outputs'] = [o for o in raw['outputs'] if o['output_type'] != 'execute_result']
        if it.fold: give(raw, code_fold=True, code_summary=it.fold)
        if it.kind in _classes: give(raw, classes=[_classes[it.kind], *['hero-figure']*('hero' in cell.flags)])
        cells += frame(raw, page, repo, seen) if it.kind == 'exported' else in_two_modes(raw)
        if it.tests:
            cells.append(new('code', it.tests))
            give(cells[-1], code_fold=True, code_summary=_tests(it.tests), classes=['tests'])
    nb['cells'] = lift(cells)
    for i, c in enumerate(nb['cells']): c['id'] = c.get('id') or f'staged-{i}'

def links(page:Page, repo:str) -> list:
    "Where else a page lives: links for its margin."
    out = [dict(text='Open in Colab', icon='play-circle', href=repo.replace('https://github.com', 'https://colab.research.google.com/github') + f'/blob/main/nbs/{page.name}'),
           dict(text='Notebook', icon='journal-code', href=f'{repo}/blob/main/nbs/{page.name}')]
    if not page.exports: return out
    return out + [dict(text=f'API of {page.module}', icon='list-columns', href='../'*page.name.count('/') + f'api/{page.module}.html'),
                  dict(text='Source', icon='file-earmark-code', href=f'{repo}/blob/main/gentok/{page.module.replace(".", "/")}.py')]

_drawing = re.compile(r'!\[([^\]]*)\]\(((?:\.\./)*images/[\w-]+\.svg)\)\{\.inline\s*([^}]*)\}')

def inline(page:Page, text:str) -> str:
    "Drawings marked `{.inline}` put into the page itself, so that they follow its colours."
    def drawing(m):
        svg = re.sub(r'<\?xml.*?\?>\s*|<!--.*?-->\s*', '', (page.path.parent/m[2]).read_text(encoding='utf-8'), flags=re.S)
        svg = svg.replace(' alone"', '"').replace('<svg ', f'<svg role="img" aria-label="{html.escape(m[1], quote=True)}" ', 1)
        return '\n' + raw_html(f'<div class="drawing {m[3].replace(".", "")}">{svg.strip()}</div>') + '\n'
    return _drawing.sub(drawing, text)

def finish(nb:dict, page:Page, repo:str, label:str):
    "After nbdev: the label of the table of contents as title, links of the page, drawings in it."
    front, *rest = nb['cells']
    meta = yaml.safe_load(source(front).strip().strip('-'))
    if page.name == home: meta |= {'pagetitle': label, 'page-layout': 'custom', 'toc': False, 'body-classes': 'home', 'repo-actions': []}
    else: meta |= {'title': label, 'code-links': links(page, repo)}
    put(front, '---\n' + yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=1000) + '---\n')
    for c in rest:
        if c['cell_type'] == 'markdown': put(c, inline(page, source(c)))
    own = slug(page.title)  # the title becomes front matter, and links to it would lose their place
    if own not in {n.lower() for c in page.cells if c.exported for n in symbols(c)}:
        nb['cells'].insert(1, new('markdown', raw_html(f'<span id="{own}"></span>')) | dict(id='staged-title'))
