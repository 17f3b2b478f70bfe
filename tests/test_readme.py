"The README is its notebook, its code runs as pasted, and the commands it names exist."
import re
import subprocess
import sys

import pytest

from pages import root
from readme import readme_text, readme_troubles

pytestmark = pytest.mark.skipif(not (root/'nbs/index.ipynb').exists(), reason='nbs/index.ipynb is not written yet')

@pytest.fixture(scope='module')
def text(): return (root/'README.md').read_text(encoding='utf-8')

def blocks(text, *kinds): return [body for kind, body in re.findall(r'^```(\w*)\n(.*?)^```', text, flags=re.M | re.S) if kind in kinds]

def targets(): return set(re.findall(r'^([a-z]+)\s*:', (root/'Makefile').read_text(), flags=re.M))

def test_readme_is_its_notebook(): assert readme_troubles() == []

def test_code_runs_as_pasted(text, tmp_path):
    code = '\n'.join(blocks(text, 'python', 'py'))
    assert code, 'the README shows no Python'
    script = tmp_path/'pasted.py'
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr

def test_first_code_is_short(text):
    first = blocks(text, 'python', 'py')[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 12

def test_make_commands_exist(text):
    named = set(re.findall(r'\bmake ([a-z]+)\b', '\n'.join(blocks(text, 'sh', 'bash', 'shell', '') + re.findall(r'`([^`\n]+)`', text))))
    assert {'demo', 'test'} <= named
    assert named <= targets()

def test_both_commands_stand_on_the_first_screen(text):
    top = '\n'.join(text.splitlines()[:70])
    assert 'make demo' in top and 'make test' in top

def test_links_and_images_exist(text):
    from pages import links
    missing = [t for t in links(text) if not re.match(r'[a-z]+:|#', t) and not (root/t.partition('#')[0]).exists()]
    assert not missing, missing

def test_gentok_commands_exist(text):
    from gentok import cli
    help_text = subprocess.run([sys.executable, '-c', 'from gentok.cli import main; main()', '--help'], capture_output=True, text=True).stdout
    named = set(re.findall(r'\bgentok ([a-z]+)\b', '\n'.join(blocks(text, 'sh', 'bash', 'shell', ''))))
    assert cli and all(n in help_text for n in named), named

def test_stale_readme_is_found(tmp_path):
    import shutil
    (tmp_path/'nbs').mkdir()
    shutil.copy(root/'nbs/index.ipynb', tmp_path/'nbs/index.ipynb')
    assert 'missing' in readme_troubles(tmp_path)[0]
    (tmp_path/'README.md').write_text(readme_text(tmp_path))
    assert readme_troubles(tmp_path) == []
    (tmp_path/'README.md').write_text(readme_text(tmp_path) + 'A line by hand.\n')
    assert 'differs' in readme_troubles(tmp_path)[0]
