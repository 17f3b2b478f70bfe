"SASRec: rows without padding, causality, one loss for all prefixes, ranked lists, and a run that is killed."
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.store.checkpoints import _checkpoint_paths
from gentok.data.dataset import Catalogue, Dataset, Histories
from gentok.data.splits import leave_one_out, windows
from gentok.embed.collaborative import (_CausalBlock, SASRec, SASRecConfig, _mean_gain, _tokens_of, _whole_sequences)
from gentok.embed.table import EmbeddingTable
from gentok.evaluate.full_ranking import summarise
from gentok.evaluate.ranking import metrics

config = SASRecConfig(dim=8, max_length=6, epochs=5, batch_size=16, lr=.01, patience=0)

def histories(lengths, n_items=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Histories([f'u{p}' for p in range(len(lengths))], torch.randint(n_items, (int(offsets[-1]),), generator=g), offsets)

def prefixes(h, max_history=None): return windows(h, torch.ones_like(h.lengths), h.lengths - 1, max_history)

@pytest.fixture(scope='module')
def split():
    "Sixty users who walk around a circle of twenty items"
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 12, (60,), generator=g)
    first = torch.randint(20, (60,), generator=g)
    walks = {f'u{p}': [f'i{(int(first[p]) + j*(1 + p % 2)) % 20}' for j in range(int(n))] for p, n in enumerate(lengths)}
    catalogue = Catalogue([f'i{i}' for i in range(20)], ['']*20)
    return leave_one_out(Dataset('walks', catalogue, walks), max_history=20)

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

# ---------------------------------------------------------------- rows and tokens

@given(st.lists(st.integers(2, 9), min_size=1, max_size=8), st.integers(1, 10), st.sampled_from((None, 1, 3)))
@settings(max_examples=60, deadline=None)
def test_whole_sequences_are_what_a_loop_finds(lengths, max_length, max_history):
    h = histories(lengths)
    rows = _whole_sequences(prefixes(h, max_history), max_length)
    assert [r.tolist() for r in rows.histories()] == [s[:-1].tolist()[-max_length:] for s in h]
    assert rows.targets.tolist() == [int(s[-1]) for s in h]
    row, place, at = _tokens_of(rows)
    assert list(zip(row.tolist(), place.tolist())) == [(r, p) for r, s in enumerate(rows.histories()) for p in range(len(s))]
    assert rows.items[at].tolist() == [i for s in rows.histories() for i in s.tolist()]

def test_users_who_are_left_out_have_no_row():
    h = histories([4, 3, 5])
    some = prefixes(h).select(prefixes(h).users != 1)
    assert _whole_sequences(some, 9).users.tolist() == [0, 2]

def test_etegrec_collator(vectors):
    "Its rows are ours, except that a history which is too long keeps one item less there"
    want = vectors('etegrec')['collator']['input_ids']
    h = Histories(['a', 'b', 'c'], torch.tensor([1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 0, 5, 0]), torch.tensor([0, 7, 12, 14]))
    def padded(max_length):
        row, place, at = _tokens_of(rows := _whole_sequences(prefixes(h), max_length))
        return torch.zeros(3, 4).long().index_put((row, place), rows.items[at])
    assert padded(4).tolist() == [[3, 4, 5, 6], *want[1:]]
    assert padded(3)[0].tolist() == want[0]

# ---------------------------------------------------------------- the network

def test_attention_is_the_textbooks():
    torch.manual_seed(0)
    block, x = _CausalBlock(8, 2, 0.), torch.randn(5, 8)
    q, k, v = (t.view(5, 2, 4).transpose(0, 1) for t in block.qkv(block.before(x)).chunk(3, -1))
    score = (q @ k.transpose(1, 2)/2).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    y = x + block.out((score.softmax(-1) @ v).transpose(0, 1).reshape(5, 8))
    want = y + block.think(block.between(y))
    assert torch.allclose(block(x, torch.arange(5), (1, 5)), want, atol=1e-5)

@given(st.lists(st.integers(2, 8), min_size=2, max_size=6), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_see_others_nor_the_future(lengths, seed):
    model = SASRec(20, replace(config, max_length=8, seed=seed)).eval()
    rows = _whole_sequences(prefixes(histories(lengths, seed=seed)), 8)
    together, tokens = model(rows, _tokens_of(rows)), _tokens_of(rows)
    for r in range(rows.n):
        alone = rows.select([r])
        states = model(alone, _tokens_of(alone))
        assert torch.allclose(states, together[tokens.row == r], atol=1e-5)
        cut = alone._replace(stop=alone.start + 1)
        assert torch.allclose(model(cut, _tokens_of(cut)), states[:1], atol=1e-5)

def test_one_pass_is_all_prefixes(split):
    "The loss over whole sequences is the mean over the examples that they are made of"
    model = SASRec(20, replace(config, max_length=20)).eval()
    found = model.loss(_whole_sequences(split.train, 20))
    states = model(split.train, tokens := _tokens_of(split.train))
    last = tokens.row.diff(append=torch.tensor([-1])) != 0
    one_by_one = torch.nn.functional.cross_entropy(model.scores(states[last]), split.train.targets)
    assert torch.allclose(found, one_by_one, atol=1e-5)

# ---------------------------------------------------------------- ranked lists

def test_recommend_is_brute_force(split):
    model = SASRec(20, config).fit(split.train, split.valid)
    for h, items, scores in zip(split.test.histories(), *model.recommend(split.test, 20)[:2]):
        x = model.items(h[-6:])*8**.5 + model.places(torch.arange(min(len(h), 6)))
        for block in model.blocks: x = block(x, torch.arange(len(x)), (1, len(x)))
        want = model.items.weight @ model.norm(x)[-1]
        assert torch.allclose(scores, want[items], atol=1e-4) and (scores.diff() <= 0).all()
        assert sorted(items.tolist()) == list(range(20))

def test_lists_fit_the_books_metrics(split):
    model = SASRec(20, replace(config, epochs=15)).fit(split.train, split.valid)
    top = model.recommend(split.test)
    found = summarise(top, split.test.targets).metrics
    assert found['invalid_rate'] == 0 and found['users'] == split.test.n and found['recall@10'] > .8
    assert _mean_gain(top.items, split.test.targets) == pytest.approx(found['ndcg@10'], abs=1e-6)
    assert _mean_gain(top.items, split.test.targets) == pytest.approx(metrics(top.items, split.test.targets)['ndcg@10'], abs=1e-6)

def test_recommend_leaves_the_model_as_it_was(split):
    model = SASRec(20, config).train()
    a, b = model.recommend(split.test), model.recommend(split.test, batch_size=7)
    assert model.training and torch.equal(a.items, b.items)
    order = torch.randperm(split.test.n)
    assert torch.equal(model.recommend(split.test.select(order)).items, a.items[order])

def test_more_places_than_items_and_no_users():
    model = SASRec(3, config)
    examples = prefixes(histories([3, 4], n_items=3))
    top = model.recommend(examples, 5)
    assert top.items[:, 3:].eq(-1).all() and top.scores[:, 3:].eq(-math.inf).all() and top.items[:, :3].min() == 0
    none = model.recommend(examples.select([]), 5)
    assert none.items.shape == none.scores.shape == (0, 5) and none.invalid.shape == (0,)

# ---------------------------------------------------------------- training

def test_the_seed_decides_and_nothing_else(split):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a = SASRec(20, config).fit(split.train, split.valid)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    b = SASRec(20, config)
    b.items.weight.data.zero_()  # a fit begins from the seed's weights
    assert same(a, b.fit(split.train, split.valid)) and a.history == b.history
    assert not same(a, SASRec(20, replace(config, seed=1)).fit(split.train, split.valid))

def test_the_last_two_items_are_never_seen(split):
    items = split.train.items.clone()
    items[split.test.stop], items[split.valid.stop] = 0, 1
    found = []
    for train in (split.train, split.train._replace(items=items)):
        model = SASRec(20, config)
        optimizer = model.optimizer_of()
        for epoch in (1, 2): model.train_epoch(_whole_sequences(train, 6), optimizer, epoch)
        found.append(model)
    assert same(*found) and not torch.equal(items, split.train.items)

def test_the_best_epoch_is_kept_and_patience_ends_the_run(split):
    eager = replace(config, epochs=60, patience=3, lr=.1)
    model = SASRec(20, eager).fit(split.train, split.valid)
    gains = [r['ndcg@10'] for r in model.history]
    assert len(gains) < 60 and len(gains) == model.best_epoch() + 3 and max(gains) == gains[model.best_epoch() - 1]
    assert _mean_gain(model.recommend(split.valid).items, split.valid.targets) == max(gains)
    until_best = SASRec(20, replace(eager, epochs=model.best_epoch())).fit(split.train, split.valid)
    assert same(model, until_best)

class PowerCut(Exception): "The plug was pulled"

def cut(batch):
    class Cut(SASRec):
        def loss(self, examples):
            self.batches = getattr(self, 'batches', 0) + 1
            if self.batches == batch: raise PowerCut
            return super().loss(examples)
    return Cut

@pytest.fixture(scope='module')
def straight(split): return SASRec(20, config).fit(split.train, split.valid)

@pytest.mark.parametrize('batch', (1, 2, 5, 11, 20))  # four of them in an epoch
def test_cut_anywhere_ends_equal(batch, split, straight, tmp_path):
    with pytest.raises(PowerCut): cut(batch)(20, config).fit(split.train, split.valid, tmp_path)
    again = SASRec(20, config).fit(split.train, split.valid, tmp_path)
    assert same(again, straight) and again.history == straight.history

def test_killed_while_a_checkpoint_is_written(split, straight, tmp_path, monkeypatch):
    import gentok.embed.collaborative as module
    save = module.save_checkpoint
    def dies(folder, checkpoint):
        if checkpoint.step == 3: raise PowerCut
        return save(folder, checkpoint)
    monkeypatch.setattr(module, 'save_checkpoint', dies)
    with pytest.raises(PowerCut): SASRec(20, config).fit(split.train, split.valid, tmp_path)
    monkeypatch.undo()
    again = SASRec(20, config).fit(split.train, split.valid, tmp_path)
    assert same(again, straight) and again.history == straight.history

def test_a_damaged_checkpoint_is_passed_over(split, straight, tmp_path):
    SASRec(20, replace(config, epochs=3)).fit(split.train, split.valid, tmp_path)
    tensors = _checkpoint_paths(tmp_path/'training')[-1]/'tensors.safetensors'
    tensors.write_bytes(tensors.read_bytes()[:-3])
    with pytest.warns(UserWarning, match='is damaged'): again = SASRec(20, config).fit(split.train, split.valid, tmp_path)
    assert same(again, straight)

def test_a_finished_run_is_read_not_trained(split, straight, tmp_path):
    SASRec(20, config).fit(split.train, split.valid, tmp_path)
    assert same(cut(1)(20, config).fit(split.train, split.valid, tmp_path), straight)

@pytest.mark.parametrize('change, name', [(dict(lr=.02), 'lr'), (dict(seed=3), 'seed'), (dict(dropout=.1), 'dropout'), (dict(epochs=2), 'epochs')])
def test_another_run_in_the_folder_is_refused(change, name, split, tmp_path):
    SASRec(20, replace(config, epochs=3)).fit(split.train, split.valid, tmp_path)
    with pytest.raises(ValueError, match=f'holds a run (with|of 3) {name}'):
        SASRec(20, replace(config, **{'epochs': 3, **change})).fit(split.train, split.valid, tmp_path)

def test_other_data_in_the_folder_is_refused(split, tmp_path):
    SASRec(20, replace(config, epochs=1)).fit(split.train, split.valid, tmp_path)
    fewer = split.train.select(split.train.users != 0)
    with pytest.raises(ValueError, match='holds a run with data'): SASRec(20, replace(config, epochs=1)).fit(fewer, split.valid, tmp_path)

# ---------------------------------------------------------------- table and folder

def test_table_and_folder(straight, split, tmp_path):
    catalogue = Catalogue([f'i{i}' for i in range(20)], ['']*20)
    table = straight.embed(catalogue)
    assert isinstance(table, EmbeddingTable) and table.ids == catalogue.ids and torch.equal(table.matrix, straight.items.weight)
    straight.save_pretrained(tmp_path)
    again = SASRec.from_pretrained(tmp_path)
    assert same(again, straight) and again.history == straight.history and again.config == straight.config
    with torch.no_grad(): straight.items.weight[0] += 1
    assert not torch.equal(table.matrix, straight.items.weight)
    with torch.no_grad(): straight.items.weight.copy_(again.items.weight)
    table.save(tmp_path)
    with pytest.raises(ValueError, match="holds 'EmbeddingTable', expected a SASRec"): SASRec.from_pretrained(tmp_path)

# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('call, text', [
    (lambda s: SASRec(0), 'n_items is 0'),
    (lambda s: SASRecConfig(dim=9), 'dim is 9 and heads 2'),
    (lambda s: SASRecConfig(lr=0), 'lr is 0'),
    (lambda s: SASRecConfig(dropout=-.1), 'dropout is -0.1'),
    (lambda s: SASRecConfig(patience=-1), 'patience is -1'),
    (lambda s: SASRec(19, config).fit(s.train, s.valid), 'rows 0 to 19 and the model has 19 items'),
    (lambda s: SASRec(20, config).fit(s.train.select([]), s.valid), 'there are no training examples'),
    (lambda s: SASRec(20, config).fit(s.train, s.valid.select([])), 'there are no validation examples'),
    (lambda s: SASRec(20, config).recommend(s.test, 0), 'k is 0'),
    (lambda s: SASRec(20, config).recommend(s.test._replace(start=s.test.stop)), 'the history of example 0 is empty'),
    (lambda s: SASRec(20, config).embed(Catalogue(['a'], [''])), 'the catalogue has 1 items and the model 20'),
    (lambda s: SASRec(20, replace(config, lr=1e30)).fit(s.train, s.valid), 'the loss is (nan|inf) in epoch')])
def test_bad_input_is_one_sentence(call, text, split):
    with pytest.raises(ValueError, match=text) as e: call(split)
    assert '\n' not in str(e.value) and str(e.value).endswith(('.', ').'))
