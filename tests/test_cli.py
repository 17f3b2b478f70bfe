"Whole commands, typed as a user types them: what they print, what they leave, what they refuse, what survives a kill."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

script = Path(sys.executable).parent/'gentok'
program = [str(script)] if script.exists() else [sys.executable, '-c', 'import sys; from gentok.cli import main; sys.exit(main())']
commands = ('demo', 'tokenize', 'run', 'recommend', 'evaluate', 'bench')
promised = 'recall@5 recall@10 ndcg@5 ndcg@10 users items collision_rate invalid_rate seconds config seed version'.split()
small = ['codebook_size=4', 'levels=2', 'tokenizer_epochs=20', 'text_dim=6']
tiny = [*small, 'epochs=12', 'd_model=16', 'layers=1', 'batch_size=32', 'validate_every=1']

def settings(values): return [word for v in values for word in ('--set', v)]

def gentok(*words):
    "Exit code, standard output, standard error."
    done = subprocess.run([*program, *map(str, words)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout.strip(), done.stderr.strip()

def succeed(*words):
    code, out, err = gentok(*words)
    assert code == 0, err
    return out

@pytest.fixture
def ask(capsys):
    "The same in this process, for the many mistakes: a fresh process spends seconds on imports."
    from gentok.cli import main
    def ask(*words):
        capsys.readouterr()
        try: code = main([*map(str, words)])
        except SystemExit as e: code = e.code
        shown = capsys.readouterr()
        return code, shown.out.strip(), shown.err.strip()
    return ask

def one_sentence(answer, *words):
    "Exit code 2, nothing on standard output, one line that holds the words."
    code, out, err = answer
    assert (code, out, err.count('\n')) == (2, '', 0) and err.startswith('gentok'), answer
    assert all(w in err for w in words), err
    return err

def seen(folder): return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob('*')}

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "Twelve items and thirty users, as somebody would type them."
    home = tmp_path_factory.mktemp('data')/'crockery'
    home.mkdir()
    pieces = [f'{c} {k}' for c in ('red', 'blue', 'green') for k in ('cup', 'plate', 'bowl', 'jug')]
    (home/'items.csv').write_text('item,text\n' + '\n'.join(f'{10 + i},{t}' for i, t in enumerate(pieces)) + '\n')
    (home/'interactions.csv').write_text('user,item,time\n' + '\n'.join(
        f'u{u},{10 + (u + 4*t) % 12},{t}' for u in range(30) for t in range(5)) + '\n')
    return home

@pytest.fixture(scope='module')
def catalogue(tmp_path_factory, shop):
    "Items without histories."
    home = tmp_path_factory.mktemp('items')/'catalogue'
    home.mkdir()
    (home/'items.csv').write_text((shop/'items.csv').read_text())
    return home

@pytest.fixture(scope='module')
def trained(tmp_path_factory, shop):
    "A folder that `gentok run` left, and what it printed."
    out = tmp_path_factory.mktemp('runs')/'not'/'yet'/'there'
    return out, json.loads(succeed('run', 'tiger', shop, '--out', out, *settings(tiny), '--json'))

# ---------------------------------------------------------------- help

def test_help_names_every_command_and_comes_at_once():
    start = time.process_time()
    out = succeed('--help')
    assert all(re.search(rf'^ +{c}\b', out, re.M) for c in commands)
    code = "import sys; from gentok.cli import parser; parser(); print(*{'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == ''
    assert time.process_time() - start < 5

@pytest.mark.parametrize('command', commands)
def test_help_of_a_command_shows_an_example(ask, command):
    code, out, _ = ask(command, '--help')
    assert code == 0 and re.search(rf'^example:\n +gentok {command} ', out, re.M)
    example = re.search(rf'gentok ({command} .*)', out.split('example:')[1]).group(1)
    from gentok.cli import parser
    assert parser().parse_args(example.split()).command == command  # and the example is one that parses

def test_version(ask):
    import gentok
    assert ask('--version') == (0, f'gentok {gentok.__version__}', '')

# ---------------------------------------------------------------- run, run again, ask

def test_run_leaves_all_that_is_promised(trained):
    out, said = trained
    kept = json.loads((out/'metrics.json').read_text())
    assert set(promised) <= set(kept) and all(said[k] == kept[k] for k in promised)
    assert (kept['users'], kept['items'], kept['config']['epochs']) == (30, 12, 12)
    assert {'config.json', 'model.safetensors', 'item_ids.safetensors', 'items.json', 'report.html'} <= {p.name for p in out.iterdir()}
    assert not [p for p in out.rglob('*') if p.suffix in ('.pt', '.pkl', '.bin', '.tmp')]
    page = (out/'report.html').read_text()
    assert 'TIGER on crockery' in page and 'red cup' in page

def test_run_again_trains_no_step(trained, shop):
    out, first = trained
    training, weights = seen(out/'training'), (out/'model.safetensors').read_bytes()
    curve = (out/'curve.json').read_text()
    text = succeed('run', 'tiger', shop, '--out', out, *settings(tiny))
    again = json.loads((out/'metrics.json').read_text())
    assert {k: v for k, v in again.items() if k != 'seconds'} == {k: first[k] for k in again if k != 'seconds'}
    assert seen(out/'training') == training and (out/'curve.json').read_text() == curve
    assert (out/'model.safetensors').read_bytes() == weights
    assert '30 users, 12 items' in text and f'ndcg@10    {first["ndcg@10"]:.4f}' in text

def test_run_survives_a_kill(trained, shop, tmp_path):
    _, uninterrupted = trained
    words = [*program, 'run', 'tiger', str(shop), '--out', str(tmp_path/'killed'), *settings(tiny), '--json']
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def validated(): return any((tmp_path/'killed'/'training').glob('best*'))  # so the training is under way
    patience = time.time() + 300
    while not validated() and running.poll() is None and time.time() < patience: time.sleep(.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and validated()
    assert not (tmp_path/'killed'/'metrics.json').exists()
    again = json.loads(succeed(*words[len(program):]))
    assert {k: again[k] for k in promised if k != 'seconds'} == {k: uninterrupted[k] for k in promised if k != 'seconds'}

def test_recommend_prints_probability_id_title(trained):
    out, _ = trained
    head, *rows = succeed('recommend', '--model', out, '--history', '10,14', '-k', '3').splitlines()
    assert head.split() == ['probability', 'id', 'title'] and len(rows) == 3
    found = [re.fullmatch(r' *([\d.]+)% +(\d+)  ((red|blue|green) \w+)', r) for r in rows]
    assert all(found)
    chances = [float(f.group(1)) for f in found]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 100.1

def test_recommend_speaks_json(ask, trained):
    code, out, _ = ask('recommend', '--model', trained[0], '--history', ' 10, 14 ', '-k', '99', '--json')
    items = json.loads(out)['items']
    assert code == 0 and sorted(i['id'] for i in items) == [str(i) for i in range(10, 22)]  # as many as there are
    assert set(items[0]) == {'id', 'title', 'log_prob', 'probability'}

def test_evaluate_agrees_with_the_run(trained, shop):
    out, said = trained
    found = json.loads(succeed('evaluate', '--model', out, shop, '--json'))
    assert set(promised) <= set(found)
    same = [k for k in promised if k not in ('seconds', 'config')]
    assert {k: found[k] for k in same} == {k: said[k] for k in same}
    assert found['config']['split'] == 'test' and found['config']['epochs'] == 12

def test_evaluate_exactly_and_on_validation(ask, trained, shop):
    out, said = trained
    code, text, _ = ask('evaluate', '--model', out, shop, '--exact', '--json')
    assert code == 0 and json.loads(text)['recall@10'] == pytest.approx(said['recall@10'])
    code, text, _ = ask('evaluate', '--model', out, shop, '--split', 'valid')
    assert code == 0 and '30 users, 12 items' in text

# ---------------------------------------------------------------- tokenize

def test_tokenize_needs_no_histories(catalogue, tmp_path):
    out = tmp_path/'ids'
    text = succeed('tokenize', catalogue, '--method', 'rqvae', '--out', out, *settings(small))
    ids = json.loads((out/'identifiers.json').read_text())
    assert set(ids) == {str(i) for i in range(10, 22)} and len({tuple(c) for c in ids.values()}) == 12
    health = json.loads((out/'health.json').read_text())
    assert health['items'] == 12 and len(health['usage']) == 2 and 0 <= health['collision_rate'] <= 1
    assert '12 items' in text and (out/'item_ids.safetensors').exists()

@pytest.mark.parametrize('method', ['kmeans', 'random', 'rqvae'])
def test_tokenize_by_any_method_and_again(ask, catalogue, tmp_path, method):
    words = ['tokenize', catalogue, '--method', method, '--out', tmp_path/'ids', '--json', *settings(small)]
    (code, first, _), (again, second, _) = ask(*words), ask(*words)
    assert code == again == 0 and json.loads(first) == json.loads(second)

def test_defaults_suit_a_small_catalogue(ask, catalogue, tmp_path):
    code, out, err = ask('tokenize', catalogue, '--out', tmp_path/'ids', '--set', 'tokenizer_epochs=2')
    assert code == 0 and '12 items' in out, err

# ---------------------------------------------------------------- mistakes

def test_missing_folder(tmp_path):
    one_sentence(gentok('run', 'tiger', tmp_path/'nowhere', '--out', tmp_path/'out'), 'nowhere', 'check the path')
    assert not list(tmp_path.iterdir())

def test_other_settings_are_refused(ask, trained, shop):
    out, _ = trained
    before = seen(out)
    changed = settings([*tiny, 'epochs=13'])
    one_sentence(ask('run', 'tiger', shop, '--out', out, *changed), 'epochs=12', 'epochs=13', '--out')
    one_sentence(ask('tokenize', shop, '--out', out, *settings(small)), "method='tiger'")
    assert seen(out) == before

mistakes = {
    'unknown setting': (['--set', 'epoch=3'], ["'epoch'", 'epochs']),
    'a word for a number': (['--set', 'epochs=many'], ['epochs=3']),
    'a setting without value': (['--set', 'epochs'], ['key=value']),
    'no epochs': (['--set', 'epochs=0'], ['epochs is 0']),
    'an impossible rate': (['--set', 'lr=nan'], ['lr is nan']),
    'no levels': (['--set', 'levels=0'], []),
    'no codes': (['--set', 'codebook_size=0'], []),
    'no tokenizer epochs': (['--set', 'tokenizer_epochs=0'], []),
    'unknown tokenizer': (['--set', 'tokenizer=magic'], ["'magic'", 'kmeans']),
    'unknown policy': (['--set', 'policy=hope'], ["'hope'", 'suffix']),
}

@pytest.mark.parametrize('words, said', mistakes.values(), ids=mistakes)
def test_settings_that_no_run_could_use(ask, shop, tmp_path, words, said):
    one_sentence(ask('run', 'tiger', shop, '--out', tmp_path/'a'/'b', *words), *said)
    assert not list(tmp_path.iterdir())

def test_a_mistake_that_shows_on_the_way_leaves_nothing(ask, shop, tmp_path):
    code, out, err = ask('run', 'tiger', shop, '--out', tmp_path/'a'/'b', '--set', 'text=no/such/encoder')
    *report, said = err.splitlines()
    one_sentence((code, out, said), 'no/such/encoder', "'lsa'")
    assert report[0].startswith("Dataset('crockery': 12 items") and not list(tmp_path.iterdir())

def test_a_catalogue_alone_cannot_train(ask, catalogue, tmp_path):
    one_sentence(ask('run', 'tiger', catalogue, '--out', tmp_path/'out'), 'without histories', 'gentok tokenize')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('rows, words', [
    (['ann,10,1', 'ann,11,2', 'ann,12,3'], ['3 items', '4 or more']),  # too short to be split
    (['ann,10,1', 'ann,99,2'], ['interactions.csv', '99'])])  # an item that is not there
def test_a_fault_in_the_histories_is_named(ask, shop, tmp_path, rows, words):
    home = tmp_path/'hasty'
    home.mkdir()
    (home/'items.csv').write_text((shop/'items.csv').read_text())
    (home/'interactions.csv').write_text('\n'.join(['user,item,time', *rows, '']))
    one_sentence(ask('run', 'tiger', home, '--out', tmp_path/'out'), *words)
    assert not (tmp_path/'out').exists()

def test_out_is_a_file(ask, shop, tmp_path):
    (tmp_path/'out').write_text('mine')
    one_sentence(ask('run', 'tiger', shop, '--out', tmp_path/'out'), 'is a file')
    assert (tmp_path/'out').read_text() == 'mine'

def test_an_unknown_item(ask, trained):
    one_sentence(ask('recommend', '--model', trained[0], '--history', '10,7'), "'7'", '12 items')
    one_sentence(ask('recommend', '--model', trained[0], '--history', ','), 'history is empty')

@pytest.mark.parametrize('words', [['recommend', '--history', '10'], ['evaluate', '{shop}']], ids=['recommend', 'evaluate'])
def test_a_folder_that_holds_no_model(ask, shop, tmp_path, words):
    words = [w.format(shop=shop) for w in words]
    one_sentence(ask(*words, '--model', tmp_path), str(tmp_path))
    one_sentence(ask(*words, '--model', tmp_path/'gone'), 'gone')

def test_the_data_of_another_model(ask, trained, shop, tmp_path):
    home = tmp_path/'other'
    home.mkdir()
    (home/'items.csv').write_text('item,text\n' + '\n'.join(f'{i},a cup' for i in range(10, 15)))
    (home/'interactions.csv').write_text('user,item,time\n' + '\n'.join(f'ann,{10 + t},{t}' for t in range(5)))
    one_sentence(ask('evaluate', '--model', trained[0], home), '12 items', 'has 5')

slips = {'no command': [], 'unknown command': ['train'], 'unknown method': ['run', 'lion', '{shop}', '--out', '{out}'],
         'no --out': ['run', 'tiger', '{shop}'], 'k of nought': ['recommend', '--model', 'm', '--history', '1', '-k', '0'],
         'a split that is none': ['evaluate', '--model', 'm', '{shop}', '--split', 'train'],
         'beams of nought': ['evaluate', '--model', 'm', '{shop}', '--beams', '0'], 'unknown word': ['demo', '--fast']}

@pytest.mark.parametrize('words', slips.values(), ids=slips)
def test_slips_of_the_keyboard(ask, shop, tmp_path, words):
    one_sentence(ask(*(w.format(shop=shop, out=tmp_path/'out') for w in words)))
    assert not list(tmp_path.iterdir())

def test_the_whole_traceback_on_demand(ask, tmp_path, monkeypatch):
    monkeypatch.setenv('GENTOK_DEBUG', '1')
    with pytest.raises(FileNotFoundError): ask('run', 'tiger', tmp_path/'nowhere', '--out', tmp_path/'out')

# ---------------------------------------------------------------- demo

def test_a_very_small_demo(tmp_path):
    out = tmp_path/'demo'
    hurry = settings(['epochs=1', 'tokenizer_epochs=5', 'validate_every=1'])
    text = succeed('demo', '--items', '60', '--users', '120', *hurry, '--out', out)
    assert all(w in text for w in ('semantic identifiers', 'random identifiers', 'Bayes limit', 'report.html'))
    kept = json.loads((out/'metrics.json').read_text())
    assert set(promised) <= set(kept) and (kept['users'], kept['items']) == (120, 60)
    page = (out/'report.html').read_text()
    assert all(w in page for w in ('Random identifiers', 'Ten most popular', 'Bayes limit', 'data:image'))
