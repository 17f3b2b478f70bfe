"What a user installs: the wheel is whole and stands alone, and `import gentok` costs next to nothing."
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from pages import copy_tree, root

pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
hang = 1800 # seconds; no machine is so busy
short = 'demo --items 60 --users 120 --epochs 1 --tokenizer-epochs 5 --validate-every 1 --out out'.split()

def done(command, **kwargs):
    "Standard output of a command that must end well."
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=hang, **kwargs)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout

def bare(**more):
    "This environment without what may lead Python to the checkout."
    return {k: v for k, v in os.environ.items() if not k.startswith('PYTHON') and k != 'IN_TEST'} | more

# ---------------------------------------------------------------- the wheel

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy of what git knows or would add: the path of the wheel, and the copy."
    home = tmp_path_factory.mktemp('wheel')
    copy_tree(root, home/'copy')
    done([*pip, 'wheel', '.', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', home/'dist'], cwd=home/'copy', env=bare())
    made = list((home/'dist').iterdir())
    assert [p.name for p in made] == [f'gentok-{settings()["version"]}-py3-none-any.whl']
    return made[0], home/'copy'

def settings():
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

@pytest.fixture(scope='module')
def folder(wheel, tmp_path_factory):
    "The wheel alone, installed into an empty folder."
    folder = tmp_path_factory.mktemp('alone')/'folder'
    done([*pip, 'install', '--no-deps', '--no-index', '--target', folder, wheel[0]], env=bare())
    return folder

def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    path, copy = wheel
    names = set(zipfile.ZipFile(path).namelist())
    modules = {p.relative_to(copy).as_posix() for p in (copy/'gentok').rglob('*.py')}
    assert len(modules) > 50 and names >= modules, modules - names
    assert not [n for n in names - modules if not re.match(r'gentok-[\d.]+\.dist-info/', n)]

def test_the_wheel_names_its_command_its_requirements_and_its_licence(wheel, folder):
    found, asked = PathDistribution(next(folder.glob('gentok-*.dist-info'))), settings()
    assert [(e.name, e.value) for e in found.entry_points if e.group == 'console_scripts'] == [('gentok', 'gentok.cli:main')]
    def named(requirements): return {re.match(r'[\w-]+', r).group().lower() for r in requirements}
    assert named(r for r in found.requires if 'extra ==' not in r) == named(asked['requirements'].split())
    assert found.version == asked['version'] and found.metadata['Requires-Python'] == f'>={asked["min_python"]}'
    assert any(p.name == 'LICENSE' for p in found.files)

def test_the_wheel_runs_the_demo_from_anywhere(folder, tmp_path):
    code = ('import sys, gentok\nfrom gentok.cli import main\ncode = main(sys.argv[1:])\n'
            'print("\\n".join(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "gentok"))\nsys.exit(code)')
    said = done([sys.executable, '-P', '-c', code, *short], cwd=tmp_path, env=bare(PYTHONPATH=str(folder))).splitlines()
    files = [Path(line).resolve() for line in said if line.endswith('.py')]
    assert len(files) > 10 and folder.resolve()/'gentok/__init__.py' in files
    assert not [f for f in files if not f.is_relative_to(folder.resolve())]
    assert any('Semantic identifiers' in line for line in said) and (tmp_path/'out/report.html').exists()

def test_the_command_of_the_wheel_starts(folder, tmp_path):
    said = done([folder/'bin/gentok', '--version'], cwd=tmp_path, env=bare(PYTHONPATH=str(folder), PYTHONSAFEPATH='1'))
    assert said.strip() == f'gentok {settings()["version"]}'

@pytest.mark.environment
def test_the_wheel_alone_in_an_empty_environment_runs_the_demo(wheel, tmp_path):
    "About 80 CPU seconds and 1.7 GB, most of them torch"
    env = tmp_path/'env'
    try:
        done([sys.executable, '-m', 'venv', env], env=bare())
        done([env/'bin/python', '-m', 'pip', '--quiet', 'install', wheel[0]], cwd=tmp_path, env=bare())
        said = done([env/'bin/gentok', *short], cwd=tmp_path, env=bare())
        where = done([env/'bin/python', '-c', 'import gentok; print(gentok.__file__)'], cwd=tmp_path, env=bare())
    finally: shutil.rmtree(env, ignore_errors=True)
    assert 'Semantic identifiers' in said and (tmp_path/'out/report.html').exists()
    assert Path(where.strip()).is_relative_to(env)

# ---------------------------------------------------------------- the import

_lean = '''
import json, os, sys
def cost(code):
    child = os.posix_spawn(sys.executable, [sys.executable, '-c', code], os.environ)
    status, used = os.wait4(child, 0)[1:]
    return status, used.ru_utime + used.ru_stime, used.ru_maxrss
print(json.dumps([[cost(code) for code in sys.argv[1:]] for _ in range(5)]))
'''

def costs(*codes):
    "For each code in a fresh Python: the least CPU seconds and the least peak of memory, in MiB, of five runs."
    # a lean process starts them, since Linux lets a peak begin at that of the process that started it
    runs = json.loads(done([sys.executable, '-c', _lean, *codes], cwd=root, env=bare()))
    assert all(status == 0 for run in runs for status, *_ in run)
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return [(min(run[i][1] for run in runs), min(run[i][2] for run in runs)/unit) for i in range(len(codes))]

def test_import_costs_next_to_nothing():
    "At most .3 s of CPU and 60 MiB where an empty Python takes .02 s; in multiples of that, so that no slow machine fails"
    (cpu, mib), (cpu_gentok, mib_gentok) = costs('pass', 'import gentok')
    assert cpu_gentok < 15*cpu, f'import gentok takes {cpu_gentok:.3f} s of CPU, an empty Python {cpu:.3f} s'
    assert mib_gentok - mib < 60, f'import gentok takes {mib_gentok - mib:.0f} MiB'

def test_import_loads_no_heavy_package():
    heavy = {'torch', 'transformers', 'polars', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'accelerate', 'pandas'}
    loaded = done([sys.executable, '-c', 'import sys, gentok; dir(gentok); print(*sys.modules)'], cwd=root, env=bare()).split()
    assert not heavy & set(loaded)

door = 'load', 'toyshop', 'fit', 'Recommender', 'methods'

def test_the_door_shows_its_names_and_loads(tmp_path):
    (tmp_path/'interactions.csv').write_text('user,item,time\n' + '\n'.join(f'u{u},i{(u + t) % 6},{t}' for u in range(8) for t in range(4)) + '\n')
    (tmp_path/'items.csv').write_text('item,text\n' + '\n'.join(f'i{i},thing {i}' for i in range(6)) + '\n')
    code = f'''
import sys, gentok
assert set({door}) <= set(dir(gentok)), dir(gentok)
data = gentok.load(sys.argv[1])
assert len(data.histories) == 8 and len(data.catalogue.ids) == 6, data
assert all(getattr(gentok, n) is getattr(gentok, n) for n in {door}) and not hasattr(gentok, 'no_such_name')'''
    done([sys.executable, '-c', code, tmp_path], cwd=root, env=bare())
