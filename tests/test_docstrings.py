"What a public name says of itself: what it does, the shapes of its tensors, the errors that it raises."
import ast
import io
import tokenize

from pages import root
from test_public_names import promised

functions = (ast.FunctionDef, ast.AsyncFunctionDef)

def is_property(node):
    "Whether a function or an assignment in a class reads as a field"
    if isinstance(node, ast.Assign): return ast.unparse(getattr(node.value, 'func', node.value)) == 'property'
    return any('property' in ast.unparse(d) or 'as_prop' in ast.unparse(d) for d in getattr(node, 'decorator_list', []))

def definitions(tree, names):
    "The public classes, functions and methods of a module, patched ones included, as (label, its class or None, node)"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in names:
            yield node.name, node.name, node
            for n in node.body:
                name = n.name if isinstance(n, functions) else n.targets[0].id if is_property(n) else '_'
                if not name.startswith('_') or name.endswith('__'): yield f'{node.name}.{name}', node.name, n
        if not isinstance(node, functions) or node.name.startswith('_'): continue
        patched = any(ast.unparse(d).startswith('patch') for d in node.decorator_list)
        cls = ast.unparse(node.args.args[0].annotation) if patched else None
        if (cls or node.name) in names: yield f'{cls}.{node.name}' if cls else node.name, cls, node

def says(node, commented):
    "Whether a definition says what it does: by a docstring, or in a line or for a property by a comment"
    if isinstance(node, ast.Assign): return 'doc=' in ast.unparse(node) or node.lineno in commented
    short = node.lineno == node.end_lineno or is_property(node)
    return ast.get_docstring(node) or node.name.endswith('__') or short and node.lineno in commented

def raised(node):
    "The errors of the literal `raise`s in a function"
    found = (n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc)
    return sorted({name for e in found if (name := ast.unparse(getattr(e, 'func', e)))[0].isupper()})

def unshaped(node, commented):
    "Parameters, fields and results that are tensors and have no comment on their line"
    if isinstance(node, ast.ClassDef):
        typed = [(n.target.id, n.annotation) for n in node.body if isinstance(n, ast.AnnAssign)]
    else:
        a = node.args
        typed = [*((p.arg, p.annotation) for p in a.posonlyargs + a.args + a.kwonlyargs), ('result', node.returns)]
    return [name for name, kind in typed if kind and 'Tensor' in ast.unparse(kind) and kind.end_lineno not in commented]

def faults(source, names, about):
    "What the public definitions of a module leave unsaid; `about` has the docstrings of all classes"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    # behind the thing, or in the line above it, as docments reads them
    commented = {t.start[0] + (not t.line[:t.start[1]].strip())
                 for t in tokens if t.type == tokenize.COMMENT}
    for label, cls, node in definitions(ast.parse(source), names):
        if not says(node, commented): yield f'{label} does not say what it does'
        if isinstance(node, ast.Assign): continue
        yield from (f'{label} does not say the shape of its {name}' for name in unshaped(node, commented))
        if isinstance(node, ast.ClassDef): continue
        told = f'{ast.get_docstring(node)} {about.get(cls)}'
        yield from (f'{label} does not say when it raises {error}' for error in raised(node) if error not in told)

def test_public_names_say_what_they_do():
    paths = sorted(p for p in (root/'gentok').rglob('*.py') if p.name != '_modidx.py')
    sources = {p: p.read_text(encoding='utf-8') for p in paths}
    classes = (n for s in sources.values() for n in ast.parse(s).body if isinstance(n, ast.ClassDef))
    about, names, found = {c.name: ast.get_docstring(c) for c in classes}, promised(), []
    for path, source in sources.items():
        module = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
        own = {name.rpartition('.')[2] for name in names if name.rpartition('.')[0] == module}
        found += [f'{module}: {fault}' for fault in faults(source, own, about)]
    assert not found, '\n' + '\n'.join(found)

def test_what_is_unsaid_is_found():
    source = '''
class Book:
    "Points; ValueError for none"
    e: Tensor
    K = property(lambda self: len(self.e))
    def __init__(self, e):
        if not len(e): raise ValueError('none')
    @property
    def dim(self): return self.e.shape[1]
    @property
    def codes(self): # codes in use
        return self.e.unique()
@patch
def decode(self:Book, codes:Tensor, # b: long
           seed:int=0)->Tensor:
    "The points of codes"
    raise KeyError(codes)
def nearest(x:Tensor # b d
           )->Tensor: # b
    raise ValueError('nothing near')
def _hidden(x:Tensor): raise OSError
'''
    assert list(faults(source, {'Book', 'nearest'}, dict(Book='Points; ValueError for none'))) == [
        'Book does not say the shape of its e', 'Book.K does not say what it does',
        'Book.dim does not say what it does', 'Book.decode does not say the shape of its result',
        'Book.decode does not say when it raises KeyError',
        'nearest does not say what it does', 'nearest does not say when it raises ValueError']
