"The decoder-only recommender sees the past and nothing else, learns every target once, and searches as T5 does."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.dataset import Catalogue, Dataset
from gentok.store.files import read_folder
from gentok.data.splits import leave_one_out
from gentok.ids.item_ids import random_ids
from gentok.ids.sequences import Sequences, batch_tokens, item_tokens
from gentok.ids.trie import Trie
from gentok.ids.vocabulary import Vocabulary
from gentok.papers.protocol import Protocol, RecommenderSpec, fit_recommender
from gentok.recommend.decoder_only import (DecoderOnly, UserSequences, _block_logits, _counted, _in_blocks, _spans,
                                           _with_answer)
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig, _tied_names
from gentok.search.beam import _HistoryTokens, _as_examples, beam_search
from gentok.search.exact import exact_top_k, score_items
from gentok.train.loop import TrainConfig, Trainer

few = settings(max_examples=15, deadline=None, derandomize=True)

def recommender(sizes=(5, 4, 3), n_user_tokens=0, layers=2, seed=0, **more):
    "A small model whose weights are far from their start."
    model = DecoderOnly(Vocabulary(sizes, n_user_tokens), RecommenderConfig(16, 24, 2, 8, layers, **more), seed).eval()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters(): p.add_(.2*torch.randn(p.shape, generator=gen))
    return model

def batch(model, b=4, items=5, seed=0):
    "Histories of different lengths as `batch_tokens` makes them, and targets."
    gen, v = torch.Generator().manual_seed(seed), model.vocabulary
    tokens = v.tokens((torch.rand(b, items + 1, v.L, generator=gen)*torch.tensor(v.sizes)).long())
    inputs = torch.nn.functional.pad(tokens[:, :-1].flatten(1), (0, 1))
    for i in range(b):
        n = 1 + (items - 1 + i) % items
        inputs[i, n*v.L:] = v.pad
        inputs[i, n*v.L] = v.start
    if v.n_user_tokens: inputs = torch.cat([v.user_tokens(torch.arange(b))[:, None], inputs], 1)
    return inputs, tokens[:, -1]

def plain(model, inputs, labels):
    "The training pass as log-probabilities of the answer's codes, b l v."
    v = model.vocabulary
    tokens = _with_answer(_in_blocks(inputs, v), labels, v)
    here = _counted(tokens, torch.ones(len(tokens)), v)[:, 1:]
    with torch.no_grad(): logits = _block_logits(model.t5, tokens[:, :-1], here, p=0.)
    return logits.log_softmax(-1).view(*labels.shape, -1)

def histories_of(lengths):
    "One user for each length, over 40 items; nobody meets an item twice, so that a held-out item is known by its row."
    return {f'u{i}': [(7*i + j) % 40 for j in range(n)] for i, n in enumerate(lengths)}

def shop_of(lengths): return Dataset('shop', Catalogue(list(range(40)), [str(i) for i in range(40)]), histories_of(lengths))

def sequences(lengths=(9, 4, 12, 6, 5, 30), batch_size=24, seed=0, max_history=8, n_user_tokens=0):
    ids, train = random_ids(40, (4, 4, 4), seed=0), leave_one_out(shop_of(lengths), max_history).train
    v = Vocabulary(ids.sizes, n_user_tokens)
    users = v.user_tokens(torch.arange(len(lengths))) if n_user_tokens else None
    return v, UserSequences(train, item_tokens(ids, v), batch_size, seed, users), train

# ---------------------------------------------------------------- one pass

@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99), st.sampled_from([0, 3]))
def test_one_pass_is_all_prefixes(sizes, layers, seed, users):
    model = recommender(tuple(sizes), users, layers, seed)
    v, (inputs, labels) = model.vocabulary, batch(model, b=1, seed=seed)
    n, user = 5, int(users > 0)
    items = inputs[0, user:-1].view(n, v.L)
    with torch.no_grad():
        prefixes = [model(torch.cat([inputs[:, :user + w*v.L], torch.tensor([[v.start]])], 1), target[None])
                    for w, target in zip(range(1, n + 1), [*items[1:], labels[0]])]
        for count in range(1, n + 1):
            assert torch.allclose(model(inputs, labels, torch.tensor([count])), torch.stack(prefixes[-count:]).mean(), atol=1e-5)

@few
@given(st.integers(0, 99), st.integers(0, 5))
def test_the_future_is_not_seen(seed, place):
    model = recommender(seed=seed)
    v, (inputs, labels) = model.vocabulary, batch(model, b=1, seed=seed)
    tokens = _with_answer(_in_blocks(inputs, v), labels, v)
    other = tokens.clone()
    at = place*(v.L + 1) + 1
    other[0, at] = v.offsets[0] + (other[0, at] - v.offsets[0] + 1) % v.sizes[0]
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(): a, b = (_block_logits(model.t5, x, everywhere, p=0.) for x in (tokens, other))
    assert torch.equal(a[:at], b[:at]) and (a[at:] != b[at:]).any(1).all()

def test_the_loss_is_the_mean_over_all_counted_codes():
    model = recommender()
    inputs, labels = batch(model)
    counts = torch.tensor([2, 1, 1, 3])
    with torch.no_grad():
        together = model(inputs, labels, counts)
        alone = torch.stack([model(inputs[i:i+1, :int((inputs[i] != 0).sum())], labels[i:i+1], counts[i:i+1]) for i in range(4)])
    assert torch.allclose(together, (alone*counts).sum()/counts.sum(), atol=1e-5)

def test_every_weight_learns_and_noise_ends_with_training():
    model = recommender(n_user_tokens=4, dropout=.2, label_smoothing=.1).train()
    inputs, labels = batch(model)
    model(inputs, labels, torch.full((4,), 2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model.t5.shared.weight.grad[-4:].abs().sum(1) > 0).all()
    torch.manual_seed(0); a = model(inputs, labels)
    torch.manual_seed(1); b = model(inputs, labels)
    assert a.item() != b.item() and model.eval()(inputs, labels).item() == model(inputs, labels).item()

def test_the_seed_decides_the_weights():
    a, b, c = (DecoderOnly(Vocabulary((4, 4)), RecommenderConfig(16, 24, 2, 8, 1), seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.t5.shared.weight, c.t5.shared.weight)
    assert f'{sum(p.numel() for p in a.parameters()):,} weights' in repr(a)

@pytest.mark.parametrize('sizes, users, inputs, says', [
    ((3, 3), 0, [[2, 5, 3]], 'one start token behind'), ((3, 3), 0, [[2, 5, 3, 6, 4]], 'batch_tokens'),
    ((3, 3), 0, [[1, 2, 5, 1, 3, 6, 1]], 'batch_tokens'), ((3, 3), 4, [[2, 5, 3, 6, 1]], 'a user token in front'), ((3,), 2, [[8]], 'a user token')])
def test_tokens_that_are_no_histories_are_refused(sizes, users, inputs, says):
    model = recommender(sizes, users)
    with pytest.raises(ValueError, match=says) as e: model(torch.tensor(inputs), torch.full((1, len(sizes)), 2))
    assert '\n' not in str(e.value) and str(e.value).endswith('.')

# ---------------------------------------------------------------- reading

@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 99), st.sampled_from([0, 3]))
def test_the_reader_is_the_plain_pass(sizes, layers, seed, users):
    model = recommender(tuple(sizes), users, layers, seed)
    inputs, labels = batch(model, seed=seed)
    answers = [labels, *(batch(model, seed=seed + i)[1] for i in (1, 2))]
    reader = model.cached_decoder()
    before = torch.stack([torch.nn.functional.pad(x[:, :-1], (1, 0), value=1) for x in answers], 1)
    with torch.no_grad(): found = reader.log_probs(reader.decode(before, reader.encode(inputs))[0])
    for m, x in enumerate(answers): assert (found[:, m] - plain(model, inputs, x)).abs().max() < 1e-5*max(1., found.abs().max().item())

@few
@given(st.integers(0, 99), st.integers(1, 2))
def test_the_cache_changes_nothing(seed, cut):
    model = recommender(seed=seed)
    inputs, labels = batch(model, seed=seed)
    tokens, reader = labels[:, None].expand(-1, 2, -1), model.cached_decoder()
    with torch.no_grad():
        encoded = reader.encode(inputs)
        whole, _ = reader.decode(tokens, encoded)
        first, cache = reader.decode(tokens[..., :cut], encoded)
        rest, cache = reader.decode(tokens[..., cut:], encoded, cache)
    assert (torch.cat([first, rest], 2) - whole).abs().max() < 1e-4
    assert [c.shape for c in cache] == [(4, 2, 2, 2, 2, 8)]*3

@few
@given(st.integers(0, 99), st.sampled_from([0, 3]), st.sampled_from([1, 5]))
def test_searches_are_those_of_brute_force(seed, users, k):
    ids = random_ids(40, (4, 4, 4), seed=seed)
    model, trie = recommender(ids.sizes, users, seed=seed), Trie(ids)
    gen = torch.Generator().manual_seed(seed)
    histories = [torch.randint(0, 40, (n,), generator=gen).tolist() for n in (1, 20, 2, 9)]
    truth = score_items(model, trie, histories)
    exact, beams = exact_top_k(model, trie, histories, k), beam_search(model, trie, histories, 40, k)
    for found in (exact, beams):
        assert (truth.gather(1, found.items) - found.scores).abs().max() < 1e-3
        assert (truth.topk(k).values - found.scores).abs().max() < 1e-3
    assert (exact.bound <= exact.scores[:, -1]).all()

def test_brute_force_is_the_loss():
    ids = random_ids(40, (4, 4, 4), seed=0)
    model, trie = recommender(ids.sizes), Trie(ids)
    histories = [[3, 5], [7]]
    read = _HistoryTokens(model, trie, _as_examples(histories, 40))
    scores = score_items(model, trie, histories)
    for user in range(2):
        with torch.no_grad(): loss = model(read(torch.tensor([user])), read.table[17][None])
        assert abs(scores[user, 17].item() + 3*loss.item()) < 1e-4

# ---------------------------------------------------------------- kept

def test_save_and_load(tmp_path):
    model = recommender(n_user_tokens=7, label_smoothing=.1).train()
    model.save_pretrained(tmp_path/'m', items={'0': 'a lamp'})
    copy, (inputs, labels) = DecoderOnly.from_pretrained(tmp_path/'m'), batch(model)
    assert not copy.training and copy.config == model.config and copy.vocabulary == model.vocabulary
    assert torch.equal(copy(inputs, labels), model.eval()(inputs, labels))
    assert torch.equal(copy.cached_decoder().far(torch.tensor([4]), 4), model.cached_decoder().far(torch.tensor([4]), 4))
    config, weights = read_folder(tmp_path/'m')
    assert config['kind'] == 'DecoderOnly' and not _tied_names(model) & weights.keys()
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())

def test_the_folder_of_another_kind_is_refused(tmp_path):
    model = recommender()
    model.save_pretrained(tmp_path/'d')
    GenerativeRecommender(model.vocabulary, model.config).save_pretrained(tmp_path/'t')
    with pytest.raises(ValueError, match="holds a 'DecoderOnly', expected 'GenerativeRecommender'"): GenerativeRecommender.from_pretrained(tmp_path/'d')
    with pytest.raises(ValueError, match="holds a 'GenerativeRecommender', expected 'DecoderOnly'"): DecoderOnly.from_pretrained(tmp_path/'t')

# ---------------------------------------------------------------- whole users

@few
@given(st.lists(st.integers(1, 38), min_size=1, max_size=12).filter(lambda n: max(n) > 3), st.integers(1, 12), st.integers(0, 9), st.randoms())
def test_each_target_once_with_context_and_no_held_out_item(lengths, H, epoch, random):
    _, data, train = sequences(lengths, batch_size=24, seed=epoch, max_history=H)
    order = list(range(train.n))
    random.shuffle(order)
    assert _spans(train.select(order)).counts.tolist() == data.counts.tolist()  # whatever order they come in
    e, half = data.examples, max(1, int(train.lengths.max())//2)
    learned = [p for index in data.epoch(epoch) for i in index.tolist() for p in range(int(e.stop[i] - data.counts[i]) + 1, int(e.stop[i]) + 1)]
    assert sorted(learned) == train.stop.tolist()
    first = e.stop - data.counts + 1  # of the items learned
    begin = (torch.tensor(lengths).cumsum(0) - torch.tensor(lengths))[e.users]
    assert (first - e.start >= torch.minimum(first - begin, torch.tensor(half))).all()
    assert (e.lengths <= H).all() and (e.start >= begin).all()
    assert (e.stop < begin + torch.tensor(lengths)[e.users] - 2).all()  # the last two items are in no window
    assert len(data.epoch(epoch)) == len(data)

@few
@given(st.integers(0, 99), st.integers(8, 40))
def test_any_examples_are_learned_once(seed, n):
    "A part of the examples, one target of each user, or examples twice"
    _, data, train = sequences((9, 14, 12, 6, 5, 30))
    picked = train.select(torch.randint(0, train.n, (n,), generator=torch.Generator().manual_seed(seed)))
    for part in (picked, train.select(train.lengths == train.lengths.max()), train.select(train.users.unique())):
        few = _spans(part)
        learned = [p for stop, count in zip(few.examples.stop.tolist(), few.counts.tolist()) for p in range(stop - count + 1, stop + 1)]
        assert sorted(learned) == sorted(part.stop.tolist()) and (few.counts <= few.examples.lengths).all()

def test_held_out_tokens_never_reach_the_model():
    v, data, _ = sequences(lengths=(6,), n_user_tokens=0)
    held = {tuple(t) for t in data.table[[4, 5]].tolist()}
    inputs, labels, counts = data.batch(data.epoch(0)[0])
    shown = {tuple(t) for t in _with_answer(_in_blocks(inputs, v), labels, v).view(-1, v.L + 1)[:, 1:].tolist()}
    assert shown == {tuple(t) for t in data.table[:4].tolist()} and not shown & held and counts.tolist() == [3]

def test_an_epoch_follows_from_seed_and_number():
    (_, a, _), (_, b, _), (_, c, _) = sequences(range(4, 34)), sequences(range(4, 34)), sequences(range(4, 34), seed=1)
    same = lambda x, y: all(torch.equal(i, j) for i, j in zip(x, y))
    assert same(a.epoch(3), b.epoch(3)) and not same(a.epoch(3), a.epoch(4)) and not same(a.epoch(3), c.epoch(3))
    assert a.digest == b.digest and len({x.digest for x in (a, c, sequences(range(4, 33))[1], sequences(range(4, 34), max_history=7)[1])}) == 3

def test_whole_users_teach_what_their_examples_teach():
    v, data, train = sequences(lengths=(9, 4, 10, 6, 5), n_user_tokens=5)  # nobody is cut
    model, one = recommender(v.sizes, 5), Sequences(train, data.table, 24, user_tokens=data.user_tokens)
    everyone, every = torch.arange(data.examples.n), torch.arange(train.n)
    losses = []
    for set_, index in ((data, everyone), (one, every)):
        model.zero_grad()
        loss = model(*set_.batch(index))
        loss.backward()
        losses.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert data.weight(everyone) == one.weight(every) == train.n
    assert abs(losses[0][0] - losses[1][0]) < 1e-5 and (losses[0][1] - losses[1][1]).abs().max() < 1e-4

def test_data_that_cannot_be_trained_on_is_refused():
    _, data, train = sequences()
    with pytest.raises(ValueError, match='no training examples'): UserSequences(train.select([]), data.table)
    with pytest.raises(ValueError, match='batch_size is 7 targets, but a user may have 8'): UserSequences(train, data.table, 7)

# ---------------------------------------------------------------- training

class PowerCut(Exception): "The plug was pulled"

@pytest.mark.parametrize('at', [3, 9])
def test_a_run_that_was_cut_ends_the_same(tmp_path, at):
    v, data, _ = sequences(range(4, 34), batch_size=24)
    config = TrainConfig(epochs=2, batch_size=24, lr=3e-3, precision='float32', checkpoint_seconds=0)
    def trainer(out=None): return Trainer(DecoderOnly(v, RecommenderConfig(16, 24, 2, 8, 1, dropout=.1)), data, config, out)
    straight, cut, again = trainer(), trainer(tmp_path), trainer(tmp_path)
    wanted, original = straight.fit(), cut.step
    def step(index):
        if cut.progress.step == at: raise PowerCut
        return original(index)
    cut.step = step
    with pytest.raises(PowerCut): cut.fit()
    assert again.fit().curve == wanted.curve
    assert all(torch.equal(t, straight.weights()[name]) for name, t in again.weights().items())
    with pytest.raises(ValueError, match='was asked for'):
        Trainer(again.bare, sequences(range(5, 35), batch_size=24)[1], config, tmp_path).resume()

def test_shares_of_a_batch_make_its_mean():
    "What two processes add up to: each share weighs by its targets."
    v, data, _ = sequences(range(4, 12), batch_size=24)
    model, index = recommender(v.sizes), torch.arange(5)
    parts = [index[0::2], index[1::2]]
    with torch.no_grad():
        mean = sum(data.weight(p)/data.weight(index)*model(*data.batch(p)).item() for p in parts)
        assert abs(mean - model(*data.batch(index)).item()) < 1e-5

def test_the_protocol_fits_it():
    ids, split = random_ids(40, (4, 4, 4), seed=0), leave_one_out(shop_of(range(4, 14)))
    protocol = Protocol(epochs=1, batch_size=24, d_model=16, layers=1, validate_every=1)
    fitted = fit_recommender(split, ids, protocol, None, RecommenderSpec(DecoderOnly, UserSequences))
    assert type(fitted.model) is DecoderOnly and 0 <= fitted.result.best <= 1 and fitted.result.steps == fitted.result.curve[-1]['epoch']*len(
        UserSequences(split.train, item_tokens(ids, fitted.model.vocabulary), 24))
