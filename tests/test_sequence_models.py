"What every model of histories promises: to resume, to load, to answer little."

from dataclasses import replace

import pytest
import torch

from gentok.baselines.bert4rec import BERT4Rec
from gentok.baselines.caser import Caser
from gentok.baselines.fdsa import FDSA
from gentok.baselines.fmlp_rec import FMLPRec
from gentok.baselines.gru4rec import GRU4Rec
from gentok.baselines.hgn import HGN
from gentok.baselines.hstu import HSTU
from gentok.baselines.lightgcn import LightGCN
from gentok.baselines.mf import MF
from gentok.baselines.s3_rec import S3Rec
from gentok.data.dataset import Catalogue, Dataset
from gentok.data.splits import hold_out, leave_one_out
from gentok.embed.collaborative import SASRec, _best
from gentok.evaluate.full_ranking import summarise
from gentok.evaluate.ranking import metrics

n_items, n_users = 20, 40
text = torch.randn(n_items, 5, generator=torch.Generator().manual_seed(3))
small = dict(dim=8, epochs=3, batch_size=16, lr=0.01, patience=0)
users = dict(n_users=n_users)
own = {
    SASRec: {},
    GRU4Rec: dict(hidden=6),
    Caser: dict(vertical=1, horizontal=2),
    HGN: {},
    BERT4Rec: {},
    FMLPRec: dict(max_length=6),
    HSTU: {},
    FDSA: dict(blocks=1),
    S3Rec: dict(blocks=1, pretrain_epochs=2),
    MF: {},
    LightGCN: dict(layers=2),
}
given = {
    Caser: users,
    HGN: users,
    MF: users,
    LightGCN: users,
    FDSA: dict(tables=text),
    S3Rec: dict(table=text),
}
by_pairs = MF, LightGCN
every = pytest.mark.parametrize('kind', own, ids=lambda k: k.__name__)


def make(kind, **changes):
    return kind(
        n_items,
        config=kind.settings(**small | own[kind] | changes),
        **given.get(kind, {}),
    )


@pytest.fixture(scope='module')
def dataset():
    "Forty users who walk around a circle of twenty items, some of them twice"
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 30, (n_users,), generator=g)
    first = torch.randint(n_items, (n_users,), generator=g)
    walks = {
        f'u{p:02}': [
            f'i{(int(first[p]) + j * (1 + p % 2)) % n_items:02}' for j in range(int(n))
        ]
        for p, n in enumerate(lengths)
    }
    return Dataset(
        'walks', Catalogue([f'i{i:02}' for i in range(n_items)], [''] * n_items), walks
    )


@pytest.fixture(scope='module')
def split(dataset):
    return leave_one_out(dataset, max_history=10)


@pytest.fixture(scope='module')
def straight(split):  # each is trained once, when it is first asked for
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = make(kind).fit(split.train, split.valid)
        return made[kind]

    return of


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs) and a.history == b.history


class PowerCut(Exception):
    "The plug was pulled"


@every
@pytest.mark.parametrize('share', (0.1, 0.45, 0.8))
def test_killed_anywhere_ends_equal(kind, share, split, straight, tmp_path):
    batches = -(-make(kind).rows(split.train).n // 16) * (
        3 + (2 if kind is S3Rec else 0)
    )

    class Cut(kind):
        seen = 0

        def loss(self, examples):
            Cut.seen += 1
            if Cut.seen == 1 + int(share * batches):
                raise PowerCut
            return super().loss(examples)

    dying = Cut(n_items, config=make(kind).config, **given.get(kind, {}))
    with pytest.raises(PowerCut):
        dying.fit(split.train, split.valid, tmp_path)
    assert same(make(kind).fit(split.train, split.valid, tmp_path), straight(kind))


@every
def test_it_learns(kind, straight, split):
    losses = [r['loss'] for r in straight(kind).history]
    assert losses[-1] < losses[0]


@every
def test_the_seed_decides(kind, straight, split):
    torch.manual_seed(5)
    assert same(make(kind).fit(split.train, split.valid), straight(kind))
    other = make(kind, seed=1).fit(split.train, split.valid)
    assert not torch.equal(other.items.weight, straight(kind).items.weight)


@every
def test_another_run_in_the_folder_is_refused(kind, split, tmp_path):
    make(kind, epochs=1).fit(split.train, split.valid, tmp_path)
    with pytest.raises(ValueError, match='holds a run with lr'):
        make(kind, epochs=1, lr=0.02).fit(split.train, split.valid, tmp_path)
    fewer = split.train.select(split.train.users != 0)
    with pytest.raises(ValueError, match='holds a run with data'):
        make(kind, epochs=1).fit(fewer, split.valid, tmp_path)


@every
def test_the_last_two_items_are_never_seen(kind, split, straight):
    "All last two items exchanged: not a bit of the weights changes"
    items = split.train.items.clone()
    items[split.test.stop], items[split.valid.stop] = 0, 1
    found = []
    for part in (split.train, split.train._replace(items=items)):
        model = make(kind)
        rows, optimizer = model.rows(part), model.optimizer_of()
        for epoch in (1, 2):
            model.train_epoch(rows, optimizer, epoch)
        found.append(model)
    assert same(*found) and not torch.equal(items, split.train.items)


@every
def test_save_and_load(kind, straight, split, tmp_path):
    model = straight(kind)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert same(again, model) and again.config == model.config
    a, b = model.recommend(split.test), again.recommend(split.test)
    assert torch.equal(a.items, b.items) and torch.equal(a.scores, b.scores)
    assert torch.equal(again.fresh().items.weight, model.fresh().items.weight)
    stranger = HGN if kind is Caser else Caser
    with pytest.raises(ValueError, match=f'expected a {stranger.__name__}'):
        stranger.from_pretrained(tmp_path)


@every
def test_embed(kind, straight, dataset):
    table = straight(kind).embed(dataset.catalogue)
    assert table.ids == dataset.catalogue.ids and table.matrix.shape == (n_items, 8)
    assert not table.matrix.requires_grad
    with pytest.raises(ValueError, match='the catalogue has 1 items and the model 20'):
        straight(kind).embed(Catalogue(['a'], ['']))


@every
def test_scores_are_the_ranking(kind, straight, split):
    model = straight(kind)
    scores, top = model.scores(split.test), model.recommend(split.test, n_items)
    assert scores.shape == (n_users, n_items) and not scores.requires_grad
    assert torch.allclose(scores.gather(1, top.items), top.scores, atol=1e-5)
    assert (top.scores.diff() <= 0).all()
    few = model.recommend(split.test, 30, batch_size=7)
    assert torch.equal(few.items[:, 20:], torch.full((n_users, 10), -1))
    assert torch.allclose(few.scores[:, :20], top.scores, atol=1e-5)


@every
def test_a_batch_does_not_matter(kind, straight, split):
    "Alone, in another order, or with others: the same scores"
    model, order = (
        straight(kind),
        torch.randperm(n_users, generator=torch.Generator().manual_seed(0)),
    )
    scores = model.scores(split.test)
    assert torch.allclose(
        model.scores(split.test.select(order)), scores[order], atol=1e-5
    )
    for e in (0, 7):
        assert torch.allclose(
            model.scores(split.test.select([e]))[0], scores[e], atol=1e-5
        )


@every
def test_one_item_is_a_history_and_none_is_not(kind, straight, split):
    model, short = straight(kind), split.test._replace(start=split.test.stop - 1)
    assert (
        model.scores(short).isfinite().all() and model.recommend(short).items.min() >= 0
    )
    with pytest.raises(
        ValueError, match='the history of example 0 is empty; give at least one item.'
    ):
        model.recommend(split.test._replace(start=split.test.stop))
    with pytest.raises(ValueError, match='rows 0 to 20 and the model has 20 items'):
        model.recommend(
            short._replace(items=torch.cat([short.items, torch.tensor([20])]))
        )
    none = model.recommend(split.test.select([]), 5)
    assert none.items.shape == none.scores.shape == (0, 5)


@every
def test_training_rows_of_one_item(kind, dataset):
    "Users with four items have one question, behind one item"
    items = {
        f'u{p:02}': [f'i{(p + j) % n_items:02}' for j in range(4)]
        for p in range(n_users)
    }
    few = leave_one_out(Dataset('few', dataset.catalogue, items))
    model = make(kind, epochs=2).fit(few.train, few.valid)
    assert all(torch.isfinite(torch.tensor(r['loss'])) for r in model.history)


@every
def test_a_target_is_not_looked_at(kind, straight, split):
    items = split.test.items.clone()
    items[split.test.stop] = (items[split.test.stop] + 1) % n_items
    model = straight(kind)
    assert torch.equal(
        model.scores(split.test._replace(items=items)), model.scores(split.test)
    )


@every
def test_unseen(kind, straight, split, dataset):
    "The whole history, also what the window has forgotten"
    model, whole = straight(kind), leave_one_out(dataset, None).test
    assert (whole.lengths > split.test.lengths).any()
    top = model.recommend(split.test, n_items, unseen=whole)
    for e, history in enumerate(whole.histories()):
        kept = top.items[e][top.items[e] >= 0].tolist()
        assert sorted(kept + history.unique().tolist()) == list(range(n_items))
        scores = model.scores(split.test.select([e]))[0]
        assert torch.allclose(scores[kept], scores[kept].sort(descending=True).values)
    short = model.recommend(split.test, n_items, unseen=True)
    assert int((short.items >= 0).sum()) > int((top.items >= 0).sum())
    with pytest.raises(ValueError, match='unseen holds 1 histories'):
        model.recommend(split.test, unseen=whole.select([0]))


@every
def test_users_without_an_example(kind, dataset):
    "Held out of training, and asked all the same"
    held = hold_out(dataset, 0.2)
    parts = leave_one_out(held, max_history=10)
    unmet = held.held_out.nonzero()[:, 0]
    model = make(kind).fit(parts.train, parts.valid)
    scores = model.scores(parts.test)
    assert scores.isfinite().all() and len(scores) == n_users
    if kind in given and 'n_users' in given[kind]:
        assert model.users.weight[unmet].abs().max() == 0
        assert model.users.weight.abs().amax(1).gt(0).sum() == n_users - len(unmet)
    if kind is MF:
        top = model.recommend(parts.test.select(unmet), 5)
        assert (top.items == torch.arange(5)).all()  # no answer: the catalogue's order


@every
def test_users_of_other_data_are_refused(kind, straight, split):
    strange = split.test._replace(users=split.test.users + 5)
    nobody = split.test._replace(users=torch.full((n_users,), -1))
    if 'n_users' not in given.get(kind, {}):
        assert torch.equal(
            straight(kind).scores(strange), straight(kind).scores(split.test)
        )
        return
    with pytest.raises(ValueError, match='users 5 to 44 and the model knows 40'):
        straight(kind).scores(strange)
    if kind in by_pairs:
        with pytest.raises(ValueError, match='users -1 to -1'):
            straight(kind).scores(nobody)
    else:
        assert straight(kind).scores(nobody).isfinite().all()


@every
def test_lists_fit_the_books_metrics(kind, straight, split):
    top = straight(kind).recommend(split.test)
    found, direct = (
        summarise(top, split.test.targets).metrics,
        metrics(top.items, split.test.targets),
    )
    assert (
        found['ndcg@10'] == pytest.approx(direct['ndcg@10'], abs=1e-6)
        and found['invalid_rate'] == 0
    )


@every
def test_ties_go_to_the_lower_row(kind, split):
    model = make(kind)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert (model.recommend(split.test, 7).items == torch.arange(7)).all()


@every
def test_settings_that_cannot_be(kind):
    for change, text in (
        (dict(lr=0), 'lr is 0'),
        (dict(dim=0), 'dim is 0'),
        (dict(patience=-1), 'patience is -1'),
    ):
        with pytest.raises(ValueError, match=text) as e:
            make(kind, **change)
        assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='n_items is 0'):
        kind(
            0,
            config=make(kind).config,
            **given.get(kind, {})
            | (
                {}
                if kind not in (FDSA, S3Rec)
                else dict.fromkeys(given[kind], torch.zeros(0, 5))
            ),
        )
    with pytest.raises(TypeError):
        kind.settings(colour='red')
    assert replace(kind.settings(), seed=3).seed == 3


@pytest.mark.parametrize('n', (1, 5, 30))
def test_best_is_a_stable_sort(n):
    g = torch.Generator().manual_seed(n)
    scores = torch.randint(4, (50, 30), generator=g).float()
    want = scores.sort(dim=1, descending=True, stable=True)
    found = _best(scores, n)
    assert torch.equal(found.indices, want.indices[:, :n]) and torch.equal(
        found.values, want.values[:, :n]
    )
