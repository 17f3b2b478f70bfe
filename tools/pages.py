"""What the tools and the tests know about the book: its pages, its table of contents, its links and its names."""
import ast, builtins, importlib, importlib.util, json, keyword, os, re, sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

root = Path(__file__).resolve().parent.parent
stations = ('figures', 'store', 'fast', 'data', 'embed', 'quantize', 'tokenize', 'ids', 'recommend', 'search', 'train',
            'evaluate', 'baselines', 'papers', 'recommender', 'bench', 'cli')
_number = re.compile(r'^\d+[a-z]?_')

# ---------------------------------------------------------------- pages

@dataclass
class Cell:
    "One cell: its kind ('code', 'markdown', 'raw'), its source and its flags (`#| slow` -> slow)."
    kind: str
    source: str

    @cached_property
    def _split(self):
        flags, rest = {}, self.source.splitlines()
        while rest and (not rest[0].strip() or re.match(r'\s*#\s*\|', rest[0])):
            head = rest.pop(0)
            if not head.strip(): continue
            words = re.sub(r'^\s*#\s*\|', '', head).replace(':', ' ').split()
            if words: flags[words[0]] = words[1:]
        return flags, rest

    @property
    def flags(self) -> dict: return self._split[0] if self.kind == 'code' else {}

    @cached_property
    def options(self) -> dict:
        "The directives with their values as they are written: `#| fig-cap: In use: 3` -> {'fig-cap': 'In use: 3'}."
        heads = self.source.splitlines()[:len(self.source.splitlines()) - len(self._split[1])] if self.kind == 'code' else []
        found = (re.match(r'\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$', head) for head in heads)
        return {m[1]: m[2] for m in found if m}

    @property
    def body(self) -> str:
        "The source without the directives at its head."
        return '\n'.join(self._split[1]).strip('\n')

    @property
    def lines(self) -> list:
        "The lines that count: neither empty nor a flag."
        body = self._split[1] if self.kind == 'code' else self.source.splitlines()
        return [l for l in body if l.strip()]

    @property
    def exported(self) -> bool: return bool(self.flags.keys() & {'export', 'exports', 'exporti'})

    @property
    def lesson(self) -> bool:
        return self.kind == 'code' and not self.exported and 'default_exp' not in self.flags and bool(self.lines)

    @cached_property
    def tree(self) -> ast.Module:
        "The parsed code, without the lines that only IPython understands."
        return ast.parse('\n'.join(l for l in self.lines if not l.lstrip().startswith(('%', '!'))))

    @property
    def defines(self) -> bool:
        "Whether the cell defines a function or a class."
        return any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in self.tree.body)

    @property
    def only_imports(self) -> bool:
        return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in self.tree.body)

@dataclass
class Page:
    "One notebook of the book."
    path: Path  # where it lies
    name: str   # its path below nbs/, with forward slashes

    @cached_property
    def cells(self) -> list:
        nb = json.loads(self.path.read_text(encoding='utf-8'))
        return [Cell(c['cell_type'], ''.join(c['source'])) for c in nb['cells']]

    @property
    def default_exp(self):
        "The module that the page says it exports, or None."
        return next((c.flags['default_exp'][0] for c in self.cells if c.flags.get('default_exp')), None)

    @property
    def module(self) -> str:
        "The module that a page of this name exports: numbers stripped, 00_start at the top level."
        parts = [_number.sub('', p) for p in Path(self.name).with_suffix('').parts]
        return '.'.join(parts[1:] if parts[0] == 'start' else parts)

    @property
    def exports(self) -> bool: return any(c.exported for c in self.cells)

    @property
    def html(self) -> str:
        "Where the rendered page lies, by nbdev's rule: the file's number goes, the folder's stays."
        p = Path(self.name)
        return p.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.name.lower())).with_suffix('.html').as_posix()

    @property
    def markdown(self) -> str: return '\n\n'.join(c.source for c in self.cells if c.kind == 'markdown')

    @property
    def title(self) -> str:
        found = re.search(r'^#\s+(.+?)\s*$', self.markdown, flags=re.M)
        return found.group(1) if found else Path(self.name).stem

def pages(top:Path=root) -> list:
    "Every notebook of the book, in the order of its path."
    found = []
    for path in sorted((top/'nbs').rglob('*.ipynb')):
        rel = path.relative_to(top/'nbs')
        if not any(p.startswith(('.', '_')) for p in rel.parts): found.append(Page(path, rel.as_posix()))
    return found

def site_config(top:Path=root) -> dict: return yaml.safe_load((top/'_quarto.yml').read_text(encoding='utf-8'))['website']

def sidebars(top:Path=root) -> dict:
    "Section of the bar -> its table of contents as (depth, text or None, page or None) in reading order."
    def walk(entries, depth):
        for e in entries:
            if isinstance(e, str): e = {'href': e}
            yield depth, e.get('section') or e.get('text'), e.get('href')
            yield from walk(e.get('contents', []), depth+1)
    return {bar['title']: list(walk(bar['contents'], 0)) for bar in site_config(top)['sidebar']}

def labels(top:Path=root) -> dict:
    "Page -> what the table of contents calls it: the plain title that the site shows; an entry without a text takes the page's own."
    own = {p.name: p.title for p in pages(top)}
    given = {href: text for rows in sidebars(top).values() for _, text, href in rows if href and text}
    return own | {name: text for name, text in given.items() if name in own}

def made(page:str, target:str) -> bool:
    "Whether a link from a page leads to what staging writes, the reference and the overviews: `api/index.qmd`, seen from the page."
    return os.path.normpath(os.path.join(os.path.dirname(page), target)).startswith(('api/', 'overview/'))

home = 'index.ipynb'  # reached from every page by the site's name, so it stands in no sidebar

def sidebar_troubles(top:Path=root) -> list:
    "What is wrong between the tables of contents and the pages, one sentence each."
    config, existing = site_config(top), [p.name for p in pages(top)]
    listed = [href for rows in sidebars(top).values() for _, _, href in rows if href]
    bar = [e['href'] for side in ('left', 'right') for e in config.get('navbar', {}).get(side, [])]
    out = [f'_quarto.yml: {h} is in a sidebar but there is no nbs/{h}; write the page or take the entry out.'
           for h in listed if h not in existing]
    out += [f'_quarto.yml: {h} is in the sidebars twice; keep one.' for h in sorted({h for h in listed if listed.count(h) > 1})]
    out += [f'nbs/{n}: the page is in no sidebar; add it to _quarto.yml with a plain title, in the section where a reader should meet it.'
            for n in existing if n not in listed and n != home]
    out += [f'_quarto.yml: {h} is in the bar but there is no nbs/{h}; write the page or take the entry out.'
            for h in bar if '://' not in h and not made(home, h) and h not in existing]
    called = [t for n, t in labels(top).items() if n in listed]
    return out + [f'_quarto.yml: {t!r} is the title of more than one page; a reader could not tell them apart.'
                  for t in sorted({t for t in called if called.count(t) > 1})]

# ---------------------------------------------------------------- links

_fence = re.compile(r'^(```|~~~).*?^\1', flags=re.M | re.S)
_code = re.compile(r'(`+)(.+?)\1', flags=re.S)
_math = re.compile(r'\$\$.*?\$\$|\$[^$\n]+\$', flags=re.S)
_link = re.compile(r'\]\(\s*<?([^)\s>]+)>?(?:\s+["\'][^)]*)?\)|<(?:a|img)\b[^>]*?\b(?:href|src)=["\']([^"\']+)')

def links(text:str) -> list:
    "The targets of a markdown text's links and images."
    for pattern in (_fence, _code, _math): text = pattern.sub(' ', text)
    return [a or b for a, b in _link.findall(text)]

def slug(heading:str) -> str:
    "The anchor that pandoc gives a heading."
    text = re.sub(r'[`*]|\$', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)).lower()
    text = re.sub(r'[^\w\s.-]', '', text)
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text.strip()))

def anchors(page:Page) -> set:
    "Every anchor of a page: its headings and the names it exports."
    text = _fence.sub(' ', page.markdown)
    heads = {slug(re.sub(r'\{[^}]*\}\s*$', '', h)) for h in re.findall(r'^#{1,6}\s+(.+?)\s*$', text, flags=re.M)}
    given = set(re.findall(r'\{#([\w.:-]+)', text)) | set(re.findall(r'\bid=["\']([^"\']+)', text))
    return heads | given | {n.lower() for c in page.cells if c.exported for n in symbols(c)}

def symbols(cell:Cell) -> list:
    "The functions, classes and methods that an exported cell defines, patched ones as Class.method."
    out = []
    for node in cell.tree.body:
        if isinstance(node, ast.ClassDef):
            out += [node.name] + [f'{node.name}.{n.name}' for n in node.body if isinstance(n, ast.FunctionDef)]
        elif isinstance(node, ast.FunctionDef):
            patched = any(getattr(getattr(d, 'func', d), 'id', '').startswith('patch') for d in node.decorator_list)
            owner = node.args.args[0].annotation if patched and node.args.args else None
            out.append(f'{owner.id}.{node.name}' if isinstance(owner, ast.Name) else node.name)
    return out

def link_troubles(top:Path=root) -> list:
    "Links and images of the pages that lead nowhere, one sentence each."
    book = {p.path.resolve(): p for p in pages(top)}
    out = []
    for page in book.values():
        for target in links(page.markdown):
            if re.match(r'[a-z]+:', target) or made(page.name, target): continue
            where, _, anchor = target.partition('#')
            path = (page.path.parent/where).resolve() if where else page.path.resolve()
            if path.suffix == '.html':
                out.append(f'nbs/{page.name}: link to {target}; write it to the notebook (.ipynb), the renderer turns it.')
            elif not path.exists():
                out.append(f'nbs/{page.name}: link to {target}, which does not exist; mend the path.')
            elif not path.is_relative_to((top/'nbs').resolve()):
                out.append(f'nbs/{page.name}: link to {target} leaves nbs/, so the rendered site would not have it.')
            elif anchor and path in book and anchor not in anchors(book[path]):
                near = ', '.join(sorted(anchors(book[path]))[:6])
                out.append(f'nbs/{page.name}: link to {target}, but that page has no #{anchor}; it has {near}, ...')
    return out

# ---------------------------------------------------------------- names

_identifier = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(\))?')
_file = re.compile(r'.*\.(json|jsonl|py|ipynb|md|ini|yml|yaml|toml|safetensors|html|css|csv|parquet|gz|inter|item|user|'
                   r'kg|link|svg|png|jpg|txt|log|sh|zip|bin|pt|pkl)$')
_libraries = ('torch', 'torch.nn', 'torch.nn.functional', 'torch.Tensor', 'numpy', 'math', 'typing', 'collections',
              'pathlib', 'functools', 'itertools', 'fastcore.test', 'fastcore.basics')
_aliases = {'np': 'numpy', 'nn': 'torch.nn', 'F': 'torch.nn.functional', 'plt': 'matplotlib.pyplot', 'pd': 'pandas',
            'PIL': 'PIL', 'Tensor': 'torch.Tensor'}
tools_of_the_trade = set('make git pip nbdev_test nbdev_export nbdev_clean nbdev_docs nbdev_preview nbdev_install_hooks '
                         'jupyter quarto pytest ruff torchrun export slow gpu hide'.split())

def _strings(tree) -> set:
    return {w for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and len(n.value) < 80
            for w in re.findall(r'[A-Za-z_]\w*', n.value)}

def _arguments(tree) -> set: return {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}

class Names:
    "The names a page may put in backticks: the library's, those of Python, torch and numpy, and the page's own."
    def __init__(self, top:Path=root):
        self.modules, self.members, self.bases, self.public = set(), {}, {}, set()
        for path in sorted((top/'gentok').rglob('*.py')):
            if path.name == '_modidx.py': continue
            dotted = '.'.join(path.relative_to(top).with_suffix('').parts).removesuffix('.__init__')
            self.modules.add(dotted)
            self._module(ast.parse(path.read_text(encoding='utf-8')))
        self.public |= {part for m in self.modules for part in m.split('.')}

    def _module(self, tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef): self._class(node)
            elif isinstance(node, ast.FunctionDef):
                self.public.add(node.name)
                if node.args.args and isinstance(node.args.args[0].annotation, ast.Name) and node.decorator_list:
                    self.members.setdefault(node.args.args[0].annotation.id, set()).add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store): self.public.add(node.attr)
        for node in tree.body:
            for target in getattr(node, 'targets', [getattr(node, 'target', None)]):
                self.public |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} if target else set()
        self.public |= _arguments(tree) | _strings(tree)

    def _class(self, node):
        stored = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        fields = {t.id for n in node.body for t in getattr(n, 'targets', [getattr(n, 'target', None)])
                  if isinstance(t, ast.Name)}
        methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        buffers = {n.args[0].value for n in ast.walk(node) if isinstance(n, ast.Call) and n.args
                   and getattr(n.func, 'attr', '').startswith('register_') and isinstance(n.args[0], ast.Constant)}
        self.members.setdefault(node.name, set()).update(stored | fields | methods | buffers)
        self.bases[node.name] = [getattr(b, 'id', getattr(b, 'attr', '')) for b in node.bases]
        self.public |= {node.name} | self.members[node.name]

    @cached_property
    def outside(self) -> set:
        "Python's, torch's and numpy's names, and every importable package."
        names = set(dir(builtins)) | set(keyword.kwlist) | set(sys.stdlib_module_names) | set(dir(str)) | set(dir(dict))
        for lib in _libraries: names |= set(dir(_thing(lib)))
        return names | set(_aliases) | tools_of_the_trade

    def has_member(self, cls:str, name:str) -> bool:
        "Whether a class of the library has the member, itself or by a base class (an outside base class has torch's)."
        if name in self.members.get(cls, ()): return True
        return any(self.has_member(b, name) if b in self.bases else name in self.outside | set(dir(tuple))
                   | {'_asdict', '_replace', '_fields'} | set(dir(_thing('torch.nn.Module'))) for b in self.bases.get(cls, ()))

    def known(self, name:str, local:set=frozenset()) -> bool:
        "Whether a backticked name exists."
        name = name.removesuffix('()')
        if _file.match(name) or name in self.modules or f'gentok.{name}' in self.modules: return True
        first, *rest = name.split('.')
        if not rest: return first in local or first in self.public or first in self.outside or _package(first)
        if first in self.members: return self.has_member(first, rest[0])
        if first in _aliases or _package(first) and first != 'gentok' and first not in self.public: return _reachable(name)
        if any(name.startswith(f'{m}.') and self.known(name[len(m)+1:]) for m in self.modules | {m.removeprefix('gentok.') for m in self.modules}): return True
        return all(p in local or p in self.public or p in self.outside for p in (first, *rest))

@lru_cache(None)
def _package(name:str) -> bool:
    try: return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError): return False

@lru_cache(None)
def _thing(dotted:str):
    "The object of a dotted name, imported; None if there is none."
    parts = dotted.split('.')
    for i in range(len(parts), 0, -1):
        try: thing = importlib.import_module('.'.join(parts[:i]))
        except ImportError: continue
        for p in parts[i:]: thing = getattr(thing, p, None)
        return thing

def _reachable(name:str) -> bool:
    first, _, rest = name.partition('.')
    return _thing(f'{_aliases.get(first, first)}.{rest}') is not None

def backticked(text:str) -> list:
    "The inline code of a markdown text that reads as one Python name."
    spans = [m.group(2).strip() for m in _code.finditer(_fence.sub(' ', text))]
    return [s for s in spans if _identifier.fullmatch(s)]

def page_words(page:Page) -> set:
    "Every word of the page's own code: variables, parameters, attributes, the words of its strings."
    return set(re.findall(r'[A-Za-z_]\w*', '\n'.join(c.source for c in page.cells if c.kind == 'code')))

def name_troubles(top:Path=root) -> list:
    "Backticked names of the pages that do not exist, one sentence each."
    names, out = Names(top), []
    for page in pages(top):
        local = page_words(page)
        for name in dict.fromkeys(backticked(page.markdown)):
            if not names.known(name, local):
                out.append(f'nbs/{page.name}: `{name}` names nothing in gentok, Python, torch, numpy or this page; '
                           'mend the name or write it without backticks.')
    return out

# ---------------------------------------------------------------- copies

def copy_tree(top:Path, dest:Path):
    "Copies what git knows or would add, as it lies on the disk, so that a tool can work without touching the tree."
    import shutil, subprocess
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=top, check=True,
                            capture_output=True).stdout.decode().split('\0')
    for name in filter(None, listed):
        src, to = top/name, dest/name
        if not os.path.lexists(src): continue
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(src, to, follow_symlinks=False)
