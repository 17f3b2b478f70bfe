"""The API reference: one page per module, written from its source alone, so that nothing has to be imported.

Parameters are explained by the comments behind or above them, methods that are patched in later stand with their class.
"""
import ast, copy, io, json, re, tokenize
from pathlib import Path

from looks import called, columns
from pages import Page

_widths = ': {tbl-colwidths="[18,28,14,40]"}'

def _comments(source:str) -> dict:
    "Line number -> the comment that ends the line, or else those that fill the lines above it (as docments reads them)."
    found = {t.start: t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    said = {line: t.string.lstrip('# ').strip() for (line, _), t in found.items()}
    alone = {line for (line, _), t in found.items() if not t.line[:t.start[1]].strip()}
    for line in sorted(alone):
        if line + 1 in alone: said[line + 1] = f'{said[line]} {said[line + 1]}'
        else: said.setdefault(line + 1, said[line])
    return {line: text for line, text in said.items() if line not in alone}

def _code(text:str) -> str: return '`' + text.replace('|', '\\|') + '`' if text else ''
def _row(*cells) -> str: return '| ' + ' | '.join(cells) + ' |'
def _unparse(node) -> str: return ast.unparse(node) if node is not None else ''
def _safe(text:str) -> str: return text.replace('|', '\\|')

class Module:
    "What a module defines, and what its page says of it."
    def __init__(self, path:Path, name:str, page:Page|None, repo:str):
        self.name, self.page, text = name, page, path.read_text(encoding='utf-8')
        self.tree, self.comments = ast.parse(text), _comments(text)
        self.url = f'{repo}/blob/main/gentok/{name.replace(".", "/")}.py'
        self.said = (ast.get_docstring(self.tree) or '').split('\n')[0]
        self.found = {}  # name -> (node, methods patched in)
        for node in self.tree.body:
            if getattr(node, 'name', '_').startswith('_'): continue
            owner = self.owner(node)
            if owner in self.found: self.found[owner][1].append(node)
            else: self.found[node.name] = node, []

    def owner(self, node) -> str:
        "The class that a function is patched into, '' where it stands alone."
        patched = any(called(d).startswith('patch') for d in getattr(node, 'decorator_list', []))
        return _unparse(node.args.args[0].annotation) if patched and isinstance(node, ast.FunctionDef) and node.args.args else ''

    def parameters(self, node) -> list:
        "(name, type, default, meaning); the comment of a line belongs to the result if that stands there, else to the line's last parameter."
        a = node.args
        listed = a.posonlyargs + a.args
        pairs = [*zip(listed, [None]*(len(listed) - len(a.defaults)) + a.defaults), *zip(a.kwonlyargs, a.kw_defaults)]
        pairs += [(x, None) for x in (a.vararg, a.kwarg) if x]
        last = {(d or x).end_lineno: x for x, d in pairs} | ({node.returns.end_lineno: node} if node.returns else {})
        stars = {a.vararg: '*', a.kwarg: '**'}
        return [(stars.get(x, '') + x.arg, _unparse(x.annotation), _unparse(d), self.comments.get((d or x).end_lineno, '') if last[(d or x).end_lineno] is x else '')
                for x, d in pairs if x.arg not in ('self', 'cls')]

    def returned(self, node) -> tuple:
        return (_unparse(node.returns), self.comments.get(node.returns.end_lineno, '')) if node.returns else ('', '')

    def signature(self, node, name:str, method:bool) -> str:
        "A signature in at most 88 columns, one parameter a line where it does not fit on one."
        a = copy.deepcopy(node.args)
        if method and a.args and a.args[0].arg in ('self', 'cls'): a.args.pop(0)
        back = f' -> {ast.unparse(node.returns)}' if node.returns else ''
        line = f'{name}({ast.unparse(a)}){back}'
        if len(line) <= columns: return line
        one = lambda x, d: ast.unparse(ast.arguments([], [x], None, [], [], None, [d] if d else []))
        listed = a.posonlyargs + a.args
        parts = [one(x, d) for x, d in zip(listed, [None]*(len(listed) - len(a.defaults)) + a.defaults)]
        parts += ['*' + ast.unparse(a.vararg)] if a.vararg else ['*'] if a.kwonlyargs else []
        parts += [one(x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)] + (['**' + ast.unparse(a.kwarg)] if a.kwarg else [])
        return f'{name}(\n' + ''.join(f'    {p},\n' for p in parts) + f'){back}'

    def links(self, node, anchor:str) -> str:
        first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
        where = f'[explained here](../{self.page.name}#{anchor}) · ' if self.page else ''
        return f'::: {{.api-links}}\n{where}[source]({self.url}#L{first}-L{node.end_lineno})\n:::'

    def callable(self, node, owner:str='', doc:str='', level:str='##') -> list:
        "The entry of a function, a method or a constructor."
        name = owner if node.name == '__init__' else f'{owner}.{node.name}' if owner else node.name
        heading = f'.{node.name}' if level == '###' else name
        rows, (back, meaning) = self.parameters(node), self.returned(node)
        out = [f'{level} {heading} {{#{name.lower()}}}', '', f'```python\n{self.signature(node, name, bool(owner))}\n```', '', doc, '', ast.get_docstring(node) or '', '']
        if rows or back:
            out += [_row('Parameter', 'Type', 'Default', 'Meaning'), _row(*[':--']*4)]
            out += [_row(_code(n), _code(t), _code(d), _safe(m)) for n, t, d, m in rows]
            out += [_row('*returns*', _code(back), '', _safe(meaning))]*bool(back) + ['', _widths, '']
        return out + [self.links(node, name.lower()), '']

    def klass(self, node, patched:list) -> list:
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        reads = [m for m in methods if {called(d) for d in m.decorator_list} & {'property', 'cached_property'} and not m.name.startswith('_')]
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
        init = next((m for m in methods if m.name == '__init__'), None)
        if init: out = self.callable(init, node.name, ast.get_docstring(node) or '')
        else:
            bases = f'({", ".join(map(ast.unparse, node.bases))})' if node.bases else ''
            out = [f'## {node.name} {{#{node.name.lower()}}}', '', f'```python\nclass {node.name}{bases}\n```', '', ast.get_docstring(node) or '', '']
            if fields:
                out += [_row('Field', 'Type', 'Default', 'Meaning'), _row(*[':--']*4)]
                out += [_row(_code(f.target.id), _code(_unparse(f.annotation)), _code(_unparse(f.value)), _safe(self.comments.get(f.end_lineno, ''))) for f in fields]
                out += ['', _widths, '']
            out += [self.links(node, node.name.lower()), '']
        if reads:
            out += [_row('Property', 'Type', 'Meaning'), _row(*[':--']*3)]
            out += [_row(_code(m.name), _code(self.returned(m)[0]), _safe(ast.get_docstring(m) or self.returned(m)[1])) for m in reads]
            out += ['', ': {tbl-colwidths="[18,28,54]"}', '']
        for m in [m for m in methods if m not in reads and not m.name.startswith('_')] + patched: out += self.callable(m, node.name, level='###')
        return out

    def text(self, title:str|None) -> str:
        "The page as Quarto's markdown."
        out = ['---', f'title: {json.dumps(self.name)}', f'description: {json.dumps(self.said, ensure_ascii=False)}', 'toc-depth: 3', '---', '']
        out += [f'`import gentok.{self.name}`' + (f', explained, run and tested on the page [{title}](../{self.page.name}).' if self.page else ''), '']
        for node, patched in self.found.values():
            out += self.klass(node, patched) if isinstance(node, ast.ClassDef) else self.callable(node, self.owner(node))
        return re.sub(r'\n{3,}', '\n\n', '\n'.join(out))

def write(top:Path, proc:Path, repo:str, book:list, titles:dict) -> list:
    "Writes the reference below `_proc/api/`; returns its pages as sections of a sidebar. `titles`: name of a page -> its title."
    where = {p.module: p for p in book if p.exports}
    (proc/'api').mkdir(exist_ok=True)
    sections = {'gentok': []}  # the modules at the top come first
    for path in sorted((top/'gentok').rglob('*.py')):
        if path.name.startswith('_'): continue
        name = '.'.join(path.relative_to(top/'gentok').with_suffix('').parts)
        page = where.get(name)
        module = Module(path, name, page, repo)
        (proc/f'api/{name}.qmd').write_text(module.text(page and titles[page.name]), encoding='utf-8')
        sections.setdefault(name.rpartition('.')[0] or 'gentok', []).append(module)
    head = ['---', 'title: API reference', 'description: "Every module with its signatures, parameters and results, made from its source."', 'toc: false', '---', '']
    for section, modules in sections.items():
        head += [f'## {section}', '', _row('Module', ''), _row(':--', ':--'), *(_row(f'[`gentok.{m.name}`]({m.name}.qmd)', _safe(m.said)) for m in modules), '']
    (proc/'api/index.qmd').write_text('\n'.join(head), encoding='utf-8')
    return ['api/index.qmd', *(dict(section=s, contents=[f'api/{m.name}.qmd' for m in ms]) for s, ms in sections.items())]

def places(proc:Path, book:list) -> dict:
    "(rendered page, anchor) of every name that has an entry -> the page of that entry."
    return {(p.html, anchor): f'api/{p.module}.html' for p in book if p.exports
            for anchor in re.findall(r'^##+ .* \{#([\w.]+)\}$', (proc/f'api/{p.module}.qmd').read_text(encoding='utf-8'), flags=re.M)}
