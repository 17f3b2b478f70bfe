"What the tests share: one thread, and the optional folder of real data and reference numbers."
import os
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def repo() -> Path:
    "The root of the project."
    return root

@pytest.fixture(scope='session')
def shared() -> Path:
    "The optional data folder beside the project (GENTOK_SHARED or ../shared); the test skips without it."
    path = Path(os.environ.get('GENTOK_SHARED', root.parent/'shared'))
    if not (path/'vectors').is_dir(): pytest.skip(f'optional data folder {path.name!r} not found')
    return path

@pytest.fixture(scope='session')
def vectors(shared):
    "vectors('mtgrec') -> the dict of reference numbers."
    import json
    return lambda name: json.loads((shared/'vectors'/f'{name}.json').read_text())
