"What may be touched: the names that modules promise, as a list whose change is seen."
import ast
import inspect
from importlib import import_module

from pages import root

kept = root/'tests'/'public_names.txt'

def promised():
    "Every name in the `__all__` of a module, with its module"
    found = []
    for path in sorted((root/'gentok').rglob('*.py')):
        if path.name == '_modidx.py': continue
        module = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
                found += [f'{module}.{name}' for name in ast.literal_eval(node.value)]
    return sorted(found)

def test_the_promise_is_the_list():
    old, new = set(kept.read_text().split()), set(promised())
    assert old == new, f'gone: {sorted(old - new)}; new: {sorted(new - old)}; change tests/public_names.txt and the changelog, if that is meant.'

def test_helpers_are_private(): assert not [name for name in promised() if name.rpartition('.')[2].startswith('_')]

def test_what_is_promised_is_there_and_says_what_it_is():
    silent = []
    for name in promised():
        module, _, short = name.rpartition('.')
        value = getattr(import_module(module), short)
        if (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value): silent.append(name)
    assert not silent, silent

def test_names_differ_in_more_than_their_case():
    short = {name.rpartition('.')[2] for name in promised() if not name.endswith('.run')}
    again = {a for a in short for b in short if a != b and a.lower() == b.lower() and a[0].isupper() == b[0].isupper()}
    assert not again, again
