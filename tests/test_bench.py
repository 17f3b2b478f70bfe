"The benchmark: a race needs equal answers, its command prints a table, and a missing peer is named."
import importlib.util
import json
import pytest
import torch
from gentok.bench import BenchmarkRow, bench, _generate, _lay_out, _load_rows, compare_speed, _same_ten
from gentok.cli import main
from gentok.fast.memory import _depth, _kept_memory
from gentok.data.toyshop import toyshop
from gentok.recommend.t5 import RecommenderConfig
from gentok.search.beam import beam_search

peer = importlib.util.find_spec('vector_quantize_pytorch') is not None

def run(capsys, *argv):
    code = main(['bench', *argv])
    out = capsys.readouterr()
    return code, out.out, out.err

@pytest.mark.skipif(not peer, reason='vector-quantize-pytorch, the peer, is not installed')
def test_codes_are_those_of_the_peer(capsys):
    code, out, err = run(capsys, '--rows', 'codes', '--vectors', '3000', '--repeats', '2', '--json')
    row = json.loads(out)['rows']['codes']
    assert code == 0 and len(row['ours']) == 2 and row['ratio'] > 0 and 'identical codes' in row['note'], err

@pytest.mark.skipif(peer, reason='vector-quantize-pytorch is installed')
def test_a_missing_peer_is_named(capsys):
    code, out, err = run(capsys, '--rows', 'codes')
    assert code == 2 and "pip install 'gentok[bench]'" in err and 'Traceback' not in err

def test_an_unknown_row_is_named(capsys):
    code, out, err = run(capsys, '--rows', 'speed')
    assert code == 2 and "row 'speed'" in err and 'free' in err

def test_answers_that_differ_are_no_race():
    def same(a, b): assert a == b
    with pytest.raises(AssertionError): compare_speed('x', lambda: 1, lambda: 2, same, 1, 'n', 'peer', 1.)

def test_the_ratio_is_that_of_the_pairs():
    row = BenchmarkRow('x', 'peer', 'n', (1., 8., 3.), (1., 2., 1.), 3.)
    assert row.ratio == 3. and 'reached' in str(row)

def test_beams_are_those_of_transformers_and_a_wrong_score_is_seen():
    field = _lay_out(toyshop(n_items=50, n_users=50, domains=1, seed=3)[0], config=RecommenderConfig(32, 64, 2, 16, 1), K=6)
    users = field.split.test.select(slice(0, 20))
    theirs = _generate(field.model, field.trie, users)
    ours = beam_search(field.model, field.trie, users, free=True)
    assert 'same ten for 20 users' in _same_ten(field.model, field.trie, ours, theirs)
    worse = ours._replace(scores=ours.scores - torch.tensor([0.]*9 + [.01]))
    with pytest.raises(ValueError, match='not the same search'): _same_ten(field.model, field.trie, worse, theirs)

def test_kept_memory_ends_with_its_block():
    with pytest.raises(RuntimeError):
        with _kept_memory(), _kept_memory(): raise RuntimeError
    assert _depth == [0]

def test_loading_is_raced_to_the_same_histories():
    rows = list(_load_rows(20_000, 1))
    assert [r.name for r in rows] == ['memory to load csv', 'load csv', 'memory to load parquet', 'memory to load jsonl', 'load jsonl']
    assert all(r.ratio > 0 for r in rows) and '20,000 interactions with 2,000 items' in rows[1].note
