"load(path): four layouts, real data, and each bad input as one clear sentence with nothing written."
import csv, gzip, json
from collections import Counter
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from gentok.data.formats import load, report
from gentok.data.interactions import gather, histories, in_order, k_core, keep_first
from gentok.data.dataset import Catalogue
from gentok.data.rows import clean, moment, sentence
from gentok.data.splits import leave_one_out

# ---- what a folder is made of -------------------------------------------------------------------------------------

def put(folder, **files):
    "Write files; __ in a name stands for a dot, and text ending in .gz is compressed."
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        name = name.replace('__', '.')
        data = text.encode() if isinstance(text, str) else text
        (folder/name).write_bytes(gzip.compress(data) if name.endswith('.gz') and isinstance(text, str) else data)
    return folder

def jsonl(rows): return ''.join(json.dumps(r) + '\n' for r in rows)
def ids(data): return {u: [data.catalogue.ids[i] for i in h] for u, h in zip(data.histories.users, data.histories)}

pair = dict(shop__inter__json='{"ann": [0, 1],\n "bob": [1]}', shop__item__json='{"0": {"title": "red"},\n "1": {"title": "blue"}}')
atomic = dict(shop__inter='user_id:token\titem_id:token\ttimestamp:float\nann\tb\t2\nann\ta\t1\nbob\tb\t1\n',
              shop__item='item_id:token\ttitle:token_seq\na\tred\nb\tblue\n')
own = dict(interactions__csv='user,item,time\nann,b,2\nann,a,1\nbob,b,1\n', items__csv='item,text\na,red\nb,blue\n')

def review(u, b, t): return dict(user_id=u, parent_asin=b, timestamp=t, rating=1.0)
def product(b, **more): return dict(parent_asin=b, title=f'Tile {b}', features=['red'], categories=['Home'], images=[], **more)
many = [review(f'U{u}', f'B{b}', 10*b + u) for u in range(5) for b in range(5)]
amazon = dict(Shop__jsonl=jsonl(many), meta_Shop__jsonl=jsonl(product(f'B{b}') for b in range(5)))
layouts = dict(pair=pair, atomic=atomic, own=own, amazon=amazon)

@pytest.fixture(scope='session')
def real(shared):
    "real('Yelp') -> the data set, read once."
    return lru_cache(None)(lambda name: load(shared/'data'/name))

# ---- real data ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, users, items, n', [('Office_Products', 4905, 2420, 53258),
    ('Office_Products_2018', 3231, 3459, 22447), ('Instruments', 24772, 9922, 206153)])
def test_real_json_pairs(real, name, users, items, n):
    data = real(name)
    assert (len(data.histories), len(data.catalogue), len(data.histories.items)) == (users, items, n)
    assert data.catalogue.ids == list(range(items)) and data.removed == {} and 'removed: nothing' in report(data)

def test_office_products_splits_as_published(shared):
    data = load(shared/'data'/'Office_Products'/'Office_Products.inter.json')
    split = leave_one_out(data)
    assert [p.n for p in split] == [38543, 4905, 4905]
    item = data.catalogue
    assert item.titles[1] == 'Texas Instruments TI-1795 SV Standard Function Calculator'
    assert item.text[1].startswith(f'{item.titles[1]}. Texas Instruments. The classic mini-desktop calculator')
    assert set(item.fields) == {'title', 'description', 'brand'} and all(item.text)
    assert not any('&mdash;' in t or '\n' in t or '<br' in t for t in item.text)

def test_lists_that_were_written_as_text_are_opened(real):
    data = real('Office_Products_2018')
    assert not any(d.startswith(("['", '["')) for d in data.catalogue.fields['description'])
    assert '142 of 3,459 items are in no history' in report(data)

def test_interactions_alone_and_items_alone(real):
    data = real('Instruments')
    assert set(data.catalogue.text) == {''} and '9,922 of 9,922 items have no text' in report(data)
    yelp = real('Yelp')
    assert len(yelp.catalogue) == 20033 and len(yelp.histories) == 0 and 'no histories' in report(yelp)
    assert yelp.catalogue.text[0] == 'The Great Greek. Diners, Greek, Mediterranean, Restaurants'
    with pytest.raises(ValueError, match='Yelp has no histories to split'): leave_one_out(yelp)

def test_movielens_atomic_files(shared):
    data = load(shared/'data'/'ml-100k')
    assert (len(data.histories), len(data.catalogue), len(data.histories.items)) == (943, 1682, 100_000)
    assert data.catalogue.text[0] == "Toy Story. 1995. Animation Children's Comedy" and data.catalogue.titles[0] == 'Toy Story'
    table = pd.read_csv(shared/'data'/'ml-100k'/'ml-100k.inter', sep='\t', dtype=str)
    table['t'] = table['timestamp:float'].astype(float)
    mine = table[table['user_id:token'] == '196'].sort_values('t', kind='stable')['item_id:token'].tolist()
    assert ids(data)['196'] == mine

# ---- the four layouts ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', layouts)
def test_a_folder_and_each_of_its_files_give_the_same(tmp_path, kind):
    folder = put(tmp_path/'shop', **layouts[kind])
    whole = load(folder)
    assert all(ids(load(f)) == ids(whole) and load(f).catalogue.text == whole.catalogue.text for f in folder.iterdir())
    assert ids(load(str(folder))) == ids(whole)

def test_ids_and_time_order_are_the_users_own(tmp_path):
    assert ids(load(put(tmp_path/'p', **pair))) == {'ann': [0, 1], 'bob': [1]}
    for name, files in (('a', atomic), ('o', own)):
        assert ids(load(put(tmp_path/name, **files))) == {'ann': ['a', 'b'], 'bob': ['b']}

def test_ids_that_are_words_or_padded_numbers_stay_text(tmp_path):
    data = load(put(tmp_path, s__inter__json='{"u": ["007", "B0"]}', s__item__json='{"B0": {"title": "x"}, "007": {"title": "y"}}'))
    assert data.catalogue.ids == ['B0', '007'] and ids(data) == {'u': ['007', 'B0']}

def test_rows_of_ones_own_are_not_filtered(tmp_path):
    data = load(put(tmp_path, i__csv='user,item,time\nu,a,3\nu,a,1\nu,b,2\n', c__csv='item,text\na,x\nb,y\nc,z\n'))
    assert ids(data) == {'u': ['a', 'b', 'a']} and data.removed == {} and len(data.catalogue) == 3
    assert '1 of 3 items are in no history' in report(data)

def test_five_rows_in_one_file(tmp_path):
    rows = 'user,item,time,text\nu,a,1,red\nu,b,2,blue\nv,a,1,red\nv,c,2,green\nw,c,1,green\n'
    data = load(put(tmp_path, mine__csv=rows)/'mine.csv')
    assert data.name == 'mine' and data.catalogue.text == ['red', 'blue', 'green']
    assert ids(data) == {'u': ['a', 'b'], 'v': ['a', 'c'], 'w': ['c']}

@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('names', [('user', 'item', 'time'), ('user_id', 'item_id', 'timestamp'), (' User', 'ITEM ', 'Time')])
def test_separators_and_common_column_names(tmp_path, separator, names):
    put(tmp_path, i__csv=separator.join(names) + '\n' + separator.join('ua1') + '\n', c__csv='item,text\na,"x, ""y""\nz"\n')
    data = load(tmp_path)
    assert ids(data) == {'u': ['a']} and data.catalogue.text == ['x, "y"\nz']

def test_parquet_keeps_types_and_reads_dates(tmp_path):
    pd.DataFrame(dict(user=[1, 1, 2], item=[5, 3, 3], time=pd.to_datetime(['2024-01-02', '2024-01-01', '2024-01-01']))).to_parquet(tmp_path/'i.parquet')
    pd.DataFrame(dict(item=[3, 5], text=['x', None], image=[None, None])).to_parquet(tmp_path/'c.parquet')
    data = load(tmp_path)
    assert ids(data) == {1: [3, 5], 2: [3]} and data.catalogue.text == ['x', ''] and data.catalogue.images[0] is None

def test_pictures_are_opened_late(tmp_path):
    Image.new('RGBA', (3, 2), 'red').save(tmp_path/'a.png')
    data = load(put(tmp_path, c__csv='item,text,image\na,x,a.png\nb,y,\n'))
    (tmp_path/'a.png').unlink()
    assert data.catalogue.images[1] is None
    with pytest.raises(ValueError, match='a.png is not a picture that pillow can read'): data.catalogue.images[0]
    Image.new('RGB', (3, 2), 'red').save(tmp_path/'a.png')
    assert data.catalogue.images[0].size == (3, 2)

# ---- Amazon Reviews 2023 ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('ending', ['jsonl', 'jsonl.gz'])
def test_amazon_fields_order_and_images(tmp_path, ending):
    meta = [product(f'B{b}') for b in range(5)]
    meta[0].update(title='A &amp; <b>B</b>', features=['soft', 'warm\nhands'], categories=['Home', 'Tiles'], description=['long', 'text'],
                   images=[dict(thumb='t', large='L1', variant='PT01'), dict(thumb='t', large='L0', variant='MAIN', hi_res=None)])
    put(tmp_path, **{f'Shop.{ending}': jsonl(many[::-1]), f'meta_Shop.{ending}': jsonl(meta)})
    data = load(tmp_path)
    assert data.name == 'Shop' and set(map(tuple, ids(data).values())) == {('B0', 'B1', 'B2', 'B3', 'B4')}
    assert data.catalogue.text[0] == 'A & B. soft warm hands. Home Tiles' and data.catalogue.titles[0] == 'A & B'
    assert data.catalogue.image_urls == ['L0', None, None, None, None] and data.catalogue.images is None
    assert data.catalogue.fields['description'][0] == 'long text'

def naive_amazon(rows, described):
    "The published preparation, with lists and loops."
    rows = [r for _, r in sorted(enumerate(rows), key=lambda nr: (nr[1][2], nr[0])) if r[1] in described]
    seen, once = set(), []
    for r in rows:
        if r[:2] not in seen: once.append(r)
        seen.add(r[:2])
    while True:
        users, items = Counter(r[0] for r in once), Counter(r[1] for r in once)
        kept = [r for r in once if users[r[0]] >= 5 and items[r[1]] >= 5]
        if len(kept) == len(once): break
        once = kept
    out = {}
    for u, i, _ in once: out.setdefault(u, []).append(i)
    return out

@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(80, 300))
def test_amazon_against_a_naive_reference(tmp_path_factory, seed, n):
    rng = np.random.default_rng(seed)
    rows = [(f'U{u}', f'B{b}', int(t)) for u, b, t in zip(rng.integers(0, 12, n), rng.integers(0, 14, n), rng.integers(0, 50, n))]
    described = {f'B{b}' for b in range(2, 16)}
    want, folder = naive_amazon(rows, described), tmp_path_factory.mktemp('a')
    put(folder, Shop__jsonl=jsonl(review(*r) for r in rows), meta_Shop__jsonl=jsonl(product(b) for b in sorted(described)))
    if not want:
        with pytest.raises(ValueError, match='in the 5-core'): load(folder)
        return
    data = load(folder)
    assert ids(data) == want
    gone = data.removed
    assert n == len(data.histories.items) + sum(c for what, c in gone.items() if 'interactions' in what)
    assert len({r[0] for r in rows}) == len(data.histories) + sum(c for what, c in gone.items() if what.startswith('users'))
    assert len({r[1] for r in rows} | described) == len(data.catalogue) + sum(c for what, c in gone.items() if what.startswith('items'))

@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 5)), max_size=120), st.integers(1, 4))
def test_k_core_keep_first_and_order_against_loops(rows, k):
    log = in_order(gather(rows))
    ordered = sorted(rows, key=lambda r: (log.users.index(r[0]), r[2]))
    told = lambda log: [(log.users[u], log.items[i], t) for u, i, t in zip(log.u, log.i, log.time)]
    assert told(log) == ordered
    seen = set()
    assert told(keep_first(log)) == [r for r in ordered if not (r[:2] in seen or seen.add(r[:2]))]
    core = ordered
    while any(Counter(r[x] for r in core)[c[x]] < k for c in core for x in (0, 1)):
        thin = next((x, c[x]) for c in core for x in (0, 1) if Counter(r[x] for r in core)[c[x]] < k)
        core = [r for r in core if r[thin[0]] != thin[1]]
    left = k_core(log, k)
    assert told(left) == core
    if core:
        want = {}
        for u, i, _ in core: want.setdefault(u, []).append(i)
        made = histories(left, Catalogue(range(8), [''] * 8))
        assert {u: h.tolist() for u, h in zip(made.users, made)} == want

# ---- text and time ------------------------------------------------------------------------------------------------

def test_text_is_cleaned_and_nothing_else():
    cases = {'a &lt;b&gt;c&lt;/b&gt;': 'a c', 'x <!-- y\n --> z': 'x z', '5 < 6 > 4': '5 < 6 > 4', '"quoted"': '"quoted"', "['a', 'b']": 'a b',
             '[1] see': '[1] see', '': '', '\u00a0x\u2028y': 'x y', 'I <3 it': 'I <3 it',
             "['Tom's', 'x']": "Tom's x", '[]': '', '["a\\d"]': 'a\\d'}
    assert {t: clean(t) for t in cases} == cases
    assert clean('x' * 5000) == 'x' * 5000 and clean([['a'], None, 'b']) == 'a b' and clean(3) == '3'
    assert sentence(['a.', '', 'b. . .', '...']) == 'a. b'

@settings(max_examples=100, deadline=None)
@given(st.text())
def test_clean_of_clean_has_no_line_breaks(text): assert clean(text) == ' '.join(clean(text).split())

@settings(max_examples=60, deadline=None)
@given(st.datetimes(), st.datetimes())
def test_moments_grow_with_dates(a, b):
    assert (moment(a.isoformat()) < moment(b.isoformat())) == (moment(a) < moment(b))
    assert moment(a.isoformat()) == moment(a)

# ---- bad input: one sentence, nothing written ---------------------------------------------------------------------

def bad(base, says, *, where='', error=ValueError, drop=(), **files):
    return pytest.param({k: v for k, v in {**layouts.get(base, {}), **files}.items() if k not in drop}, where, error, says)

cases = dict(
    malformed_interactions=bad('pair', 'shop.inter.json, line 2: not JSON', shop__inter__json='{"ann": [0],\n "bob": [1'),
    malformed_items=bad('pair', 'shop.item.json, line 1: not JSON', shop__item__json='{"0": {"title": }}'),
    unknown_item=bad('pair', "shop.inter.json, line 2: user 'bob' took item 7", shop__inter__json='{"ann": [0],\n "bob": [7]}'),
    padded_item=bad('pair', "line 1: user 'ann' took item '00'", shop__inter__json='{"ann": ["00"]}'),
    duplicate_item=bad('pair', "shop.item.json, line 2: key '0' stands twice", shop__item__json='{"0": {"title": "a"},\n "0": {"title": "b"}}'),
    duplicate_user=bad('pair', "shop.inter.json, line 2: key 'ann' stands twice", shop__inter__json='{"ann": [0],\n "ann": [1]}'),
    empty_history=bad('pair', "shop.inter.json, line 2: user 'bob' has an empty history", shop__inter__json='{"ann": [0],\n "bob": []}'),
    no_users=bad('pair', 'no users; expected', shop__inter__json='{}'),
    list_of_users=bad('pair', 'no users; expected', shop__inter__json='[[0, 1]]'),
    history_of_floats=bad('pair', "line 1: user 'ann' has [0.5]", shop__inter__json='{"ann": [0.5]}'),
    history_is_text=bad('pair', "line 1: user 'ann' has 01", shop__inter__json='{"ann": "01"}'),
    item_is_text=bad('pair', "shop.item.json, line 2: item '1' has 'blue'", shop__item__json='{"0": {"title": "a"},\n "1": "blue"}'),
    empty_json=bad('pair', 'shop.inter.json is empty', shop__inter__json=''),
    empty_inter=bad('atomic', 'shop.inter is empty', shop__inter=''),
    header_only_inter=bad('atomic', 'shop.inter, line 1: a header and no rows', shop__inter=atomic['shop__inter'].split('\n')[0]),
    header_only_item=bad('atomic', 'shop.item, line 1: a header and no rows', shop__item='item_id:token\ttitle:token_seq\n'),
    no_timestamp=bad('atomic', 'shop.inter, line 1: no column timestamp among user_id, item_id', shop__inter='user_id:token\titem_id:token\nann\ta\n'),
    no_item_id=bad('atomic', 'shop.item, line 1: no column item_id among id, title', shop__item='id:token\ttitle:token_seq\na\tred\n'),
    short_row=bad('atomic', 'shop.inter, line 3: 2 values, expected 3', shop__inter=atomic['shop__inter'].replace('ann\ta\t1', 'ann\ta')),
    unknown_atomic=bad('atomic', "shop.inter, line 3: user 'ann' took item 'z'", shop__inter=atomic['shop__inter'].replace('ann\ta', 'ann\tz')),
    twice_atomic=bad('atomic', "shop.item, line 3: item 'a' stands already in line 2", shop__item=atomic['shop__item'].replace('\nb', '\na')),
    no_user_column=bad('own', 'interactions.csv, line 1: no column user among who, item, time', interactions__csv='who,item,time\nann,a,1\n'),
    no_time_column=bad('own', 'interactions.csv, line 1: no column time among user, item', interactions__csv='user,item\nann,a\n'),
    no_text_column=bad('own', 'items.csv, line 1: no column text among item, title', items__csv='item,title\na,red\n'),
    no_known_column=bad('own', 'other.csv, line 1: columns x, y; expected', other__csv='x,y\n1,2\n'),
    unknown_csv=bad('own', "interactions.csv, line 4: user 'bob' took item 'z'", interactions__csv=own['interactions__csv'].replace('bob,b', 'bob,z')),
    twice_csv=bad('own', "items.csv, line 3: item 'a' stands already in line 2", items__csv='item,text\na,red\na,rot\n'),
    blank_item=bad('own', "items.csv, line 2: item id ''", items__csv='item,text\n,red\n'),
    blank_user=bad('own', "interactions.csv, line 2: user '' and item 'a'", interactions__csv='user,item,time\n,a,1\n'),
    no_time=bad('own', "interactions.csv, line 2: time 'noon' is neither", interactions__csv='user,item,time\nann,a,noon\n'),
    nan_time=bad('own', "line 2: time 'nan' is neither", interactions__csv='user,item,time\nann,a,nan\n'),
    open_quote=bad('own', 'items.csv, line 3: not a table', items__csv='item,text\na,"red\nb,blue\n'),
    wide_row=bad('own', 'items.csv, line 3: 3 values, expected 2', items__csv='item,text\na,red\nb,blue,and green\n'),
    empty_csv=bad('own', 'items.csv is empty', items__csv=''),
    header_only_csv=bad('own', 'interactions.csv, line 1: a header and no rows', interactions__csv='user,item,time\n'),
    header_only_items=bad('own', 'items.csv, line 1: a header and no rows', items__csv='item,text\n'),
    latin_csv=bad('own', 'items.csv, line 3: not UTF-8', items__csv='item,text\na,red\nb,café\n'.encode('latin-1')),
    no_picture=bad('own', 'items.csv, line 3: picture', items__csv='item,text,image\na,red,\nb,blue,b.png\n'),
    no_items=bad('own', 'add items.csv with the columns item, text', drop=['items__csv']),
    two_texts=bad('', "rows.csv, line 3: item 'a' has another text than in line 2", rows__csv='user,item,time,text\nu,a,1,red\nv,a,1,rot\n'),
    cut_csv=bad('own', 'the gzip data is cut or damaged', drop=['items__csv'], items__csv__gz=gzip.compress(b'item,text\na,red\nb,blue\n')[:-9]),
    not_parquet=bad('own', 'items.parquet is not Parquet or is damaged', drop=['items__csv'], items__parquet='item,text\n'),
    empty_parquet=bad('own', 'items.parquet is empty', drop=['items__csv'], items__parquet=''),
    cut_reviews=bad('amazon', 'Shop.jsonl.gz, after line', drop=['Shop__jsonl'], Shop__jsonl__gz=gzip.compress(amazon['Shop__jsonl'].encode())[:-20]),
    not_gzip=bad('amazon', 'the gzip data is cut or damaged', drop=['Shop__jsonl'], Shop__jsonl__gz=amazon['Shop__jsonl'].encode()),
    malformed_review=bad('amazon', 'Shop.jsonl, line 26: not JSON', Shop__jsonl=amazon['Shop__jsonl'] + '{"user_id": '),
    review_is_a_list=bad('amazon', "Shop.jsonl, line 1: '[1]' is not an object", Shop__jsonl='[1]\n'),
    no_user_id=bad('amazon', "Shop.jsonl, line 1: no field 'user_id' among reviewerID", Shop__jsonl='{"reviewerID": "U"}\n'),
    bad_timestamp=bad('amazon', "Shop.jsonl, line 1: timestamp 'noon'", Shop__jsonl=jsonl([review('U', 'B0', 'noon')])),
    twice_meta=bad('amazon', "meta_Shop.jsonl, line 6: item 'B0' stands already in line 1", meta_Shop__jsonl=amazon['meta_Shop__jsonl'] + jsonl([product('B0')])),
    no_meta=bad('amazon', 'has no meta_Shop.jsonl', drop=['meta_Shop__jsonl']),
    empty_core=bad('amazon', 'none of its 24 reviews is in the 5-core', Shop__jsonl=jsonl(many[1:])),
    empty_reviews=bad('amazon', 'Shop.jsonl is empty', Shop__jsonl=''),
    nowhere=bad('own', 'nowhere does not exist', where='nowhere', error=FileNotFoundError),
    empty_folder=bad('', 'holds no data that is recognised (found nothing)'),
    other_files=bad('', 'holds no data that is recognised (found notes.txt)', notes__txt='x'),
    other_file=bad('own', 'holds no data that is recognised', where='notes.txt', notes__txt='x'),
    two_layouts=bad('own', 'holds more than one data set', **pair),
    two_names=bad('pair', 'holds more than one data set', other__inter__json='{"u": [1]}'),
    two_catalogues=bad('own', 'could be read in more than one way', more__csv='item,text\na,x\n'),
    two_catalogues_for_a_file=bad('own', 'could be read in more than one way', where='interactions.csv', more__csv='item,text\na,x\n'),
    plain_and_gzip=bad('amazon', 'could be read in more than one way', meta_Shop__jsonl__gz=amazon['meta_Shop__jsonl']),
)

@pytest.mark.parametrize('files, where, error, says', cases.values(), ids=cases.keys())
def test_bad_input_is_one_clear_sentence_and_nothing_is_written(tmp_path, files, where, error, says):
    folder = put(tmp_path/'d', **files)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(error) as e: load(folder/where)
    text = str(e.value)
    assert says in text and str(folder) in text
    assert '\n' not in text and text.endswith('.') and len(text) < 600
    assert {p: p.read_bytes() for p in folder.iterdir()} == before

@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(layouts)), seed=st.integers(0, 10**6))
def test_damage_anywhere_is_a_sentence_or_harmless(tmp_path_factory, kind, seed):
    "A random byte of a random file is cut, changed or doubled: a clean error or a data set, never a crash"
    rng, folder = np.random.default_rng(seed), put(tmp_path_factory.mktemp('d'), **layouts[kind])
    path = sorted(folder.iterdir())[rng.integers(2)]
    data, at = bytearray(path.read_bytes()), None
    at = int(rng.integers(len(data)))
    data[at:at + 1] = [b'', bytes([rng.integers(256)]), data[at:at + 1] * 2][rng.integers(3)]
    if rng.random() < .3: data = data[:at]
    path.write_bytes(data)
    try: load(folder)
    except (ValueError, FileNotFoundError) as e: assert str(folder) in str(e) and '\n' not in str(e), e

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('uvw'), st.sampled_from(['a', 'b,', '"c"', 'd;\n']), st.integers(-5, 5)), min_size=1, max_size=30))
def test_any_rows_come_back_in_time_order(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp('csv')
    for name, head, table in (('i', ('user', 'item', 'time'), rows), ('c', ('item', 'text'), [(x, f'item {x}') for x in ['a', 'b,', '"c"', 'd;\n']])):
        with open(folder/f'{name}.csv', 'w', newline='') as f: csv.writer(f).writerows([head, *table])
    want = {}
    for u, i, _ in sorted(rows, key=lambda r: r[2]): want.setdefault(u, []).append(i)
    assert ids(load(folder)) == want
