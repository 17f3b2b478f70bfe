"Any rival is a method: run by its name, resumed, judged, reported, asked like any."
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import gentok
from gentok.baselines.run import FittedSequenceModel, _homes, fit_rival, rival_of
from gentok.data.dataset import Catalogue, Dataset
from gentok.data.splits import leave_one_out
from gentok.papers.protocol import FittedRecommender, run_rival
from test_cli import program, promised
from two import torchrun

every = pytest.mark.parametrize('name', _homes)
small = dict(dim=8, epochs=2, batch_size=16, lr=.01, seed=3)
own = dict(gru4rec=dict(hidden=6), caser=dict(vertical=1, horizontal=2),
           fmlp_rec=dict(max_length=6, blocks=1), fdsa=dict(blocks=1),
           s3_rec=dict(blocks=1, pretrain_epochs=1), lightgcn=dict(layers=1))
by_user = 'caser', 'hgn', 'mf', 'lightgcn'
measured = 'recall@5', 'ndcg@5', 'recall@10', 'ndcg@10'

def told(**given):
    return [w for k, v in given.items() for w in (f'--{k.replace("_", "-")}', str(v))]

def settings(name): return small | own.get(name, {})

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "Twelve items; users with many, three, two and one of them, who also repeat"
    home = tmp_path_factory.mktemp('data')/'crockery'
    home.mkdir()
    colours, kinds = ('red', 'blue', 'green'), ('cup', 'plate', 'bowl', 'jug')
    pieces = [f'{colour} {kind}' for colour in colours for kind in kinds]
    rows = [f'{10 + i},{text}' for i, text in enumerate(pieces)]
    (home/'items.csv').write_text('\n'.join(['item,text', *rows]) + '\n')
    taken = [f'u{u},{10 + (u + (4 if u % 2 else 5)*t) % 12},{t}'
             for u in range(30) for t in range((6, 7, 5)[u % 3])]
    taken += [f'few{n},{10 + (n + t) % 12},{t}' for n in (1, 2, 3) for t in range(n)]
    (home/'interactions.csv').write_text('\n'.join(['user,item,time', *taken]) + '\n')
    return home

@pytest.fixture(scope='module')
def data(shop): return gentok.load(shop)

@pytest.fixture(scope='module')
def run_of(shop, tmp_path_factory):
    "Each is run once, by its name on the command line, when it is first asked for"
    from gentok.cli import main
    made = {}
    def of(name):
        if name not in made:
            out = tmp_path_factory.mktemp('runs')/name
            words = ['run', name, str(shop), '--out', str(out), *told(**settings(name))]
            assert main(words) == 0
            made[name] = out
        return made[name]
    return of

def kept(out, file): return json.loads((out/file).read_text())
def timeless(metrics): return {k: v for k, v in metrics.items() if k != 'seconds'}
def model_of(out): return gentok.Recommender.from_pretrained(out)
def one_sentence(capsys, *words):
    from gentok.cli import main
    capsys.readouterr()
    code = main([*map(str, words)])
    said = capsys.readouterr()
    assert (code, said.out, said.err.count('\n')) == (2, '', 1), said
    return said.err

# ---------------------------------------------------------------- what a run leaves

@every
def test_a_run_leaves_what_every_method_leaves(name, run_of, data):
    out = run_of(name)
    m, page = kept(out, 'metrics.json'), (out/'report.html').read_text()
    assert set(promised) <= set(m) and (m['items'], m['seed']) == (12, 3)
    assert m['users'] == 32 and m['version'] == gentok.__version__ # few1 has no test
    config = rival_of(name).settings(**settings(name))
    assert m['config'] == asdict(config) == kept(out, 'run.json')['config']
    assert m['collision_rate'] is None and m['invalid_rate'] == 0
    assert kept(out, 'run.json')['method'] == name and m['seconds'] >= 0
    curve = kept(out, 'curve.json')
    assert [row['epoch'] for row in curve] == [1, 2]
    assert all({'loss', 'ndcg@10'} <= row.keys() for row in curve)
    tensors = load_file(out/'model.safetensors')
    model = model_of(out).fitted.model
    assert m['parameters'] == sum(p.numel() for p in model.parameters())
    assert m['parameters'] <= sum(t.numel() for t in tensors.values())
    title = gentok.methods[name].partition(':')[0]
    assert f'{title} on crockery' in page and 'red cup' in page
    assert 'id="codes"' not in page and 'id="health"' not in page
    assert 'unseen NDCG@10' in page and 'id="users"' in page and 'id="curves"' in page
    assert (out/'README.md').read_text().count('sequential-recommendation') == 1

@every
def test_both_columns_are_rankings(name, run_of, data):
    "Counted by hand from all scores, with and without what a user has had"
    out, data = run_of(name), data.in_canonical_order()
    m, model = kept(out, 'metrics.json'), model_of(out).fitted.model
    test, whole = leave_one_out(data).test, leave_one_out(data, None).test
    scores, found = model.scores(test), {}
    for way in ('all', 'new'):
        if way == 'new':
            for row, history in enumerate(whole.histories()):
                scores[row, history] = -torch.inf
        top = scores.sort(dim=1, descending=True, stable=True).indices[:, :10]
        hit = top == test.targets[:, None]
        if way == 'new': hit &= scores.gather(1, top) > -torch.inf
        gain = hit/torch.log2(torch.arange(10) + 2.)
        found[way] = {f'recall@{k}': hit[:, :k].any(1).double().mean().item()
                      for k in (5, 10)}
        found[way] |= {f'ndcg@{k}': gain[:, :k].sum(1).double().mean().item()
                       for k in (5, 10)}
    for metric in measured:
        assert m[metric] == pytest.approx(found['all'][metric], abs=1e-6)
        assert m['unseen'][metric] == pytest.approx(found['new'][metric], abs=1e-6)
    again = [int(t) in h.tolist() for t, h in zip(test.targets, whole.histories())]
    assert m['unseen']['repeats'] == pytest.approx(sum(again)/len(again)) and any(again)

@every
def test_the_folder_answers(name, run_of, data):
    out = run_of(name)
    rec, m = model_of(out), kept(out, 'metrics.json')
    for unseen, column in ((False, m), (True, m['unseen'])):
        judged = rec.evaluate(data, unseen=unseen)
        assert all(judged[k] == pytest.approx(column[k], abs=1e-9) for k in measured)
    frame = table(data)
    found = rec.recommend(frame, k=12)
    assert found.columns == ['user', 'rank', 'id', 'title', 'score']
    sums = found.group_by('user').agg(pl.col('score').exp().sum())['score']
    assert sums.to_list() == pytest.approx([1.]*len(sums), abs=1e-5)
    new = rec.recommend(frame, k=12, unseen=True)
    taken = dict(frame.rows())
    assert all(i not in taken[u] for u, i in new.select('user', 'id').rows())
    few = rec.recommend(frame, k=12, allow=['10', '11', '12'], deny=['11'])
    assert set(few['id']) == {'10', '12'}
    both = few.join(found, on=['user', 'id'])
    assert both['score'].to_list() == pytest.approx(both['score_right'].to_list())
    near = rec.neighbours('10', 3)
    assert near.columns == ['rank', 'id', 'title', 'cosine'] and '10' not in near['id']
    for ask in (lambda: rec.codes('10'), lambda: rec.items((1, 2)), rec.trie):
        with pytest.raises(ValueError, match=f'^{name} ranks the items themselves and '
                           r'has no codes; [^.]*\.$'): ask()

def table(data): # a row for each user: what stands before the last item
    rows = [(u, [data.catalogue.ids[i] for i in h.tolist()[:-1]])
            for u, h in zip(data.histories.users, data.histories) if len(h) > 1]
    return pl.DataFrame(rows, ['user', 'items'], orient='row')

@every
def test_saved_and_read(name, run_of, data, tmp_path):
    rec = model_of(run_of(name))
    rec.save_pretrained(tmp_path)
    again = model_of(tmp_path)
    asked = table(data)
    assert again.recommend(asked, k=5).equals(rec.recommend(asked, k=5))
    assert repr(again) == repr(rec) and f'Recommender({name} on crockery' in repr(rec)
    assert (tmp_path/'users.json').exists() == (name in by_user)
    gone = again.update(retire=['10'])
    assert '10' not in set(gone.recommend(asked, k=12)['id'])
    with pytest.raises(ValueError, match='has no codes'):
        again.update(pl.DataFrame(dict(item=['99'], text=['a pan'])))

# ---------------------------------------------------------------- the same run again

@every
def test_run_again_changes_nothing(name, run_of, shop):
    from gentok.cli import main
    out = run_of(name)
    weights, before = (out/'model.safetensors').read_bytes(), kept(out, 'metrics.json')
    steps = {p: p.stat().st_mtime_ns for p in (out/'training').rglob('*')}
    words = ['run', name, str(shop), '--out', str(out), *told(**settings(name))]
    assert main(words) == 0
    assert timeless(kept(out, 'metrics.json')) == timeless(before)
    assert (out/'model.safetensors').read_bytes() == weights
    assert steps == {p: p.stat().st_mtime_ns for p in (out/'training').rglob('*')}

def test_a_run_survives_a_kill(shop, tmp_path):
    given = dict(small, epochs=100, patience=0, hidden=6)
    def words(out): return ['run', 'gru4rec', str(shop), '--out', str(out),
                            *told(**given)]
    running = subprocess.Popen([*program, *words(tmp_path/'cut')],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until, steps = time.time() + 300, (tmp_path/'cut'/'training')
    while not any(steps.glob('step-*')) and running.poll() is None:
        assert time.time() < until
        time.sleep(.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path/'cut'/'metrics.json').exists() and any(steps.glob('step-*'))
    from gentok.cli import main
    for out in ('cut', 'whole'): assert main(words(tmp_path/out)) == 0
    cut, whole = (tmp_path/out for out in ('cut', 'whole'))
    assert timeless(kept(cut, 'metrics.json')) == timeless(kept(whole, 'metrics.json'))
    assert kept(cut, 'curve.json') == kept(whole, 'curve.json')
    same = (out/'model.safetensors' for out in (cut, whole))
    assert next(same).read_bytes() == next(same).read_bytes()

@pytest.mark.parametrize('name', ['gru4rec', 's3_rec', 'mf'])
def test_other_data_and_other_settings_are_refused(name, run_of, shop, data, capsys,
                                                   tmp_path):
    out, words = run_of(name), told(**settings(name))
    before = (out/'metrics.json').read_bytes()
    changed = tmp_path/'crockery'
    changed.mkdir()
    (changed/'items.csv').write_text((shop/'items.csv').read_text())
    log = (shop/'interactions.csv').read_text()
    (changed/'interactions.csv').write_text(log + 'u1,10,99\n')
    said = one_sentence(capsys, 'run', name, changed, '--out', out, *words)
    assert 'holds a run on other data' in said
    said = one_sentence(capsys, 'run', name, shop, '--out', out, *words, '--dim', '10')
    assert 'dim=8, but dim=10' in said
    said = one_sentence(capsys, 'run', 'sasrec', shop, '--out', out)
    assert f"method='{name}', but method='sasrec'" in said
    assert (out/'metrics.json').read_bytes() == before

def test_the_seed_decides(data):
    runs = [run_rival(data, rival_of('hgn').settings(**dict(small, seed=seed)))
            for seed in (0, 0, 1)]
    weights = [r.fitted.model.items.weight for r in runs]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    assert [r.metrics['seed'] for r in runs] == [0, 0, 1]

# ---------------------------------------------------------------- the command line

@every
def test_help_lists_every_setting_with_its_meaning(name, capsys, monkeypatch):
    from gentok.cli import _meanings, main
    monkeypatch.setenv('COLUMNS', '200')
    assert main(['run', name, '--help']) == 0
    out = ' '.join(re.sub('[│|]', ' ', capsys.readouterr().out).split())
    config = rival_of(name).settings()
    assert set(_meanings(config)) == {f.name for f in fields(config)}
    for f in fields(config):
        option, default = f'--{f.name.replace("_", "-")}', str(getattr(config, f.name))
        pattern = (rf'(?<![\w-]){option}\b(?!-)(, --no-[\w-]+)? (?:(?! --).)*?'
                   rf'\(default: {re.escape(default)}\)')
        assert re.search(pattern, out), option

def test_words_become_the_settings(shop, tmp_path, monkeypatch):
    from gentok import cli
    seen, run = [], cli._commands['run']
    work = lambda asked: seen.append(asked) or {}
    monkeypatch.setitem(cli._commands, 'run', run._replace(work=work, show=str))
    cli.main(['run', 'fdsa', str(shop), '--out', str(tmp_path), '--no-relu',
              '--max-length', '7', '--dropout', '.1'])
    expected = replace(gentok.config_of('fdsa')(), relu=False, max_length=7, dropout=.1)
    assert seen[0].settings == expected

@pytest.mark.parametrize('words, said', {
    'run gru4reck SHOP': 'perhaps you meant gru4rec',
    'run sasrec SHOP --head 2': '--head is not known; perhaps you meant --heads',
    'run sasrec SHOP --heads 3': 'give a width that the heads can share evenly',
    'run mf SHOP --loss bprr': "--loss is 'bprr'; choose 'bpr' or 'softmax'",
    'run hgn SHOP --dropout 1': '--dropout is 1.0; give 0 or more, and less than 1',
    'run hgn SHOP --epochs 0': '--epochs is 0; give at least 1'}.items())
def test_a_slip_is_one_sentence(words, said, shop, capsys, tmp_path):
    typed = words.replace('SHOP', str(shop)).split()
    assert said in one_sentence(capsys, *typed, '--out', tmp_path/'never')
    assert not (tmp_path/'never').exists()

@pytest.mark.parametrize('name', ['fdsa', 's3_rec'])
def test_items_without_words(name, shop, capsys, tmp_path):
    (home := tmp_path/'mute').mkdir()
    (home/'interactions.csv').write_text((shop/'interactions.csv').read_text())
    from gentok.cli import main
    assert main(['run', name, str(home), '--out', str(tmp_path/'never')]) == 2
    said = capsys.readouterr().err.splitlines()[-1] # behind what was read
    assert 'has no texts, and this model reads what items say' in said
    assert not (tmp_path/'never').exists()

def test_asked_by_the_command_line(run_of, shop, capsys):
    from gentok.cli import main
    out = str(run_of('sasrec'))
    def ask(*words):
        capsys.readouterr()
        assert main([*words, '--json']) == 0
        return json.loads(capsys.readouterr().out)
    def items(*words): return [i['id'] for i in ask(
        'recommend', '--model', out, '--history', '10,14', '-k', '12', *words)['items']]
    assert sorted(items()) == [str(i) for i in range(10, 22)]
    assert items('--unseen') == [i for i in items() if i not in ('10', '14')]
    assert set(items('--allow', '12,13')) == {'12', '13'}
    m = kept(Path(out), 'metrics.json')
    found = ask('evaluate', '--model', out, str(shop))
    assert {k: found[k] for k in measured} == {k: m[k] for k in measured}
    assert (found['collision_rate'], found['config']['exact']) == (None, True)
    main(['evaluate', '--model', out, str(shop), '--unseen'])
    said = capsys.readouterr().out
    assert f'{m["parameters"]:,} weights, no codes' in said and 'new to a user' in said
    main(['run', 'sasrec', str(shop), '--out', out, *told(**settings('sasrec'))])
    said = capsys.readouterr().out
    assert f'{m["ndcg@10"]:.4f}  {m["unseen"]["ndcg@10"]:.4f}' in said

@pytest.mark.parametrize('name', ['mf', 'lightgcn'])
def test_a_model_of_users_needs_to_know_them(name, run_of, data, capsys):
    out = run_of(name)
    said = one_sentence(capsys, 'recommend', '--model', out, '--history', '10,14')
    assert 'a list of histories names nobody; give their ids in a column user' in said
    rec, stranger = model_of(out), pl.DataFrame(dict(user=['eve'], items=[['10']]))
    with pytest.raises(ValueError, match="and 'eve' is new; give"):
        rec.recommend(stranger)
    two = pl.DataFrame(dict(user=['u7', 'u9'], items=[['10'], ['10']]))
    a, b = (rec.recommend(two.filter(pl.col('user') == u), k=12) for u in two['user'])
    assert a['score'].to_list() != b['score'].to_list() # by user, not by history

@pytest.mark.parametrize('name', ['caser', 'hgn'])
def test_a_window_has_an_answer_for_nobody(name, run_of):
    rec = model_of(run_of(name))
    asked = dict(user=['u7', 'eve'], items=[['10', '14']]*2)
    found = rec.recommend(pl.DataFrame(asked), k=12)
    ann, eve = (found.filter(pl.col('user') == u)['score'].to_list()
                for u in asked['user'])
    nobody = rec.recommend([['10', '14']], k=12)['score'].to_list()
    assert eve == pytest.approx(nobody) and eve != pytest.approx(ann)

# ---------------------------------------------------------------- little to go by

@pytest.mark.parametrize('name', [n for n in _homes if n not in ('mf', 'lightgcn')])
def test_short_and_empty_histories(name, run_of):
    rec = model_of(run_of(name))
    with pytest.warns(UserWarning, match='1 users without a known item'):
        found = rec.recommend([['10'], [], ['11', '12']], k=3)
    assert found['user'].to_list() == [0]*3 + [2]*3
    alone = rec.recommend([['10']], k=3)
    assert alone['id'].to_list() == found.filter(pl.col('user') == 0)['id'].to_list()
    assert alone['score'].is_not_nan().all()
    nothing = pytest.raises(ValueError, match='no history has an item')
    with pytest.warns(UserWarning), nothing: rec.recommend([[]])

@pytest.mark.parametrize('name', by_user)
def test_users_without_a_training_example(name, run_of, data):
    rec = model_of(run_of(name))
    users, weight = rec.fitted.users, rec.fitted.model.users.weight
    assert set(users) == set(map(str, data.histories.users))
    assert not weight[[users[f'few{n}'] for n in (1, 2, 3)]].any()
    assert weight[users['u1']].any()
    found = rec.recommend(pl.DataFrame(dict(user=['few2'], items=[['11']])), k=12)
    assert found.height == 12 and found['score'].is_not_nan().all()

def test_data_too_short_for_anybody(shop, capsys, tmp_path):
    (home := tmp_path/'short').mkdir()
    (home/'items.csv').write_text((shop/'items.csv').read_text())
    (home/'interactions.csv').write_text('user,item,time\nann,10,1\nann,11,2\n')
    said = one_sentence(capsys, 'run', 'hgn', home, '--out', tmp_path/'never')
    assert 'expected one with 4 or more' in said

# ---------------------------------------------------------------- beside other methods

def test_both_kinds_answer_the_same_questions():
    names = [{n for n in dir(kind) if not n.startswith('_')}
             for kind in (FittedRecommender, FittedSequenceModel)]
    shared = {'search', 'reads', 'known', 'near', 'facts', 'size', 'card', 'save',
              'item_ids', 'ranks_all', 'model', 'result'}
    assert shared <= names[0] & names[1]

def test_a_rival_beside_a_method_with_codes(data, tmp_path):
    from gentok.evaluate.significance import paired_t_test
    from gentok.papers import tiger
    from gentok.papers.sweeps import long_tail, sweep
    tiny = tiger.TigerConfig(epochs=2, batch_size=32, d_model=16, layers=1, text_dim=6,
                             codebook_size=4, validate_every=1)
    ours, config = tiger.run(data, tiny), rival_of('fmlp_rec').settings(
        **settings('fmlp_rec'))
    rival = run_rival(data, config)
    both = {'TIGER': ours.evaluation, 'FMLP-Rec': rival.evaluation}
    assert set(ours.metrics) == set(rival.metrics) - {'unseen'}
    test = paired_t_test(*(e.users['ndcg@10'] for e in both.values()))
    expected = ours.metrics['ndcg@10'] - rival.metrics['ndcg@10']
    assert test.difference == pytest.approx(expected, abs=1e-6)
    split = leave_one_out(data.in_canonical_order())
    tail = long_tail(both, split, 12)
    assert sum(row['users'] for row in tail) == 32
    rows = sweep(run_rival, data, config, dict(seed=(3, 4)), tmp_path)
    assert rows[0]['ndcg@10'] == rival.metrics['ndcg@10']
    assert rows == sweep(run_rival, data, config, dict(seed=(3, 4)), tmp_path)

def test_settings_of_another_rival(data):
    with pytest.raises(ValueError, match='CaserConfig is not the settings of hgn, '
                       'expected HGNConfig'):
        gentok.fit('hgn', data, config=gentok.config_of('caser')())
    with pytest.raises(ValueError, match='perhaps you meant hidden'):
        gentok.fit('gru4rec', data, hiden=3)

# ---------------------------------------------------------------- several processes

shared = dict(gru4rec=dict(small, hidden=6, dropout=0.), hgn=dict(small))

def circle():
    "Users of uneven length, 33 of them, so that a batch of 16 leaves one row over"
    walks = {f'u{u:02}': [f'i{(u + t*(1 + u % 2)) % 12:02}' for t in range(4 + u % 5)]
             for u in range(33)}
    return Dataset('circle', Catalogue([f'i{i:02}' for i in range(12)], ['']*12), walks)

def leave(out, tag):
    for name, given in shared.items():
        config = rival_of(name).settings(**given)
        run_rival(circle(), config, f'{out}/{tag}-{name}')
        own = f'{out}/{tag}-{name}-own'
        fitted = fit_rival(leave_one_out(circle()), circle(), config, own)
        rank = os.environ.get('RANK', '0')
        save_file({k: v.clone().contiguous() for k, v in
                   fitted.model.state_dict().items()},
                  f'{out}/{tag}-{name}-{rank}.safetensors')

def test_two_processes_learn_what_one_does(tmp_path):
    program = f"from test_rivals import leave; leave({str(tmp_path)!r}, 'two')"
    torchrun(tmp_path, program)
    leave(tmp_path, 'one')
    for name in shared:
        one, *two = (load_file(tmp_path/f'{tag}-{name}-{rank}.safetensors')
                     for tag, rank in (('one', 0), ('two', 0), ('two', 1)))
        assert all(torch.equal(two[0][k], two[1][k]) for k in two[0])
        for k in one:
            torch.testing.assert_close(two[0][k], one[k], rtol=1e-3, atol=1e-5)
        outs = [tmp_path/f'{tag}-{name}' for tag in ('one', 'two')]
        curves = [kept(out, 'curve.json') for out in outs]
        for a, b in zip(*curves, strict=True):
            assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)
        found = [kept(out, 'metrics.json') for out in outs]
        assert found[0]['config'] == found[1]['config']
        assert found[0]['ndcg@10'] == pytest.approx(found[1]['ndcg@10'], abs=.02)
