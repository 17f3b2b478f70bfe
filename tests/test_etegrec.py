"ETEGRec as a whole: whose weights move, what a cut leaves behind, and what no optimiser may touch."
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.splits import leave_one_out
from gentok.data.toyshop import toyshop
from gentok.papers import etegrec
from gentok.papers.etegrec import EtegrecConfig, _train_jointly, _joint_model, run
from gentok.embed.table import EmbeddingTable
from gentok.papers.tiger import make_tokenizer, tokenize_catalogue
from gentok.train.loop import Trainer
from test_train import PowerCut

small = EtegrecConfig(text='lsa', text_dim=8, levels=2, codebook_size=32, tokenizer_epochs=10, epochs=7, fine_tune_epochs=2, cycle=2, alignment_warmup=1, d_model=16, layers=1,
                      batch_size=32, tokenizer_lr=1e-3, sia=.1, psa=.1, beams=10)

def shop(): return toyshop(n_items=30, n_users=40, domains=1)[0]

@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 6), st.integers(0, 20), st.booleans())
def test_a_plan_is_possible_or_one_sentence(epochs, cycle, tune, alternate):
    possible = cycle >= 2 and epochs - (tune or max(1, epochs//4)) >= cycle
    if not possible:
        with pytest.raises(ValueError, match=r'^[^.]*\.$'): EtegrecConfig(epochs=epochs, cycle=cycle, fine_tune_epochs=tune, alternate=alternate)
        return
    plan = EtegrecConfig(epochs=epochs, cycle=cycle, fine_tune_epochs=tune, alternate=alternate)
    assert len(plan.order) == cycle and plan.joint_epochs + plan.fine_tuning_epochs == epochs and plan.fine_tuning_epochs in (tune, max(1, epochs//4))
    assert plan.order.count('tokenizer') == (1 if alternate else 0)

def test_no_optimiser_can_shrink_the_items(tmp_path):
    split, strong = leave_one_out(shop()), replace(small, weight_decay=.9)
    prepared = tokenize_catalogue(shop(), strong, tmp_path)
    before = prepared.tokenizer.inputs(prepared.table.matrix).clone()
    pair, _, _ = _train_jointly(split, prepared, strong)
    assert torch.equal(pair.items, before) and 'items' not in dict(pair.named_parameters())

def test_both_have_learnt_and_identifiers_followed(tmp_path):
    split, prepared = leave_one_out(shop()), tokenize_catalogue(shop(), small, tmp_path)
    first = {k: v.clone() for k, v in _joint_model(split, prepared, small)[0].state_dict().items()}
    pair, item_ids, result = _train_jointly(split, prepared, small)
    moved = {k.split('.')[0] for k, v in pair.state_dict().items() if not torch.equal(v, first[k])}
    assert moved == {'tokenizer', 'recommender'} and item_ids.sizes == prepared.item_ids.sizes
    assert [row['turn'] for row in result.curve if 'turn' in row] == ['tokenizer', 'recommender']*2

@pytest.mark.parametrize('cut', (0, 1, 3, 5, 8, 11))
def test_cut_anywhere_in_a_cycle_ends_equal(cut, tmp_path, monkeypatch):
    split = leave_one_out(shop())
    def go(out): return _train_jointly(split, tokenize_catalogue(shop(), small, tmp_path/'start'), small, out)
    whole, ids, wanted = go(tmp_path/'whole')
    step, tick = Trainer.step, Trainer.tick
    monkeypatch.setattr(Trainer, 'tick', lambda self, always=False: tick(self, True))
    def until(self, index):
        if self.progress.step == cut: raise PowerCut
        return step(self, index)
    monkeypatch.setattr(Trainer, 'step', until)
    with pytest.raises(PowerCut): go(tmp_path/'cut')
    monkeypatch.undo()
    again, same_ids, found = go(tmp_path/'cut')
    assert found.curve == wanted.curve and torch.equal(ids.table, same_ids.table)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))

def test_the_same_seed_gives_the_same_and_a_finished_run_is_read(tmp_path):
    def left(r): return {k: v for k, v in r.metrics.items() if k != 'seconds'}
    one, two, read = run(shop(), small), run(shop(), small, tmp_path), run(shop(), small, tmp_path)
    assert left(one) == left(two) == left(read) and one.out is None
    assert torch.equal(one.fitted.item_ids.table, read.fitted.item_ids.table)
    with pytest.raises(ValueError, match='holds a run with sia='): run(shop(), replace(small, sia=.2), tmp_path)

@pytest.mark.parametrize('change', (dict(sia=0.), dict(psa=0.), dict(sia=0., psa=0.), dict(alternate=False), dict(end_to_end=False), dict(sign=1), dict(tokenizer='rqvae++')))
def test_switches(change, tmp_path):
    result = run(shop(), replace(small, **change), tmp_path)
    assert 0 <= result.metrics['ndcg@10'] <= 1 and result.metrics['invalid_rate'] == 0
    assert len(result.fitted.item_ids.table.unique(dim=0)) == 30
    turns = [row['turn'] for row in result.fitted.result.curve if 'turn' in row]
    if not change.get('alternate', True): assert set(turns) == {'tokenizer+recommender'}
    assert len(result.fitted.result.curve) == small.joint_epochs + (small.fine_tune_epochs if change.get('end_to_end', True) else small.epochs)

def test_no_code_is_moved_by_hand_while_both_learn(tmp_path):
    "A turn moves codes by its gradient; a code that few targets use stays where it is"
    prepared = tokenize_catalogue(shop(), small, tmp_path)
    assert all(book.revival for book in prepared.tokenizer.quantizer.codebooks)
    pair, _, _ = _joint_model(leave_one_out(shop()), prepared, small)
    books = pair.tokenizer.quantizer.codebooks
    far = books[0].weight.data.clone() + 1e3
    for book in books: book.place(far[:book.K])
    for _ in range(100): pair.train().tokenizer.losses(pair.items[:4], torch.arange(4))
    assert torch.equal(books[0].weight, far)

def test_small_vectors_are_read_at_one_scale():
    "SASRec's table has a spread of .07: unscaled, all codes would be equally near, and an alignment of distances nothing"
    x = .07*torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    tokenizer = make_tokenizer(replace(small, text='sasrec', codebook_size=16, tokenizer_epochs=40)).fit(EmbeddingTable(range(200), x, 'sasrec'))
    with torch.no_grad(): distances = tokenizer.quantizer.distances(tokenizer.encoder(tokenizer.inputs(x)))
    share = -((-distances).softmax(-1)*(-distances).log_softmax(-1)).sum(-1)/torch.tensor(16.).log()
    assert share[:, 0].mean() < .8, share.mean(0)
