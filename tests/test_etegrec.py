"ETEGRec as a whole: whose weights move, what a cut leaves behind, and what no optimiser may touch."
import os
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from gentok.data.splits import leave_one_out
from gentok.data.toyshop import toyshop
from gentok.papers import etegrec, protocol, tiger
from gentok.papers.etegrec import EtegrecConfig, _code_entropy, _gradient_lengths, _train_jointly, _joint_model, run
from gentok.embed.table import EmbeddingTable
from gentok.ids.item_ids import ItemIds
from gentok.ids.sequences import item_tokens
from gentok.papers.tiger import TokenizedCatalogue, _unique_ids, make_tokenizer, tokenize_catalogue
from gentok.tokenize.rqvae import RQVAE
from gentok.train.loop import Trainer
from test_train import PowerCut, same
from two import torchrun

small = EtegrecConfig(text='lsa', text_dim=8, levels=2, codebook_size=32, tokenizer_epochs=10, epochs=7, fine_tune_epochs=2, cycle=2, alignment_warmup=1, d_model=16, layers=1,
                      batch_size=32, tokenizer_lr=1e-3, sia=.1, psa=.1, beams=10)

both = pytest.mark.parametrize('backbone', ('decoder', 't5'))
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
    turns = [plan.order[e % cycle] for e in range(plan.joint_epochs)]
    assert plan.recommender_epochs == plan.fine_tuning_epochs + sum('recommender' in t for t in turns)

def test_no_optimiser_can_shrink_the_items(tmp_path):
    split, strong = leave_one_out(shop()), replace(small, weight_decay=.9)
    prepared = tokenize_catalogue(shop(), strong, tmp_path)
    before = prepared.tokenizer.inputs(prepared.table.matrix).clone()
    pair, _, _ = _train_jointly(split, prepared, strong)
    assert torch.equal(pair.items, before) and 'items' not in dict(pair.named_parameters())

@both
def test_both_have_learnt_and_identifiers_followed(backbone, tmp_path):
    split, prepared, plan = leave_one_out(shop()), tokenize_catalogue(shop(), small, tmp_path), replace(small, backbone=backbone)
    first = {k: v.clone() for k, v in _joint_model(split, prepared, plan)[0].state_dict().items()}
    pair, item_ids, result = _train_jointly(split, prepared, plan)
    moved = {k.split('.')[0] for k, v in pair.state_dict().items() if not torch.equal(v, first[k])}
    assert moved == {'tokenizer', 'recommender'} and item_ids.sizes == prepared.item_ids.sizes
    assert not torch.equal(item_ids.table, prepared.item_ids.table)
    assert type(pair.recommender['model']) is protocol.backbones[backbone][0]
    assert [row['turn'] for row in result.curve if 'turn' in row] == ['tokenizer', 'recommender']*2

@pytest.mark.parametrize('cut, backbone', [(0, 'decoder'), (1, 'decoder'), (3, 't5'), (5, 'decoder'), (8, 't5'), (11, 'decoder')])
def test_cut_anywhere_in_a_cycle_ends_equal(cut, backbone, tmp_path, monkeypatch):
    split, plan = leave_one_out(shop()), replace(small, backbone=backbone)
    def go(out): return _train_jointly(split, tokenize_catalogue(shop(), plan, tmp_path/'start'), plan, out)
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

@pytest.mark.parametrize('change', (dict(sia=0.), dict(psa=0.), dict(sia=0., psa=0.), dict(alternate=False), dict(end_to_end=False), dict(sia_sign=1), dict(tokenizer='rqvae++'), dict(backbone='t5')))
def test_switches(change, tmp_path):
    result = run(shop(), replace(small, **change), tmp_path)
    assert 0 <= result.metrics['ndcg@10'] <= 1 and result.metrics['invalid_rate'] == 0
    assert len(result.fitted.item_ids.table.unique(dim=0)) == 30
    turns = [row['turn'] for row in result.fitted.result.curve if 'turn' in row]
    if not change.get('alternate', True): assert set(turns) == {'tokenizer+recommender'}
    assert len(result.fitted.result.curve) == small.joint_epochs + (small.fine_tune_epochs if change.get('end_to_end', True) else small.recommender_epochs)

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

@both
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9), st.integers(0, 99))
def test_a_batch_names_its_targets_whatever_identifiers_it_has(backbone, epoch, seed):
    "All targets of the split once an epoch; what the recommender has to write are their tokens, before and after a refresh"
    split, plan = leave_one_out(shop()), replace(small, backbone=backbone, seed=seed)
    random = tiger.random_ids(30, (32, 32), seed)
    pair, data, refresh = _joint_model(split, TokenizedCatalogue(made, fitted, random, None, 0.), plan)
    model, digest = pair.recommender['model'].eval(), data.digest
    for ids in (random, ItemIds(random.table.roll(7, 0), (32, 32))):
        refresh.take(ids)
        told = []
        for index in data.epoch(epoch):
            *batch, targets = data.batch(index)
            with torch.no_grad(): states = model.target_states(*batch)
            assert torch.equal(states.labels, model.vocabulary.tokens(ids.codes(targets)))
            assert len(states.history) == len(states.hidden) == len(targets) == data.weight(index)
            told.append(targets)
        assert torch.equal(torch.cat(told).sort().values, split.train.targets.sort().values) and data.digest == digest

made = EmbeddingTable(range(30), torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), 'made')
fitted = make_tokenizer(replace(small, text='sasrec'), made).fit(made)

def test_what_a_target_is_aligned_with_knows_nothing_of_it():
    "The decoder's state before a target is that of its history alone, wherever it stands among a user's targets and whatever follows"
    split = leave_one_out(shop())
    ids = tiger.random_ids(30, (32, 32), 0)
    prepared = TokenizedCatalogue(made, fitted, ids, None, 0.)
    pair, data, _ = _joint_model(split, prepared, small)
    model, table = pair.recommender['model'].eval(), item_tokens(ids, pair.recommender['model'].vocabulary)
    with torch.no_grad():
        inputs, labels, counts, targets = data.batch(torch.arange(len(data.examples.stop)))
        found = model.target_states(inputs, labels, counts)
        ends = (data.examples.stop[:, None] - torch.arange(20)).flip(1)[torch.arange(20).flip(0) < counts[:, None]]
        for at in range(0, len(ends), 7):
            user = (data.examples.stop >= ends[at]).nonzero()[0]
            history = data.examples.items[data.examples.start[user]:ends[at]]
            alone = model.target_states(torch.cat([table[history].flatten(), torch.tensor([model.vocabulary.start])])[None], table[(targets[at] + 1) % 30][None])
            torch.testing.assert_close(alone.history[0], found.history[at], rtol=1e-4, atol=1e-5)

@both
def test_the_loss_is_finite_and_falls(backbone, tmp_path):
    plan = replace(small, backbone=backbone, epochs=14, lr=5e-3, ema_decay=0., dropout=0., sia=1e-3, psa=1e-3)
    curve = _train_jointly(leave_one_out(shop()), tokenize_catalogue(shop(), plan, tmp_path), plan)[2].curve
    assert all(row['loss'] == row['loss'] and row['loss'] < 1e3 for row in curve)
    losses = [row['loss'] for row in curve if row.get('turn') == 'recommender']
    assert losses[-1] < losses[0] - .1, losses

def scales(backbone, whiten):
    "A pair whose tokenizer reads vectors as short as SASRec's, scaled or as they are, and a batch"
    plan = replace(small, backbone=backbone, text='sasrec', codebook_size=16, tokenizer_epochs=60)
    split = leave_one_out(shop())
    short = EmbeddingTable(range(30), .07*made.matrix, 'sasrec')
    tokenizer = make_tokenizer(plan, short)
    tokenizer = RQVAE(replace(tokenizer.config, whiten=whiten), tokenizer.fit_config).fit(short)
    prepared = TokenizedCatalogue(short, tokenizer, _unique_ids(tokenizer, short, 'reassign'), None, 0.)
    pair, data, _ = _joint_model(split, prepared, plan)
    return pair.eval(), data.batch(data.epoch(0)[0])

@both
def test_both_alignments_reach_encoder_and_recommender(backbone):
    "Beside the parts' own losses, each as long as the loss itself"
    pull = _gradient_lengths(*scales(backbone, make_tokenizer(replace(small, text='sasrec')).config.whiten))
    assert pull['SQ'][1] == pull['REC'][0] == 0
    for term in ('SIA', 'PSA'):
        for part, own in enumerate(('SQ', 'REC')): assert pull[term][part] > .01*pull[own][part] > 0, (term, own, pull)

@both
def test_as_in_the_paper_unscaled_vectors_silence_the_first(backbone):
    "Read as they are, without a unit for distances, all codes are equally near and the alignment says a hundredth"
    (loud, batch), (quiet, same_batch) = scales(backbone, 0), scales(backbone, None)
    quiet.temperature.fill_(1.)
    sharp, dull = (_code_entropy(pair, b)[0][0]/torch.tensor(16.).log() for pair, b in ((loud, batch), (quiet, same_batch)))
    assert sharp < .9 and dull > .99
    strong, weak = _gradient_lengths(loud, batch)['SIA'], _gradient_lengths(quiet, same_batch)['SIA']
    assert all(w < .05*l for w, l in zip(weak, strong))

@pytest.mark.parametrize('growth', (1/32, 8., 32.))
def test_the_choice_is_as_soft_however_long_the_latents_have_grown(growth):
    "The same tokenizer with longer latents, as a longer pre-training leaves them"
    (pair, batch), (grown, _) = scales('decoder', 0), scales('decoder', 0)
    t = grown.tokenizer
    with torch.no_grad():
        for p in (t.encoder[-1].weight, t.encoder[-1].bias, *(book.weight for book in t.quantizer.codebooks)): p.mul_(growth)
        t.decoder[0].weight.div_(growth)
    again = etegrec.JointModel(t, grown.recommender['model'], grown.items, grown.config).eval()
    assert torch.equal(t.quantizer.encode(t.encoder(pair.items)), pair.tokenizer.quantizer.encode(pair.tokenizer.encoder(pair.items)))
    soft, found = (_code_entropy(p, batch)[0]/torch.tensor(16.).log() for p in (pair, again))
    torch.testing.assert_close(found, soft, rtol=1e-3, atol=1e-4)
    assert ((soft > .02) & (soft < .95)).all(), soft

def test_vectors_of_texts_are_scaled_too():
    assert make_tokenizer(small).config.whiten == make_tokenizer(replace(small, text='sasrec')).config.whiten == 0
    assert make_tokenizer(tiger.TigerConfig(tokenizer='rqvae')).config.whiten is None

@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(.5, 2), min_size=1, max_size=40), st.integers(1, 6), st.floats(.01, .3))
def test_flat_by_plain_loops(losses, window, change):
    def moved(e): return abs(sum(losses[e-window:e])/sum(losses[e-2*window:e-window]) - 1) > change
    ends = range(2*window, len(losses) + 1)
    wanted = next((e for e in ends if not any(moved(f) for f in range(e, len(losses) + 1))), None)
    found = etegrec._flat_since([dict(reconstruction=x, quantisation=0.) for x in losses], window, change)
    assert found == wanted

def test_what_learning_together_leaves_belongs_to_the_recommender(tmp_path, monkeypatch):
    "A first stage that validation ends early gives its epochs to the second"
    plan = replace(small, epochs=16, cycle=2, fine_tune_epochs=0, patience=1, lr=1e-12,
                   tokenizer_lr=1e-12)
    budgets, init = {}, Trainer.__init__
    def watched(self, model, data, config, out=None, *rest, **more):
        budgets[str(out).rpartition('/')[2]] = config.epochs
        init(self, model, data, config, out, *rest, **more)
    monkeypatch.setattr(Trainer, '__init__', watched)
    curve = run(shop(), plan, tmp_path).fitted.result.curve
    together = [row for row in curve if row.get('stage') != 'alone']
    assert budgets['together'] == 12 and len(together) == 6 # one better, then two not
    assert budgets['tuning'] == 10

@both
def test_rivals_have_the_same_recommender_start_and_budget(backbone, tmp_path, monkeypatch):
    plan, begun = replace(small, backbone=backbone, epochs=4, fine_tune_epochs=1), {}
    init = Trainer.__init__
    def watched(self, model, data, config, out=None, *rest, **more):
        whole = getattr(model, 'recommender', dict(model=model))['model']
        begun[str(out).rpartition('/')[2]] = (config.epochs, whole.config, {k: v.clone() for k, v in whole.state_dict().items()})
        init(self, model, data, config, out, *rest, **more)
    monkeypatch.setattr(Trainer, '__init__', watched)
    ours = run(shop(), plan, tmp_path/'ours')
    new = run(shop(), replace(plan, end_to_end=False), tmp_path/'new')
    rival = tiger.run(shop(), plan, tmp_path/'rival')
    assert torch.equal(rival.fitted.item_ids.table, ours.first_ids.table)
    assert begun['training'][1] == begun['together'][1] == begun['alone'][1] == plan.recommender()
    assert same(begun['training'][2], begun['together'][2])
    plain = protocol.backbones[backbone][0](rival.fitted.model.vocabulary, plan.recommender(), plan.seed)
    assert not torch.equal(begun['together'][2]['t5.shared.weight'], plain.t5.shared.weight)
    assert begun['training'][0] == plan.epochs == plan.recommender_epochs + 2 and begun['alone'][0] == plan.recommender_epochs
    assert not torch.equal(new.fitted.item_ids.table, new.first_ids.table)

def leave(out, name):
    plan, folder = replace(small, weight_decay=0.), f'{out}/{name}-prepared'
    prepared = etegrec.main_process_first(lambda: tokenize_catalogue(shop(), plan, folder), folder)
    pair, ids, result = _train_jointly(leave_one_out(shop()), prepared, plan)
    save_file({**{k: v.contiguous().clone() for k, v in pair.state_dict().items() if v.dtype.is_floating_point}, 'ids': ids.table.clone(),
               'curve': torch.tensor([row['loss'] for row in result.curve])}, f'{out}/{name}-{os.environ.get("RANK", "0")}.safetensors')

def test_two_processes_agree(tmp_path):
    torchrun(tmp_path, f"from test_etegrec import leave; leave({str(tmp_path)!r}, 'two')")
    leave(tmp_path, 'one')
    one, *two = (load_file(tmp_path/f'{name}.safetensors') for name in ('one-0', 'two-0', 'two-1'))
    assert same(*two) and two[0]['curve'].isfinite().all()
    torch.testing.assert_close(two[0]['curve'][:1], one['curve'][:1], rtol=.05, atol=0)
