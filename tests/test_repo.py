"The project's own files: pins in one place, names that others rely on, a repository that holds nothing made."
import ast
import importlib
import os
import re
import subprocess
import sys
from configparser import ConfigParser

import pytest

from check_repo import clean_troubles, export_troubles, marker_troubles
from pages import root

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

promised = '''
gentok.data.toyshop: toyshop
gentok.data.dataset: Dataset Catalogue Histories
gentok.data.formats: load
gentok.data.splits: leave_one_out
gentok.embed.table: EmbeddingTable
gentok.embed.text: TextEncoder
gentok.quantize.codebook: Codebook nearest
gentok.quantize.residual: ResidualQuantizer
gentok.quantize.health: health
gentok.tokenize.rqvae: RQVAE
gentok.ids.item_ids: ItemIds
gentok.ids.collisions: resolve
gentok.ids.trie: Trie
gentok.recommend.t5: GenerativeRecommender
gentok.search.beam: beam_search
gentok.search.exact: exact_top_k
gentok.evaluate.ranking: recall ndcg
gentok.papers.tiger: run
gentok.cli: main
'''
promised = [(m, n) for line in promised.strip().splitlines() for m, names in [line.split(': ')] for n in names.split()]

def git(*args): return subprocess.run(['git', *args], cwd=root, capture_output=True, text=True, check=True).stdout

# ---------------------------------------------------------------- names that scripts and notebooks call

@pytest.mark.parametrize('module, name', promised, ids=lambda x: x)
def test_promised_name(module, name):
    thing = getattr(importlib.import_module(module), name)
    assert callable(thing) and thing.__doc__

def test_every_tokenizer_can_do_what_tokenizers_do():
    from gentok.tokenize.rqvae import RQVAE
    assert all(callable(getattr(RQVAE, m)) for m in ('fit', 'encode', 'decode', 'health', 'save_pretrained', 'from_pretrained'))

def test_item_ids_map_both_ways():
    from gentok.ids.item_ids import ItemIds
    assert all(hasattr(ItemIds, m) for m in ('items', 'codes', 'save', 'load', '__len__', '__repr__'))

def test_wildcard_import_of_every_module():
    found = []
    for path in sorted((root/'gentok').rglob('*.py')):
        if path.name.startswith('_'): continue
        module = importlib.import_module('.'.join(path.relative_to(root).with_suffix('').parts))
        found += [f'{module.__name__}.{n}' for n in getattr(module, '__all__', []) if not hasattr(module, n)]
    assert not found, found

# ---------------------------------------------------------------- pins and the package

def test_setup_reads_its_pins_from_settings(monkeypatch):
    import setuptools
    seen = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kw: seen.update(kw))
    monkeypatch.chdir(root)
    exec(compile((root/'setup.py').read_text(), str(root/'setup.py'), 'exec'), {'__file__': str(root/'setup.py'), '__name__': '__main__'})
    assert seen['version'] == settings['version'] and seen['python_requires'] == f'>={settings["min_python"]}'
    assert seen['install_requires'] == settings['requirements'].split()
    assert seen['extras_require']['dev'] == settings['dev_requirements'].split()
    assert settings['console_scripts'] in seen['entry_points']['console_scripts']
    assert {'gentok', 'gentok.data', 'gentok.ids'} <= set(seen['packages'])

def test_pins_stand_in_one_place():
    names = {re.split(r'[<>=]', r)[0] for r in (settings['requirements'] + ' ' + settings['dev_requirements']).split()}
    pin = re.compile(rf'\b({"|".join(map(re.escape, names))})\s*(==|>=|<=|~=)\s*\d')
    texts = {n: (root/n).read_text() for n in ('setup.py', 'Makefile', '.ci/run', '.github/workflows/test.yml', '.github/workflows/docs.yml')}
    assert not [(n, pin.search(t).group()) for n, t in texts.items() if pin.search(t)]
    assert not list(root.glob('requirements*.txt')) and not (root/'pyproject.toml').exists()

def test_pins_that_nbdev_needs():
    pins = settings['dev_requirements'].split() + settings['requirements'].split()
    assert {'nbdev==2.4.14', 'execnb<0.2', 'ghapi<2', 'fastgit<0.1'} <= set(pins)
    assert 'torch>=2.6,<2.14' in pins and any(p.startswith('transformers>=5') for p in pins)
    assert settings['tst_flags'].split() == ['notest', 'slow', 'gpu']

def test_every_import_of_the_package_is_a_requirement():
    as_required = {'sklearn': 'scikit-learn', 'scipy': 'scikit-learn', 'PIL': 'pillow', 'huggingface_hub': 'transformers',
                   'tokenizers': 'transformers', 'vector_quantize_pytorch': 'vector-quantize-pytorch'}
    required = {re.split(r'[<>=]', r)[0] for key in ('requirements', 'bench_requirements') for r in settings[key].split()}
    optional = {'peft', 'diffusers', 'IPython', 'matplotlib_inline'}
    found = set()
    for path in (root/'gentok').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                    [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {n.split('.')[0] for n in names}
    missing = {as_required.get(n, n) for n in found - sys.stdlib_module_names - {'gentok'} - optional} - required
    assert not missing, missing

def test_version_is_the_same_everywhere():
    import gentok
    assert gentok.__version__ == settings['version']
    assert f'\n## {settings["version"]}\n' in (root/'CHANGELOG.md').read_text()

# ---------------------------------------------------------------- the repository

def test_export_is_clean(): assert export_troubles() == []

def test_notebooks_are_clean(): assert clean_troubles() == []

def test_no_conflict_markers(): assert marker_troubles() == []

def test_the_book_shares_one_quarto_file():
    assert os.readlink(root/'nbs/_quarto.yml') == '../_quarto.yml'

def test_quarto_formats():
    import yaml
    formats = yaml.safe_load((root/'_quarto.yml').read_text())['format']
    html = formats['html']
    assert set(formats) == {'html'} and html['html-math-method'] == 'mathml' and html['respect-user-color-scheme'] is True
    assert html['theme'] == {'light': 'theme.scss', 'dark': ['theme.scss', 'theme-dark.scss']} and html['css'] == 'site.css'
    assert all((root/'nbs'/name).exists() for name in ('theme.scss', 'theme-dark.scss', 'site.css', 'images/favicon.svg', 'images/card.png'))

def test_nothing_made_is_in_git():
    made = re.compile(r'(^|/)(_proc|_docs|_preview|build|dist|\.venv|__pycache__|\.ipynb_checkpoints)/|\.(safetensors|pt|bin|pkl|parquet|gz|egg-info)$')
    assert not [f for f in git('ls-files').split('\n') if made.search(f)]

def test_licence_is_whole():
    text = (root/'LICENSE').read_text()
    assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text and len(text) > 10_000

def test_makefile_targets():
    plan = subprocess.run(['make', '-n', 'demo', 'OUT=x', 'PYTHON=python3'], cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'MAKEFLAGS': ''})
    assert plan.returncode == 0 and '.venv/bin/gentok demo --out x' in plan.stdout
    plan = subprocess.run(['make', '-n', 'test', 'PYTHON=python3'], cwd=root, capture_output=True, text=True, env={**os.environ, 'MAKEFLAGS': ''})
    order = ['check_repo.py', 'ruff check', 'book.py', 'check_repo.py notebooks', '-m pytest']
    places = [plan.stdout.rindex(w) if w == 'check_repo.py notebooks' else plan.stdout.index(w) for w in order]
    assert places == sorted(places)

def test_ci_is_executable_and_parses():
    assert os.access(root/'.ci/run', os.X_OK)
    assert subprocess.run(['bash', '-n', root/'.ci/run']).returncode == 0
    assert git('ls-files', '-s', '.ci/run').startswith('100755')

def test_only_ci_refuses_a_page_over_its_budget():
    assert 'export GENTOK_STRICT_BUDGETS=1' in (root/'.ci/run').read_text()
    assert not [f for f in ('Makefile', 'pytest.ini', 'tests/conftest.py') if 'GENTOK_STRICT_BUDGETS' in (root/f).read_text()]

def test_no_tool_asks_the_clock():
    clock = re.compile(r'\btime\.(time|perf_counter|monotonic)\b|\bperf_counter\(|\bfrom time import')
    assert not [f.name for f in sorted((root/'tools').glob('*.py')) if clock.search(f.read_text())]

def test_workflows_parse():
    import yaml
    for path in sorted((root/'.github/workflows').glob('*.yml')):
        jobs = yaml.safe_load(path.read_text())['jobs']
        assert all(20 <= job['timeout-minutes'] <= 60 and job['steps'] for job in jobs.values())
