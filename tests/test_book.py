"The book keeps the rules of its house: one idea, one page, one module; every name, link and lesson where it belongs."
import ast
import json
import re
import sys

import pytest

import budget
import hero
import looks
import overview
import page_vitals
import preview
import reference
from book import settle, stage
from check_repo import marker_troubles
from pages import Cell, Names, Page, anchors, backticked, copy_tree, labels, link_troubles, links, made, name_troubles, page_words, pages
from pages import root, sidebar_troubles, sidebars, slug, stations

book = pages()
exporting = [p for p in book if p.exports]
modules = {'.'.join(f.relative_to(root/'gentok').with_suffix('').parts): f for f in sorted((root/'gentok').rglob('*.py'))
           if not f.name.startswith('_')}
trees = {name: ast.parse(f.read_text(encoding='utf-8')) for name, f in modules.items()}
core = ('store', 'data', 'quantize', 'ids', 'evaluate')
allowed = {'torch', 'numpy', 'sklearn', 'threadpoolctl', 'scipy', 'safetensors', 'PIL', 'tqdm', 'fastcore', 'gentok', 'polars'}
allowed_inside = allowed | {'matplotlib'}
columns = 88

def none(troubles):
    "Fails with the whole list, not with the first."
    assert not troubles, '\n' + '\n'.join(map(str, troubles))

# ---------------------------------------------------------------- one idea, one page, one module

def test_every_exporting_page_has_the_module_of_its_name():
    none([f'nbs/{p.name}: exports gentok.{p.default_exp}; a page of this name exports gentok.{p.module}'
          for p in exporting if p.default_exp != p.module])

def test_pages_and_modules_are_a_bijection():
    none([f'gentok/{m}: no page exports it' for m in modules.keys() - {p.module for p in exporting}]
         + [f'nbs/{p.name}: gentok.{p.module} does not exist' for p in exporting if p.module not in modules])
    assert len({p.module for p in exporting}) == len(exporting)

def test_pages_without_a_module_stand_at_the_start():
    none([f'nbs/{p.name}: exports nothing' for p in book
          if not p.exports and p.name.split('/')[0] not in ('00_start', '00_learn')
          and p.name != 'index.ipynb'])

def test_module_and_folder_never_share_a_name():
    none([f'{f}: a folder of this name stands beside it' for f in modules.values() if f.with_suffix('').is_dir()])

def test_sidebars_and_pages_are_a_bijection(): none(sidebar_troubles())

def test_the_bar_has_its_sections(): assert list(sidebars()) == ['Learn', 'Papers', 'Leaderboard', 'Guides', 'Components', 'API', 'Internals']

def test_components_follow_the_stations():
    places = [href.split('/')[0] for _, _, href in sidebars()['Components'] if href]
    assert len(set(places)) > 8 and places == sorted(places)

def test_titles_are_short_and_plain():
    none([f'{name}: {title}' for name, title in labels().items() if len(title) > 60 or title.endswith('.')])

def test_rendered_pages_keep_apart(): assert len({p.html for p in book}) == len(book)

# ---------------------------------------------------------------- cells and lessons

def test_exported_cells_stay_below_forty_lines():
    none([f'nbs/{p.name}: {len(c.lines)} lines: {c.lines[0]}' for p in exporting for c in p.cells
          if c.exported and len(c.lines) > 40])

def test_exported_cells_are_small_on_the_whole():
    sizes = sorted(len(c.lines) for p in exporting for c in p.cells if c.exported and c.defines)
    assert sizes[len(sizes)//2] <= 12

def test_exported_code_stays_within_its_columns():
    spoken = re.compile(r'f?("[^"]{25,}"|\'[^\']{25,}\')')  # a sentence to the user stays on one line, where it can be read
    troubles = []
    for page in exporting:
        for c in (c for c in page.cells if c.exported):
            quoted = {n for node in ast.walk(c.tree) if isinstance(node, (ast.Constant, ast.JoinedStr))
                      for n in range(node.lineno, node.end_lineno + 1) if node.end_lineno > node.lineno}
            troubles += [f'nbs/{page.name}: {len(line)} columns: {line.strip()[:80]}' for n, line in enumerate(c.lines, 1)
                         if n not in quoted and len(spoken.sub('', line)) > columns]
    none(troubles)

def test_a_function_of_papers_takes_five_things_at_most():
    "A run is one object (`Run`), so that nothing is handed on piece by piece"
    troubles = []
    for module, file in modules.items():
        if not module.startswith('papers.'): continue
        for f in (n for n in ast.walk(ast.parse(file.read_text(encoding='utf-8'))) if isinstance(n, ast.FunctionDef)):
            names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ('self', 'cls')]
            if len(names) > 5: troubles.append(f'{module}.{f.name} takes {len(names)}: {", ".join(names)}')
    none(troubles)

def test_every_definition_has_a_lesson_within_two_cells():
    troubles = []
    for page in exporting:
        code = [c for c in page.cells if c.kind == 'code']
        for i, c in enumerate(code):
            if c.exported and c.defines and not any(d.lesson and not d.only_imports for d in code[i+1:i+3]):
                troubles.append(f'nbs/{page.name}: no lesson soon after: {next((line for line in c.lines if re.match(" *(def|class)", line)), "")}')
    none(troubles)

def test_a_page_shows_what_it_exports():
    counts = {p.name: (sum(len(c.lines) for c in p.cells if c.exported), sum(len(c.lines) for c in p.cells if c.lesson))
              for p in exporting}
    none([f'nbs/{n}: {e} exported lines, {s} lesson lines' for n, (e, s) in counts.items() if s < .6*e])

def test_lesson_cells_have_no_comments():
    troubles = []
    for page in book:
        for c in page.cells:
            if c.lesson: troubles += [f'nbs/{page.name}: {line}' for line in c.lines if re.match(r'\s*#(?!\|)', line)]
    none(troubles)

def test_every_page_opens_with_a_title_and_a_sentence():
    troubles = []
    for page in book:
        first = page.cells[0]
        if first.kind != 'markdown' or not re.match(r'# \S.*\n\s*\n?> \S.*[.!?]', first.source):
            troubles.append(f'nbs/{page.name}: opens with {first.source[:60]!r}, not with `# Title` and `> A sentence.`')
    none(troubles)

def test_no_output_is_an_error():
    import json
    none([f'nbs/{p.name}: cell {i}' for p in book for i, c in enumerate(json.loads(p.path.read_text())['cells'])
          for o in c.get('outputs', []) if o['output_type'] == 'error'])

def test_every_page_shows_something():
    import json
    none([f'nbs/{p.name}: no cell has an output' for p in book
          if not any(c.get('outputs') for c in json.loads(p.path.read_text())['cells'])])

# ---------------------------------------------------------------- what imports what

def imports(module, top_only=False):
    "The dotted names that a module imports, at its top level or anywhere; nbdev writes neighbours as relative imports."
    above = ['gentok', *module.split('.')]
    for node in trees[module].body if top_only else ast.walk(trees[module]):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(above[:len(above)-node.level] + [node.module or ''] if node.level else [node.module])
            yield base.strip('.')
            if base.strip('.') == 'gentok': yield from (f'gentok.{a.name}' for a in node.names)

def station(module): return stations.index(module.split('.')[0])

def test_every_module_belongs_to_a_station(): none([m for m in modules if m.split('.')[0] not in stations])

def test_a_lower_station_never_imports_a_higher_one():
    none([f'gentok.{m} imports {i}' for m in trees for i in set(imports(m))
          if i.startswith('gentok.') and station(i.removeprefix('gentok.')) > station(m)])

def test_modules_import_each_other_in_one_direction():
    edges = {m: {i.removeprefix('gentok.') for i in imports(m, top_only=True) if i.startswith('gentok.')} for m in trees}
    done, path = set(), []
    def visit(m):
        assert m not in path, f'circle of imports: {" -> ".join(path[path.index(m):] + [m])}'
        if m in done: return
        path.append(m)
        for n in sorted(edges.get(m, ())): visit(n)
        done.add(path.pop())
    for m in edges: visit(m)

def test_the_core_needs_few_packages():
    troubles = []
    for m in trees:
        if m.split('.')[0] not in core: continue
        first = {i.split('.')[0] for i in imports(m, top_only=True)}
        every = {i.split('.')[0] for i in imports(m)}
        troubles += [f'gentok.{m} imports {i}' for i in (first - allowed | every - allowed_inside) - sys.stdlib_module_names]
    none(troubles)

def test_importing_the_core_loads_no_heavy_package():
    import subprocess
    names = [f'gentok.{m}' for m in modules if m.split('.')[0] in core]
    code = (f'import sys, importlib\nfor n in {names}: importlib.import_module(n)\n'
            'print(*{m.split(".")[0] for m in sys.modules} & {"transformers", "accelerate", "pandas", "pyarrow", "peft", "diffusers"})')
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == []

# ---------------------------------------------------------------- docstrings and signatures

def definitions(tree, inside=''):
    "Every public function, class and method as (name, node)."
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        yield f'{inside}{node.name}', node
        if isinstance(node, ast.ClassDef): yield from definitions(node, f'{node.name}.')

def reads_as_field(node): return any(getattr(d, 'id', '') in ('property', 'cached_property') for d in getattr(node, 'decorator_list', []))

def inherits_docstring(name):
    "Whether a method takes its docstring from the base class that says what it does, as help() shows it."
    cls, _, method = name.rpartition('.')
    bases = {n.name: n for tree in trees.values() for n in tree.body if isinstance(n, ast.ClassDef)}
    if cls not in bases: return False
    for base in (ast.unparse(b).rpartition('.')[2] for b in bases[cls].bases):
        if base == 'Module' and method == 'forward': return True
        patched = (n for tree in trees.values() for n in tree.body if isinstance(n, ast.FunctionDef) and n.decorator_list
                   and n.args.args and getattr(n.args.args[0].annotation, 'id', '') == base)
        own = next((n for n in [*getattr(bases.get(base), 'body', []), *patched] if getattr(n, 'name', '') == method), None)
        if own and ast.get_docstring(own) or inherits_docstring(f'{base}.{method}'): return True
    return False

def test_every_public_name_has_a_docstring():
    none([f'gentok.{m}: {name}' for m, tree in trees.items() for name, node in definitions(tree)
          if not ast.get_docstring(node) and not reads_as_field(node) and not inherits_docstring(name)])

def test_docstrings_hold_no_equations():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    none([f'gentok.{m}: {getattr(node, "name", "the module")}' for m, tree in trees.items() for node in ast.walk(tree)
          if isinstance(node, kinds) and re.search(r'\\begin|\x08egin|\$\$', ast.get_docstring(node, clean=False) or '')])

def test_constructors_take_at_most_seven_parameters():
    troubles = []
    for m, tree in trees.items():
        for name, node in definitions(tree):
            if not isinstance(node, ast.ClassDef): continue
            for init in (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == '__init__'):
                n = len(init.args.posonlyargs + init.args.args + init.args.kwonlyargs) - 1
                if n > 7: troubles.append(f'gentok.{m}: {name} takes {n}')
    none(troubles)

def test_configurations_have_at_most_twelve_fields():
    none([f'gentok.{m}: {name} has {n}' for m, tree in trees.items() for name, node in definitions(tree)
          if isinstance(node, ast.ClassDef) and name.endswith('Config')
          for n in [sum(isinstance(b, ast.AnnAssign) for b in node.body)] if n > 12])

def test_errors_are_not_bare():
    none([f'gentok.{m}: line {node.lineno}' for m, tree in trees.items() for node in ast.walk(tree)
          if isinstance(node, ast.Raise) and getattr(getattr(node.exc, 'func', node.exc), 'id', '') in ('Exception', 'AssertionError')])

def test_nothing_is_pickled():
    none([f'gentok.{m}' for m in trees for i in imports(m) if i in ('pickle', 'joblib', 'dill')]
         + [f'gentok.{m}: line {node.lineno}' for m, tree in trees.items() for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ('torch.save', 'torch.load')
            and 'weights_only=True' not in ast.unparse(node)])

# ---------------------------------------------------------------- names and links

def test_backticked_names_exist(): none(name_troubles())

def test_outputs_name_no_path_of_this_machine():
    none([f'{p.name}: {root}' for p in book if str(root) in p.path.read_text(encoding='utf-8')])

def test_pictures_that_are_html_have_their_caption(tmp_path):
    "A shelf is a figure with a figcaption, in the staged book and in the preview"
    page = next(p for p in book if p.name == '05_ids/01_item_ids.ipynb')
    text = '#| hero\n#| fig-cap: "Two tiles: $a_1$ and *b*."\n#| fig-alt: A \"b\"\nshelf()'
    shelf = [dict(output_type='display_data', metadata={},
                  data={'text/html': '<img alt="t" src="data:,">', 'text/plain': 'x'})]
    raw = dict(cell_type='code', source=text, outputs=shelf, metadata={})
    looks.prepare(nb := dict(cells=[raw]), page, 'https://github.com/g/g')
    staged = nb['cells'][0]
    assert 'fig-cap' not in ''.join(staged['source'])
    said = ''.join(staged['outputs'][0]['data']['text/markdown'])
    assert said.count('<figure') == said.count('</figure>') == 1
    assert '\n\nTwo tiles: $a_1$ and *b*.\n\n' in said
    seen = preview.shown(staged, preview.Markdown(), preview.Figures(tmp_path/'p.html'))
    assert re.search(r'<figcaption>\s*<p>Two tiles: <math.*<em>b</em>\.</p>\s*'
                     r'</figcaption></figure>', seen, flags=re.S)

papers = [p for p in book if overview.said_here(p)]

def test_papers_open_with_picture_claim_and_outcome():
    "In that order; what came out is said by numbers that a cell of the book printed"
    assert {'tiger', 'utgrec', 'mtgrec', 'etegrec', 'unitok'} <= {
        p.module.rpartition('.')[2] for p in papers}
    strength = next(p for p in book if p.name == '11_papers/07_strength.ipynb')
    for page in papers:
        text = page.markdown
        assert 'hero' in {f for c in page.cells for f in c.flags}, page.name
        order = [text.index(f'**{w}**') for w in ('The claim.', 'Here.', 'In:')]
        assert order == sorted(order) and text.index('\n> ') < order[0], page.name
        printed = (page.path.read_text(encoding='utf-8')
                   + strength.path.read_text(encoding='utf-8'))
        printed = printed.replace(f'**Here.** {overview.said_here(page)}', '')
        for number in re.findall(r'(?<![\w.])\.\d{3,4}', overview.said_here(page)):
            assert printed.count(number) > 1, f'{page.name}: {number}'

def test_overviews_show_every_page_of_their_section(tmp_path):
    proc, (paper, other) = tmp_path/'_proc', papers[:2]
    def staged(page, *data):
        front = '---\ntitle: T\ndescription: "A: sentence"\n---'
        outs = [dict(output_type='display_data', data=d, metadata={}) for d in data]
        cells = [dict(cell_type='raw', source=front.splitlines(True)),
                 dict(cell_type='code', source=[], outputs=outs)]
        (proc/page.name).parent.mkdir(parents=True, exist_ok=True)
        (proc/page.name).write_text(json.dumps(dict(cells=cells)))
    staged(paper, {'image/svg+xml': '<svg>light</svg>'}, {'image/svg+xml': '<svg>dark</svg>'})
    html = looks.raw_html('<figure id="a"><img alt="t" src="data:,"><figcaption>')
    staged(other, {'text/markdown': f'{html}\n\nsaid\n'})
    plain = next(p for p in book if p.name == '05_ids/03_trie.ipynb')
    staged(plain)
    titles = {p.name: p.title for p in book}
    contents = dict(papers=[paper.name, other.name],
                    components=[dict(section='Identifiers', contents=[plain.name])])
    found = overview.write(book, titles, contents, proc)
    assert found['papers'] == ['overview/papers.qmd', paper.name, other.name]
    text = (proc/'overview/papers.qmd').read_text()
    assert text.count('::: {}') == 2 and overview.said_here(paper) in text
    assert (proc/'overview/papers/papers-tiger-dark.svg').read_text() == '<svg>dark</svg>'
    assert '<img alt="t"' in text and 'id="a"' not in text and 'figcaption' not in text
    text = (proc/'overview/components.qmd').read_text()
    assert '## Identifiers' in text and 'A: sentence' in text
    home = dict(cells=[dict(cell_type='markdown', metadata={},
                            source=['x\n', '\n', ':::: {.paper-cards}\n', '::::'])])
    staged_home = overview.fill_home(home, [paper, other], titles, proc)
    said = ''.join(staged_home['cells'][0]['source'])
    assert said.count('::: {}') == 2 and f'[{paper.title}]({paper.name})' in said

def test_no_page_loses_its_assertions():
    "What a page once checked is still checked, there or where it went (assertions.txt)"
    now = {p.name.removesuffix('.ipynb'): sum(looks.count_checks(c.body)
                                              for c in p.cells if c.kind == 'code')
           for p in book}
    told = (root/'tests'/'assertions.txt').read_text(encoding='utf-8').splitlines()
    for line in told:
        least, *names = line.split()
        found = sum(now.get(name, 0) for name in names)
        assert found >= int(least), f'{", ".join(names)}: {found} of {least} assertions'
    assert len(told) > 80

def test_links_and_images_exist(): none(link_troubles())

# ---------------------------------------------------------------- the checks themselves can fail

@pytest.fixture
def small(tmp_path):
    "A book of two pages, one of them wrong in every way that the checks look for."
    import json
    (tmp_path/'nbs/01_data').mkdir(parents=True)
    (tmp_path/'gentok/data').mkdir(parents=True)
    (tmp_path/'gentok/data/shop.py').write_text('class Shop:\n    "s"\n    def sell(self): self.sold = 1\n')
    def write(name, *cells):
        made = [dict(cell_type=k, source=s, metadata={}, outputs=[]) for k, s in cells]
        (tmp_path/'nbs'/name).write_text(json.dumps(dict(cells=made)))
    write('01_data/01_shop.ipynb', ('markdown', '# Shop\n\n> It sells.\n\n## What is sold?\n`Shop.sell` and `Shop.sold` and `my_var`; see [it](#what-is-sold)'),
          ('code', '#| default_exp data.shop'), ('code', '#| export\nclass Shop: pass'), ('code', 'my_var = 1'))
    write('01_data/02_bad.ipynb', ('markdown', '# Bad\n`Shop.steal` `no_such_thing` [a](../nowhere.ipynb) ![b](gone.svg) [c](01_shop.ipynb#gone) '
                                   '$x [y](z)$ `[q](r)` [fine](01_shop.ipynb#shop)'))
    (tmp_path/'_quarto.yml').write_text('website: {sidebar: [{title: Data, contents: [01_data/01_shop.ipynb, {section: More, contents: [01_data/09_lost.ipynb]}]}]}')
    return tmp_path

def test_wrong_names_are_found(small):
    found = name_troubles(small)
    assert len(found) == 2 and '`Shop.steal`' in found[0] and '`no_such_thing`' in found[1]

def test_wrong_links_are_found(small):
    found = link_troubles(small)
    assert [re.search(r'link to (\S+?),', f).group(1) for f in found] == ['../nowhere.ipynb', 'gone.svg', '01_shop.ipynb#gone']

def test_wrong_sidebars_are_found(small):
    found = sidebar_troubles(small)
    assert len(found) == 2 and '09_lost' in found[0] and '02_bad.ipynb: the page is in no sidebar; add it to _quarto.yml' in found[1]
    (small/'_quarto.yml').write_text('website: {navbar: {left: [{href: 00_gone.ipynb}, {href: api/index.qmd}]}, sidebar: [{title: A, contents: [01_data/01_shop.ipynb]},'
                                     ' {title: B, contents: [01_data/01_shop.ipynb, {text: Shop, href: 01_data/02_bad.ipynb}]}]}')
    found = sidebar_troubles(small)
    assert len(found) == 3 and 'in the sidebars twice' in found[0] and '00_gone.ipynb is in the bar' in found[1] and "'Shop' is the title of more than one" in found[2]

def test_a_label_is_the_title_where_none_is_given(small):
    assert labels(small) == {'01_data/01_shop.ipynb': 'Shop', '01_data/02_bad.ipynb': 'Bad'}
    (small/'_quarto.yml').write_text('website: {sidebar: [{title: A, contents: [{text: The shop, href: 01_data/01_shop.ipynb}, 01_data/02_bad.ipynb]}]}')
    assert labels(small) == {'01_data/01_shop.ipynb': 'The shop', '01_data/02_bad.ipynb': 'Bad'}

def test_links_into_the_reference_are_left_to_staging():
    assert made('index.ipynb', 'api/index.qmd') and made('01_data/01_shop.ipynb', '../api/x.qmd') and not made('01_data/01_shop.ipynb', 'api/x.qmd')

def test_conflict_markers_are_found(small):
    assert marker_troubles(small) == []
    page = small/'nbs/01_data/01_shop.ipynb'
    page.write_text(page.read_text().replace('{', '{\n"<<<<<<< HEAD\\n",', 1))
    assert 'line 2 is a conflict marker' in marker_troubles(small)[0]

def test_pages_over_their_cpu_budget_are_found(monkeypatch):
    monkeypatch.setattr(budget, 'page_seconds', 30)
    monkeypatch.setattr(budget, 'book_seconds', 900)
    found = budget.over_budget({'01_data/01_loop.ipynb': 95., '02_fast.ipynb': 3.})
    assert len(found) == 1 and found[0].startswith('01_data/01_loop.ipynb: 95 CPU seconds, more than 30')
    assert 'The book: 901' in budget.over_budget({f'{i}.ipynb': 30. for i in range(30)} | {'last.ipynb': 1.})[0]
    assert budget.over_budget({f'{i}.ipynb': 30. for i in range(30)}) == []

def test_the_table_shows_the_slowest_first():
    head, *rows = budget.table(dict(a=1., b=20., c=3.), 'pages', n=2).splitlines()
    assert head == 'slowest pages in CPU seconds, 2 of 3' and [r.split() for r in rows] == [['20.0', 'b'], ['3.0', 'c'], ['24.0', 'all']]

def test_cpu_seconds_count_children_and_no_waiting():
    import subprocess, time
    spent = {}
    with budget.measured(spent, 'waits'): time.sleep(.3)
    with budget.measured(spent, 'child'): subprocess.run([sys.executable, '-c', 'import time\nwhile time.process_time() < .3: pass'], check=True)
    assert spent['waits'] < .1 and spent['child'] >= .3

def test_a_slow_page_is_a_warning_and_refused_only_where_budgets_are_strict(tmp_path):
    import json, os, shutil, subprocess
    shutil.copytree(root/'tools', tmp_path/'tools')
    shutil.copy(root/'settings.ini', tmp_path)
    (tmp_path/'nbs').mkdir()
    long = 'import time\nstart = time.process_time()\nwhile time.process_time() - start < 2: pass'
    for name, source in dict(a='import sys; sys.modules["__main__"] = sys', b='assert 1 == 2, "one is not two"', c=long, d='1', e='1').items():
        code = dict(cell_type='code', source=source, metadata={}, outputs=[], execution_count=None)
        skipped = dict(code, source='#| slow\n1/0')
        (tmp_path/f'nbs/{name}.ipynb').write_text(json.dumps(dict(cells=[code, skipped], metadata={}, nbformat=4, nbformat_minor=5)))
    def run(strict):
        env = dict(os.environ, GENTOK_PAGE_SECONDS='1.9', GENTOK_STRICT_BUDGETS=strict)
        return subprocess.run([sys.executable, 'tools/check_repo.py', 'notebooks'], cwd=tmp_path, capture_output=True, text=True, env=env)
    done = run('1')
    assert done.returncode == 1 and 'nbs/b.ipynb: fails' in done.stdout and 'one is not two' in done.stderr, done.stderr
    assert 'slowest pages in CPU seconds, 5 of 5' in done.stdout and '\nc.ipynb: 2 CPU seconds, more than 2;' in done.stdout
    (tmp_path/'nbs/b.ipynb').unlink()
    done = run('')
    assert done.returncode == 0 and 'Warning: c.ipynb: 2 CPU seconds' in done.stdout and done.stdout.endswith('Every page runs.\n'), done.stderr

def test_flags_and_lines_of_a_cell():
    cell = Cell('code', '#| export\n#| slow\n\ndef f():\n\n    return 1')
    assert cell.exported and 'slow' in cell.flags and len(cell.lines) == 2 and cell.defines
    assert Cell('code', '#| echo: false\nx').flags == {'echo': ['false']}

def test_module_of_a_page():
    assert Page(None, '03_quantize/01_codebook.ipynb').module == 'quantize.codebook'
    assert Page(None, '00_start/05_figures.ipynb').module == 'figures'
    assert Page(None, '12_cli.ipynb').module == 'cli'
    assert Page(None, '03_quantize/01_codebook.ipynb').html == '03_quantize/codebook.html'

def test_slugs_are_those_of_pandoc():
    assert slug('What is sold?') == 'what-is-sold'
    assert slug('3. `Codebook`: the first') == 'codebook-the-first'

def test_names_of_torch_numpy_and_the_library():
    names = Names()
    assert all(names.known(n) for n in ('torch.cdist', 'cdist', 'np.ndarray', 'len', 'axes', 'gentok.figures', 'figures.axes', 'config.json'))
    assert not any(names.known(n) for n in ('torch.no_such', 'no_such_name', 'gentok.no_such'))
    assert links('[a](b.ipynb "t") <img src="c.svg">') == ['b.ipynb', 'c.svg'] and backticked('`a.b` `a b` ```x```') == ['a.b', 'x']
    assert page_words(book[0]) and anchors(book[0])

# ---------------------------------------------------------------- what a reader sees

def code_cell(source, *outputs): return dict(cell_type='code', source=source, metadata={}, execution_count=None, outputs=[
    dict(output_type='display_data' if 'image/svg+xml' in o else 'execute_result', metadata={}, data=o) for o in outputs])
def staged(*cells, name='03_quantize/01_codebook.ipynb'):
    "The cells of a page after `prepare`, as (source, outputs)."
    page = Page(None, name)
    page.cells = [Cell('code', '#| default_exp quantize.codebook')]
    nb = dict(cells=[dict(cell_type='markdown', source='# T\n\n> S.', metadata={}), *cells])
    looks.prepare(nb, page, 'https://github.com/g/g')
    return [(''.join(c['source']), c.get('outputs', [])) for c in nb['cells']][1:]

def test_checks_are_parted_from_what_shows_something():
    assert looks.split_checks('x = f(1)\ntest_eq(x, 1)\nx') == ('x = f(1)\nx', 'test_eq(x, 1)')
    assert looks.split_checks('x = f(1); test_eq(x, 1)  # one') == ('x = f(1)  # one', 'test_eq(x, 1)')
    assert looks.split_checks('é = 1; assert é; é') == ('é = 1; é', 'assert é')
    assert looks.split_checks('a\n\n# why\nassert b\nc') == ('a\n\nc', '# why\nassert b')
    assert looks.split_checks('for x in y: test_eq(x, 1)\nprint(x)') == ('for x in y: test_eq(x, 1)\nprint(x)', '')  # binds what is printed
    assert looks.split_checks('%time f()\nassert g') == ('%time f()', 'assert g') and looks.split_checks('?f\nassert g') == ('?f\nassert g', '')

def test_checks_inside_a_block_keep_its_head():
    code = 'with folder() as f:\n    save(f)\n    with expect_fail(OSError):\n        load(f)\n    x = read(f)\nx'
    assert looks.split_checks(code) == ('with folder() as f:\n    save(f)\n    x = read(f)\nx',
                                        'with folder() as f:\n    ...\n    with expect_fail(OSError):\n        load(f)')
    assert looks.split_checks('with folder() as f:\n    assert f\n    test_eq(f, 1)\n2')[0] == '2'
    assert looks.split_checks('for a in b:\n    assert a') == ('', 'for a in b:\n    assert a')

@pytest.mark.parametrize('name', ['index.ipynb', '03_quantize/01_codebook.ipynb', '08_train/01_loop.ipynb', '12_cli.ipynb'])
def test_staging_loses_no_assertion(name):
    import json
    page = next(p for p in book if p.name == name)
    nb = json.loads(page.path.read_text(encoding='utf-8'))
    def count(): return sum(looks.count_checks(''.join(c['source'])) for c in nb['cells'] if c['cell_type'] == 'code')
    before = count()
    looks.prepare(nb, page, 'https://github.com/g/g')
    assert count() == before and (before > 50 or name == 'index.ipynb')

def test_cells_fold_by_what_they_are():
    def of(source, *outputs): return looks.look(code_cell(source, *outputs))[:2]
    svg = {'image/svg+xml': '<svg/>'}
    assert of('import a\nfrom b import c') == ('imports', 'Imports of this page')
    assert of('#| export\nimport a') == ('imports', 'Imports of the module')
    assert of('test_eq(1, 1)\nassert 2') == ('tests', 'Tests (2)') and of('#| tests\nf()') == ('tests', 'Tests')
    assert of('#| export\ndef f(): pass') == ('exported', '')
    assert of('#| export\ndef f():\n    "Does it"\n' + '    x\n'*23) == ('exported', 'f: Does it (25 lines)')
    marked = '#| export\ndef f():\n    "`x`, `y`"\n' + '    x\n'*23
    assert of(marked)[1] == 'f: x, y (25 lines)'
    assert of('a\nb\nc', svg) == ('figure', 'Code of this figure') and of('a\nb', svg) == ('shown', '') and of('#| hero\na', svg)[0] == 'figure'
    assert of('def f(x):\n    a\n    b\n    return c') == ('helper', 'Helper: f') and of('def f(x): return c') == ('shown', '')
    assert of('#| echo: false\na') == ('hidden', '') and of('#| hide\na')[0] == 'hidden' and of('1') == ('shown', '')
    assert of('#| code-fold: true\n#| code-summary: "Mine"\n1') == ('shown', 'Mine') and of('#| code-fold: false\nimport a')[1] == ''

def test_a_mixed_cell_becomes_three():
    (imported, _), (shown, out), (tests, none_) = staged(code_cell('import a\nx = a.b()\ntest_eq(x, 1)\nx', {'text/plain': '1'}))
    assert 'code-summary: "Imports"' in imported and imported.endswith('import a')
    assert shown == 'x = a.b()\nx' and out[0]['data'] == {'text/plain': '1'} and none_ == []
    assert '#| code-summary: "Tests (1)"' in tests and tests.endswith('test_eq(x, 1)')

def test_an_exported_cell_stands_in_a_frame_with_its_anchors():
    cells = staged(code_cell('#| export\nclass A:\n    def f(self): pass'), code_cell('#| export\n@patch\ndef g(self:A): pass'), code_cell('class A: pass'))
    assert cells[0][0] == '::: {.export-frame}' and cells[3][0] == ':::'
    assert '<span id="a"></span><span id="a.f"></span>' in cells[1][0] and '<span id="a.g"></span>' in cells[5][0]
    assert 'href="https://github.com/g/g/blob/main/gentok/quantize/codebook.py"' in cells[1][0] and '#| classes: ["exported"]' in cells[2][0]
    assert not any('<span' in source for source, _ in cells[8:])
    assert '<span' not in staged(*[code_cell('#| export\ndef f(): pass')]*2)[5][0]  # an anchor stands once

def test_a_drawing_gets_two_modes_and_a_text():
    svg = '<svg><g id="figure_1">\n <g id="patch_1">\n  <path d="M0" style="fill: #ffffff"/></g></g><!-- Few codes die --><!-- step --><path style="stroke: #2563A8"/></svg>'
    cells = staged(code_cell('#| fig-cap: "Few"\na\nb\nc', {'text/plain': '3'}, {'image/svg+xml': svg}, {'image/svg+xml': svg}))
    assert [len(out) for _, out in cells] == [2, 2, 1] and '#| echo: false' in cells[1][0] and cells[2][1][0]['data'] == {'text/plain': '3'}
    light, dark = (''.join(o['data']['image/svg+xml']) for o in cells[0][1])
    assert 'fill: none' in light and '#2563A8' in light and '#6aa7ea' in dark
    for line in ('#| renderings: ["light", "dark"]', '#| fig-alt: "Figure: Few codes die. It says: step."', '#| fig-cap: ["Few", "Few"]', '#| code-fold: true'): assert line in cells[0][0]
    assert 'fig-alt: "Mine"' in staged(code_cell('#| fig-alt: "Mine"\na', {'image/svg+xml': svg}))[0][0]

def test_heroes_and_tops_stand_below_the_title():
    cells = staged(dict(cell_type='markdown', source='text', metadata={}), code_cell('1'), code_cell('#| top\nuse()'), code_cell('#| hero\ndraw()', {'image/svg+xml': '<svg/>'}))
    assert [re.sub(r'#\|.*\n', '', source) for source, _ in cells] == ['draw()', 'use()', 'text', '1']

def test_outputs_are_tables_without_warnings():
    cell = code_cell('f()', {'text/html': '<style scoped>a</style><table border="1"></table>', 'text/plain': 'x'}, {'text/plain': "{'a': 1.23456, 'b': 2}"}, {'text/plain': "{'a': 1}"})
    cell['outputs'].append(dict(output_type='stream', name='stderr', text='/home/me/x.py: slow'))
    [(_, outs)] = staged(cell)
    said = [''.join(o['data'].get('text/markdown', '')) for o in outs]
    assert said[0] == '```{=html}\n<div class="wide"><table></table></div>\n```' and '| a | 1.235 |' in said[1] and said[2] == '' and len(said) == 3
    assert looks.table_of("{'x': {'a': 1, 'b': 2}, 'y': {'a': 3, 'b': 4}}").split('\n')[2:] == ['| x | 1 | 2 |', '| y | 3 | 4 |']
    assert looks.table_of("{'x': tensor(1)}") == looks.table_of("{'x': 'y'*99, 'z': 1}") == looks.table_of('[1]') == ''

def test_the_reference_is_made_from_the_source(tmp_path):
    (tmp_path/'m.py').write_text('"A module"\nclass A:\n    "An a"\n    def __init__(self, k:int, # b d\n                 *, far:str|None=None): # last\n        pass\n'
        '    @property\n    def size(self)->int: # of it\n        return 1\n    def _own(self): pass\n@patch\ndef go(self:A, x:int=1)->int: # steps\n    "Goes"\n'
        'def long_name(first:dict[str, int]=None, second:dict[str, int]=None, third:tuple[int, ...]=()): pass\n')
    text = reference.Module(tmp_path/'m.py', 'data.m', None, 'R').text(None)
    assert [line for line in text.splitlines() if line.startswith('#')] == ['## A {#a}', '### .go {#a.go}', '## long_name {#long_name}']
    assert 'A(k: int, *, far: str | None=None)' in text and '| `k` | `int` |  | b d |' in text and '| `far` | `str \\| None` | `None` | last |' in text
    assert 'A.go(x: int=1) -> int' in text and '| `x` | `int` | `1` |  |' in text and '| *returns* | `int` |  | steps |' in text and '| `size` | `int` | of it |' in text
    assert 'long_name(\n    first: dict[str, int]=None,' in text and '[source](R/blob/main/gentok/data/m.py#L11-L13)' in text

def test_the_reference_fits_its_columns_and_names_every_module(tmp_path):
    sections = reference.write(root, tmp_path, 'R', book, labels())
    files = {p.name.removesuffix('.qmd') for p in (tmp_path/'api').iterdir()}
    assert files == modules.keys() | {'index'} and sections[0] == 'api/index.qmd' and sections[1]['section'] == 'gentok'
    signatures = [line for p in (tmp_path/'api').iterdir() for block in re.findall(r'^```python\n(.*?)\n```', p.read_text(), flags=re.M | re.S) for line in block.splitlines()]
    assert len(signatures) > 1000 and sum(len(line) > looks.columns for line in signatures) < 12  # a default that is a sentence

def test_vitals_count_what_stays_in_sight(tmp_path):
    import json
    cells = [dict(cell_type='markdown', source='# T\n\n> S\tt. ![](a.svg){.x}', metadata={}), code_cell('import a\nx = 1\ntest_eq(x, 1)\nx'),
             code_cell('#| export\n' + 'y'*90), code_cell('#| fig-cap: "C"\nz', {'image/svg+xml': '<svg/>'}), code_cell('with f() as g:\n    g\n    assert g\nh(g)')]
    cells[1]['outputs'].append(dict(output_type='stream', name='stderr', text='/home/me: slow'))
    (tmp_path/'t.ipynb').write_text(json.dumps(dict(cells=cells)))
    v, why = page_vitals.vitals(Page(tmp_path/'t.ipynb', 't.ipynb'), 'Other')
    assert {k: v[k] for k in ('first', 'long', 'checks', 'allchk', 'noalt', 'nocap', 'ctrl', 'label', 'imports', 'stderr', 'code', 'export')} == dict(
        first=0, stderr=1, long=1, checks=0, allchk=2, noalt=2, nocap=0, ctrl=1, label=1, imports=0, code=6, export=1)
    assert why['long'] == ['cell 2: 90 columns: ' + 'y'*90] and page_vitals.vitals(Page(tmp_path/'t.ipynb', 't.ipynb'), 'T')[0]['label'] == 0
    cells[0]['source'] = '# T'
    (tmp_path/'t.ipynb').write_text(json.dumps(dict(cells=cells)))
    assert page_vitals.vitals(Page(tmp_path/'t.ipynb', 't.ipynb'), 'T')[0]['first'] == 4

def staged_page(front, *cells): return dict(cells=[dict(cell_type='raw', source=f'---\n{front}\n---\n'), *(dict(cell_type='markdown', source=c) for c in cells)])

def test_a_staged_page_has_the_sites_title_and_its_links():
    import yaml
    page, nb = next(p for p in book if p.name == '07_search/01_beam.ipynb'), staged_page('title: Old\ndescription: "A: b"', 'text')
    looks.finish(nb, page, 'https://github.com/g/g', 'Constrained: search')
    meta = yaml.safe_load(''.join(nb['cells'][0]['source']).strip('-\n'))
    assert meta['title'] == 'Constrained: search' and meta['description'] == 'A: b'
    assert [x['href'] for x in meta['code-links']] == ['https://colab.research.google.com/github/g/g/blob/main/nbs/07_search/01_beam.ipynb',
        'https://github.com/g/g/blob/main/nbs/07_search/01_beam.ipynb', '../api/search.beam.html', 'https://github.com/g/g/blob/main/gentok/search/beam.py']
    assert f'<span id="{slug(page.title)}"></span>' in ''.join(nb['cells'][1]['source'])

def test_the_sentence_under_a_title_shows_code_as_code():
    shown = preview.opening(dict(title='A', description='`f` & <g>'))
    assert '<p class="description"><code>f</code> &amp; &lt;g&gt;</p>' in shown

def test_names_lead_into_the_reference(tmp_path):
    pages_of = [next(p for p in book if p.name == n) for n in ('05_ids/02_collisions.ipynb', '05_ids/03_trie.ipynb')]
    reference.write(root, tmp_path, 'R', book, labels())
    where = reference.places(tmp_path, pages_of)
    nb = dict(cells=[dict(cell_type='markdown', source='[`Trie`](S/05_ids/trie.html#trie) [`resolve`](S/05_ids/collisions.html#resolve) [`_x`](S/05_ids/trie.html#_x) [a](S/b.html)'),
                     dict(cell_type='code', source='#| hide\n', outputs=[])])
    settle(nb, 'S', pages_of[0], where)
    assert [''.join(c['source']) for c in nb['cells']] == [
        '[`Trie`](../api/ids.trie.html#trie) [`resolve`](../05_ids/collisions.html#resolve) [`_x`](../05_ids/trie.html#_x) [a](../b.html)']

def test_a_drawing_that_is_part_of_the_page_follows_its_colours():
    page, nb = next(p for p in book if p.name == 'index.ipynb'), staged_page('title: gentok', 'a\n\n![It\'s "so"](images/result.svg){.inline .tall}\n')
    looks.finish(nb, page, 'R', 'gentok')
    drawn = ''.join(nb['cells'][-1]['source'])
    assert '<div class="drawing tall"><svg role="img" aria-label="It&#x27;s &quot;so&quot;"' in drawn and 'class="h"' in drawn and '![' not in drawn

def test_the_preview_stays_within_a_section(tmp_path):
    import yaml
    (tmp_path/'api').mkdir()
    (tmp_path/'api/index.qmd').write_text('---\ntitle: The reference\n---\n')
    bars = [dict(title='A', contents=['01_data/01_toyshop.ipynb', dict(section='S', contents=['01_data/02_dataset.ipynb', 'api/index.qmd'])]), dict(title='B', contents=['12_cli.ipynb'])]
    (tmp_path/'_quarto.yml').write_text(yaml.safe_dump(dict(website=dict(navbar=dict(left=[dict(text='A', href='01_data/01_toyshop.ipynb')]), sidebar=bars))))
    site = preview.Site(root, tmp_path)
    page = site.page('01_data/02_dataset.ipynb', 'T', 'body', [(2, 'x', 'X')], [])
    assert '← <a href="../01_data/toyshop.html">' in page and '<a href="../api/index.html">The reference</a> →' in page and '<details open><summary>S' in page
    assert '<a class=here href="../01_data/toyshop.html">A</a>' in page and '<a class="l2" href="#x">X</a>' in page
    alone = site.page('12_cli.ipynb', 'T', '', [], [])
    assert '→' not in alone and '←' not in alone and '<details>' in site.page('01_data/01_toyshop.ipynb', 'T', '', [], [])

def test_markdown_of_the_preview():
    turn = preview.Markdown()
    page = turn('## A `b` {#c}\n\n::: {.two}\n[x]{.n} $a_1$ `$b$` [l](../01_x/02_y.ipynb#z) [m](https://a.b/c.ipynb)\n:::\n\n$$\\lVert x\\rVert$$\n\n```{=html}\n<i>$q$</i>\n```\n\n![Cap](i.svg){.w}')
    for piece in ('<h2 id="c">A <code>b</code></h2>', '<div class="two">', '<span class="n">x</span>', '<msub><mi>a</mi>', '<code>$b$</code>', 'href="../01_x/y.html#z"',
                  'href="https://a.b/c.ipynb"', 'display="block"', '<i>$q$</i>', '<figure><img src="i.svg" alt="Cap" /><figcaption>Cap</figcaption></figure>'): assert piece in page, piece
    assert turn.heads == [(2, 'c', 'A <code>b</code>')]

def test_both_themes_give_every_colour():
    light, dark = (set(re.findall(r'^\$gt-([\w-]+): #', (root/'nbs'/n).read_text(), flags=re.M)) for n in ('theme.scss', 'theme-dark.scss'))
    used = set(re.findall(r'var\(--gt-([\w-]+)\)', (root/'nbs/site.css').read_text())) - {'mono', 'code'}
    assert light == dark and used <= light and all(f'--gt-{c}: #{{$gt-{c}}}' in (root/'nbs/theme.scss').read_text() for c in light)

def test_the_drawings_of_the_first_page_say_what_was_measured():
    rows, text = hero.measured(), (root/'nbs/images/result.svg').read_text()
    assert len(rows) >= 4 and hero.result(rows) == text
    shown = next(p for p in book if p.name == 'index.ipynb').markdown
    assert all(f'{v:.4f}'[1:] in shown for _, v in rows)

def test_styles_ask_no_other_host():
    for name in ('theme.scss', 'theme-dark.scss', 'site.css'): assert not re.search(r'@import|url\(|https?:', (root/'nbs'/name).read_text()), name

def test_a_reader_sees_the_pages(tmp_path):
    "Ten pages of the preview in a browser, on a desk and on a phone, light and dark: nothing is asked, nothing fails, nothing is cut."
    import subprocess
    import headless
    if not headless.browser(): pytest.skip('Chromium is not installed')
    top = tmp_path/'gentok'
    copy_tree(root, top)
    subprocess.run(['git', 'init', '-q', top], check=True)
    names = ['index.ipynb', '00_start/01_tour.ipynb', '00_start/02_notation.ipynb', '01_data/01_toyshop.ipynb', '03_quantize/01_codebook.ipynb', '04_tokenize/03_hsic.ipynb',
             '05_ids/02_collisions.ipynb', '11_papers/02_utgrec.ipynb', '12_cli.ipynb', 'api/train.preference_semantic.qmd']
    out = preview.build(stage(top), {}, top, names)
    page, troubles = headless.Page(tmp_path/'profile'), []
    try:
        for name in names:
            for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
                page.open(out/preview.here(name), width, 900, dark)
                wide = page.ask('document.documentElement.scrollWidth')
                if wide > width: troubles.append(f'{name}: {wide} pixels wide in a window of {width}')
                cut = page.ask("[...document.querySelectorAll('details')].forEach(d => d.open = true) || [...document.querySelectorAll('pre.sourceCode')].filter("
                               f"p => p.scrollWidth > p.clientWidth + 1 && Math.max(...p.innerText.split('\\n').map(l => l.length)) <= {looks.columns}).length")
                if width == 1280 and cut: troubles.append(f'{name}: {cut} blocks of at most {looks.columns} columns are cut')
                cut = page.ask("[...document.querySelectorAll('.cell-output pre')]"
                               ".filter(p => p.scrollWidth > p.clientWidth + 1).length")
                if width == 1280 and cut:
                    troubles.append(f'{name}: {cut} outputs are wider than the page')
                tops = page.ask("[...document.querySelectorAll('main img, main svg, main .shelf')].map(e => e.getBoundingClientRect())"
                                ".filter(r => r.height > 20).map(r => r.top)")
                if width == 1280 and not name.startswith('api/') and not min(tops, default=901) < 900: troubles.append(f'{name}: no picture in its first 900 pixels')
                ground = page.ask('getComputedStyle(document.body).backgroundColor')
                if (ground == 'rgb(255, 255, 255)') == dark: troubles.append(f'{name}: the ground is {ground} where dark is {dark}')
        troubles += page.errors + [f'asks {r}' for r in page.requests]
    finally: page.close()
    none(troubles)
