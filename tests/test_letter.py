"LETTER: the published losses, groups and balance, and a run that is killed goes on."
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.columns import canonical_order
from gentok.data.toyshop import toyshop
from gentok.embed.collaborative import SASRec
from gentok.embed.table import EmbeddingTable
from gentok.ids.vocabulary import Vocabulary
from gentok.papers import letter as paper, tiger
from gentok.papers.letter import LetterConfig
from gentok.papers.tiger import TigerConfig, _unique_ids, tokenize_catalogue
from gentok.quantize.codebook import Codebook, nearest
from gentok.quantize.residual import ResidualQuantizer
from gentok.quantize.sinkhorn import balanced_codes, separate, sinkhorn
from gentok.recommend.decoder_only import DecoderOnly
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig
from gentok.tokenize.letter import (Letter, RegularizationConfig, _bounded_assignment,
    _code_groups, _partners, _to_width, collaborative_loss, constrained_kmeans,
    diversity_loss)
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from gentok.tokenize.tokenizer import ResidualKMeans, Tokenizer
from gentok.tokenize.unitok import _gradient_norms

def N(seed, shape):
    "The random numbers of the reference"
    draw = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(draw.astype(np.float32))

def tempered(tau, kind=GenerativeRecommender):
    "A tiny recommender at a temperature"
    return kind(Vocabulary((4,)), RecommenderConfig(8, 8, 1, 8, 1, temperature=tau))

# --- the published numbers

def test_collaborative_loss_of_the_reference(vectors):
    case = vectors('letter')['cf_loss']
    z, h = N(0, (5, 8)).requires_grad_(), N(1, (5, 8))
    loss = collaborative_loss(z, h)
    loss.backward()
    assert loss.item() == pytest.approx(case['value'], rel=1e-6)
    torch.testing.assert_close(z.grad, torch.tensor(case['grad_wrt_quantised']))
    back = collaborative_loss(h, z).item()  # the other direction is another loss
    assert back == pytest.approx(case['reverse_direction'], rel=1e-6)

def book_of(case):
    book = Codebook(20, 8, revival=None).place(.7*N(3, (20, 8)))
    return book, N(4, (6, 8)), torch.arange(20)//2, torch.tensor(case['positives'])

def test_diversity_loss_of_the_reference(vectors):
    case = vectors('letter')['diversity_loss']
    book, x, labels, positives = book_of(case)
    codes = book.encode(x)
    assert codes.tolist() == case['codes']
    assert torch.equal(_partners(codes, labels), positives)  # groups of two: no chance
    loss = diversity_loss(book.weight, codes, positives)
    loss.backward()
    assert loss.item() == pytest.approx(case['value'], rel=1e-6)
    norm = book.weight.grad.norm().item()
    assert norm == pytest.approx(case['grad_norm_codebook'], rel=1e-5)

def test_loss_of_a_level_of_the_reference(vectors):
    book, x, _, positives = book_of(vectors('letter')['diversity_loss'])
    out = book.eval()(x)
    loss = out.loss + diversity_loss(book.weight, out.codes, positives)
    want = vectors('letter')['vq_layer_loss']['value']
    assert loss.item() == pytest.approx(want, rel=1e-6)

@pytest.mark.parametrize('kind', [GenerativeRecommender, DecoderOnly])
def test_ranking_guided_loss_of_the_reference(vectors, kind):
    case = vectors('letter')['ranking_guided_loss']
    logits, labels = N(20, (2, 3, 6)), torch.tensor(case['inputs']['labels'])
    for tau, value in case['value_by_temperature'].items():
        model = tempered(float(tau), kind)
        found = model.loss(logits.flatten(0, 1), labels.flatten()).item()
        assert found == pytest.approx(value, rel=1e-6)

# --- the temperature

@pytest.mark.parametrize('kind', [GenerativeRecommender, DecoderOnly])
@pytest.mark.parametrize('per_level', [False, True])
def test_the_temperature_is_in_the_training_loss(kind, per_level, tmp_path):
    if per_level and kind is DecoderOnly: return
    v = Vocabulary((8, 8))
    sizes = RecommenderConfig(16, 32, 2, 8, 1, per_level=per_level)
    one, hot = (kind(v, replace(sizes, temperature=t)).eval() for t in (1., 2.))
    codes = torch.randint(8, (4, 3, 2), generator=torch.Generator().manual_seed(0))
    tokens = v.tokens(codes.view(-1, 2)).view(4, 6)
    inputs = torch.cat([tokens[:, :4], torch.full((4, 1), v.start)], 1)
    a, b = one(inputs, tokens[:, 4:]), hot(inputs, tokens[:, 4:])
    assert a != b
    uniform = torch.tensor(8. if per_level else v.size).log()
    assert abs(b - uniform) < abs(a - uniform)
    hot.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config.temperature == 2.

def test_a_low_temperature_asks_more_of_the_strongest_rival():
    def share(tau):
        s = torch.tensor([[1., .9, .1, -.5]], requires_grad=True)
        tempered(tau).loss(s, torch.tensor([0])).backward()
        return (s.grad[0, 1]/s.grad[0, 1:].sum()).item()
    assert share(.3) > share(1.) > share(3.) > 1/3

# --- balance

shapes = st.tuples(st.integers(2, 40), st.integers(1, 12), st.integers(0, 9999))

@given(shapes, st.sampled_from([.003, .05, .5]))
@settings(max_examples=40)
def test_a_plan_gives_codewords_the_same_share(shape, eps):
    b, k, seed = shape
    d = torch.rand(b, k, generator=torch.Generator().manual_seed(seed))
    Q = sinkhorn(d, eps)
    assert (Q >= 0).all() and Q.dtype == torch.float64
    torch.testing.assert_close(Q.sum(0), torch.full((k,), b/k, dtype=torch.float64))

def test_rows_sum_to_one_where_the_plan_has_converged():
    d = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    rows = sinkhorn(d, .2, 500).sum(1)
    torch.testing.assert_close(rows, torch.ones(30, dtype=torch.float64))

@pytest.mark.parametrize('bad', [torch.nan, torch.inf])
def test_a_plan_of_no_numbers_is_refused(bad):
    d = torch.rand(4, 3)
    d[2, 1] = bad
    with pytest.raises(ValueError, match='1 of 4 vectors meet NaN'): sinkhorn(d)

def test_equal_vectors_get_equal_codes_and_one_alone_the_nearest():
    r, e = N(0, (1, 4)), N(1, (16, 4))
    assert balanced_codes(r.repeat(9, 1), e).unique().numel() == 1
    assert torch.equal(balanced_codes(r, e), nearest(r, e))
    assert balanced_codes(torch.zeros(5, 4), torch.zeros(16, 4)).tolist() == [0]*5

def test_balance_uses_more_codewords():
    r, e = N(0, (400, 8)), N(1, (32, 8))*1.5
    used = [c.bincount(minlength=32) for c in (nearest(r, e), balanced_codes(r, e))]
    assert used[1].min() > used[0].min() and used[1].max() < used[0].max()

def test_balance_is_for_training_alone():
    x, model = N(0, (60, 12)), Letter(small, quick, RegularizationConfig(0, 0))
    model.build(12)
    *earlier, last = model.quantizer.codebooks
    model.quantizer.initialise(x[:, :8])
    assert last.choose is not nearest
    assert all(book.choose is nearest for book in earlier)
    balanced = model.quantizer.train()(x[:, :8]).codes
    plain = model.quantizer.eval()(x[:, :8]).codes
    assert torch.equal(plain, model.quantizer.encode(x[:, :8]))
    assert not torch.equal(balanced, plain) and torch.equal(balanced[:, 0], plain[:, 0])
    off = Letter(small, quick, RegularizationConfig(0, 0, sinkhorn=0)).codebooks(8)
    assert off.codebooks[-1].choose is nearest

def collisions(codes): return len(codes) - len(codes.unique(dim=0))

@given(st.integers(0, 9999), st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=12)
def test_separated_items_keep_their_prefix(seed, n, levels):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draw)
    rq = ResidualQuantizer.of((4,)*levels, 4, revival=None)
    for book in rq.codebooks: book.place(torch.randn(4, 4, generator=draw))
    codes = rq.encode(x)
    new = separate(rq, x, codes)
    assert torch.equal(new[:, :-1], codes[:, :-1]) and int(new.max()) < 4
    if not collisions(codes): assert torch.equal(new, codes)
    assert torch.equal(separate(rq, x, codes, rounds=0), codes)

def test_equal_items_are_never_parted():
    x = torch.cat([N(0, (20, 4)), torch.zeros(4, 4)])
    rq = ResidualQuantizer.of((3, 8), 4, revival=None).initialise(x)
    new = separate(rq, x, rq.encode(x))
    assert len(new[-4:].unique(dim=0)) == 1
    assert collisions(new) < collisions(rq.encode(x))

def test_balance_as_a_policy_ends_with_unique_items():
    table = EmbeddingTable(range(90), N(0, (90, 6)), 'cloud')
    kmeans = ResidualKMeans(levels=2, K=12).fit(table)
    made = _unique_ids(kmeans, table, 'sinkhorn')
    assert len(made.table.unique(dim=0)) == 90
    assert not torch.equal(made.table, _unique_ids(kmeans, table, 'reassign').table)
    with pytest.raises(ValueError, match="tokenizer is 'random'"):
        TigerConfig(policy='sinkhorn', tokenizer='random')

# --- groups

def cost(d, labels): return d[np.arange(len(d)), labels].sum()

@given(st.integers(0, 9999), st.integers(4, 7))
@settings(max_examples=25)
def test_bounded_clusters_are_the_cheapest(seed, n):
    d = np.random.default_rng(seed).standard_normal((n, 3))
    found = _bounded_assignment(d, 1, n - 2)
    every = map(np.array, itertools.product(range(3), repeat=n))
    best = min(cost(d, l) for l in every if len(set(l)) == 3)  # none has more than n-2
    assert cost(d, found) == pytest.approx(best)

@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=40)
def test_sizes_stay_within_their_bounds(K, least, more, seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(K*least, K*(least + more) + 1))
    x = torch.from_numpy(draw.standard_normal((n, 3))).float()
    if seed % 3 == 0: x[:] = x[0]  # all the same
    found = constrained_kmeans(x, K, least, least + more, seed)
    sizes = found.labels.bincount(minlength=K)
    assert found.centres.shape == (K, 3) and found.centres.isfinite().all()
    assert least <= sizes.min() and sizes.max() <= least + more
    again = constrained_kmeans(x, K, least, least + more, seed)
    assert torch.equal(found.labels, again.labels)

def test_impossible_bounds_are_refused():
    for n, least, most in ((9, 5, 9), (21, 2, 10), (4, 0, 9)):
        said = f'{n} vectors do not make 2 clusters of {least} to {most}'
        with pytest.raises(ValueError, match=said):
            constrained_kmeans(torch.rand(n, 2), 2, least, most)

@given(st.integers(2, 300), st.integers(1, 30))
@settings(max_examples=15)
def test_nobody_is_alone_in_a_group(K, groups):
    e = torch.randn(K, 3, generator=torch.Generator().manual_seed(K))
    labels = _code_groups(e, groups)
    assert labels.bincount()[labels].min() >= 2
    codes = torch.arange(K).repeat(3)
    others = _partners(codes, labels)
    assert (others != codes).all() and torch.equal(labels[others], labels[codes])

def test_published_groups_have_10_to_60_of_256():
    sizes = _code_groups(torch.cat([.05*N(0, (200, 8)), N(1, (56, 8))]), 10).bincount()
    assert len(sizes) == 10 and sizes.min() >= 10 and sizes.max() <= 60

def test_all_others_of_a_group_are_drawn_alike():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    drawn = _partners(torch.full((6000,), 2), labels).bincount(minlength=6)
    assert drawn[[1, 2, 4]].sum() == 0
    assert (drawn[[0, 3, 5]] - 2000).abs().max() < 200

# --- the tokenizer

small = RQVAEConfig(hidden=(16,), latent=8, levels=2, K=8)
quick = FitConfig(epochs=6, batch_size=32, every=2, measure=2)
table = EmbeddingTable([f'i{r}' for r in range(80)], N(5, (80, 12)), 'cloud')
behaviour = EmbeddingTable(table.ids, N(6, (80, 8)), 'clicks')

switches = {'published script': {}, 'no behaviour': dict(collaborative=0.),
            'command line': dict(collaborative=.1, diversity=.1),
            'no diversity': dict(diversity=0.), 'no balance': dict(sinkhorn=0.),
            'bounded': dict(start='constrained')}

def fitted(out=None, given=behaviour, config=small, plan=quick, **changes):
    added = RegularizationConfig(**changes)
    given = given if added.collaborative else None
    return Letter(config, plan, added).fit(table, out, behaviour=given)

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('name', switches)
def test_every_switch_learns_saves_and_comes_back(name, tmp_path):
    model = fitted(tmp_path, **switches[name])
    codes, said = model.encode(table), model.history[-1]
    assert codes.shape == (80, 2) and int(codes.max()) < 8
    assert ('collaborative' in said) == (name != 'no behaviour')
    assert ('diversity' in said) == (name != 'no diversity')
    assert model.history[-1]['reconstruction'] < model.history[0]['reconstruction']
    again = Tokenizer.from_pretrained(tmp_path)
    assert type(again) is Letter and again.regularization == model.regularization
    assert torch.equal(again.encode(table), codes)
    assert torch.equal(again.decode(codes), model.decode(codes))
    assert same(fitted(**switches[name]), model)  # the seed says it all
    assert again.health(table).collision_rate == model.health(table).collision_rate

@pytest.mark.parametrize('when', [2, 4, 5])
def test_nothing_shows_of_a_kill(when, tmp_path, monkeypatch):
    whole = fitted(tmp_path/'whole', diversity=.1)
    own = Letter.keep
    def killed(self, epoch, *rest):
        own(self, epoch, *rest)
        if epoch == when: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Letter, 'keep', killed)
        with pytest.raises(KeyboardInterrupt): fitted(tmp_path/'cut', diversity=.1)
    rest = fitted(tmp_path/'cut', diversity=.1)
    assert same(whole, rest) and whole.history == rest.history

def test_other_settings_or_behaviour_are_another_run(tmp_path):
    fitted(tmp_path)
    for change in (dict(diversity=.5), dict(sinkhorn=.01), dict(groups=2)):
        with pytest.raises(ValueError, match=next(iter(change))):
            fitted(tmp_path, **change)
    other = EmbeddingTable(table.ids, behaviour.matrix + 1, 'clicks')
    with pytest.raises(ValueError, match='holds a run with behaviour'):
        fitted(tmp_path, other)

def test_without_its_terms_it_is_an_rqvae():
    plain = fitted(collaborative=0., diversity=0., sinkhorn=0.)
    assert same(plain, RQVAE(small, quick).fit(table))

def test_rows_of_behaviour_are_found_by_their_ids():
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    matrix = torch.cat([behaviour.matrix, N(9, (1, 8))])
    more = EmbeddingTable([*behaviour.ids, 'unknown'], matrix, 'clicks')
    assert same(fitted(given=behaviour[order]), fitted())
    assert same(fitted(given=more), fitted())

@pytest.mark.parametrize('width', [1, 5, 20])
def test_behaviour_of_any_width(width):
    given = EmbeddingTable(table.ids, N(7, (80, width)), 'clicks')
    model = fitted(given=given)
    assert model.wanted.shape == (80, 8)
    rows = given.matrix[given.rows(sorted_ids())]
    kept, whole = (y @ y.T for y in (model.wanted, rows))
    missed = (kept - whole).norm()/whole.norm()
    assert missed < (1e-5 if width <= 8 else .8)

def sorted_ids(): return [table.ids[r] for r in canonical_order(table.ids)]

def test_wider_behaviour_is_cut_as_well_as_it_can_be():
    y = N(8, (50, 12))
    cut = _to_width(y, 5)
    left = torch.linalg.svdvals(y)[5:]
    lost = (y @ y.T - cut @ cut.T).norm()
    torch.testing.assert_close(lost, (left**4).sum().sqrt(), rtol=1e-3, atol=1e-3)

def test_who_feels_which_term():
    model = fitted(collaborative=.1, diversity=.1)
    x = model.inputs(table.matrix)
    model.wanted = behaviour.matrix
    terms = model.losses(x, torch.arange(80))
    parts = dict(encoder=model.encoder, books=model.quantizer, decoder=model.decoder)
    felt = {name: _gradient_norms(terms, part) for name, part in parts.items()}
    assert felt['encoder']['collaborative'] > 0 and felt['encoder']['diversity'] == 0
    assert felt['books']['collaborative'] == 0 and felt['books']['diversity'] > 0
    assert felt['decoder']['collaborative'] == felt['decoder']['diversity'] == 0

def test_the_total_is_the_sum_of_the_weighted_terms():
    c = dict(collaborative=.3, diversity=.2, sinkhorn=0.)
    model = fitted(**c).eval()
    x, rows = model.inputs(table.matrix), torch.arange(80)
    model.wanted = behaviour.matrix
    model.grouped = [torch.arange(8)//2]*2  # groups of two: nothing is drawn
    terms = model.losses(x, rows)
    z = r = model.encoder(x)
    levels, spread, total = [], [], 0.
    for book in model.quantizer.codebooks:
        e = book.weight
        codes = torch.cdist(r, e).argmin(1)
        q = e[codes]
        levels.append((q - r).square().mean()*1.25)
        logits = q @ e.T - 1e12*torch.nn.functional.one_hot(codes, 8)
        spread.append(torch.nn.functional.cross_entropy(logits, codes ^ 1))
        r, total = r - q, total + q
    want = torch.nn.functional.cross_entropy(total @ behaviour.matrix.T, rows)
    torch.testing.assert_close(terms['quantisation'], torch.stack(levels).mean())
    torch.testing.assert_close(terms['diversity'], .2*torch.stack(spread).mean())
    torch.testing.assert_close(terms['collaborative'], .3*want)
    missed = (model.decoder(total) - x).square().mean()
    torch.testing.assert_close(terms['reconstruction'], missed)

def test_behaviour_is_found_better_with_a_weight():
    def miss(weight):
        plan = replace(quick, epochs=40)
        model = fitted(plan=plan, collaborative=weight, diversity=0.)
        z = model.quantizer.eval()(model.encoder(table.matrix)).vectors
        return collaborative_loss(z, behaviour.matrix).item()
    assert miss(1.) < .9*miss(1e-6)

odd = {'one item': (1, {}, {}), 'two items': (2, {}, {}), 'few items': (5, {}, {}),
       'one code': (30, dict(K=1), {}), 'uneven': (30, dict(K=(1, 5)), {}),
       'three codes': (30, dict(K=3), dict(groups=9)), 'a batch of one': (33, {}, {}),
       'bounded': (20, {}, dict(start='constrained')),
       'one level': (30, dict(levels=1), {})}

@pytest.mark.parametrize('name', odd)
def test_small_cases(name, tmp_path):
    n, config, changes = odd[name]
    model = Letter(replace(small, **config), replace(quick, epochs=3),
                   RegularizationConfig(**changes))
    codes = model.fit(table[:n], behaviour=behaviour).encode(table)
    assert codes.shape == (80, len(model.sizes))
    assert all(v == v for v in model.history[-1].values())

def test_constant_vectors_and_duplicates():
    flat = EmbeddingTable(table.ids, torch.ones(80, 12), 'flat')
    twice = EmbeddingTable(table.ids, table.matrix[:40].repeat(2, 1), 'twice')
    for t in (flat, twice):
        model = Letter(small, quick, RegularizationConfig(diversity=.1))
        codes = model.fit(t, behaviour=behaviour).encode(t)
        assert all(v == v for v in model.history[-1].values())
        assert torch.equal(codes[:40], codes[40:])
    nobody = EmbeddingTable(table.ids, torch.zeros(80, 8), 'nobody')
    said = fitted(given=nobody).history[-1]['collaborative']  # batches of 32, 32, 16
    assert said == pytest.approx(.01*(64*np.log(32) + 16*np.log(16))/80, rel=1e-4)

def test_refusals():
    ema = replace(small, update='ema')
    with pytest.raises(ValueError, match='was given none'):
        Letter(small, quick).fit(table)
    with pytest.raises(KeyError, match='has no vector for'):
        fitted(given=behaviour[:70])
    with pytest.raises(ValueError, match='NaN'):
        fitted(given=behaviour.matrix*torch.nan)
    with pytest.raises(ValueError, match='feel no diversity loss'): Letter(ema)
    Letter(ema, regularization=RegularizationConfig(diversity=0.))
    for wrong in (dict(collaborative=-1), dict(diversity=float('nan')), dict(groups=0),
                  dict(sinkhorn=-.1), dict(start='here')):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RegularizationConfig(**wrong)
    with pytest.raises(ValueError, match='do not make 100 clusters of 1 to 4'):
        fitted(start='constrained', config=replace(small, K=100))

# --- the method

shop_plan = dict(text_dim=8, codebook_size=24, tokenizer_epochs=6, epochs=2, d_model=8,
                 layers=1, batch_size=64, validate_every=1)

@pytest.fixture(scope='module')
def shop(): return toyshop(n_items=40, n_users=40, domains=1)[0]

plain = lambda m: {k: v for k, v in m.items() if k != 'seconds'}

@pytest.fixture(scope='module')
def whole(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp('letter')
    return paper.run(shop, LetterConfig(**shop_plan), out)

def test_a_run_that_is_killed_goes_on(shop, whole, tmp_path, monkeypatch):
    own, config = Letter.keep, LetterConfig(**shop_plan)
    def stop(*given): raise KeyboardInterrupt
    def killed(self, epoch, *rest):
        return (stop if epoch == 3 else own)(self, epoch, *rest)
    with monkeypatch.context() as m:
        m.setattr(Letter, 'keep', killed)
        with pytest.raises(KeyboardInterrupt): paper.run(shop, config, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(SASRec, 'fit', lambda *a, **k: pytest.fail('behaviour is made once'))
        m.setattr(tiger, 'fit_recommender', stop)
        with pytest.raises(KeyboardInterrupt): paper.run(shop, config, tmp_path)
    again = paper.run(shop, config, tmp_path)
    assert plain(again.metrics) == plain(whole.metrics)
    assert torch.equal(again.fitted.item_ids.table, whole.fitted.item_ids.table)
    assert same(again.fitted.model, whole.fitted.model)

def test_a_run_leaves_what_others_leave(shop, whole):
    left = {p.name for p in whole.out.iterdir()}
    assert {'metrics.json', 'report.html', 'pipeline', 'tokenizer', 'behaviour'} <= left
    m = json.loads((whole.out/'metrics.json').read_text())
    assert m['config']['collaborative'] == .01 and m['users'] == 40
    assert type(Tokenizer.from_pretrained(whole.out/'tokenizer')) is Letter
    assert EmbeddingTable.load(whole.out/'behaviour').dim == 32

def test_behaviour_of_ones_own(shop, whole):
    rows = shop.in_canonical_order().catalogue
    given = EmbeddingTable(rows.ids, N(3, (40, 6)), 'own')
    config = LetterConfig(**shop_plan, collaborative=1.)
    made = tokenize_catalogue(shop, config, None, given)
    wanted = made.tokenizer.wanted
    assert wanted.shape == (40, 32) and (wanted[:, 6:] == 0).all()
    assert torch.equal(wanted[:, :6], given.matrix)

def test_the_rival_differs_in_the_tokenizer_alone(shop):
    config = LetterConfig(**shop_plan, tokenizer='rqvae')
    made = tokenize_catalogue(shop, config)
    rival = tokenize_catalogue(shop, TigerConfig(**shop_plan, tokenizer='rqvae'))
    assert type(made.tokenizer) is RQVAE
    assert torch.equal(made.item_ids.table, rival.item_ids.table)

@pytest.mark.parametrize('wrong', [
    dict(temperature=0.), dict(temperature=-1.), dict(tokenizer='kmeans'),
    dict(groups=0), dict(behaviour_dim=0), dict(collaborative=-1.), dict(start='x'),
    dict(sinkhorn=float('inf'))])
def test_settings_that_no_run_could_use(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): LetterConfig(**wrong)

# --- the command line

@pytest.fixture
def ask(capsys):
    from gentok.cli import main
    def asked(*words):
        code = main([str(w) for w in words])
        return code, *capsys.readouterr()
    return asked

def test_identifiers_from_the_command_line(ask, shop, tmp_path):
    folder = tmp_path/'shop'
    folder.mkdir()
    items = [f'{i},"{t}"' for i, t in zip(shop.catalogue.ids, shop.catalogue.text)]
    (folder/'items.csv').write_text('\n'.join(['item,title', *items]))
    alone = ask('tokenize', folder/'items.csv', '--method', 'letter',
                '--out', tmp_path/'none')
    assert alone[0] == 2 and 'no histories' in alone[2]
    users = zip(shop.histories.users, shop.histories)
    taken = [f'{u},{shop.catalogue.ids[i]},{t}' for u, h in users
             for t, i in enumerate(h.tolist())]
    (folder/'interactions.csv').write_text('\n'.join(['user,item,time', *taken]))
    words = ['--method', 'letter', '--tokenizer-epochs', 3, '--codebook-size', 24,
             '--text-dim', 8, '--policy', 'sinkhorn', '--json']
    code, out, err = ask('tokenize', folder, '--out', tmp_path/'ids', *words)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])['items'] == 40
    written = json.loads((tmp_path/'ids'/'identifiers.json').read_text())
    assert len(set(map(tuple, written.values()))) == 40
    assert ask('tokenize', folder, '--out', tmp_path/'ids', *words)[0] == 0  # is read

def test_the_method_is_listed(ask):
    assert 'letter' in json.loads(ask('methods', '--json')[1])
