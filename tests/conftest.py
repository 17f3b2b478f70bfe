"What the tests share: one thread, CPU seconds instead of the clock, and the optional folder of real data and reference numbers."
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from budget import cpu_seconds

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
root = Path(__file__).resolve().parent.parent

# hypothesis asks the clock in two places, and a busy machine must fail nothing
settings.register_profile('any machine', settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile('any machine')

def pytest_configure(config):
    config.addinivalue_line('markers', 'environment: installs everything into a fresh environment; minutes, run by hand')

def pytest_collection_modifyitems(config, items):
    if 'environment' in config.option.markexpr: return
    for item in items:
        if item.get_closest_marker('environment'): item.add_marker(pytest.mark.skip(reason='minutes; by hand: pytest -m environment tests/test_wheel.py'))

spent = [0.]

def pytest_runtest_logstart(): spent[0] = cpu_seconds()

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "A duration is in CPU seconds, of the test and of the processes it has waited for."
    report, now = (yield), cpu_seconds()
    report.duration, spent[0] = now - spent[0], now
    return report

def pytest_terminal_summary(terminalreporter):
    total = sum(getattr(r, 'duration', 0) for reports in terminalreporter.stats.values() for r in reports)
    terminalreporter.write_line(f'All tests took {total:.0f} CPU seconds; the durations below are CPU seconds too.')

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
