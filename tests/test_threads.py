"Parts side by side: the answers of one thread, the gradients of one thread, and a cut run that ends as if it had not been cut."
import time

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.splits import leave_one_out
from gentok.data.threads import generator, noise, side_by_side
from gentok.data.toyshop import toyshop
from gentok.ids.collisions import resolve
from gentok.ids.sequences import item_tokens
from gentok.ids.trie import Trie
from gentok.ids.vocabulary import Vocabulary
from gentok.recommend.decoder_only import DecoderOnly, UserSequences
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig
from gentok.search.beam import beam_search
from gentok.search.exact import exact_top_k, score_items
from gentok.train.loop import Sequences, TrainConfig, Trainer

@pytest.fixture
def two():
    "Two threads, and afterwards as many as before"
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

shop = leave_one_out(toyshop(n_items=40, n_users=60, domains=1, seed=1)[0])
ids = resolve(torch.randint(0, 5, (40, 2), generator=torch.Generator().manual_seed(0)), 'suffix')
small = RecommenderConfig(16, 32, 2, 8, 1, dropout=.2)
plan = TrainConfig(epochs=2, batch_size=64, lr=1e-3, precision='float32', checkpoint_seconds=0)
kinds = {'T5': (GenerativeRecommender, Sequences), 'decoder-only': (DecoderOnly, UserSequences)}

def trainer_of(kind='T5', out=None, config=plan, model=small):
    model_of, data_of = kinds[kind]
    vocabulary = Vocabulary(ids.sizes)
    return Trainer(model_of(vocabulary, model), data_of(shop.train, item_tokens(ids, vocabulary), config.batch_size), config, out)

def weights(trainer): return torch.cat([p.detach().flatten() for p in trainer.bare.parameters()])

@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4))
def test_answers_come_in_order(parts, threads):
    before = torch.get_num_threads()
    def slow(x): time.sleep(x/2000); return x*x
    assert list(side_by_side(slow, parts, threads)) == [x*x for x in parts]
    torch.set_num_threads(before)

def test_an_error_in_a_part_reaches_the_caller(two):
    with pytest.raises(ZeroDivisionError): list(side_by_side(lambda x: 1/x, [1, 0, 2, 3]))
    assert list(side_by_side(lambda x: x + 1, [1, 2])) == [2, 3]  # and the threads live on

def test_noise_is_a_part_s_own():
    def draw(seed):
        with noise(seed): time.sleep(.002*(seed % 3)); return torch.rand(5, generator=generator())
    before = torch.get_num_threads()
    apart, together = (torch.stack(list(side_by_side(draw, range(9), n))) for n in (1, 3))
    torch.set_num_threads(before)
    assert torch.equal(apart, together) and generator() is None

@pytest.mark.parametrize('kind', kinds)
def test_shares_make_the_gradient_of_the_batch(two, kind):
    trainer = trainer_of(kind, model=RecommenderConfig(16, 32, 2, 8, 1, dropout=0.))
    assert trainer.threads == 2
    index, found = trainer.data.epoch(0)[0], []
    for threads in (1, 2, 3):
        trainer.optimiser.zero_grad()
        loss = trainer.backward_in_shares(index, threads) if threads > 1 else trainer.backward(index, 1.)
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in trainer.bare.parameters()])))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        assert torch.allclose(gradient, found[0][1], atol=1e-5)

@pytest.mark.parametrize('kind', kinds)
def test_a_cut_run_ends_as_if_it_had_not_been_cut(two, kind, tmp_path):
    straight = trainer_of(kind)
    straight.fit()
    cut = trainer_of(kind, tmp_path)
    class Stop(Exception): pass
    def step(index, usual=cut.step):
        if cut.progress.step == 3: raise Stop
        return usual(index)
    cut.step = step
    with pytest.raises(Stop): cut.fit()
    again = trainer_of(kind, tmp_path)
    again.fit()
    assert again.progress.step == straight.progress.step > 3
    assert torch.equal(weights(again), weights(straight))

def test_searches_answer_as_one_thread_does(two):
    model, trie = trainer_of().bare.eval(), Trie(ids)
    side = beam_search(model, trie, shop.test, beams=20, batch_size=7), exact_top_k(model, trie, shop.test, batch_size=7)
    every = score_items(model, trie, shop.test, batch_size=7)
    torch.set_num_threads(1)
    alone = beam_search(model, trie, shop.test, beams=20, batch_size=7), exact_top_k(model, trie, shop.test, batch_size=7)
    for a, b in zip(side, alone):
        assert torch.equal(a.items, b.items) and torch.allclose(a.scores, b.scores, atol=1e-5)
    assert torch.allclose(every, score_items(model, trie, shop.test, batch_size=7), atol=1e-5)

def test_an_error_in_a_search_leaves_the_model_in_its_mode(two):
    model = trainer_of().bare.train()
    with pytest.raises(ValueError, match='empty'): beam_search(model, Trie(ids), [[1], []])
    assert model.training
