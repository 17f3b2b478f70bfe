"The toy shop is reproducible, and its limit is the true one."
import numpy as np
import pytest
import torch

from gentok.data.toyshop import (Truth, _at_k, _counts, _shops, _steps, _target_rank, _taste_names, toyshop, _traits,
                                 _group_moves, _habit, shop_grid)

@pytest.fixture(scope='module')
def shop(): return toyshop(300, 2000)

def parts(d): return [h[:-1] for h in d.histories], torch.stack([h[-1] for h in d.histories])

def same(a, b):
    return (a.catalogue.text == b.catalogue.text and a.catalogue.ids == b.catalogue.ids
            and torch.equal(a.histories.items, b.histories.items) and torch.equal(a.histories.offsets, b.histories.offsets)
            and all(torch.equal(x, y) for x, y in zip(a.truth, b.truth))
            and a.catalogue.images[3].tobytes() == b.catalogue.images[3].tobytes())

def test_a_seed_decides_everything_and_touches_nothing():
    torch.manual_seed(1); np.random.seed(1)  # noqa: NPY002
    state, old = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, c = toyshop(80, 60), toyshop(80, 60), toyshop(80, 60, seed=1)
    assert all(map(same, a, b)) and not any(map(same, a, c))
    assert torch.equal(torch.random.get_rng_state(), state) and (np.random.get_state()[1] == old).all()  # noqa: NPY002
    assert same(a[1], toyshop(80, 60, 'badges')[0]) and same(a[0], toyshop(80, 60, 1)[0])

@pytest.mark.parametrize('n_items, n_users', [(1, 1), (2, 3), (60, 100), (301, 10), (2500, 20)])
def test_any_size_opens(n_items, n_users):
    for d in toyshop(n_items, n_users, 6, seed=3):
        lengths = d.histories.lengths
        assert len(d.catalogue) == len(set(d.catalogue.text)) == n_items and len(d.histories) == n_users
        assert 5 <= int(lengths.min()) and int(lengths.max()) <= 30
        past, targets = parts(d)
        p = d.truth.predictive(past)
        assert p.shape == (n_users, n_items) and p.dtype == torch.float64
        assert torch.allclose(p.sum(1), torch.ones(n_users).double(), atol=1e-9) and (p > 0).all()

def test_truth_is_a_markov_chain(shop):
    for d in shop:
        t = d.truth
        assert torch.allclose(t.moves.sum(-1), torch.ones(t.moves.shape[:2]).double())
        assert torch.allclose(torch.einsum('mg,mgh->mh', t.start, t.moves), t.start, atol=1e-12)
        assert torch.allclose(torch.bincount(t.group, t.weight), torch.ones(t.moves.shape[-1]).double())
        assert len(t.prior) == len(_steps) == len(_taste_names) and t.values.shape == (300, 4)

def brute(t: Truth, history):
    "p(i | h) from the whole item-to-item law of every taste, without cancelling anything."
    law = t.moves[:, t.group][:, :, t.group]*t.weight # m n n
    chance = t.prior*t.start[:, t.group[history[0]]]*t.weight[history[0]]
    for j, i in zip(history, history[1:]): chance = chance*law[:, j, i]
    p = (chance[:, None]*law[:, history[-1]]).sum(0)
    return p/p.sum()

def test_the_filter_is_the_definition(shop):
    for d in (*toyshop(20, 40, 6), shop[0]):
        past = [h.tolist() for h in list(d.histories)[:40]]
        p = d.truth.predictive(past)
        assert torch.allclose(p, torch.stack([brute(d.truth, h) for h in past]), atol=1e-12)

def test_a_history_does_not_depend_on_its_batch(shop):
    d = shop[1]; past = parts(d)[0][:50]
    together, alone = d.truth.predictive(past), torch.cat([d.truth.predictive([h]) for h in past])
    assert torch.allclose(together, alone, atol=1e-14)
    assert torch.allclose(d.truth.predictive(past[::-1]), together.flip(0), atol=1e-14)

def test_a_window_is_exact():
    t = toyshop(15, 20, ['stamps'])[0].truth
    window = [3, 7, 1]
    before = [[i, j, *window] for i in range(15) for j in range(15)]
    law = t.moves[:, t.group][:, :, t.group]*t.weight
    first = t.prior[:, None]*t.start[:, t.group]*t.weight
    chance = torch.stack([sum(first[m, h[0]]*torch.stack([law[m, a, b] for a, b in zip(h, h[1:])]).prod()
                              for m in range(len(t.prior))) for h in before])
    assert torch.allclose((chance @ t.predictive(before))/chance.sum(), t.predictive([window])[0], atol=1e-12)

def test_calibrated_and_unbeaten():
    for d in toyshop(300, 3000, seed=11):
        past, targets = parts(d)
        p = d.truth.predictive(past)
        surprise, entropy = -p.gather(1, targets[:, None])[:, 0].log(), -(p*p.log()).sum(1)
        gap = surprise - entropy
        assert abs(gap.mean()) < 4*gap.std()/len(gap)**.5
        limit, promised = d.truth.bayes_optimal(past, targets), d.truth.expected_optimal(past)
        for k, v in limit.items(): assert abs(v - promised[k]) < 4*.5/len(gap)**.5, k
        for rival in ([h[-1:] for h in past], [h[-2:] for h in past], [h[:0] for h in past]):
            score = _at_k(_target_rank(d.truth.predictive(rival), targets))
            assert all(score[k] < limit[k] for k in limit)

def test_histories_follow_the_process():
    d = toyshop(120, 30000, ['tiles'], seed=5)[0]; t = d.truth
    first = torch.bincount(d.histories.items[d.histories.offsets[:-1]], minlength=120)/30000.
    expected = t.predictive([[]])[0]
    assert ((first - expected).abs() < 5*(expected/30000).sqrt() + 1e-4).all()
    assert abs(d.histories.lengths.double().mean() - 8) < .1
    share = torch.bincount(t.tastes, minlength=len(t.prior))/30000.
    assert (share - t.prior).abs().max() < .02

def test_the_limit_is_a_challenge(shop):
    for d in shop:
        past, targets = parts(d)
        limit = d.truth.bayes_optimal(past, targets)
        popular = _at_k(_target_rank(d.truth.predictive([[]]).expand(len(past), -1), targets))
        assert .65 < limit['recall@10'] < .85 and .4 < limit['ndcg@10'] < .6
        assert popular['ndcg@10'] < .3*limit['ndcg@10']

def test_limit_takes_a_split(shop):
    splits = pytest.importorskip('gentok.data.splits')
    test = splits.leave_one_out(shop[0]).test
    found = shop[0].truth.bayes_optimal(test.histories(), test.targets, ks=(1, 10))
    assert set(found) == {'recall@1', 'ndcg@1', 'recall@10', 'ndcg@10'} and found['recall@1'] == found['ndcg@1']

def test_at_k_agrees_with_the_metrics_of_the_book(shop):
    ranking = pytest.importorskip('gentok.evaluate.ranking')
    past, targets = parts(shop[2])
    p = shop[2].truth.predictive(past)
    book = ranking.metrics(p.topk(10).indices, targets, ks=(5, 10))
    for k, v in shop[2].truth.bayes_optimal(past, targets).items(): assert abs(float(book[k]) - v) < 1e-3, k

def test_texts_show_the_tree(shop):
    from sklearn.feature_extraction.text import TfidfVectorizer
    for d in shop:
        x = TfidfVectorizer().fit_transform(d.catalogue.text)
        near, v = (x @ x.T).toarray(), d.truth.values.numpy()
        depth = (v[:, None, :3] == v[None, :, :3]).cumprod(-1).sum(-1)
        means = [near[(depth == k) & ~np.eye(300, dtype=bool)].mean() for k in range(4)]
        assert means == sorted(means) and means[3] > 1.5*means[0]

def test_pictures_follow_the_traits(shop):
    d = shop[1]; pictures, v = d.catalogue.images, d.truth.values
    assert len(pictures) == 300 and pictures[0].size == (48, 48) and pictures[-1].mode == 'RGB'
    x = np.stack([np.asarray(p, dtype=float).mean((0, 1)) for p in pictures])
    colour = v[:, 1].numpy(); centre = np.stack([x[colour == c].mean(0) for c in range(5)])
    nearest = ((x[:, None] - centre)**2).sum(-1).argmin(1)
    assert (nearest == colour).mean() > .7
    assert len(list(toyshop(7, 2, 1)[0].catalogue.images)) == 7

@pytest.mark.parametrize('ask, words', [
    (dict(domains=['boats']), "no domain is called 'boats'"), (dict(domains=7), '7 domains were asked for; expected 1 to 6'),
    (dict(domains=0), '0 domains'), (dict(domains=()), '0 domains'), (dict(n_items=0), 'n_items is 0'),
    (dict(n_users=-2), 'n_users is -2'), (dict(domains=['tiles', 'tiles']), "'tiles' was asked for twice")])
def test_impossible_orders(ask, words):
    with pytest.raises(ValueError) as e: toyshop(**{'n_items': 20, 'n_users': 5, **ask})
    assert words in str(e.value) and str(e.value).endswith('.')

def test_impossible_questions(shop):
    t = shop[0].truth
    for history in ([3, 300], [-1]):
        with pytest.raises(ValueError, match='a history holds row'): t.predictive([[1], history])
    with pytest.raises(ValueError, match='no histories'): t.posterior([])
    with pytest.raises(ValueError, match='1 histories came with 2 targets'): t.bayes_optimal([[1]], torch.tensor([1, 2]))

def test_every_domain_has_its_own_words():
    for s in _shops.values(): assert tuple(len(getattr(s, t).split()) for t in _traits) == _counts
    words = [w for s in _shops.values() for t in _traits for w in getattr(s, t).split()]
    assert len(words) == len(set(words))

def test_habit_rows_are_distributions():
    for delta in range(-2, 3):
        q = np.array([.5, .3, .2]); assert np.allclose(_habit(delta, .7, 1, q).sum(1), 1)
    one = _group_moves(np.array([[2, 3, 1]]), [np.full(k, 1/k) for k in _counts[:3]], np.zeros((len(_steps), 3), dtype=int))
    assert np.allclose(one, 1)

def test_the_grid_has_one_panel_per_domain():
    panels = shop_grid(('kites',))
    assert len(panels) == 1 and len(shop_grid()) == 3
