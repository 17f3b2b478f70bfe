"Whole commands, typed as a user types them: what they print, what they leave, what they refuse, what survives a kill."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

script = Path(sys.executable).parent/'gentok'
program = [str(script)] if script.exists() else [sys.executable, '-c', 'import sys; from gentok.cli import main; sys.exit(main())']
commands = ('demo', 'methods', 'tokenize', 'run', 'recommend', 'evaluate', 'update', 'push', 'bench')
promised = 'recall@5 recall@10 ndcg@5 ndcg@10 users items collision_rate invalid_rate seconds config seed version'.split()
small = ['codebook_size=4', 'levels=2', 'tokenizer_epochs=20', 'text_dim=6']
tiny = [*small, 'epochs=12', 'd_model=16', 'layers=1', 'batch_size=32', 'validate_every=1']

def settings(values): return [word for v in values for word in (f'--{v.partition("=")[0].replace("_", "-")}', v.partition('=')[2])]

def gentok(*words, **env):
    "Exit code, standard output, standard error."
    done = subprocess.run([*program, *map(str, words)], capture_output=True, text=True, timeout=300, env={**os.environ, **env})
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

def cpu_seconds(code):
    timed = f'import sys, time; t = time.process_time(); {code}; print(time.process_time() - t, *{{"torch", "transformers"}} & set(sys.modules), file=sys.stderr)'
    done = subprocess.run([sys.executable, '-c', timed], capture_output=True, text=True)
    seconds, *heavy = done.stderr.split()
    return float(seconds), heavy

@pytest.mark.parametrize('words', [['--help'], ['methods'], ['run', '--help'], ['--version']], ids=' '.join)
def test_what_is_looked_up_comes_at_once(words):
    runs = [cpu_seconds(f'from gentok.cli import main; main({words})') for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < .5 and not runs[0][1], runs

def test_help_names_every_command(ask):
    import gentok
    code, out, _ = ask('--help')
    assert code == 0 and all(re.search(rf'^ +{c}\b', out, re.M) for c in commands)
    code, out, _ = ask('methods')
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(gentok.methods)
    assert json.loads(ask('methods', '--json')[1]) == gentok.methods

@pytest.mark.parametrize('command', commands)
def test_help_of_a_command_shows_an_example(ask, command):
    code, out, _ = ask(command, '--help')
    assert code == 0 and re.search(rf'^example:\n +gentok {command}\b', out, re.M)
    example = re.search(rf'gentok ({command}\b.*)', out.split('example:')[1]).group(1)
    from gentok import cli
    prog, known, rest, offer = cli._called(example.split())
    assert isinstance(cli._parse(prog, known, rest, offer), cli._commands[command].words)  # and the example is one that parses

@pytest.mark.parametrize('method', ['tiger', 'mtgrec', 'letter', 'etegrec', 'unitok',
                                    'utgrec'])
def test_help_of_a_method_lists_every_setting(ask, method, monkeypatch):
    from dataclasses import fields
    import gentok
    monkeypatch.setenv('COLUMNS', '200')
    code, out, err = ask('run', method, '--help')
    assert code == 0 and '--where SQL' in out, err
    out = ' '.join(re.sub('[│|]', ' ', out.split('options')[-1]).split())
    for f in fields(config := gentok.config_of(method)()):
        name = '--text-encoder' if f.name == 'text' else f'--{f.name.replace("_", "-")}'
        default = getattr(config, f.name)
        shown = (','.join(map(str, default)) or 'none') if isinstance(default, tuple) else str(default) or "''"
        assert re.search(rf'(?<![\w-]){name}\b(?!-)(, --no-[\w-]+)? (?:(?! --).)*?\(default: {re.escape(shown)}\)', out), (name, shown)
    assert 'of the recommender' in out

def test_words_become_the_configuration(ask, shop, tmp_path, monkeypatch):
    from dataclasses import replace
    import gentok
    from gentok import cli
    monkeypatch.setitem(cli._commands, 'run', cli._commands['run']._replace(work=lambda asked: vars(asked) and seen.append(asked) or {}, show=str))
    seen, mtgrec = [], gentok.config_of('mtgrec')()
    words = '--epochs 30 --stages 2,1 --starts 9,10 --no-curriculum --lr 1e-2 --text-encoder sasrec --codebook_size=16'.split()
    assert ask('run', 'mtgrec', shop, *words, '--out', tmp_path, '--text', 'title,brand')[0] == 0
    assert seen[0].settings == replace(mtgrec, epochs=30, stages=(2, 1), starts=(9, 10), curriculum=False, lr=.01, text='sasrec', codebook_size=16)
    assert seen[0].reading.text == ['title', 'brand'] and seen[0].out == tmp_path

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

# ---------------------------------------------------------------- only new items

def answers(out): return [i['id'] for i in json.loads(out)['items']]

def test_recommend_unseen(ask, trained):
    model, _ = trained
    def ids(*words): return answers(ask('recommend', '--model', model, *words, '--json')[1])
    everything, new = ids('--history', '10,14', '-k', '12'), ids('--history', '10,14', '-k', '12', '--unseen')
    assert new == [i for i in everything if i not in ('10', '14')] and len(new) == 10
    assert ids('--history', '10,14', '-k', '3', '--unseen') == new[:3]
    long = ','.join(map(str, range(10, 21))) + ',11'*30  # the model reads the last twenty only
    assert ids('--history', long, '-k', '5', '--unseen') == ['21']
    code, text, _ = ask('recommend', '--model', model, '--history', f'{long},21', '--unseen')
    assert code == 0 and text.splitlines()[1:] == ['no item is left']

def test_evaluate_unseen_is_a_miss_for_what_they_had(ask, trained, shop):
    "Everybody's last item is their second one again."
    model, said = trained
    kept = (model/'metrics.json').read_bytes()
    code, out, err = ask('evaluate', '--model', model, shop, '--unseen', '--json')
    found = json.loads(out)
    assert code == 0 and found['recall@10'] == 0 and found['repeats'] == 1 and found['config']['unseen'] is True, err
    assert (model/'metrics.json').read_bytes() == kept and set(found) == set(said) - {'report'} | {'repeats', 'interval'}
    code, text, _ = ask('evaluate', '--model', model, shop, '--unseen', '--exact', '--split', 'valid')
    assert code == 0 and 'those new to a user ranked' in text and '100.0% of the targets are in their history' in text

@pytest.mark.parametrize('command, words', [('recommend', 'leave out the items of the history'), ('evaluate', 'counts as a miss')])
def test_help_says_what_unseen_does(ask, command, words):
    _, out, _ = ask(command, '--help')
    assert words in ' '.join(re.sub('[│|]', ' ', out.split('--unseen')[1]).split())

# ---------------------------------------------------------------- ids and titles of the world

@pytest.fixture
def renamed(trained, tmp_path):
    "The model, as if its catalogue had had other ids or titles."
    def rename(**new):
        out = shutil.copytree(trained[0], tmp_path/'renamed', dirs_exist_ok=True, ignore=shutil.ignore_patterns('training'))
        items = json.loads((out/'items.json').read_text())
        order = sorted(range(12), key=lambda row: int(items['ids'][row]))
        for name, values in new.items():
            for row, value in zip(order, values): items[name][row] = value
        (out/'items.json').write_text(json.dumps(items))
        return out
    return rename

odd_ids = ['Game p001, Part 1', '-p001', '-p002', '"Heroes"', ' p004', '-k', '--json', 'a', 'b', 'a,b']
same_history = [
    (['10'], ['Game p001, Part 1']), (['10'], ['"Game p001, Part 1"']), (['10,11'], ['"Game p001, Part 1" , -p001']),
    (['10,11'], ['Game p001, Part 1', '-p001']), (['11,12'], ['-p001,-p002']), (['12', '11'], ['-p002', '-p001']),
    (['13,14'], ['"""Heroes""",p004']), (['13'], ['"Heroes"']), (['14'], [' p004 ']), (['19'], ['a,b']), (['17,18'], ['a', 'b'])]

@pytest.mark.parametrize('plain, odd', same_history, ids=[' + '.join(o) for _, o in same_history])
def test_any_id_can_be_named(ask, trained, renamed, plain, odd):
    def scores(model, texts):
        code, out, err = ask('recommend', '--model', model, '--json', *(w for t in texts for w in ('--history', t)))
        assert code == 0, err
        return [i['log_prob'] for i in json.loads(out)['items']]
    assert scores(renamed(ids=odd_ids), odd) == scores(trained[0], plain)

def test_what_looks_like_an_option_needs_an_equals_sign(ask, renamed):
    model = renamed(ids=odd_ids)
    for text in ('-k', '--json'):
        one_sentence(ask('recommend', '--model', model, '--history', text), '--history has no value', '--history=-p001')
        assert ask('recommend', '--model', model, f'--history={text}')[0] == 0
    one_sentence(ask('recommend', '--model', model, '--history'), '--history=-p001')
    assert succeed('recommend', '--model', model, '--history', '-p001,-p002', '-k', '2').count('\n') == 2

def test_an_unknown_id_with_a_comma(ask, renamed):
    one_sentence(ask('recommend', '--model', renamed(ids=odd_ids), '--history', 'Game p009, Part 9'), "'Game p009'", 'double quotes')

def test_one_line_for_each_item(ask, renamed):
    long = ['amber mug number 0\nSecond line,\t "quoted"   <b>bold</b> ' + 'and more '*90, 'x'*61, 'y'*60]
    code, out, _ = ask('recommend', '--model', renamed(titles=long), '--history', '10', '-k', '12')
    _, *rows = out.splitlines()
    shown = [re.split(r'% +\d+  ', r, maxsplit=1)[1] for r in rows]
    assert code == 0 and len(rows) == 12 and max(map(len, shown)) == 60
    assert any(t.startswith('amber mug number 0 Second line, "quoted" <b>') and t.endswith('…') for t in shown)
    assert 'x'*59 + '…' in shown and 'y'*60 in shown
    whole = [i['title'] for i in json.loads(ask('recommend', '--model', renamed(titles=long), '--history', '10', '-k', '12', '--json')[1])['items']]
    assert set(long) <= set(whole)

# ---------------------------------------------------------------- many histories, another catalogue

def test_many_histories_are_answered_in_a_file(ask, trained, shop, tmp_path):
    import polars as pl
    model, out = trained[0], tmp_path/'not'/'yet'/'answers.parquet'
    code, text, err = ask('recommend', '--model', model, '--histories', shop/'interactions.csv', '--out', out, '-k', '3', '--json')
    assert code == 0 and json.loads(text) == dict(out=str(out)), err
    found = pl.read_parquet(out)
    assert found.columns == ['user', 'rank', 'id', 'title', 'score', 'codes'] and len(found) == 90
    one = found.filter(pl.col('user') == 'u0')['id'].to_list()
    history = ','.join(str(10 + 4*t % 12) for t in range(5))
    assert one == answers(ask('recommend', '--model', model, '--history', history, '-k', '3', '--json')[1])

def test_recommend_what_is_allowed(ask, trained, tmp_path):
    (tmp_path/'offer.csv').write_text('item\n11\n12\n13\n')
    def ids(*words): return set(answers(ask('recommend', '--model', trained[0], '--history', '10,14', *words, '--json')[1]))
    assert ids('--allow', tmp_path/'offer.csv') == ids('--allow', '11,12,13') == {'11', '12', '13'}
    assert ids('--allow', '11,12,13', '--deny', '12', '-k', '12') == {'11', '13'}
    assert ids('--deny', tmp_path/'offer.csv', '-k', '12') == {str(i) for i in range(10, 22)} - {'11', '12', '13'}
    one_sentence(ask('recommend', '--model', trained[0], '--history', '10', '--allow', '99'), "'99'", '12 items')

def test_histories_and_history_exclude_each_other(ask, trained, shop, tmp_path):
    model = 'recommend', '--model', trained[0]
    one_sentence(ask(*model), 'neither --history nor --histories')
    one_sentence(ask(*model, '--history', '10', '--histories', shop/'interactions.csv', '--out', tmp_path/'o.parquet'), 'both --history and --histories')
    one_sentence(ask(*model, '--histories', shop/'interactions.csv'), '--out')
    one_sentence(ask(*model, '--history', '10', '--out', tmp_path/'o.parquet'), '--histories')
    one_sentence(ask(*model, '--histories', tmp_path/'gone.csv', '--out', tmp_path/'o.parquet'), 'gone.csv')
    one_sentence(ask(*model, '--histories', shop/'interactions.csv', '--out', tmp_path/'o.txt'), '.parquet')
    assert not list(tmp_path.iterdir())

def test_update_without_training(ask, trained, tmp_path):
    (tmp_path/'new.csv').write_text('item,text\n30,black cup\n31,black plate\n')
    before = seen(trained[0])
    code, text, err = ask('update', '--model', trained[0], tmp_path/'new.csv', '--retire', '10,11', '--out', tmp_path/'a'/'new', '--json')
    assert code == 0 and json.loads(text) == dict(items=12, new=2, retired=2, out=str(tmp_path/'a'/'new')), err
    assert seen(trained[0]) == before
    found = answers(ask('recommend', '--model', tmp_path/'a'/'new', '--history', '10,14', '-k', '99', '--json')[1])
    assert set(found) == {str(i) for i in (*range(12, 22), 30, 31)}
    code, text, err = ask('update', '--model', tmp_path/'a'/'new', '--retire', '30', '--out', tmp_path/'newer')
    assert code == 0 and text.startswith('11 items, 0 of them new, 1 retired'), err

def test_updates_that_are_refused(ask, trained, tmp_path):
    (tmp_path/'odd.csv').write_text('colour,shape\nred,round\n')
    words = 'update', '--model', trained[0], '--out', tmp_path/'never'/'deep'
    one_sentence(ask(*words), 'neither new items nor --retire')
    one_sentence(ask(*words, '--retire', '99'), "'99'")
    one_sentence(ask(*words, tmp_path/'odd.csv'))
    one_sentence(ask(*words, tmp_path/'gone.csv'), 'gone.csv')
    assert [p.name for p in tmp_path.iterdir()] == ['odd.csv']

def test_push(ask, trained, monkeypatch):
    import gentok
    pushed = []
    monkeypatch.setattr(gentok.Recommender, 'push_to_hub', lambda self, name: pushed.append((len(self), name)))
    code, text, err = ask('push', '--model', trained[0], 'ann/crockery')
    assert code == 0 and '--model ann/crockery' in text and pushed == [(12, 'ann/crockery')], err

# ---------------------------------------------------------------- bounds, pipes, signals

def test_more_than_there_is_is_cut(ask, trained, shop):
    model = trained[0]
    many = 'recommend', '--model', model, '--history', '10,14', '--json', '-k'
    assert answers(ask(*many, '300000000')[1]) == answers(ask(*many, '12')[1])
    assert answers(ask(*many, '3', '--beams', '100000000')[1]) == answers(ask(*many, '3', '--exact')[1])
    code, text, err = ask('evaluate', '--model', model, shop, '--beams', '100000000', '--json')
    assert code == 0 and json.loads(text)['config']['beams'] == 50 and json.loads(text)['recall@10'] == pytest.approx(trained[1]['recall@10']), err

def test_a_run_with_more_beams_than_items(ask, trained, shop):
    code, out, err = ask('run', 'tiger', shop, '--out', trained[0], *settings(tiny), '--beams', '100000000', '--json')
    assert code == 0 and json.loads(out)['config']['beams'] == 50, err

@pytest.mark.parametrize('words', [['--help'], ['methods'], ['recommend', '--help'], ['recommend', '--model', '{out}', '--history', '10']], ids=' '.join)
def test_a_pipe_that_nobody_reads(trained, words):
    words = [w.format(out=trained[0]) for w in words]
    running = subprocess.Popen([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait() == 0 and said == ''

def test_titles_that_the_terminal_cannot_write(renamed):
    model = renamed(titles=['红色的杯子 №1']*12)
    words = 'recommend', '--model', model, '--history', '10', '-k', '2'
    code, out, err = gentok(*words, PYTHONIOENCODING='cp1252')
    assert code == 0 and len(out.splitlines()) == 3 and '\\u7ea2' in out, err
    assert '红色的杯子' in gentok(*words, PYTHONIOENCODING='utf-8')[1]
    code, out, err = gentok('recommend', '--model', model, '--history', '红', PYTHONIOENCODING='cp1252')
    assert code == 2 and "item '\\u7ea2'" in err and 'Traceback' not in err
    assert gentok('recommend', '--help', PYTHONIOENCODING='cp1252')[0] == 0

@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_how_it_goes_on(shop, tmp_path, number, code):
    words = [*program, 'run', 'tiger', str(shop), '--out', str(tmp_path/'out'), *settings([v for v in tiny if v != 'epochs=12']), '--epochs', '5000']
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    patience = time.time() + 300
    while not (tmp_path/'out'/'training').exists() and running.poll() is None and time.time() < patience: time.sleep(.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (code, '') and err.rstrip().splitlines()[-1] == 'gentok run: stopped; the same command goes on from here.', err
    assert 'Traceback' not in err and not (tmp_path/'out'/'metrics.json').exists()

def test_two_runs_in_one_folder(ask, shop, catalogue, tmp_path):
    from gentok.store.runs import _locked
    code = f'import time; from gentok.store.runs import _locked\nwith _locked({str(tmp_path/"out")!r}): print("held", flush=True); time.sleep(300)'
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'held\n'
        before = sorted(tmp_path.rglob('*'))
        for words in (['run', 'tiger', shop], ['tokenize', catalogue], ['demo']):
            one_sentence(ask(*words, '--out', tmp_path/'out'), 'in use by process', str(other.pid))
        assert sorted(tmp_path.rglob('*')) == before
    finally: other.kill(); other.wait()
    with _locked(tmp_path/'out'): pass

# ---------------------------------------------------------------- who speaks

def test_a_rank_alone_silences_nobody(trained, catalogue, tmp_path):
    words = 'recommend', '--model', trained[0], '--history', '10,14', '-k', '3'
    spoken = gentok(*words)
    assert gentok(*words, RANK='1') == spoken and len(spoken[1].splitlines()) == 4
    assert gentok(*words, RANK='1', WORLD_SIZE='2') == spoken
    code, out, err = gentok('tokenize', catalogue, '--out', tmp_path/'ids', *settings(small), RANK='1', WORLD_SIZE='2')
    assert code == 0 and '12 items' in out, err

def test_run_with_a_rank_but_no_world(ask, trained, shop, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    code, out, _ = ask('run', 'tiger', shop, '--out', trained[0], *settings(tiny))
    assert code == 0 and '30 users, 12 items' in out

@pytest.mark.parametrize('command', ['run', 'demo', 'recommend', 'evaluate', 'tokenize'])
@pytest.mark.parametrize('rank', ['0', '1'])
def test_only_what_is_split_has_one_speaker(ask, shop, monkeypatch, command, rank):
    from gentok import cli
    from gentok.train import scale_out
    ended, knows = [], []
    def work(args): return knows.append(os.environ.get('WORLD_SIZE')) or {'done': True}
    monkeypatch.setitem(cli._commands, command, cli._commands[command]._replace(work=work))
    monkeypatch.setattr(scale_out, '_end_processes', lambda: ended.append(1))
    for name, value in dict(RANK=rank, WORLD_SIZE='2').items(): monkeypatch.setenv(name, value)
    words = dict(run=['tiger', shop, '--out', 'o'], recommend=['--model', 'm', '--history', '1'], evaluate=['--model', 'm', shop],
                 tokenize=[shop, '--out', 'o'], demo=[])[command]
    split = command in ('run', 'demo')
    assert ask(command, *words, '--json') == (0, '' if split and rank == '1' else '{"done": true}', '')
    assert ended == [1]*split and knows == ['2' if split else None] and os.environ['RANK'] == rank

# ---------------------------------------------------------------- how data is read

options = {
    '--user buyer --item sku --time at': dict(user='buyer', item='sku', time='at'),
    '--text title,brand --title title --image photo': dict(text=['title', 'brand'], title='title', image='photo'),
    '--rating stars --min-rating 3.5': dict(rating='stars', min_rating=3.5),
    '--min-rating 0 --core 5 --max-users 100 --dedupe --strict': dict(min_rating=0., core=5, max_users=100, dedupe=True, strict=True),
    '--where price>3': dict(where='price>3'), '': {}}

@pytest.mark.parametrize('typed, given', options.items(), ids=options)
@pytest.mark.parametrize('command', ['tokenize', 'run', 'evaluate', 'bench'])
def test_every_reader_understands_the_same_options(ask, monkeypatch, command, typed, given):
    from gentok.data import formats
    def load(path, **kw):
        assert (path, kw) == (Path('shop'), given)
        raise ValueError('read as asked.')
    monkeypatch.setattr(formats, 'load', load)
    words = dict(tokenize=['shop', '--out', 'o'], run=['tiger', 'shop', '--out', 'o'], evaluate=['--model', 'm', 'shop'],
                 bench=['--data', 'shop', '--rows', 'codes'])[command]
    one_sentence(ask(command, *words, *typed.split()), 'read as asked')

@pytest.mark.parametrize('typed', ['--core -1', '--core two', '--max-users -1', '--min-rating high', '--text'])
def test_options_that_no_data_could_meet(ask, shop, typed):
    one_sentence(ask('tokenize', shop, '--out', 'o', *typed.split()), typed.split()[0].lstrip('-'))

def test_data_read_as_asked_from_end_to_end(ask, trained, tmp_path):
    "Other names of columns and rows that are no interaction: the same shop, and the same numbers."
    home = tmp_path/'export'
    home.mkdir()
    pieces = [f'{c} {k}' for c in ('red', 'blue', 'green') for k in ('cup', 'plate', 'bowl', 'jug')]
    (home/'items.csv').write_text('sku,colour,kind\n' + ''.join(f'{10 + i},{t.replace(" ", ",")}\n' for i, t in enumerate(pieces)))
    rows = [f'u{u},{10 + (u + 4*t) % 12},{t},buy\nu{u},{10 + (u + 1) % 12},{t},look\n' for u in range(30) for t in range(5)]
    (home/'interactions.csv').write_text('buyer,sku,at,event\n' + ''.join(rows))
    how = ['--user', 'buyer', '--item', 'sku', '--time', 'at', '--text', 'colour,kind', '--where', "event = 'buy'"]
    code, out, err = ask('evaluate', '--model', trained[0], home, *how, '--json')
    assert code == 0, err
    assert {k: json.loads(out)[k] for k in ('recall@10', 'ndcg@10', 'users')} == {k: trained[1][k] for k in ('recall@10', 'ndcg@10', 'users')}

def test_a_bench_without_data_has_nothing_to_read(ask):
    one_sentence(ask('bench', '--max-users', '9', '--rows', 'codes'), '--max-users', 'no data is named')

# ---------------------------------------------------------------- tokenize

def test_tokenize_says_what_it_read(ask, catalogue, tmp_path):
    code, out, err = ask('tokenize', catalogue, '--out', tmp_path/'ids', *settings(small))
    assert code == 0 and err.startswith("Dataset('catalogue': 12 items") and 'Dataset' not in out

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
    option = '--tokenizer' if method == 'kmeans' else '--method'  # the name of the setting is understood as well
    words = ['tokenize', catalogue, option, method, '--out', tmp_path/'ids', '--json', *settings(small)]
    (code, first, _), (again, second, _) = ask(*words), ask(*words)
    assert code == again == 0 and json.loads(first) == json.loads(second)

def test_defaults_suit_a_small_catalogue(ask, catalogue, tmp_path):
    code, out, err = ask('tokenize', catalogue, '--out', tmp_path/'ids', '--tokenizer-epochs', '2')
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
    'unknown setting': ('--epoch 3', ['--epoch is not known', 'perhaps you meant --epochs']),
    'unknown setting with a value attached': ('--codbook-size=3', ['perhaps you meant --codebook-size']),
    'unlike any setting': ('--zzzz 3', ['--zzzz is not known', 'gentok run tiger --help']),
    'the old spelling': ('--set epochs=3', ['--set is not known']),
    'a word for a number': ('--epochs many', ["--epochs 'many' is no whole number", 'write it like 3']),
    'a fraction of an epoch': ('--epochs 1.5', ["--epochs '1.5' is no whole number"]),
    'a setting without value': ('--epochs', ['--epochs has no value']),
    'no epochs': ('--epochs 0', ['--epochs is 0']),
    'an impossible rate': ('--lr nan', ["--lr 'nan' is no finite number"]),
    'an infinite rate': ('--lr inf', ["--lr 'inf' is no finite number"]),
    'a negative decay': ('--weight-decay -1', ['--weight-decay is -1']),
    'a decay of more than everything': ('--weight-decay 1e300', ['--weight-decay is 1e+300 at lr 0.002', 'lower one of the two']),
    'no levels': ('--levels 0', ['--levels is 0']),
    'no codes': ('--codebook-size 0', ['--codebook-size is 0']),
    'too many codes': ('--codebook-size 999999999', ['--codebook-size is 999']),
    'no tokenizer epochs': ('--tokenizer-epochs 0', ['--tokenizer-epochs is 0']),
    'unknown tokenizer': ('--tokenizer magic', ["--tokenizer 'magic'", 'kmeans']),
    'a slip in a tokenizer': ('--tokenizer rqvea', ["--tokenizer 'rqvea'", 'perhaps you meant rqvae']),
    'unknown policy': ('--policy hope', ["--policy 'hope'", 'suffix']),
    'one word too many': ('and more', ['and is not known', '--help']),
}

@pytest.mark.parametrize('words, said', mistakes.values(), ids=mistakes)
def test_settings_that_no_run_could_use(ask, shop, tmp_path, words, said):
    one_sentence(ask('run', 'tiger', shop, '--out', tmp_path/'a'/'b', *words.split()), *said)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('method, words, said', [
    ('etegrec', '--sia nan', ["--sia 'nan' is no finite number"]), ('etegrec', '--psa -1', ['--psa is -1']),
    ('mtgrec', '--stages a,few', ['--stages', '8,3']), ('mtgrec', '--curriculum perhaps', ['perhaps is not known']),
    ('mtgrec', '--no-curiculum', ['perhaps you meant --no-curriculum']), ('unitok', '--text-encoder sasrec', ["--text-encoder is 'sasrec'"]),
    ('tigr', '', ["method 'tigr'", 'perhaps you meant tiger']), ('lion', '', ['tiger or mtgrec or']), ('--epochs', '3', ['no method'])])
def test_settings_of_the_other_methods(ask, shop, tmp_path, method, words, said):
    one_sentence(ask('run', method, shop, '--out', tmp_path/'out', *words.split()), *said)
    assert not list(tmp_path.iterdir())

def test_a_slip_in_a_command(ask):
    one_sentence(ask('evalute', 'shop'), "command 'evalute'", 'perhaps you meant evaluate')
    one_sentence(ask('tokenize', 'shop', '--out', 'o', '--method', 'kmean'), "--method 'kmean'", 'perhaps you meant kmeans')
    one_sentence(ask('tokenize', 'shop', '--ot', 'o'), 'perhaps you meant --out')
    one_sentence(ask('tokenize', 'shop', '--out', 'o', '--epochs', '3'), 'perhaps you meant --tokenizer-epochs')
    one_sentence(ask('tokenize'), 'DATA', '--out', 'must be given')
    one_sentence(ask('evaluate', 'shop', '--model', 'm', '--split', 'tset'), "--split 'tset'", 'perhaps you meant test')

def test_a_mistake_that_shows_on_the_way_leaves_nothing(ask, shop, tmp_path):
    code, out, err = ask('run', 'tiger', shop, '--out', tmp_path/'a'/'b', '--text-encoder', 'no/such/encoder')
    *report, said = err.splitlines()
    one_sentence((code, out, said), 'no/such/encoder', "'lsa'")
    assert report[0].startswith("Dataset('crockery': 12 items") and not list(tmp_path.iterdir())

def test_a_catalogue_alone_cannot_train(ask, catalogue, tmp_path):
    one_sentence(ask('run', 'tiger', catalogue, '--out', tmp_path/'out'), 'without histories', 'add the interactions')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('rows, options, words', [
    (['ann,10,1', 'ann,11,2', 'ann,12,3'], [], ['3 items', '4 or more']),  # too short to be split
    (['ann,10,1', 'ann,99,2'], [], ['1 items', '4 or more']),  # of an item that is not there nothing is left
    (['ann,10,1', 'ann,99,2'], ['--strict'], ['interactions.csv', '99'])])
def test_a_fault_in_the_histories_is_named(ask, shop, tmp_path, rows, options, words):
    home = tmp_path/'hasty'
    home.mkdir()
    (home/'items.csv').write_text((shop/'items.csv').read_text())
    (home/'interactions.csv').write_text('\n'.join(['user,item,time', *rows, '']))
    one_sentence(ask('run', 'tiger', home, '--out', tmp_path/'out', *options), *words)
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
    (home/'items.csv').write_text('item,text\n' + '\n'.join(f'{i},a cup' for i in range(20, 25)))
    (home/'interactions.csv').write_text('user,item,time\n' + '\n'.join(f'{user},{20 + t},{t}' for user in ('ann', 'bob') for t in range(5)))
    one_sentence(ask('evaluate', '--model', trained[0], home), 'does not know', '3 of 5 items', 'read with the same options')

slips = {'no command': [], 'unknown command': ['train'], 'unknown method': ['run', 'lion', '{shop}', '--out', '{out}'],
         'no --out': ['run', 'tiger', '{shop}'], 'k of nought': ['recommend', '--model', 'm', '--history', '1', '-k', '0'],
         'a folder of two lines': ['run', 'tiger', '{shop}', '--out', 'one\ntwo'],
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
    assert all(w in page for w in ('Random identifiers', 'Most popular', 'Bayes limit', 'data:image'))
