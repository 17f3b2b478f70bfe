"Files are whole or absent: faults at every step of a write, a kill -9 in the middle, and bad input."
import json, os, signal, subprocess, sys, time
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from gentok.store import files
from gentok.store.files import (atomic_write, read_folder, read_json, read_tensors, _stage, _sweep,
                               write_folder, _write_together)

class Killed(BaseException): pass

def failing(monkeypatch, step, times=0):
    "Make os.`step` die at its call number `times`"
    real, calls = getattr(os, step), []
    def die(*args, **kwargs):
        calls.append(step)
        if len(calls) > times: raise Killed
        return real(*args, **kwargs)
    monkeypatch.setattr(files.os, step, die)

@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_death_in_atomic_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path/'a.txt'
    atomic_write(path, 'old')
    failing(monkeypatch, step)
    with pytest.raises(Killed): atomic_write(path, 'new')
    monkeypatch.undo()
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.txt']

def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/'a.txt'
    atomic_write(path, 'old')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): atomic_write(path, 'new')
    monkeypatch.undo()
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1

writer = '''
import sys
from gentok.store.files import atomic_write
n = 0
while True:
    n += 1
    atomic_write(sys.argv[1], str(n % 10) * 300_000)
    if n == 1: print('ready', flush=True)
'''

def test_kill_9_at_ten_random_moments_leaves_a_whole_file(tmp_path):
    path, rng = tmp_path/'big.txt', Random(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, '-c', light_import + writer, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.random() * .05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        text = path.read_text()
        assert len(text) == 300_000 and len(set(text)) == 1
    assert all(p.name.endswith('.part') for p in tmp_path.iterdir() if p != path)
    _sweep(tmp_path, age=-1)
    assert list(tmp_path.iterdir()) == [path]

# torch is slow to import and the writer needs none of it
light_import = '''
import sys, types
for name, parts in {'torch': ['Tensor'], 'safetensors': ['SafetensorError', 'safe_open'], 'safetensors.torch': ['save']}.items():
    module = sys.modules[name] = types.ModuleType(name)
    for part in parts: setattr(module, part, type(part, (Exception,), {}))
'''

def test_part_files_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    old, young = _stage(tmp_path/'old.txt', 'x'), tmp_path/'.young.txt.1.part'
    young.write_text('y')
    os.utime(old, (0, 0))
    atomic_write(tmp_path/'a.txt', 'a')
    assert not old.exists() and young.exists()

def test_nothing_is_renamed_before_everything_is_staged(tmp_path, monkeypatch):
    _write_together(tmp_path, {'a': 'old', 'b': 'old'})
    failing(monkeypatch, 'fsync', times=1)
    with pytest.raises(Killed): _write_together(tmp_path, {'a': 'new', 'b': 'new'})
    assert [(tmp_path/n).read_text() for n in 'ab'] == ['old', 'old']

def test_a_death_between_two_renames_is_noticed_when_the_folder_is_read(tmp_path, monkeypatch):
    write_folder(tmp_path, {'step': 1}, {'w': torch.zeros(2)})
    failing(monkeypatch, 'replace', times=1)
    with pytest.raises(Killed): write_folder(tmp_path, {'step': 2}, {'w': torch.ones(2)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match='not written together'): read_folder(tmp_path)
    write_folder(tmp_path, {'step': 2}, {'w': torch.ones(2)})
    assert read_folder(tmp_path).config == {'step': 2}

def test_a_folder_that_was_never_finished_says_so(tmp_path, monkeypatch):
    failing(monkeypatch, 'replace', times=1)
    with pytest.raises(Killed): write_folder(tmp_path/'m', {'step': 1}, {'w': torch.zeros(2)})
    with pytest.raises(FileNotFoundError, match='interrupted'): read_folder(tmp_path/'m')

def test_a_file_keeps_usual_permissions_and_replaces_links(tmp_path):
    (tmp_path/'real.txt').write_text('old')
    (tmp_path/'link.txt').symlink_to(tmp_path/'real.txt')
    atomic_write(tmp_path/'link.txt', b'new')
    (tmp_path/'plain.txt').write_text('')
    assert (tmp_path/'real.txt').read_text() == 'old' and (tmp_path/'link.txt').read_text() == 'new' and not (tmp_path/'link.txt').is_symlink()
    assert (tmp_path/'link.txt').stat().st_mode == (tmp_path/'plain.txt').stat().st_mode

plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                     lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=8)

@settings(max_examples=60, deadline=None)
@given(config=st.dictionaries(st.text(), plain, max_size=4), shape=st.lists(st.integers(0, 3), max_size=3),
       kind=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
def test_a_folder_comes_back_as_it_was(tmp_path_factory, config, shape, kind):
    folder = tmp_path_factory.mktemp('f')
    tensor = torch.arange(int(torch.tensor(shape).prod())).reshape(shape).to(kind)
    write_folder(folder, config, {'t': tensor, 'again': tensor, 'turned': tensor.mT if tensor.dim() > 1 else tensor})
    back = read_folder(folder)
    assert back.config == config and back.tensors['t'].dtype == kind
    assert torch.equal(back.tensors['t'], tensor) and torch.equal(back.tensors['again'], tensor)
    assert back.tensors['turned'].shape == (tensor.mT if tensor.dim() > 1 else tensor).shape

def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in 'ab': write_folder(tmp_path/name, {'K': 2}, {'w': torch.ones(3), 'v': torch.zeros(2)})
    assert all((tmp_path/'a'/f).read_bytes() == (tmp_path/'b'/f).read_bytes() for f in ('config.json', 'model.safetensors'))

def test_parameters_and_items_are_written_too(tmp_path):
    write_folder(tmp_path, {}, dict(torch.nn.Linear(2, 2).named_parameters()), {'ids': [1, 'é']})
    assert set(read_folder(tmp_path).tensors) == {'weight', 'bias'}
    assert read_json(tmp_path/'items.json') == {'ids': [1, 'é']}

def test_tensors_of_another_program_are_read(tmp_path):
    save_file({'w': torch.ones(2)}, tmp_path/'model.safetensors')
    atomic_write(tmp_path/'config.json', '{"K": 1}')
    assert read_folder(tmp_path).tensors['w'].tolist() == [1, 1]

@pytest.mark.parametrize('cut', [0, 4, 50, -1])
def test_damaged_tensors_are_named(tmp_path, cut):
    write_folder(tmp_path, {}, {'w': torch.ones(20)})
    path = tmp_path/'model.safetensors'
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match='model.safetensors is damaged'): read_tensors(path)

@pytest.mark.parametrize('config', [{'x': float('inf')}, {'x': float('nan')}, {'x': object()}, {'x': {1, 2}}])
def test_a_config_that_would_not_come_back_is_refused_before_anything_is_written(tmp_path, config):
    with pytest.raises(ValueError, match='not plain JSON'): write_folder(tmp_path/'m', config, {'w': torch.ones(1)})
    with pytest.raises(ValueError, match='items is not plain JSON'): write_folder(tmp_path/'m', {}, None, config)
    assert not (tmp_path/'m').exists()

bad_json = {'{"a": 1,\n "b": }': 'line 2: not JSON', '{"a": [1, 2': 'line 1: not JSON', ' \n ': 'is empty', '': 'is empty',
            '{"a": 1,\n"a": 2}': "line 2: key 'a' stands twice", '{"x": {"a": 1, "a": 2}, "a": 3}': "key 'a' stands twice",
            '[' * 100_000: 'nested too deeply'}

@pytest.mark.parametrize('text, message', bad_json.items(), ids=range(len(bad_json)))
def test_bad_json_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path/'x.json'
    path.write_text(text)
    with pytest.raises(ValueError) as e: read_json(path)
    assert 'x.json' in str(e.value) and message in str(e.value) and '\n' not in str(e.value)

def test_a_missing_file_a_folder_and_other_bytes(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'): read_json(tmp_path/'no.json')
    with pytest.raises(ValueError, match='is a folder'): read_json(tmp_path)
    (tmp_path/'b.json').write_bytes(b'{"a":\n "\xff"}')
    with pytest.raises(ValueError, match='line 2: not UTF-8'): read_json(tmp_path/'b.json')
    (tmp_path/'bom.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path/'bom.json') == {'a': 1}

def test_a_folder_where_a_file_stands_and_a_config_that_is_a_list(tmp_path):
    (tmp_path/'x').write_text('')
    with pytest.raises(ValueError, match='is a file and a folder was expected'): write_folder(tmp_path/'x', {})
    with pytest.raises(FileNotFoundError, match='is not a folder'): read_folder(tmp_path/'x')
    atomic_write(tmp_path/'m/config.json', json.dumps([1]))
    with pytest.raises(ValueError, match='holds a list'): read_folder(tmp_path/'m')
