"UniTok, the paper: domains that share a tokenizer, whole runs, and the command line"
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gentok.data.toyshop import toyshop
from gentok.ids.item_ids import ItemIds
from gentok.papers import tiger, unitok
from gentok.papers.unitok import UnitokConfig, _by_name, _fit_tokenizers, _recommend, run, run_domains

small = UnitokConfig(text_dim=12, codebook_size=16, tokenizer_epochs=12, tokenizer_warm=4, epochs=1, validate_every=1, d_model=16,
                     layers=1, batch_size=64, beams=10)

@pytest.fixture(scope='module')
def shops(): return _by_name(toyshop(n_items=40, n_users=30, domains=3))

def equal(a, b):
    drop = lambda m: {k: v for k, v in m.items() if k != 'seconds'}
    return drop(a.metrics) == drop(b.metrics) and torch.equal(a.fitted.item_ids.table, b.fitted.item_ids.table)

@pytest.mark.parametrize('kind', ['unitok', 'own', 'shared'])
def test_every_domain_gets_its_numbers(kind, shops, tmp_path):
    done = run_domains(shops.values(), replace(small, tokenizer=kind), tmp_path)
    assert list(done) == list(shops)
    for name, result in done.items():
        assert len(result.fitted.item_ids.table.unique(dim=0)) == 40 and result.metrics['invalid_rate'] == 0
        assert json.loads((tmp_path/name/'metrics.json').read_text()) == json.loads(json.dumps(result.metrics))

def test_the_same_seed_gives_the_same_everything(shops):
    name = list(shops)[0]
    one, two, other = (run_domains(shops.values(), replace(small, seed=s), only=[name])[name] for s in (0, 0, 1))
    assert equal(one, two) and not equal(one, other)

def test_identifiers_stay_as_they_were_made_first(shops, tmp_path, monkeypatch):
    name = list(shops)[0]
    first = run_domains(shops.values(), small, tmp_path, only=[name])[name]
    ids = first.fitted.item_ids
    monkeypatch.setattr(unitok, '_unique_ids', lambda *args: ItemIds(ids.table.flip(0), ids.sizes)) # what rounding may do to a tie
    assert equal(run_domains(shops.values(), small, tmp_path, only=[name])[name], first)

@pytest.mark.parametrize('stage', ['learn', 'recommend'])
def test_killed_between_stages_it_continues(stage, shops, tmp_path, monkeypatch):
    name = list(shops)[1]
    whole = run_domains(shops.values(), small, tmp_path/'whole', only=[name])[name]
    def cut(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(unitok, 'fit_recommender' if stage == 'learn' else 'finish_run', cut)
        run_domains(shops.values(), small, tmp_path/'cut', only=[name])
    assert equal(run_domains(shops.values(), small, tmp_path/'cut', only=[name])[name], whole)

def test_a_left_out_domain_teaches_nothing(shops):
    last = list(shops)[2]
    without = _fit_tokenizers(shops, replace(small, leave_out=last))
    alone = _fit_tokenizers({n: d for n, d in shops.items() if n != last}, small)
    first = list(shops)[0]
    assert torch.equal(without.tables[first].matrix, alone.tables[first].matrix)
    assert torch.equal(without.tokenizers[last].encode(without.tables[first]), alone.tokenizers[first].encode(alone.tables[first]))
    assert without.tokenizers[last].encode(without.tables[last]).shape == (40, 1 + small.levels)

def test_histories_teach_the_tokenizer_nothing(shops):
    name = list(shops)[0]
    other = toyshop(n_items=40, n_users=7, domains=3, seed=0)
    fewer = _by_name([*other[:1], *list(shops.values())[1:]])
    assert list(fewer[name].catalogue.text) == list(shops[name].catalogue.text)
    a, b = _fit_tokenizers(shops, small), _fit_tokenizers(fewer, small)
    assert torch.equal(a.tokenizers[name].encode(a.tables[name]), b.tokenizers[name].encode(b.tables[name]))

def test_experts_of_their_own_are_unique_within_an_expert(shops):
    tokens = _fit_tokenizers(shops, replace(small, codebook_size=4, levels=3))
    for name, table in tokens.tables.items():
        tokenizer = tokens.tokenizers[name]
        item_ids, codes = tiger._unique_ids(tokenizer, table, 'reassign'), tokenizer.encode(table)
        assert torch.equal(item_ids.table[:, 0], codes[:, 0]) and len(item_ids.table.unique(dim=0)) == 40

def test_refusals(shops, tmp_path):
    first = next(iter(shops.values()))
    with pytest.raises(ValueError, match='name one of several'): _fit_tokenizers(shops, replace(small, leave_out='hats'))
    with pytest.raises(ValueError, match='different names'): _by_name([first, first])
    run(first, small, tmp_path)
    with pytest.raises(ValueError, match='calibration'): run(first, replace(small, calibration=.5), tmp_path)

def test_from_the_command_line(shops, tmp_path):
    from gentok.data.formats import load
    folders = []
    for name, shop in shops.items():
        folder = tmp_path/name
        folder.mkdir()
        h = shop.histories
        users = {str(u): h.items[h.offsets[u]:h.offsets[u+1]].tolist() for u in range(len(h))}
        items = {str(i): dict(title=text) for i, text in enumerate(shop.catalogue.text)}
        (folder/f'{name}.inter.json').write_text(json.dumps(users))
        (folder/f'{name}.item.json').write_text(json.dumps(items))
        folders.append(folder)
    settings = ['text_dim=12', 'codebook_size=16', 'tokenizer_epochs=6', 'tokenizer_warm=2', 'epochs=1', 'd_model=16', 'layers=1', 'beams=10']
    command = [sys.executable, '-m', 'gentok.cli', 'run', 'unitok', str(folders[0]), '--out', str(tmp_path/'out')]
    for s in (*settings, f'others={folders[1]},{folders[2]}'): command += [f'--{s}']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert metrics['items'] == 40 and load(folders[0]).name == list(shops)[0]

# --- the theorems

def test_bits_obey_the_chain_rule_wherever_the_number_stands(shops):
    from gentok.embed.table import _concat_domains
    from gentok.papers.unitok_theorems import code_entropies
    tokens = _fit_tokenizers(shops, small)
    table, made = _concat_domains(tokens.tables), tokens.tokenizers[list(shops)[0]]
    last = type(made)(replace(made.experts, identity='suffix'), made.config, made.fit_config).fit(table)
    one, other = code_entropies(made, table), code_entropies(last, table)
    assert one == pytest.approx(other) and 0 < one.expert <= 1.585 and one.identifier <= one.ceiling
    plain = code_entropies(_fit_tokenizers(shops, replace(small, tokenizer='shared')).tokenizers[list(shops)[0]], table)
    assert plain.expert == 0 and plain.within == plain.identifier

def test_a_sweep_of_the_calibration_is_resumed(shops, tmp_path, monkeypatch):
    from gentok.papers.unitok_theorems import sweep_calibration
    from gentok.tokenize.rqvae import RQVAE
    rows = sweep_calibration(shops, small, (0., 9.), tmp_path)
    monkeypatch.setattr(RQVAE, 'train_epoch', lambda *args: pytest.fail('trained again'))
    assert sweep_calibration(shops, small, (0., 9.), tmp_path) == rows and rows[0] != rows[1]
