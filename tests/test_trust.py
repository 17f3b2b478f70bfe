"What was written is what is read, or one sentence that names the file and a remedy that works; and one run in one folder."
import json, os, resource, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from gentok.data.dataset import Catalogue, Dataset
from gentok.data.formats import load
from gentok.data.toyshop import toyshop
from gentok.embed.table import EmbeddingTable
from gentok.ids.item_ids import ItemIds, _check_codes
from gentok.papers.tiger import TigerConfig, run
from gentok.search.beam import _as_examples, beam_search
from gentok.search.exact import exact_top_k
from gentok.store.checkpoints import Checkpoint, newest_checkpoint, read_checkpoint, save_checkpoint
from gentok.store.files import (atomic_write, _fingerprint, _json_text, read_folder, read_json, _read_tensor_file, read_tensors,
                                _tensor_bytes, write_folder)
from gentok.store.runs import _began, _locked, _this_process
from gentok.tokenize.tokenizer import ResidualKMeans, Tokenizer
from test_search import shop

tiles = torch.tensor([[2, 0, 1], [0, 1, 1], [2, 0, 0], [0, 0, 2]])
vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))

def sentence(call, *names):
    "The one sentence of a refusal; it names what it must."
    with pytest.raises((ValueError, FileNotFoundError)) as e: call()
    said = str(e.value)
    assert '\n' not in said and said.endswith('.') and all(name in said for name in names), said
    return said

# ---------------------------------------------------------------- one bit

def table(folder): EmbeddingTable([f'i{n}' for n in range(20)], vectors, 'test').save(folder)
def tokenizer(folder): ResidualKMeans(levels=2, K=4).fit(vectors).save_pretrained(folder)

# name -> how it is written into a folder, which file is damaged, how it is read, what was read as bytes
kinds = dict(
    model=(lambda d: write_folder(d, {'K': 3}, {'w': vectors, 'half': vectors.bfloat16(), 'one': torch.tensor(True), 'none': torch.empty(0, 3)}),
           'model.safetensors', lambda d: read_folder(d).tensors),
    identifiers=(lambda d: ItemIds(tiles, (8, 8, 8), 2, 1).save(d), 'item_ids.safetensors',
                 lambda d: {**vars(i := ItemIds.load(d)), 'repr': repr(i)}),
    table=(table, 'model.safetensors', lambda d: {'ids': (t := EmbeddingTable.load(d)).ids, 'matrix': t.matrix, 'repr': repr(t)}),
    ids_of_the_table=(table, 'items.json', lambda d: {'ids': EmbeddingTable.load(d).ids}),
    tokenizer=(tokenizer, 'model.safetensors', lambda d: Tokenizer.from_pretrained(d).state_dict()))

def same(a, b):
    "Equal, tensors by their bytes."
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes() if a.dtype != torch.bfloat16 else torch.equal(a, b)
    return a == b

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "Each kind in a folder of its own, with its bytes and what they mean."
    made = {}
    for name, (write, file, read) in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        meant = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in read(folder).items()}  # what is read is mapped from the file
        made[name] = folder/file, (folder/file).read_bytes(), read, meant
    return made

@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(kinds)), at=st.floats(0, 1, exclude_max=True))
def test_one_flipped_bit_is_named_or_harmless(saved, kind, at):
    path, written, read, meant = saved[kind]
    bit = int(at*8*len(written))
    path.write_bytes(written[:bit//8] + bytes([written[bit//8] ^ 1 << bit % 8]) + written[bit//8 + 1:])
    try: found = read(path.parent)
    except (ValueError, FileNotFoundError) as e: assert '\n' not in str(e) and str(e).endswith('.') and path.name in str(e), e
    else: assert found.keys() == meant.keys() and all(same(found[k], meant[k]) for k in meant)
    finally: path.write_bytes(written)

@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(kinds)), at=st.floats(0, 1, exclude_max=True), change=st.sampled_from(['cut', 'zeros', 'twice', 'lost']))
def test_so_are_more_than_one(saved, kind, at, change):
    path, written, read, meant = saved[kind]
    n = int(at*len(written))
    path.write_bytes(dict(cut=written[:n], zeros=written[:n] + bytes(min(40, len(written) - n)) + written[n + 40:], twice=written[:n] + written[n:n+8] + written[n:],
                          lost=written[:n] + written[n + 1:])[change])
    try: found = read(path.parent)
    except (ValueError, FileNotFoundError) as e: assert '\n' not in str(e) and str(e).endswith('.'), e
    else: assert all(same(found[k], meant[k]) for k in meant)
    finally: path.write_bytes(written)

@pytest.mark.parametrize('kind', sorted(kinds.keys() - {'ids_of_the_table'}))
def test_a_number_is_never_read_wrong_in_silence(saved, kind):
    path, written, read, _ = saved[kind]
    path.write_bytes(written[:-2] + bytes([written[-2] ^ 1]) + written[-1:])
    said = sentence(lambda: read(path.parent), path.name)
    path.write_bytes(written)
    assert 'remove the file and run again what wrote it' in said

def test_a_checkpoint_is_verified_as_a_whole(tmp_path):
    for step in (1, 2): save_checkpoint(tmp_path, Checkpoint(step, {'w': vectors*step}, {'loss': [step]}))
    for file in sorted((tmp_path/'step-0000000002').iterdir()):
        data = file.read_bytes()
        for bit in range(0, 8*len(data), 29):
            file.write_bytes(data[:bit//8] + bytes([data[bit//8] ^ 1 << bit % 8]) + data[bit//8 + 1:])
            try: found = read_checkpoint(file.parent)
            except ValueError as e: assert 'is damaged' in str(e)
            else: assert torch.equal(found.tensors['w'], vectors*2) and found.state == {'loss': [2]}
        file.write_bytes(data)

def test_verifying_can_be_left_out(tmp_path):
    for name in ('model', 'table', 'tokenizer', 'identifiers'):
        write, file, _ = kinds[name]
        write(tmp_path/name)
        data = (tmp_path/name/file).read_bytes()
        (tmp_path/name/file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not torch.equal(read_folder(tmp_path/'table', verify=False).tensors['matrix'], vectors)
    assert EmbeddingTable.load(tmp_path/'table', verify=False).dim == 6 and len(ItemIds.load(tmp_path/'identifiers', verify=False)) == 4
    assert Tokenizer.from_pretrained(tmp_path/'tokenizer', verify=False).fitted and read_folder(tmp_path/'model', verify=False).tensors
    for call in (lambda: EmbeddingTable.load(tmp_path/'table'), lambda: ItemIds.load(tmp_path/'identifiers'), lambda: Tokenizer.from_pretrained(tmp_path/'tokenizer')):
        assert 'its content is not what was written' in sentence(call)

def test_files_from_before_there_were_digests_are_read(tmp_path):
    atomic_write(tmp_path/'config.json', text := _json_text({'K': 1}))
    save_file({'w': torch.ones(2)}, tmp_path/'model.safetensors', {'config': _fingerprint(text)})
    assert read_folder(tmp_path).tensors['w'].tolist() == [1, 1]
    atomic_write(tmp_path/'config.json', _json_text({'K': 2}))
    assert 'not written together' in sentence(lambda: read_folder(tmp_path))
    save_file({'codes': tiles.byte()}, tmp_path/'item_ids.safetensors', {'item_ids': json.dumps(dict(sizes=[3, 2, 3], collisions=1, moved=0))})
    assert repr(ItemIds.load(tmp_path)) == 'ItemIds(4 items, L=3, K=(3, 2, 3), collisions=1)'
    table(tmp_path/'t')
    config = {k: v for k, v in read_json(tmp_path/'t/config.json').items() if k != 'ids'}
    atomic_write(tmp_path/'t/config.json', _json_text(config))
    save_file({'matrix': vectors}, tmp_path/'t/model.safetensors', {'config': _fingerprint(_json_text(config))})
    assert torch.equal(EmbeddingTable.load(tmp_path/'t').matrix, vectors)

@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 3), max_size=3), notes=st.dictionaries(st.sampled_from(['a', 'b']), st.text(max_size=5)),
       kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.int16, torch.bool]))
def test_every_type_and_shape_comes_back(tmp_path_factory, shape, notes, kind):
    path = tmp_path_factory.mktemp('t')/'x.safetensors'
    t = torch.arange(int(torch.tensor(shape).prod())).reshape(shape).to(kind)
    data = _tensor_bytes({'t': t, 'turned': t.mT if t.dim() > 1 else t, 'grown': t.float().requires_grad_()}, '{}', **notes)
    assert data == _tensor_bytes({'grown': t.float(), 'turned': t.mT if t.dim() > 1 else t, 't': t.clone()}, '{}', **notes)
    path.write_bytes(data)
    found = _read_tensor_file(path)
    assert found.tensors['t'].dtype == kind and torch.equal(found.tensors['t'], t) and found.notes == dict(notes, config=_fingerprint('{}'))

# ---------------------------------------------------------------- JSON that is something else

others = ['[]', 'null', '{}', '3', '"text"', 'true', '[1, 2]', '{"a": 1}', '', '[[[']

@pytest.mark.parametrize('text', others, ids=range(len(others)))
def test_a_value_of_another_kind_is_named(tmp_path, text):
    atomic_write(tmp_path/'run.json', text)
    sentence(lambda: read_json(tmp_path/'run.json', dict, method=str, data=dict), 'run.json', 'expected' if text not in ('', '[[[') else 'again')
    for expected in (dict, list, str, bool, int, (int, float), type(None)):
        allowed = expected if isinstance(expected, tuple) else (expected,)
        try: assert type(read_json(tmp_path/'run.json', expected)) in allowed
        except ValueError as e: assert 'run.json' in str(e) and str(e).endswith('.')

def test_a_field_of_another_kind_is_named(tmp_path):
    for value in (None, 3, 'x', {}, True, 1.5):
        atomic_write(tmp_path/'items.json', json.dumps({'ids': value}))
        assert 'ids holds' in sentence(lambda: read_json(tmp_path/'items.json', dict, ids=list), 'items.json', 'expected a list')
    assert 'lacks titles' in sentence(lambda: read_json(tmp_path/'items.json', ids=float, titles=list), 'expected ids, titles')
    atomic_write(tmp_path/'long.json', '9'*5000)
    sentence(lambda: read_json(tmp_path/'long.json'), 'long.json')

@pytest.mark.parametrize('text', others, ids=range(len(others)))
@pytest.mark.parametrize('name, write, read', [
    ('config.json', table, EmbeddingTable.load), ('items.json', table, EmbeddingTable.load), ('config.json', tokenizer, Tokenizer.from_pretrained),
    ('config.json', kinds['model'][0], read_folder)], ids=['table config', 'table items', 'tokenizer', 'folder'])
def test_no_reader_is_taken_by_surprise(tmp_path, name, write, read, text):
    write(tmp_path)
    (tmp_path/name).write_text(text)
    sentence(lambda: read(tmp_path), name)

@pytest.mark.parametrize('text', others, ids=range(len(others)))
def test_identifiers_with_other_notes(tmp_path, text):
    for data in (_tensor_bytes({'codes': tiles}, '', item_ids=text), _tensor_bytes({'x': tiles}, '', item_ids='{}'), _tensor_bytes({'codes': tiles.float()}, '', item_ids='{}')):
        (tmp_path/'item_ids.safetensors').write_bytes(data)
        if text == '{}' and data == _tensor_bytes({'codes': tiles}, '', item_ids=text): continue  # the sizes follow from the codes
        sentence(lambda: ItemIds.load(tmp_path), 'item_ids.safetensors')
    for kept in ({'sizes': None, 'collisions': 'x'}, {'sizes': 3}, {'collisions': None}, {'moved': 1.5}, {'sizes': [8, 8]}):
        (tmp_path/'item_ids.safetensors').write_bytes(_tensor_bytes({'codes': tiles}, '', item_ids=json.dumps(kept)))
        sentence(lambda: ItemIds.load(tmp_path), 'item_ids.safetensors')

@pytest.mark.parametrize('text', others, ids=range(len(others)))
@pytest.mark.parametrize('file', ['digest.json', 'state.json'])
def test_a_checkpoint_of_other_json_is_passed_over(tmp_path, file, text):
    import hashlib
    for step in (1, 2): path = save_checkpoint(tmp_path, Checkpoint(step, {'w': vectors}, {'loss': [step]}))
    (path/file).write_text(text)
    if file == 'state.json':
        digest = json.loads((path/'digest.json').read_text())
        (path/'digest.json').write_text(json.dumps(dict(digest, **{file: hashlib.sha256(text.encode()).hexdigest()})))
        if text.startswith('{'): return
    sentence(lambda: read_checkpoint(path), 'step-0000000002 is damaged')
    with pytest.warns(UserWarning, match='passed over'): assert newest_checkpoint(tmp_path).step == 1

# ---------------------------------------------------------------- one run in one folder

holder = '''
import sys, time
from gentok.store.runs import _locked
with _locked(sys.argv[1]):
    print('mine', flush=True)
    time.sleep(1800)
'''

def process(folder, **env):
    "Another process that wants the folder."
    return subprocess.Popen([sys.executable, '-c', holder, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, **env))

def test_a_second_process_is_told_who_is_there_and_takes_over_after_kill_9(tmp_path):
    folder = tmp_path/'not'/'yet'/'there'
    with process(folder) as first:
        assert first.stdout.readline() == 'mine\n'
        said = sentence(lambda: _locked(folder).__enter__(), str(folder), str(first.pid), _this_process()['host'], 'since 20', 'give another folder')
        with process(folder) as second: assert said.partition(' since ')[0] in second.communicate()[1] and second.returncode == 1
        assert read_json(folder/'.lock')['pid'] == first.pid
        first.send_signal(signal.SIGKILL)
        deadline = time.time() + 1800
        while _began(first.pid) is not None and time.time() < deadline: time.sleep(.01)
        assert first.returncode is None  # a zombie: nobody has asked after it yet
        with _locked(folder) as lock: assert read_json(lock)['pid'] == os.getpid()
        first.communicate()
    assert list(folder.iterdir()) == []

def test_of_many_that_see_a_dead_owner_one_takes_over(tmp_path):
    (tmp_path/'.lock').write_text(_json_text(dict(_this_process(), pid=2**22 + 7)))
    code = 'import sys\nfrom gentok.store.runs import _locked\nprint("ready", flush=True)\nsys.stdin.readline()\n' + holder.replace('sleep(1800)', 'sleep(3)')
    many = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for p in many: assert p.stdout.readline() == 'ready\n'
    for p in many: p.stdin.write('go\n'); p.stdin.flush()
    said = [p.communicate() for p in many]
    assert sorted(p.returncode for p in many) == [0, 1, 1, 1] and sum('mine' in out for out, _ in said) == 1
    assert all('is in use by process' in err for out, err in said if 'mine' not in out) and list(tmp_path.iterdir()) == []

def test_a_lock_is_released_at_the_end_and_on_error(tmp_path):
    with _locked(tmp_path): assert (tmp_path/'.lock').exists()
    with pytest.raises(KeyboardInterrupt):
        with _locked(tmp_path): raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with _locked(tmp_path):
        shutil.rmtree(tmp_path)
    (tmp_path.parent/'file').touch()
    sentence(lambda: _locked(tmp_path.parent/'file').__enter__(), 'is a file and a folder was expected')

def test_the_processes_of_one_launch_share_a_folder(tmp_path):
    with process(tmp_path, RANK='0', WORLD_SIZE='2') as first:
        assert first.stdout.readline() == 'mine\n'
        with process(tmp_path, RANK='1', WORLD_SIZE='2') as second:
            assert second.stdout.readline() == 'mine\n'
            second.kill()
        with process(tmp_path, RANK='0', WORLD_SIZE='2') as stranger: assert f'in use by process {first.pid}' in stranger.communicate()[1]
        with process(tmp_path, RANK='', WORLD_SIZE='') as alone: assert f'in use by process {first.pid}' in alone.communicate()[1]
        first.kill()

def test_a_lock_of_another_machine_counts_and_a_number_used_again_does_not(tmp_path):
    lock, me = tmp_path/'.lock', _this_process()
    lock.write_text(_json_text(dict(me, host='gpu-7')))
    sentence(lambda: _locked(tmp_path).__enter__(), 'gpu-7', f'remove {lock}')
    if me['began']:
        lock.write_text(_json_text(dict(me, pid=os.getppid(), began='1')))
        with _locked(tmp_path): pass
    for text in ('', '[]', '{}', '{"pid": "1"}', '\xff'):
        lock.write_text(text, 'latin-1')
        sentence(lambda: _locked(tmp_path).__enter__(), '.lock', 'remove the file')
    lock.unlink()
    with _locked(tmp_path): pass

# ---------------------------------------------------------------- links

def test_a_link_in_an_output_folder_is_replaced_not_followed(tmp_path):
    theirs = tmp_path/'theirs'
    theirs.write_text('not ours')
    out = tmp_path/'out'
    out.mkdir()
    for name in ('model.safetensors', 'config.json', 'items.json', 'item_ids.safetensors', 'metrics.json'): (out/name).symlink_to(theirs)
    write_folder(out, {'K': 1}, {'w': torch.ones(2)}, {'ids': []})
    ItemIds(tiles).save(out)
    atomic_write(out/'metrics.json', '{}')
    assert theirs.read_text() == 'not ours' and not any(p.is_symlink() for p in out.iterdir())
    (out/'model.safetensors').unlink()
    (out/'model.safetensors').symlink_to(tmp_path/'nowhere')
    write_folder(out, {'K': 1}, {'w': torch.ones(2)})
    assert not (tmp_path/'nowhere').exists() and read_folder(out).tensors['w'].tolist() == [1, 1]

def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path/'theirs').write_text('not ours')
    (tmp_path/f'.a.txt.{os.getpid()}.part').symlink_to(tmp_path/'theirs')
    atomic_write(tmp_path/'a.txt', 'ours')
    assert ((tmp_path/'theirs').read_text(), (tmp_path/'a.txt').read_text()) == ('not ours', 'ours')

def test_an_output_folder_may_be_a_link(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'out').symlink_to(tmp_path/'disk', target_is_directory=True)
    write_folder(tmp_path/'out', {'K': 1}, {'w': torch.ones(2)})
    save_checkpoint(tmp_path/'out', Checkpoint(1, {'w': torch.ones(2)}, {}))
    with _locked(tmp_path/'out'): pass
    assert (tmp_path/'out').is_symlink() and sorted(p.name for p in (tmp_path/'disk').iterdir()) == ['config.json', 'model.safetensors', 'step-0000000001']

def test_a_file_in_the_place_of_a_checkpoint_is_replaced(tmp_path):
    (tmp_path/'step-0000000002').write_text('not a folder')
    made = save_checkpoint(tmp_path, Checkpoint(2, dict(w=torch.ones(3)), {}))
    assert read_checkpoint(made).step == 2 and [p.name for p in tmp_path.iterdir()] == ['step-0000000002']

def test_a_checkpoint_that_is_a_link_is_replaced(tmp_path):
    (tmp_path/'theirs').mkdir()
    (tmp_path/'theirs'/'x').touch()
    for name in ('step-0000000001', 'step-0000000002', 'step-0000000009'):
        (tmp_path/'out').mkdir(exist_ok=True)
        (tmp_path/'out'/name).symlink_to(tmp_path/'theirs')
    (tmp_path/'out'/'step-0000000003').symlink_to(tmp_path/'nowhere')
    for step in (2, 3): save_checkpoint(tmp_path/'out', Checkpoint(step, {'w': torch.ones(2)}, {}))
    assert (tmp_path/'theirs'/'x').exists() and newest_checkpoint(tmp_path/'out').step == 3 and not (tmp_path/'nowhere').exists()

# ---------------------------------------------------------------- advice that is followed

small = TigerConfig(text_dim=8, codebook_size=8, tokenizer_epochs=4, epochs=1, validate_every=1, d_model=8, layers=1, batch_size=64, beams=10)

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A small run of TIGER, its data and its numbers."
    data = toyshop(n_items=30, n_users=60, domains=('tiles',), seed=0)[0]
    out = tmp_path_factory.mktemp('run')/'out'
    return data, out, numbers(run(data, small, out))

def numbers(result): return {k: v for k, v in result.metrics.items() if k not in ('seconds', 'version')}

def damage(path, how):
    "The file with one bit flipped, cut, empty, or (JSON) another value."
    data = path.read_bytes()
    path.write_bytes(dict(bit=data[:len(data)//2] + bytes([data[len(data)//2] ^ 4]) + data[len(data)//2+1:], cut=data[:len(data)//2],
                          empty=b'', list=b'[]', null=b'null', object=b'{}', number=b'7')[how])

def follow(said, path):
    "Do what the sentence says, literally."
    if 'remove the file' in said: path.unlink()
    elif 'remove both' in said: [(path.parent/name).unlink() for name in ('config.json', 'model.safetensors')]
    elif 'delete ' in said: shutil.rmtree(said.partition('delete ')[2].partition(' and ')[0])
    else: pytest.fail(f'no advice that can be followed: {said}')

harms = ['bit', 'cut', 'empty', 'list', 'null', 'object', 'number']

def places(out):
    "The files of a run that are read again."
    return sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.suffix in ('.json', '.safetensors'))

def followed(data, copy, place):
    "Run again, doing what each refusal says; the refusals, ended by the run's numbers."
    heard = []
    for _ in range(3):
        try:
            with warnings.catch_warnings(action='ignore'): return [*heard, numbers(run(data, small, copy))]
        except (ValueError, FileNotFoundError) as e:
            heard.append(str(e))
            assert '\n' not in heard[-1] and heard[-1].endswith('.'), heard
            follow(heard[-1], copy/place)
    return heard

@pytest.mark.parametrize('how', harms)
def test_following_the_advice_literally_leads_to_a_working_run(finished, tmp_path, how):
    data, out, wanted = finished
    troubles = {}
    for place in places(out):
        if not place.endswith('.json') and how not in ('bit', 'cut', 'empty'): continue
        copy = shutil.copytree(out, tmp_path/'copy')
        damage(copy/place, how)
        try: assert followed(data, copy, place)[-1] == wanted
        except (Exception, pytest.fail.Exception) as e: troubles[place] = repr(e)
        shutil.rmtree(copy)
    assert not troubles, troubles

# ---------------------------------------------------------------- bad data, and half a character

half = 'cut \ud83d here'

@pytest.mark.parametrize('files', [
    {'interactions.csv': '"user,item,time\nu,a,1\n', 'items.csv': 'item,text\na,x\n'},
    {'interactions.csv': 'user,item,time\nu,a,1\n', 'items.csv': 'item,"text\na,x\n'},
    {'shop.inter': '\nuser_id:token\titem_id:token\ttimestamp:float\n', 'shop.item': 'item_id:token\ttitle:token_seq\na\tx\n'},
    {'interactions.parquet': b'PAR1' + bytes(60) + b'PAR1', 'items.csv': 'item,text\na,x\n'},
    {'interactions.parquet': b'PAR1\xff\xff\xff\x7fPAR1', 'items.csv': 'item,text\na,x\n'},
    {'interactions.parquet': b'PAR1', 'items.csv': 'item,text\na,x\n'}], ids=['header', 'items', 'inter', 'zeros', 'length', 'magic'])
def test_bad_tables_are_a_sentence(tmp_path, files):
    for name, data in files.items(): (tmp_path/name).write_bytes(data.encode() if isinstance(data, str) else data)
    sentence(lambda: load(tmp_path), str(tmp_path))

def test_a_blank_first_line_of_recbole_changes_nothing(tmp_path):
    rows = 'user_id:token\titem_id:token\ttimestamp:float\n' + ''.join(f'u\t{i}\t{t}\n' for t, i in enumerate('abc'))
    (tmp_path/'shop.item').write_text('\nitem_id:token\ttitle:token_seq\n' + ''.join(f'{i}\tthing {i}\n' for i in 'abc'))
    (tmp_path/'shop.inter').write_text('\n' + rows)
    data = load(tmp_path)
    assert [data.catalogue.ids[i] for i in data.histories.items] == ['a', 'b', 'c'] and 'thing a' in data.catalogue.text

@pytest.mark.parametrize('images', ['true', '3', '[]', '[true]', '[null]', '{}', '{"large": 3}', '{"large": true}', '[{"large": true}]', '{"large": null}', '[[]]', '{"large": ["a"], "variant": 1}'])
def test_odd_pictures_of_amazon_are_no_pictures(tmp_path, images):
    (tmp_path/'Shop.jsonl').write_text(''.join(json.dumps(dict(user_id=f'u{u}', parent_asin=f'B{i}', timestamp=u + i, rating=5.)) + '\n' for u in range(6) for i in range(6)))
    (tmp_path/'meta_Shop.jsonl').write_text(''.join(f'{{"parent_asin": "B{i}", "title": "thing", "images": {images}}}\n' for i in range(6)))
    try: data = load(tmp_path)
    except ValueError as e: assert str(tmp_path) in str(e) and str(e).endswith('.') and '\n' not in str(e)
    else: assert len(data.catalogue) == 6

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_parquet_is_a_sentence_or_a_table(tmp_path_factory, seed):
    import polars as pl
    folder, rng = tmp_path_factory.mktemp('p'), np.random.default_rng(seed)
    pl.DataFrame(dict(user=['u']*5, item=list('abcde'), time=range(5))).write_parquet(folder/'interactions.parquet')
    data = bytearray((folder/'interactions.parquet').read_bytes())
    for at in rng.integers(len(data), size=rng.integers(1, 6)): data[at] = rng.integers(256)
    (folder/'interactions.parquet').write_bytes(data)
    try: load(folder)
    except (ValueError, FileNotFoundError) as e: assert str(folder) in str(e) and str(e).endswith('.') and '\n' not in str(e), e

def test_a_parquet_at_which_polars_panics_is_a_sentence(tmp_path, monkeypatch):
    import polars as pl
    pl.DataFrame(dict(user=['u']*3, item=list('abc'), time=range(3))).write_parquet(tmp_path/'interactions.parquet')
    def panics(*args, **kwargs): raise pl.exceptions.PanicException('assertion failed: offset + length <= self.length')
    for step in ('collect', 'collect_schema'):
        with monkeypatch.context() as m:
            m.setattr(pl.LazyFrame, step, panics)
            sentence(lambda: load(tmp_path), 'interactions.parquet is not Parquet or is damaged')

def test_half_a_character_at_load(tmp_path):
    (tmp_path/'items.jsonl').write_text('{"item": "a", "title": "cut \\ud83d here"}\n{"item": "b", "title": "whole \\ud83d\\ude00"}\n')
    (tmp_path/'interactions.csv').write_text('user,item,time\nu,a,1\nu,b,2\n')
    titles = load(tmp_path).catalogue.titles
    for title in titles: title.encode()
    assert any('cut' in t for t in titles) and 'whole \U0001f600' in titles

def test_half_a_character_loses_no_finished_run(tmp_path):
    assert json.loads(_json_text({'title': half, half: 1})) == {'title': half, half: 1}
    write_folder(tmp_path, {'source': half}, {'w': torch.ones(1)}, {'titles': [half]})
    assert read_folder(tmp_path).config == {'source': half} and read_json(tmp_path/'items.json', titles=list)['titles'] == [half]
    EmbeddingTable([half, 'b'], torch.eye(2), 'x').save(tmp_path/'t')
    assert EmbeddingTable.load(tmp_path/'t').ids == [half, 'b']
    save_checkpoint(tmp_path, Checkpoint(1, {'w': torch.ones(1)}, {'note': half}))
    assert newest_checkpoint(tmp_path).state == {'note': half}
    data = toyshop(n_items=30, n_users=60, domains=('tiles',), seed=0)[0]
    c = data.catalogue
    data.catalogue = Catalogue(c.ids, c.text, c.images, c.domain, [half, *c.titles[1:]])
    run(data, small, tmp_path/'run')
    assert half in read_json(tmp_path/'run/items.json')['titles'] and (tmp_path/'run/metrics.json').exists()

# ---------------------------------------------------------------- bounds and types

def test_a_search_is_no_wider_than_the_catalogue():
    model, trie, histories = shop(40)
    usual, true = beam_search(model, trie, histories, beams=40, k=10), exact_top_k(model, trie, histories, k=10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide, exact = beam_search(model, trie, histories, beams=10**8, k=10), exact_top_k(model, trie, histories, k=10, beams=10**8)
    assert torch.equal(wide.items, usual.items) and torch.equal(exact.items, true.items)
    many, all_of_them = beam_search(model, trie, histories, beams=10**8, k=9_000), exact_top_k(model, trie, histories, k=9_000)
    for found in (many, all_of_them):
        assert found.items.shape == (4, 9_000) and (found.items[:, 40:] == -1).all() and (found.scores[:, 40:] == -torch.inf).all()
        assert found.items[:, :40].sort(1).values.equal(torch.arange(40).expand(4, 40))
    assert (all_of_them.bound <= all_of_them.scores[:, -1]).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    for call in (lambda: beam_search(model, trie, histories, beams=10**8, k=3*10**8), lambda: beam_search(model, trie, histories, beams=3*10**8, k=10**8),
                 lambda: exact_top_k(model, trie, histories, k=3*10**8), lambda: beam_search(model, trie, histories, beams=10**8, k=10, free=True)):
        sentence(call)

@pytest.mark.parametrize('odd', [0, -1, 1.5, None, '5', True, float('nan'), [3]], ids=str)
def test_widths_are_whole_numbers(odd):
    model, trie, histories = shop(10)
    for name in ('k', 'beams', 'batch_size'):
        sentence(lambda: beam_search(model, trie, histories, **{'k': 1, name: odd}), f'{name} is')
        sentence(lambda: exact_top_k(model, trie, histories, **{name: odd}), f'{name} is')

odd_numbers = [1.7, None, [None], 'ab', ['a'], [[0, 0, 1], [0, 1]], [float('nan')], [[0., 1., 2.]], [True], {}, [2**70], object()]

@pytest.mark.parametrize('odd', odd_numbers, ids=range(len(odd_numbers)))
def test_numbers_that_are_none_are_named(odd):
    ids = ItemIds(tiles)
    for call in (lambda: ItemIds(odd), lambda: _check_codes(odd), lambda: ids.find(odd), lambda: ids.codes(odd), lambda: ids.items(odd),
                 lambda: _as_examples([[0], odd], 4), lambda: ItemIds(tiles, None, odd), lambda: ItemIds(tiles, None, 0, odd)): sentence(call)
    if odd is not None: sentence(lambda: _check_codes(tiles, odd))  # None: the sizes follow from the codes
    if not isinstance(odd, list) or not isinstance(odd[0], list) or odd[0][0] != 0: sentence(lambda: _as_examples(odd, 4))  # lists of any length are histories

def test_flat_histories_and_tensors_of_floats_are_named():
    sentence(lambda: _as_examples([1, 2], 4), 'expected a list of rows')
    sentence(lambda: _as_examples(torch.ones(2, 3), 4), 'not whole numbers')
    sentence(lambda: _as_examples(_as_examples([[0]], 4)._replace(items=torch.tensor([float('nan'), 0.])), 4), 'not whole numbers')
    assert _as_examples(torch.ones(2, 3, dtype=torch.int32), 4).n == 2 and _as_examples((np.array([1], np.uint8),), 4).n == 1
