"The order of the rows decides nothing: a shuffled catalogue gets the same identifiers and the same recommendations."
import json
import random
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.data.columns import canonical_order
from gentok.data.dataset import Catalogue, Dataset
from gentok.data.formats import load
from gentok.data.toyshop import toyshop
from gentok.embed.table import EmbeddingTable, _concat_domains
from gentok.ids.collisions import resolve
from gentok.papers import etegrec, mtgrec, protocol, tiger, unitok, utgrec
from gentok.papers.tiger import TigerConfig, tokenize_catalogue, _unique_ids
from gentok.search.exact import exact_top_k
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from gentok.tokenize.tokenizer import RandomTokenizer, ResidualKMeans
from gentok.tokenize.unitok import ExpertsConfig, UniTok

pytestmark = pytest.mark.filterwarnings('ignore:.*left their prefix')
small = TigerConfig(text_dim=8, codebook_size=8, tokenizer_epochs=4, epochs=1, validate_every=1, d_model=8, layers=1, batch_size=64, beams=10)
orders = st.integers(0, 10**6)

def shuffled(n, seed): return np.random.default_rng(seed).permutation(n)

def dataset(shop, order=None):
    "A shop with its rows in another order; histories by id"
    c, h = shop.catalogue, shop.histories
    order = range(len(c)) if order is None else order
    pictures = None if c.images is None else [c.images[r] for r in order]
    catalogue = Catalogue([c.ids[r] for r in order], [c.text[r] for r in order], pictures, c.domain, [c.titles[r] for r in order])
    return Dataset(shop.name, catalogue, {u: [c.ids[i] for i in row.tolist()] for u, row in zip(h.users, h)})

@pytest.fixture(scope='module')
def shops(): return toyshop(n_items=40, n_users=40, domains=3)

def by_id(ids, item_ids): return dict(zip(ids, map(tuple, item_ids.table.tolist())))

def vectors(n, seed=0):
    "Vectors of which several are equal, so that there are ties of every kind"
    gen = torch.Generator().manual_seed(seed)
    return EmbeddingTable([f'item {i}' for i in range(n)], torch.randint(3, (n, 6), generator=gen).float(), 'made')

def rqvae(**changes):
    return RQVAE(replace(RQVAEConfig(hidden=(16,), latent=4, K=8, levels=2), **changes), FitConfig(epochs=3, batch_size=16, measure=3, select='collisions'))

makers = dict(kmeans=lambda: ResidualKMeans(levels=2, K=8), rqvae=rqvae, whitened=lambda: rqvae(whiten=6, update='ema'),
              random=lambda: RandomTokenizer(levels=2, K=8))

@pytest.mark.parametrize('kind', makers)
@given(seed=orders)
@settings(max_examples=6, deadline=None)
def test_a_shuffled_table_gives_the_same_tokenizer_and_identifiers(kind, seed):
    table, make = vectors(50), makers[kind]
    other = table[shuffled(50, seed)]
    a, b = make().fit(table), make().fit(other)
    assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    assert torch.equal(b.encode(other), a.encode(table.for_ids(other.ids)))
    assert torch.equal(a.encode(other, batch=7), a.encode(table, batch=7)[table.rows(other.ids)])
    with warnings.catch_warnings(action='ignore'):
        for policy in ('suffix', 'reassign'):
            mine, theirs = _unique_ids(a, table, policy), _unique_ids(b, other, policy)
            assert by_id(table.ids, mine) == by_id(other.ids, theirs) and (mine.sizes, mine.moved) == (theirs.sizes, theirs.moved)

def test_experts_too():
    table = _concat_domains({'a': vectors(30), 'b': vectors(24, 1)})
    other = table[shuffled(54, 3)]
    made = lambda: UniTok(ExpertsConfig(('a', 'b')), RQVAEConfig(hidden=(16,), latent=4, K=8, levels=2, whiten=0), FitConfig(epochs=3, batch_size=16, measure=0, warm=1))
    a, b = made().fit(table), made().fit(other)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    with warnings.catch_warnings(action='ignore'):
        assert by_id(table.ids, _unique_ids(a, table, 'reassign')) == by_id(other.ids, _unique_ids(b, other, 'reassign'))

def test_a_matrix_is_fitted_as_it_stands():
    x = vectors(50).matrix
    seen = []
    class Watch(ResidualKMeans):
        def learn(self, x, ids, out=None): seen.append((x, ids)); super().learn(x, ids, out)
    Watch(levels=1, K=4).fit(x)
    assert torch.equal(seen[0][0], x) and list(seen[0][1]) == list(range(50))
    ordered = vectors(50)[canonical_order(vectors(50).ids).tolist()]
    Watch(levels=1, K=4).fit(ordered)
    assert seen[1][0] is ordered.matrix  # not copied

@given(n=st.integers(2, 40), levels=st.integers(1, 3), seed=orders)
@settings(max_examples=60, deadline=None)
def test_turns_go_by_ids(n, levels, seed):
    gen, order = torch.Generator().manual_seed(seed), torch.from_numpy(shuffled(n, seed))
    K = max(3, int(np.ceil(n**(1/levels))))
    codes, residuals = torch.randint(2, (n, levels), generator=gen), torch.randint(3, (n, 2), generator=gen).float()
    book, ids = torch.randn(K, 2, generator=gen), [f'i{k}' for k in range(n)]
    moved_ids = [ids[r] for r in order]
    with warnings.catch_warnings(action='ignore'):
        for kw in (dict(policy='suffix'), dict(policy='reassign', sizes=(K,)*levels, residuals=residuals, codebook=book),
                   dict(policy='reassign', sizes=(K,)*levels, distances=torch.cdist(residuals, book))):
            there = {k: v[order] if k in ('residuals', 'distances') else v for k, v in kw.items()}
            one, two = resolve(codes, ids=ids, **kw), resolve(codes[order], ids=moved_ids, **there)
            assert torch.equal(one.table[order], two.table)
            assert (one.sizes, one.collisions, one.moved) == (two.sizes, two.collisions, two.moved)

def test_turns_do_not_tell_who_came_first():
    "Of 500 pairs the earlier row gets suffix 0 about as often as the later one"
    ids = resolve(torch.arange(500).repeat_interleave(2)[:, None], 'suffix', ids=[f'p{i:04}' for i in range(1000)])
    assert 200 < int((ids.table[::2, 1] == 0).sum()) < 300

@pytest.mark.parametrize('change', [dict(tokenizer=t, policy=p) for t in ('rqvae', 'rqvae++', 'kmeans', 'random') for p in ('suffix', 'reassign')] + [dict(tokenizer='kmeans', text='sasrec')], ids=str)
def test_what_a_recommender_reads(change, shops, monkeypatch):
    monkeypatch.setattr('gentok.papers.tiger.SASRecConfig', lambda **kw: tiger.SASRec.__init__.__defaults__[0].__class__(dim=8, epochs=2, **kw))
    a, b = (tokenize_catalogue(dataset(shops[0], o), replace(small, **change)) for o in (None, shuffled(40, 5)))
    assert list(a.table.ids) == list(b.table.ids) and torch.equal(a.table.matrix, b.table.matrix)
    assert torch.equal(a.item_ids.table, b.item_ids.table) and repr(a.health) == repr(b.health)

def answers(folder, histories, k=5):
    "Recommendations by id of a saved recommender"
    fitted, items = protocol.load_fitted(folder)
    found = exact_top_k(fitted.model, fitted.trie, [[items.row(i) for i in h] for h in histories], k)
    return [[items.ids[r] for r in row] for row in found.items.tolist()], found.scores

def same_answers(a, b, histories, folders):
    plain = lambda m: {k: v for k, v in m.items() if k != 'seconds'}
    assert plain(a.metrics) == plain(b.metrics)
    (one, s), (two, t) = (answers(f, histories) for f in folders)
    assert one == two and torch.equal(s, t)

runs = dict(tiger=(tiger.run, small), suffix=(tiger.run, replace(small, tokenizer='kmeans', policy='suffix')),
            mtgrec=(mtgrec.run, mtgrec.MtgrecConfig(**{**asdict(small), 'epochs': 3, 'tokenizer': 'rqvae'}, n_tokenizers=2, fine_tune_epochs=1, stages=(1,), sample=16)),
            etegrec=(etegrec.run, etegrec.EtegrecConfig(**{**asdict(small), 'codebook_size': 16, 'text': 'lsa', 'epochs': 3, 'tokenizer': 'rqvae'}, cycle=2, fine_tune_epochs=1, alignment_warmup=0)),
            unitok=(unitok.run, unitok.UnitokConfig(**{**asdict(small), 'tokenizer': 'unitok'}, tokenizer_warm=1)),
            utgrec=(utgrec.run, utgrec.UtgrecConfig(**{**asdict(small), 'tokenizer': 'utgrec', 'levels': 3, 'tokenizer_epochs': 2}, pretraining=False, width=16, patch=0, tokenizer_batch=20, tokenizer_warm=2)))

@pytest.mark.parametrize('name', runs)
def test_whole_runs(name, shops, tmp_path):
    run, config = runs[name]
    shop = dataset(shops[0])
    histories = [[shop.catalogue.ids[i] for i in h[:4].tolist()] for h in list(shop.histories)[:10]]
    folders = [tmp_path/'a', tmp_path/'b']
    a, b = (run(dataset(shops[0], o), config, f) for o, f in zip((None, shuffled(40, 9)), folders))
    same_answers(a, b, histories, folders)
    run(dataset(shops[0], shuffled(40, 10)), config, folders[0])  # the same data: it is continued

def test_domains_that_teach_each_other(shops):
    sources, target = [dataset(s) for s in shops[1:]], dataset(shops[0])
    turned = [dataset(s, shuffled(40, k)) for k, s in enumerate(shops[1:])]
    for learn, config in ((unitok._fit_tokenizers, runs['unitok'][1]), (utgrec._pretrain_tokenizer, replace(runs['utgrec'][1], pretraining=True))):
        a, b = (learn(unitok._by_name(found), config) for found in ([*sources, target], [*turned, dataset(shops[0], shuffled(40, 7))]))
        c = learn({d.name: d for d in [*turned, dataset(shops[0], shuffled(40, 7))]}, config)
        for tables in zip(*((x.tables if learn is unitok._fit_tokenizers else x.items).values() for x in (a, b, c))):
            assert len({tuple(t.ids) for t in tables}) == 1 and all(torch.equal(t.matrix, tables[0].matrix) for t in tables)
        if learn is utgrec._pretrain_tokenizer:
            for name, ids in a.item_ids.items(): assert torch.equal(ids.table, b.item_ids[name].table) and torch.equal(ids.table, c.item_ids[name].table)
        else: assert all(torch.equal(x, y) for x, y in zip(a.tokenizers['tiles'].state_dict().values(), b.tokenizers['tiles'].state_dict().values()))

def test_identifiers_of_items_with_pictures(shops):
    items = utgrec._items_of(shops[0].catalogue, EmbeddingTable(shops[0].catalogue.ids, vectors(40).matrix, 'made'))
    tokenizer = utgrec._tokenizer_of(replace(runs['utgrec'][1], mu=0., eta=0.)).fit(items)
    order = shuffled(40, 2)
    with warnings.catch_warnings(action='ignore'):
        one, two = (utgrec._resolve_codes(tokenizer, i) for i in (items, items[order]))
    assert torch.equal(one.table[order], two.table)

# ---------------------------------------------------------------- from files

def written(folder, shop, seed=None, texts=None):
    "The shop as files, its items in some order"
    folder.mkdir(parents=True, exist_ok=True)
    c, h = shop.catalogue, shop.histories
    rows = list(range(len(c)))
    if seed is not None: random.Random(seed).shuffle(rows)
    texts = texts or c.text
    (folder/f'{folder.name}.item.json').write_text(json.dumps({c.ids[r]: dict(title=texts[r]) for r in rows}))
    (folder/f'{folder.name}.inter.json').write_text(json.dumps({u: [c.ids[i] for i in row.tolist()] for u, row in zip(h.users, h)}))
    return folder

def test_from_files(shops, tmp_path):
    a, b = (load(written(tmp_path/str(k)/'shop', shops[0], seed)) for k, seed in enumerate((None, 4)))
    assert a.catalogue.ids == b.catalogue.ids and a.catalogue.text == b.catalogue.text and torch.equal(a.histories.items, b.histories.items)
    assert a.in_canonical_order() is a and a.digest() == b.digest()
    config = replace(small, tokenizer='kmeans', policy='suffix')
    one, two = (tiger.run(d, config, tmp_path/f'out{k}') for k, d in enumerate((a, b)))
    same_answers(one, two, [a.catalogue.ids[:3], a.catalogue.ids[7:9]], [tmp_path/'out0', tmp_path/'out1'])
    tiger.run(b, config, tmp_path/'out0')

# ---------------------------------------------------------------- other data in the same folder

def test_changed_data_are_refused(shops, tmp_path):
    config = replace(small, tokenizer='kmeans')
    tiger.run(load(written(tmp_path/'shop', shops[0])), config, tmp_path/'out')
    before = {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()}
    c = shops[0].catalogue
    edited = load(written(tmp_path/'shop', shops[0], texts=[*c.text[:-1], 'A teapot']))
    other = dataset(shops[0])
    other.histories.items[0] = (other.histories.items[0] + 1) % 40
    other.name = 'shop'
    for changed in (edited, other):
        with pytest.raises(ValueError, match='holds a run on other data.*give another --out'): tiger.run(changed, config, tmp_path/'out')
    with pytest.raises(ValueError, match='epochs=1, but epochs=2'): tiger.run(load(written(tmp_path/'shop', shops[0])), replace(config, epochs=2), tmp_path/'out')
    assert {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()} == before

def test_a_folder_of_an_older_version_is_refused(shops, tmp_path):
    (tmp_path/'run.json').write_text(json.dumps(dict(method='tiger', data=['tiles', 40, len(shops[0].histories.items)], config=asdict(small))))
    with pytest.raises(ValueError, match='holds a run on other data.*give another --out'): tiger.run(shops[0], small, tmp_path)

def test_other_domains_are_part_of_a_run(shops, tmp_path):
    paths = [written(tmp_path/name, s) for name, s in zip(('one', 'two'), shops)]
    config = replace(runs['unitok'][1], others=str(paths[1]))
    protocol._register_run(tmp_path/'out', 'unitok', asdict(config), load(paths[0]))  # as the command line does first
    unitok.run(load(paths[0]), config, tmp_path/'out')
    assert [d['name'] for d in json.loads((tmp_path/'out'/'run.json').read_text())['others']] == ['two']
    unitok.run(load(paths[0]), config, tmp_path/'out')
    written(paths[1], shops[1], texts=['mug', *shops[1].catalogue.text[1:]])
    with pytest.raises(ValueError, match='holds a run on other data'): unitok.run(load(paths[0]), config, tmp_path/'out')

def place_in_order(found): found.put(canonical_order([f'i{n}' for n in range(100)]).tolist())

def test_a_forked_process_may_ask_for_the_order():
    "Polars computes in threads, and a process that was forked has none of them"
    import multiprocessing
    import polars
    polars.DataFrame(dict(a=range(100_000))).sort('a', descending=True)
    context = multiprocessing.get_context('fork')
    found = context.Queue()
    child = context.Process(target=place_in_order, args=(found,))
    child.start()
    try: assert found.get(timeout=1800) == canonical_order([f'i{n}' for n in range(100)]).tolist()
    finally: child.kill()
