"The front door: `import gentok`, fit, recommend for many, a catalogue that changes, saved and read."
import json
import subprocess
import sys
import warnings

import numpy as np
import polars as pl
import pytest
import torch

import gentok
from gentok.data.splits import leave_one_out
from gentok.evaluate.full_ranking import evaluate
from gentok.ids.collisions import extend
from gentok.ids.item_ids import ItemIds
from hypothesis import given, settings, strategies as st

tiny = dict(epochs=2, batch_size=64, lr=3e-3, d_model=16, layers=1, validate_every=2, text_dim=16, codebook_size=16, tokenizer_epochs=60)

@pytest.fixture(scope='module')
def shop(): return gentok.toyshop(n_items=60, n_users=300)

@pytest.fixture(scope='module')
def folder(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp('run')/'tiger'
    gentok.fit('tiger', shop, out, **tiny)
    return out

@pytest.fixture(scope='module')
def rec(folder): return gentok.Recommender.from_pretrained(folder)

def histories(shop, n=20): return [[shop.catalogue.ids[row] for row in h[:-1].tolist()] for h in list(shop.histories)[:n]]

def test_the_block_of_the_first_page(shop, tmp_path):
    rec = gentok.fit('tiger', shop, out=tmp_path/'tiger', **tiny)
    some = shop.catalogue.ids[:3]
    found = rec.recommend([some], k=10, unseen=True)
    assert found.columns == ['user', 'rank', 'id', 'title', 'score', 'codes'] and found.height == 10
    assert not set(found['id']) & set(some)
    assert rec.items(rec.codes(some[0])) == some[0] and rec.neighbours(some[0]).height == 10
    judged = rec.evaluate(shop)
    assert judged['ndcg@10'] == pytest.approx(json.loads((tmp_path/'tiger'/'metrics.json').read_text())['ndcg@10'])
    rec.save_pretrained(tmp_path/'copy')
    again = gentok.Recommender.from_pretrained(tmp_path/'copy')
    assert again.recommend([some], k=10, unseen=True).equals(found)
    for place in ('tiger', 'copy'): assert 'tiger on tiles' in (tmp_path/place/'README.md').read_text()

def test_a_run_folder_is_a_model(shop, folder, rec):
    assert rec.about['run']['method'] == 'tiger' and rec.pipeline is not None
    assert rec.evaluate(shop)['recall@10'] == pytest.approx(rec.about['metrics']['recall@10'])

def test_scores_are_those_of_the_evaluation(shop, rec):
    split = leave_one_out(shop.in_canonical_order())
    found = evaluate(rec.fitted.model, rec.fitted.trie, split.test).ranked
    asked = [[rec.catalogue.ids[r] for r in h.tolist()] for h in split.test.histories()]
    frame = rec.recommend(asked, k=10, batch_size=37)
    assert frame['id'].to_list() == [rec.catalogue.ids[r] for r in found.items.flatten().tolist()]
    assert np.allclose(frame['score'].to_numpy(), found.scores.flatten().numpy(), atol=1e-5)

@pytest.mark.parametrize('way', [dict(), dict(unseen=True), dict(exact=True), dict(exact=True, unseen=True)])
def test_allow_and_deny_are_a_filter_of_all_answers(shop, rec, way):
    asked, ids = histories(shop, 6), rec.catalogue.ids
    every = rec.recommend(asked, k=60, beams=60, **way)
    for kind, few in (('allow', ids[5:25]), ('deny', ids[5:50])):
        mine = rec.recommend(asked, k=60, beams=60, **{kind: few}, **way)
        left = every.filter(pl.col('id').is_in(few) if kind == 'allow' else ~pl.col('id').is_in(few))
        assert mine.select('user', 'id').equals(left.select('user', 'id'))
        assert np.allclose(mine['score'], left['score'], atol=1e-4)

def test_files_of_ids(shop, rec, tmp_path):
    few = rec.catalogue.ids[:7]
    pl.DataFrame(dict(item=few)).write_csv(tmp_path/'stock.csv')
    assert set(rec.recommend(histories(shop), k=9, allow=tmp_path/'stock.csv')['id']) == set(few)
    pl.DataFrame(dict(thing=few)).write_csv(tmp_path/'odd.csv')
    with pytest.raises(ValueError, match='has columns thing, expected item'): rec.recommend(histories(shop), deny=tmp_path/'odd.csv')

def test_unknown_ids_are_counted_or_refused(shop, rec):
    asked = [['?', *histories(shop)[0]], ['?', '!'], []]
    with pytest.warns(UserWarning, match=r"3 items in the histories .* \(first: '\?'\); 2 users"): found = rec.recommend(asked, k=3)
    assert found['user'].to_list() == [0, 0, 0]
    with pytest.raises(KeyError, match="in the history of user 0"): rec.recommend(asked, unknown='error')

@pytest.mark.parametrize('k, n', [(1, 1), (10, 10), (300_000_000, 60)])
def test_k_is_bounded_by_the_catalogue(shop, rec, k, n):
    assert rec.recommend(histories(shop, 1), k=k, beams=100_000_000).height == n

@pytest.mark.parametrize('asked, message', [([], 'no history has an item'), (['12'], 'no list of item ids'), ([7], 'no list of item ids'),
    ([None], 'no list of item ids'), (pl.DataFrame(dict(a=[1])), 'columns a; expected user, item'), ('missing.csv', 'is not a file')])
def test_mistakes_are_one_sentence(rec, asked, message):
    with pytest.raises((ValueError, OSError), match=message): rec.recommend(asked)

def test_new_items_get_codes_and_are_recommended(shop, rec):
    text = dict(zip(shop.catalogue.ids, shop.catalogue.text))
    twin = pl.DataFrame(dict(item=[f'{i}-again' for i in shop.catalogue.ids[:9]], text=[text[i] for i in shop.catalogue.ids[:9]]))
    new = rec.update(twin)
    assert [new.codes(i) for i in rec.catalogue.ids] == [rec.codes(i) for i in rec.catalogue.ids]
    assert len({new.codes(i) for i in new.catalogue.ids}) == 69
    every = new.recommend(histories(shop, 2), k=100, exact=True)
    assert every.height == 2*69 and set(twin['item']) <= set(every['id'])
    with warnings.catch_warnings(action='error'): assert new.recommend([[twin['item'][0]]], k=1).height == 1
    assert all(torch.equal(a, b) for a, b in zip(new.fitted.model.state_dict().values(), rec.fitted.model.state_dict().values()))

def test_ids_stay_of_one_kind(shop, rec, tmp_path):
    new = rec.update(pl.DataFrame(dict(item=[7, 8], text=shop.catalogue.text[:2])))
    new.save_pretrained(tmp_path)
    again = gentok.Recommender.from_pretrained(tmp_path)
    assert again.codes(7) == new.codes('7') and {type(i) for i in again.catalogue.ids} == {str}

@pytest.mark.parametrize('leads_to', ('README.md', 'nowhere', 'mine.md'))
def test_a_model_card_that_is_a_link(shop, rec, tmp_path, leads_to):
    "A link that leads nowhere is replaced; where somebody's own card is behind it, that stays"
    rec.save_pretrained(tmp_path)
    (tmp_path/'README.md').unlink()
    (tmp_path/'mine.md').write_text('my words')
    (tmp_path/'README.md').symlink_to(leads_to)
    rec.update(pl.DataFrame(dict(item=['new'], text=[shop.catalogue.text[0]]))).save_pretrained(tmp_path)
    assert len(gentok.Recommender.from_pretrained(tmp_path)) == len(rec) + 1
    card = (tmp_path/'README.md').read_text()
    assert card == 'my words' if leads_to == 'mine.md' else 'from_pretrained' in card

def test_pictures_and_columns_stay_through_an_update(shop, rec):
    own = gentok.Recommender(rec.fitted, shop.in_canonical_order().catalogue, rec.pipeline)
    new = own.update(pl.DataFrame(dict(item=['new'], text=[shop.catalogue.text[0]])))
    old = own.catalogue
    assert len(new.catalogue.images) == len(old) + 1 and new.catalogue.images[len(old)] is None
    assert all(new.catalogue.images[r].tobytes() == old.images[r].tobytes() for r in range(len(old)))
    painted = gentok.Catalogue(['new'], [shop.catalogue.text[0]], [shop.catalogue.images[3]])
    assert own.update(painted).catalogue.images[len(old)].tobytes() == shop.catalogue.images[3].tobytes()

def test_new_items_are_the_same_in_any_order(shop, rec):
    text = shop.catalogue.text
    items = pl.DataFrame(dict(item=[f'n{i}' for i in range(30)], text=[text[i % 20] for i in range(30)]))
    a, b = rec.update(items), rec.update(items.sample(fraction=1, shuffle=True, seed=1))
    assert [a.codes(i) for i in items['item']] == [b.codes(i) for i in items['item']]

def test_retired_items_are_read_and_not_recommended(shop, rec, tmp_path):
    gone = rec.catalogue.ids[:5]
    less = rec.update(retire=gone)
    assert not set(less.recommend(histories(shop), k=60)['id']) & set(gone)
    with warnings.catch_warnings(action='error'): less.recommend([gone], k=3)
    less.save_pretrained(tmp_path)
    assert set(gentok.Recommender.from_pretrained(tmp_path).retired) == set(map(str, gone))
    with pytest.raises(KeyError, match='is not among'): rec.update(retire=['nobody'])

def test_items_known_by_behaviour_cannot_be_new(shop):
    rec = gentok.fit('tiger', shop, text='sasrec', **{k: v for k, v in tiny.items() if k != 'text_dim'})
    with pytest.raises(ValueError, match='knows its items by behaviour'): rec.update(pl.DataFrame(dict(item=['new'], text=['x'])))

@pytest.mark.parametrize('method, more', [('mtgrec', dict(n_tokenizers=2, fine_tune_epochs=1, stages=(1,))), ('etegrec', dict(text='lsa', cycle=2, epochs=3, fine_tune_epochs=1)),
    ('unitok', dict(tokenizer_warm=10)), ('utgrec', dict(width=16, tokenizer_epochs=4, tokenizer_fine_tune_epochs=1, tokenizer_warm=2, patch=0, pretraining=False))])
def test_every_method_takes_new_items(shop, method, more, tmp_path):
    given = {k: v for k, v in {**tiny, **more}.items() if k in gentok.config_of(method).__dataclass_fields__}
    rec = gentok.fit(method, shop, tmp_path, **given)
    new = gentok.Recommender.from_pretrained(tmp_path).update(pl.DataFrame(dict(item=['new'], text=[shop.catalogue.text[0]])))
    assert 'new' in set(new.recommend(histories(shop, 1), k=61, exact=True)['id']) and rec.about['run']['method'] == method

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), unique=True, max_size=12),
       st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12))
def test_extended_identifiers_are_unique_and_the_old_ones_stay(old, new):
    if not old or not new: return
    ids = ItemIds(torch.tensor(old), (4, 3))
    if len(old) + len(new) > 12:
        with pytest.raises(ValueError, match='new items do not fit'): extend(ids, torch.tensor(new))
        return
    longer = extend(ids, torch.tensor(new))
    assert torch.equal(longer.table[:len(old)], ids.table) and len(longer.table.unique(dim=0)) == len(old) + len(new)
    free = set(new) - set(old)
    assert free <= set(map(tuple, longer.table[len(old):].tolist()))

peak = '''
import json, resource, sys, gentok
rec = gentok.Recommender.from_pretrained(sys.argv[1])
rec.recommend(sys.argv[2], k=5, beams=8, batch_size=500, out=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''

def test_memory_is_bounded_by_the_batch(shop, folder, tmp_path):
    used, asked = [], histories(shop, 300)
    for n in (3_000, 12_000):
        frame = pl.DataFrame(dict(user=[f'u{i}' for i in range(n)], items=[asked[i % 300] for i in range(n)]))
        frame.write_parquet(tmp_path/'h.parquet', row_group_size=1000)
        said = subprocess.run([sys.executable, '-c', peak, folder, tmp_path/'h.parquet', tmp_path/'o.parquet'], capture_output=True, text=True, check=True)
        used.append(int(said.stdout)/1024)
        answer = pl.read_parquet(tmp_path/'o.parquet')
        assert answer['user'].n_unique() == n and answer.height == 5*n
    assert used[1] < used[0] + 40, used
