"Small files made after public bug reports: read right, or refused with a sentence that helps."
import gzip, json, os
from pathlib import Path

import polars as pl
import pytest

from gentok.data.formats import load, report
from test_formats import ids, jsonl, lines, pair, picture, product, published, put, review, saved, text

log = pl.DataFrame(dict(user=['ann', 'ann', 'bob', 'bob'], item=['p1', 'p2', 'p2', 'p3'], time=[1600000000, 1600000100, 1600000050, 1600000200]))
goods = pl.DataFrame(dict(item=['p1', 'p2', 'p3'], text=['amber mug', 'basil plate', 'cedar lamp']))
took, words = {'ann': ['p1', 'p2'], 'bob': ['p2', 'p3']}, dict(goods.rows())

def shop(folder, log=log, goods=goods, ending='csv', gz='', wrap=lambda s: s):
    "interactions and items in one of the endings"
    def written(frame): return frame if ending == 'parquet' or not isinstance(frame, pl.DataFrame) else wrap(
        frame.write_ndjson() if ending == 'jsonl' else frame.write_csv(separator=dict(tsv='\t').get(ending, ',')))
    return put(folder, **{f'{name}.{ending}{gz}': written(frame) for name, frame in (('interactions', log), ('items', goods)) if frame is not None})

def refused(folder, *says, **asked):
    with pytest.raises((ValueError, FileNotFoundError)) as e: load(folder, **asked)
    said = str(e.value)
    assert said.endswith('.') and '\n' not in said and len(said) < 600
    for part in says: assert part in said, said

# ---- cr_line_ends
@pytest.mark.parametrize('ending, gz', [('csv', ''), ('csv', '.gz'), ('tsv', ''), ('tsv', '.gz')])
def test_lines_that_end_in_cr(tmp_path, ending, gz):
    data = load(shop(tmp_path, ending=ending, gz=gz, wrap=lambda s: s.replace('\n', '\r')))
    assert ids(data) == took and text(data) == words

def test_atomic_files_whose_lines_end_in_cr(tmp_path):
    files = {k: v.replace('\n', '\r') for k, v in published['RecBole'][0].items()}
    assert ids(load(put(tmp_path, **files))) == published['RecBole'][2]

@pytest.mark.parametrize('name', ['lines of items (P5)', 'MovieLens 1M', 'MovieLens 100K', 'MIND', 'KuaiRec'])
def test_published_files_whose_lines_end_in_cr_or_crlf(tmp_path, name):
    files, asked, want, _ = published[name]
    for n, end in enumerate((b'\r\n', b'\r')):
        folder = put(tmp_path/str(n), **{k: (v.encode() if isinstance(v, str) else v).replace(b'\n', end) for k, v in files.items()})
        assert ids(load(folder, **asked)) == want

# ---- exact_duplicates
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_every_row_twice(tmp_path, ending):
    data = load(shop(tmp_path, pl.concat([log, log]), ending=ending))
    assert ids(data) == took and data.removed == {'exact repeats (the same user, item and time)': 4} and 'removed: 4 exact repeats' in report(data)

def test_repeats_at_other_times_stay(tmp_path):
    data = load(shop(tmp_path, pl.concat([log, log.with_columns(pl.col('time') + 10**6)])))
    assert ids(data)['ann'] == ['p1', 'p2', 'p1', 'p2'] and data.removed == {}

def test_repeats_are_seen_in_published_layouts(tmp_path):
    files = dict(published['MovieLens'][0])
    files['ratings.csv'] += '1,3,4.0,964981247\n'
    assert load(put(tmp_path, **files)).removed == {'exact repeats (the same user, item and time)': 1}

def test_repeats_that_differ_by_a_blank(tmp_path):
    assert ids(load(put(tmp_path, **{'log.csv': 'user,item,time\nu,a,1\nu ,a,1\nu, a,1\n'}))) == {'u': ['a']}

# ---- id_whitespace
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('blank', [' {}', '{} ', '\u00a0{}\t ' ])
def test_blanks_around_ids(tmp_path, ending, blank):
    if ending == 'tsv': blank = blank.replace('\t', '')
    spaced = log.with_columns(pl.Series('user', [blank.format(u) if n % 2 else u for n, u in enumerate(log['user'])]), pl.Series('item', [blank.format(i) for i in log['item']]))
    assert ids(load(shop(tmp_path, spaced, ending=ending))) == took
    assert ids(load(shop(tmp_path, spaced, goods.with_columns(pl.Series('item', [blank.format(i) for i in goods['item']])), ending))) == took

def test_blanks_around_ids_of_atomic_files_and_json(tmp_path):
    assert ids(load(put(tmp_path/'a', **{'s.inter': lines('user_id:token\titem_id:token\ttimestamp:float', 'u \ta\t1', 'u\t b\t2')}))) == {'u': ['a', 'b']}
    assert ids(load(put(tmp_path/'b', **{'s.jsonl': jsonl([dict(user=' u', item='a', time=1), dict(user='u', item='b ', time=2)])}))) == {'u': ['a', 'b']}

def test_blanks_around_times(tmp_path): assert ids(load(put(tmp_path, **{'log.csv': 'user, item, time\nu, a, 2\nu, b, 1\n'}))) == {'u': ['b', 'a']}

# ---- image_column
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('name', ['image', 'image_url'])
def test_addresses_of_pictures_are_kept(tmp_path, ending, name):
    data = load(shop(tmp_path, log, goods.with_columns(pl.Series(name, ['https://e/1.jpg', None, 'http://e/3.jpg'])), ending))
    c = data.catalogue
    assert dict(zip(c.ids, c.image_urls)) == dict(p1='https://e/1.jpg', p2=None, p3='http://e/3.jpg') and c.images is None
    assert '`image_url`' in report(data) and ids(data) == took

def test_pictures_as_bytes(tmp_path):
    held = [dict(bytes=picture((n + 1, 2)), path=None) for n in range(2)] + [None]
    c = load(shop(tmp_path, log, goods.with_columns(image=pl.Series(held)), 'parquet')).catalogue
    assert c.images[c.row('p2')].size == (2, 2) and c.images[c.row('p3')] is None
    c = load(shop(tmp_path, log, goods.with_columns(image=pl.Series([picture(), None, b'x'])), 'parquet')).catalogue
    assert c.images[c.row('p1')].size == (3, 2)
    with pytest.raises(ValueError) as e: c.images[c.row('p3')]
    assert 'is not a picture' in str(e.value) and len(str(e.value)) < 300

def test_pictures_as_bytes_or_as_paths(tmp_path):
    held = [dict(bytes=None, path='a.png'), dict(bytes=picture(), path='b.png'), dict(bytes=None, path='https://e/c.png')]
    c = load(put(shop(tmp_path, log, goods.with_columns(image=pl.Series(held)), 'parquet'), **{'a.png': picture()})).catalogue
    assert c.images[c.row('p1')].size == (3, 2) and c.images[c.row('p2')].size == (3, 2) and c.image_urls[c.row('p3')] == 'https://e/c.png'

def test_lists_of_addresses(tmp_path):
    c = load(shop(tmp_path, log, goods.with_columns(images=pl.Series([['https://e/1.jpg', 'https://e/2.jpg'], [], None])), 'parquet')).catalogue
    assert dict(zip(c.ids, c.image_urls)) == dict(p1='https://e/1.jpg', p2=None, p3=None)

# ---- int_and_text_ids
@pytest.mark.parametrize('here, there', [('{}.0', '{}'), ('{}', '{}.0'), ('{}', '0{}'), ('00{}', '{}'), ('p{}', 'P{}')])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl'])
def test_ids_that_are_written_in_two_ways(tmp_path, here, there, ending):
    mine, theirs = (pl.Series('item', [way.format(i[1:]) for i in frame['item']]) for way, frame in ((here, log), (there, goods)))
    refused(shop(tmp_path, log.with_columns(mine), goods.with_columns(theirs), ending), f'interactions.{ending}: 4 of 4 interactions', f"items.{ending} writes differently ('", "' here, '", 'write both alike')

@pytest.mark.parametrize('kind', [pl.Int64, pl.Int32, pl.UInt16, pl.Float64, pl.String])
def test_numbers_of_parquet_are_those_of_csv(tmp_path, kind):
    number = pl.col('item').str.slice(1).cast(pl.Int64)
    put(tmp_path, **{'interactions.parquet': log.with_columns(number.cast(kind) if kind != pl.String else pl.col('item').str.slice(1)), 'items.csv': goods.with_columns(number).write_csv()})
    assert ids(load(tmp_path)) == {'ann': ['1', '2'], 'bob': ['2', '3']}

def test_numbers_and_text_in_json_lines(tmp_path):
    put(tmp_path, **{'log.jsonl': jsonl([dict(user=1, item='7', time=2), dict(user='1', item=8, time=3)]), 'items.jsonl': jsonl([dict(item=7, text='x'), dict(item='8', text='y')])})
    assert ids(load(tmp_path)) == {'1': ['7', '8']}

def test_one_id_that_is_written_otherwise_is_enough(tmp_path):
    refused(shop(tmp_path, log.with_columns(pl.Series('item', ['p1', 'p2', 'P2', 'p3']))), "1 of 4 interactions", "('P2' here, 'p2' there)")

def test_articles_that_lost_their_zero(tmp_path):
    files = dict(published['H&M'][0])
    files['transactions_train.csv'] = files['transactions_train.csv'].replace(',0', ',')
    refused(put(tmp_path, **files), '3 of 3 interactions', "' here, '0")

# ---- items_without_metadata
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_items_that_nothing_describes(tmp_path, ending):
    data = load(shop(tmp_path, log, goods[:2], ending))
    assert ids(data) == {'ann': ['p1', 'p2'], 'bob': ['p2']} and 'removed: 1 interactions with items without metadata' in report(data)
    refused(tmp_path, f'interactions.{ending}: 1 of 4 interactions', "'p3'", 'strict=False', strict=True)

@pytest.mark.parametrize('name', ['JSON pair', 'RecBole', 'MovieLens', 'MovieLens 1M', 'Yelp', 'Steam'])
def test_published_items_that_nothing_describes(tmp_path, name):
    files = dict(published[name][0])
    kind, head = list(files)[2 if name == 'MovieLens 1M' else 1], name in ('RecBole', 'MovieLens')
    rows = files[kind].splitlines(keepends=True)
    files[kind] = '{"1": {"title": "blue"}}' if name == 'JSON pair' else rows[0][:0].join(rows[:head] + rows[1 + head:])
    data = load(put(tmp_path/'d', **files), **published[name][1])
    assert data.removed['interactions with items without metadata'] and data.removed['items without metadata'] == 1
    with pytest.raises(ValueError, match='does not describe'): load(tmp_path/'d', strict=True)

# ---- long_titles
@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_long_texts_make_short_titles(tmp_path, ending):
    long = 'amber mug\nSecond line, "quoted" <b>bold</b> &amp; </script><script>alert(1)</script>\n' + 'lorem ipsum dolor '*70
    c = load(shop(tmp_path, log, goods.with_columns(text=pl.Series([long, 'short', ' x\n y ' + 'word'*100])), ending)).catalogue
    assert all(len(t) <= 60 and '\n' not in t for t in c.titles) and c.titles[c.row('p1')].startswith('amber mug Second line, "quoted" bold')
    assert not any('\n' in t or '<script' in t for t in c.text) and len(c.text[c.row('p1')]) > 1000

def test_a_title_of_ones_own_is_one_line(tmp_path):
    c = load(shop(tmp_path, log, goods.rename({'text': 'title'}).with_columns(title=pl.Series(['a\nb', 'x', 'y'])))).catalogue
    assert c.titles[c.row('p1')] == 'a b'

# ---- misread_name
def test_files_of_movielens_100k_in_part(tmp_path):
    files = {k: v for k, v in published['MovieLens 100K'][0].items() if k in ('u.data', 'u.item', 'u.user')}
    files['u.item'] = b'242|Caf\xe9 Basil (1996)|01-Jan-1995||http://x|0|0|1\n302|Cedar, The (1994)|01-Jan-1995||http://x|0|0|1\n'
    assert text(load(put(tmp_path, **files))) == {'242': 'Café Basil (1996). 01-Jan-1995', '302': 'Cedar, The (1994). 01-Jan-1995'}

@pytest.mark.parametrize('which', ['interactions', 'items'])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl'])
def test_gzip_without_its_ending(tmp_path, which, ending):
    folder = shop(tmp_path, ending=ending, gz='.gz')
    (folder/f'{which}.{ending}.gz').rename(folder/f'{which}.{ending}')
    refused(folder, f'{which}.{ending} looks like gzip; name it {which}.{ending}.gz')

@pytest.mark.parametrize('name', ['reviews', 'json', 'inter'])
def test_published_gzip_without_its_ending(tmp_path, name):
    zipped = lambda s: gzip.compress(s.encode())
    files = dict(reviews={'Shop.jsonl': zipped(published['Amazon 2023'][0]['Shop.jsonl']), 'meta_Shop.jsonl': published['Amazon 2023'][0]['meta_Shop.jsonl']},
                 json={'shop.inter.json': zipped(pair['shop.inter.json']), 'shop.item.json': pair['shop.item.json']}, inter={'shop.inter': zipped(published['RecBole'][0]['shop.inter'])})[name]
    refused(put(tmp_path, **files), 'looks like gzip')

def test_a_table_without_a_header_is_said_so(tmp_path): refused(put(tmp_path, **{'log.csv': 'u1,a,1\nu2,b,2\n'}), 'log.csv', 'line 1', 'header')

# ---- null_words
@pytest.mark.parametrize('word', ['NULL', 'nan', 'None', r'\N', 'N/A', 'null'])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_words_for_missing_values_are_noted(tmp_path, word, ending):
    data = load(shop(tmp_path, log.with_columns(user=pl.Series([word, 'ann', word, 'bob'])), goods.with_columns(text=pl.Series([word, 'x', 'y'])), ending))
    said = report(data)
    assert f'{word} is a word for a missing value, and a user here, with 2 of 4 interactions' in said and 'the text of 1 of 3 items is a word for a missing value' in said

def test_no_word_no_note(tmp_path): assert 'missing value' not in report(load(shop(tmp_path)))

def test_nan_of_json_is_no_text(tmp_path):
    data = load(put(tmp_path, **{'s.inter.json': '{"u": ["a", "b"]}', 's.item.json': '{"a": {"title": NaN, "brand": NaN, "description": null}, "b": {"title": "Mug", "brand": NaN}}'}))
    assert text(data) == {'a': '', 'b': 'Mug'} and '1 of 2 items have no text' in report(data)

@pytest.mark.parametrize('gz', ['', '.gz'])
def test_nan_in_json_lines(tmp_path, gz):
    put(tmp_path, **{f'S.jsonl{gz}': jsonl([review('u', 'B1', 1), review('u', 'B2', 2)]), f'meta_S.jsonl{gz}': jsonl([product('B1', title=float('nan'), price=float('nan'), store=float('inf')), product('B2')])})
    data = load(tmp_path, core=0)
    assert text(data) == {'B1': 'red. Home', 'B2': 'Tile B2. red. Home'} and data.catalogue.frame['price'].null_count() == 2

def test_nan_as_an_id_is_refused(tmp_path):
    refused(put(tmp_path/'a', **{'log.jsonl': '{"user": "u", "item": "a", "time": 1}\n{"user": NaN, "item": "b", "time": 2}\n'}), 'log.jsonl, line 2')
    refused(put(tmp_path/'b', **{'log.jsonl': '{"user": "u", "item": "a", "time": 1}\n{"user": null, "item": "b", "time": 2}\n'}), 'log.jsonl, line 2')
    refused(put(tmp_path/'c', **{'s.inter.json': '{"u": ["a", NaN]}'}), 's.inter.json, line 1')

# ---- one_part_of_several
@pytest.mark.parametrize('ending', ['parquet', 'csv', 'jsonl', 'csv.gz', 'jsonl.gz'])
def test_shards_are_read_together_or_one_is_missing(tmp_path, ending):
    def written(frame): return frame if ending == 'parquet' else frame.write_csv() if 'csv' in ending else frame.write_ndjson()
    folder = put(tmp_path, **{f'train-0000{n}-of-00002.{ending}': written(log[2*n:2*n + 2]) for n in range(2)}, **{'items.csv': goods.write_csv()})
    for path in (folder, *folder.glob('train*')):
        data = load(path)
        assert ids(data) == took and text(data) == words and '2 files, read together' in report(data)
    (folder/f'train-00000-of-00002.{ending}').unlink()
    refused(folder, '1 of 2 shards', '00000')
    refused(folder/f'train-00001-of-00002.{ending}', '1 of 2 shards', '00000')

def test_shards_of_items(tmp_path):
    put(tmp_path, **{'interactions.csv': log.write_csv()}, **{f'items-0000{n}-of-00003.parquet': goods[n:n + 1] for n in range(3)})
    assert text(load(tmp_path)) == words

def test_lines_of_shards_name_their_file(tmp_path):
    put(tmp_path, **{'log-00000-of-00002.csv': 'user,item,time\nu,a,1\n', 'log-00001-of-00002.csv': 'user,item,time\nu,b,2\nu,c,noon\n'})
    refused(tmp_path, "log-00001-of-00002.csv, line 3: time 'noon'")

def test_shards_of_parquet_with_columns_in_another_order(tmp_path):
    put(tmp_path, **{'log-00000-of-00002.parquet': log, 'log-00001-of-00002.parquet': log.select('item', 'time', 'user').with_columns(pl.col('time') + 10**6)})
    assert ids(load(tmp_path))['ann'] == ['p1', 'p2', 'p1', 'p2']

def test_shards_with_other_columns(tmp_path):
    put(tmp_path/'b', **{'log-00000-of-00002.csv': log[:2].write_csv(), 'log-00001-of-00002.csv': log[2:].select('item', 'time', 'user').write_csv()})
    try: assert ids(load(tmp_path/'b')) == took
    except ValueError as e: assert 'log-00001-of-00002.csv' in str(e)
    swapped = put(tmp_path/'d', **{'log-00000-of-00002.csv': 'user,item,time\nu,a,1\n', 'log-00001-of-00002.csv': 'item,user,time\nb,u,2\n'})
    try: assert ids(load(swapped)) == {'u': ['a', 'b']}
    except ValueError as e: assert 'log-00001-of-00002.csv' in str(e)
    refused(put(tmp_path/'c', **{'log-00000-of-00002.parquet': log, 'log-00001-of-00002.parquet': log.drop('time')}), 'log')

@pytest.mark.parametrize('parts', [('train', 'test'), ('train', 'valid', 'test'), ('part1', 'part2', 'part3')])
@pytest.mark.parametrize('form', ['d.{}.inter', 'd_{}.csv', 'd-{}.tsv', 'd.{}.csv.gz'])
def test_parts_of_a_split_are_refused(tmp_path, parts, form):
    said = lines('user_id:token\titem_id:token\ttimestamp:float', 'u\ta\t1') if 'inter' in form else 'user,item,time\nu,a,1\n'.replace(',', '\t' if 'tsv' in form else ',')
    folder = put(tmp_path, **{form.format(p): said for p in parts})
    for path in (folder, folder/form.format(parts[0])): refused(path, *(form.format(p) for p in sorted(parts)[:2]))

@pytest.mark.parametrize('parts', [('train', 'test'), ('train', 'val')])
def test_bare_names_of_a_split_are_refused(tmp_path, parts):
    folder = put(tmp_path, **{f'{p}.csv': 'user,item,time\nu,a,1\n' for p in parts})
    refused(folder, *(f'{p}.csv' for p in parts))
    try: assert f'{parts[1]}.csv' in report(load(folder/f'{parts[0]}.csv'))
    except ValueError as e: assert f'{parts[1]}.csv' in str(e)

@pytest.mark.parametrize('name, said', [('s.inter', lines('user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float', 'u1\ta b c\td\t4')), ('s.csv', 'user,item_list,item,time\nu1,a b c,d,4\n'), ('s.csv', 'user_id,item_id_list,item_id,timestamp\nu,a,b,1\n')])
def test_histories_in_a_column_are_refused(tmp_path, name, said): refused(put(tmp_path, **{name: said}), '_list', 'give the log itself')

# ---- parquet_not_text
def test_lists_are_joined(tmp_path):
    assert text(load(shop(tmp_path, log, goods.with_columns(text=pl.Series([['amber &amp; mug', 'home'], [], None])), 'parquet'))) == dict(p1='amber & mug home', p2='', p3='')
    assert text(load(shop(tmp_path/'j', log, goods.with_columns(text=pl.Series([['amber'], ['b', 'c'], ['d']])), 'jsonl'))) == dict(p1='amber', p2='b c', p3='d')

def test_bytes_are_decoded_or_refused(tmp_path):
    assert text(load(shop(tmp_path, log, goods.with_columns(pl.col('text').cast(pl.Binary), pl.col('item').cast(pl.Binary)), 'parquet'))) == words
    refused(shop(tmp_path, log, goods.with_columns(text=pl.Series([b'\xff\xfe\xfd', b'x', b'y'])), 'parquet'), 'items.parquet', 'column text', 'bytes')
    refused(shop(tmp_path, log.with_columns(item=pl.Series([b'\xff', b'x', b'y', b'z'])), goods, 'parquet'), 'interactions.parquet', 'column item')

def test_structs_are_refused(tmp_path):
    refused(shop(tmp_path, log, goods.with_columns(text=pl.struct(en='text')), 'parquet'), 'items.parquet: column text holds structs of en')

def test_floats_that_are_nan_are_no_text(tmp_path):
    data = load(shop(tmp_path, log, goods.with_columns(text=pl.lit(float('nan'))), 'parquet'))
    assert set(text(data).values()) == {''} and '3 of 3 items have no text' in report(data)

@pytest.mark.parametrize('kind', [pl.Categorical, pl.Enum(sorted({*goods['text'], *goods['item'], *log['item']})), pl.String])
def test_categories_of_parquet_are_text(tmp_path, kind):
    data = load(shop(tmp_path, log.with_columns(pl.col('item').cast(kind)), goods.with_columns(pl.all().cast(kind)), 'parquet'))
    assert text(data) == words and ids(data) == took

@pytest.mark.parametrize('unit', ['ms', 'us', 'ns'])
def test_times_of_parquet(tmp_path, unit):
    at = pl.from_epoch('time').cast(pl.Datetime(unit))
    assert ids(load(shop(tmp_path, log.reverse().with_columns(at), ending='parquet'))) == took
    assert ids(load(shop(tmp_path, log.reverse().with_columns(at.dt.replace_time_zone('Europe/Berlin')), ending='parquet'))) == took
    refused(shop(tmp_path, log.with_columns(pl.when(pl.int_range(pl.len()) != 2).then(at)), ending='parquet'), 'interactions.parquet, row 3: the time is missing')

# ---- spark_folder
@pytest.mark.parametrize('ending', ['snappy.parquet', 'csv', 'csv.gz', 'json'])
def test_folders_of_parts(tmp_path, ending):
    def written(frame): return frame if 'parquet' in ending else frame.write_csv() if 'csv' in ending else frame.write_ndjson()
    top = 'interactions.parquet' if 'parquet' in ending else 'interactions'
    put(tmp_path, **{f'{top}/part-0000{n}-7c-c000.{ending}': written(log[2*n:2*n + 2]) for n in range(2)}, **{f'{top}/_SUCCESS': '', 'items.csv': goods.write_csv()})
    data = load(tmp_path)
    assert ids(data) == took and text(data) == words and 'is 2 files, read together' in report(data)
    assert ids(load(tmp_path/top)) == took

def test_folders_of_dask(tmp_path):
    put(tmp_path, **{f'interactions.parquet/part.{n}.parquet': log[2*n:2*n + 2] for n in range(2)})
    assert ids(load(tmp_path)) == took

def test_a_folder_without_parts_is_no_table(tmp_path):
    put(tmp_path, **{'interactions.parquet/_SUCCESS': '', 'items.parquet': goods})
    try: assert 'interactions.parquet' in report(load(tmp_path))
    except ValueError as e: assert 'interactions.parquet' in str(e)

# ---- tsv_stray_quote
@pytest.mark.parametrize('name', ['items.tsv', 'items.tsv.gz', 'goods.TSV'])
def test_a_quote_that_never_closes_in_a_tsv(tmp_path, name):
    said = lines('item\tcat\ttext\turl', 'N0\tx\tStorm\tu0', 'N1\tx\t"Joker says ...\tu1', 'N2\tx\tSoups\tu2', 'N3\tx\tSnow: 9"\tu3', 'N4\tx\t"quoted"\tu4')
    assert text(load(put(tmp_path, **{name: said}))) == dict(N0='Storm', N1='"Joker says ...', N2='Soups', N3='Snow: 9"', N4='"quoted"')

def test_a_quote_that_swallows_rows_of_a_csv_is_refused(tmp_path):
    refused(put(tmp_path/'a', **{'items.csv': lines('item,cat,text,url', 'N0,x,Storm,u0', 'N1,x,"Joker says,u1', 'N2,x,Soups,u2', 'N3,x,Snow 9",u3', 'N4,x,y,u4')}), 'items.csv')
    refused(put(tmp_path/'b', **{'items.csv': lines('item,cat,text,url', 'N0,x,Storm,u0', 'N1,x,"Joker says,u1', 'N2,x,Soups,u2', 'N4,x,y,u4')}), 'items.csv')
    refused(put(tmp_path/'c', **{'items.csv': lines('item,text', 'N0,Storm', 'N1,"Joker says', 'N2,Soups', 'N3,Snow 9"', 'N4,y')}), 'items.csv')

def test_quotes_inside_of_a_csv_value(tmp_path):
    assert text(load(put(tmp_path, **{'items.csv': lines('item,text', 'a,Snow 9"', 'b,"say ""hi"", ok"', 'c,5" x 7" frame', 'd,""')}))) == dict(a='Snow 9"', b='say "hi", ok', c='5" x 7" frame', d='')

def test_true_line_breaks_in_quotes_stay_values(tmp_path):
    assert text(load(put(tmp_path, **{'items.csv': 'item,cat,text\na,x,"two\nlines, with a comma"\nb,y,z\n'}))) == dict(a='two lines, with a comma', b='z')

# ---- two_columns
@pytest.mark.parametrize('role, names', [('time', ('time', 'timestamp')), ('time', ('timestamp', 'date')), ('time', ('t_dat', 'datetime')), ('user', ('user', 'user_id')), ('user', ('customer_id', 'uid')), ('item', ('item', 'item_id')), ('item', ('item_id', 'asin'))])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_two_columns_for_one_role_are_refused(tmp_path, role, names, ending):
    frame = log.rename({role: names[0]}).with_columns(pl.col(names[0]).alias(names[1]))
    folder = shop(tmp_path, frame, None, ending)
    refused(folder, f'interactions.{ending}', f'columns {names[0]} and {names[1]} could both be the {role}', f'{role}=')
    data = load(folder, **{role: names[1]})
    assert ids(data) == took and names[0] in report(data)

@pytest.mark.parametrize('names', ['Item,item', 'item,item', 'ITEM,Item ', 'item_id, ITEM_ID'])
def test_two_names_that_are_one(tmp_path, names):
    refused(put(tmp_path, **{'log.csv': f'user,{names},time\nu,a,b,1\n'}), 'log.csv, line 1', 'two columns are called')

def test_two_keys_that_are_one(tmp_path):
    refused(put(tmp_path/'a', **{'log.jsonl': jsonl([dict(user='u', item='a', Item='b', time=1)])}), 'log.jsonl', 'two columns are called')
    refused(put(tmp_path/'b', **{'log.parquet': log.with_columns(pl.col('item').alias('Item'))}), 'log.parquet', 'two columns are called')

def test_two_columns_of_items(tmp_path):
    refused(shop(tmp_path, log, goods.with_columns(item_id=pl.col('item'))), 'items.csv: columns item and item_id could both be the item')

def test_columns_that_are_no_time_do_not_count(tmp_path):
    assert ids(load(shop(tmp_path, log.with_columns(time_of_day=pl.lit('0326'), user_country=pl.lit('FR'))))) == took

# ---- users_table
@pytest.mark.parametrize('beside', [{'users.csv': 'user,age\nann,30\n'}, {'users.tsv': 'user_id\tage\nann\t30\n'}, {'users.parquet': pl.DataFrame(dict(user=['ann'], age=[3]))}, {'customers.csv.gz': 'customer_id,age\nann,30\n'}, {'people.jsonl': '{"user": "ann"}\n'},
                                    {'countries.csv': 'code,name\nFR,France\n'}, {'README.txt': 'Read me\nplease, now\n'}, {'LICENSE': 'x'}, {'notes.txt': 'one\n'}])
def test_a_table_of_users_lies_beside(tmp_path, beside):
    data = load(put(shop(tmp_path), **beside))
    assert ids(data) == took and text(data) == words and list(beside)[0] in report(data)

@pytest.mark.parametrize('name', ['time', 'timestamp', 'date', 'created_at'])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'parquet'])
def test_items_may_have_a_time(tmp_path, name, ending):
    data = load(shop(tmp_path, log, goods.with_columns(pl.lit(1).alias(name)), ending))
    assert ids(data) == took and text(data) == words
    assert ids(load(tmp_path/f'interactions.{ending}')) == took

def test_users_of_recbole(tmp_path): assert 'shop.user' in report(load(put(tmp_path, **published['RecBole'][0])))

# ---- cjk_titles; ids_the_cli_cannot_name; stale_out
def test_titles_without_spaces_stay_as_they_are(tmp_path):
    assert text(load(put(tmp_path, **{'items.csv': 'item,text\na,红色陶瓷咖啡杯小号\nb,赤い　マグカップ\n'}))) == dict(a='红色陶瓷咖啡杯小号', b='赤い マグカップ')

@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl', 'parquet'])
def test_ids_with_commas_dashes_and_blanks(tmp_path, ending):
    odd = dict(zip(goods['item'], ['Game p1, Part 1', '-p2', "it's | p3"]))
    assert ids(load(shop(tmp_path, log.with_columns(pl.col('item').replace(odd)), goods.with_columns(pl.col('item').replace(odd)), ending))) == {u: [odd[i] for i in h] for u, h in took.items()}

def test_a_corrected_file_is_other_data(tmp_path):
    first = load(shop(tmp_path/'a')).digest()
    assert load(shop(tmp_path/'a')).digest() == first
    assert load(shop(tmp_path/'a', log, goods.with_columns(pl.col('text').str.replace('mug', 'cup')))).digest() != first
    assert load(shop(tmp_path/'a', log.with_columns(pl.col('time').reverse()))).digest() != first
    assert load(shop(tmp_path/'a', log.reverse(), goods.reverse())).digest() == first

# ---- of the same kinds
@pytest.mark.parametrize('odd', ['{"a": 1}', '[2]', 'true'])
def test_ids_of_json_that_name_nothing(tmp_path, odd):
    "Parquet refuses such columns"
    refused(put(tmp_path, **{'log.jsonl': '{"user": "u", "item": "a", "time": 1}\n{"user": "u", "item": %s, "time": 2}\n' % odd}), 'log.jsonl', 'item')

@pytest.mark.parametrize('gz', ['', '.gz'])
def test_half_a_character_in_a_title(tmp_path, gz):
    put(tmp_path/'a', **{f'items.jsonl{gz}': '{"item": "a", "text": "cut \\ud83d here"}\n{"item": "b", "text": "whole \\ud83d\\ude00"}\n'})
    assert text(load(tmp_path/'a')) == dict(a='cut ? here', b='whole 😀')
    put(tmp_path/'b', **{'s.item.json': '{"a": {"title": "cut \\ud83d here"}}'})
    assert text(load(tmp_path/'b')) == dict(a='cut ? here')

def test_half_a_character_in_an_id(tmp_path):
    for name, said in (('log.jsonl', '{"user": "u", "item": "a", "time": 1}\n{"user": "\\ud83d", "item": "b", "time": 2}\n'), ('s.inter.json', '{"u": ["a"],\n "v": ["\\ud83d"]}')):
        try: assert len(load(put(tmp_path/name, **{name: said})).histories.items) == 2
        except ValueError as e: assert f'{name}, line 2' in str(e)

@pytest.mark.parametrize('mark', ['\x00', '\x1f', '\u2028', '\x85', '\x0b', '\x0c'])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl'])
def test_odd_characters_in_texts(tmp_path, mark, ending):
    assert text(load(shop(tmp_path, None, goods.with_columns(text=pl.Series([f'x{mark}y', 'b', 'c'])), ending)))['p2'] == 'b'

def test_header_lines_in_the_middle_are_counted(tmp_path):
    data = load(put(tmp_path, **{'interactions.csv': log.write_csv() + log[:1].write_csv().replace('1600000000', '1600000900'), 'items.csv': goods[:2].write_csv() + goods[2:].write_csv()}))
    assert ids(data) == {'ann': ['p1', 'p2', 'p1'], 'bob': ['p2', 'p3']} and text(data) == words and '1 header lines in the middle' in report(data)

def cases(): # 'CASE/folder' of each data set
    root = Path(os.environ.get('GENTOK_SHARED', Path(__file__).resolve().parents[2]/'shared'))/'cases'
    folders = sorted({f.parent for f in root.rglob('*') if f.is_file() and f.name != 'CASE.md' and f.parent.name != 'interactions.parquet'}) if root.is_dir() else []
    return [str(f.relative_to(root)) for f in folders] or ['none']

says = {'int_and_text_ids/floats': 'writes differently', 'int_and_text_ids/hm': 'writes differently', 'int_and_text_ids/zeros': 'writes differently', 'misread_name/gzip_without_suffix': 'looks like gzip', 'one_part_of_several/recbole_item_id_list': '_list',
        'one_part_of_several/recbole_parts': 'd.test.inter and d.train.inter', 'parquet_not_text/structs': 'structs', 'two_columns/time_and_timestamp': 'time and timestamp', 'two_columns/user_and_user_id': 'user and user_id'}
sizes = {'cjk_titles/en': (300, 0, 0), 'cjk_titles/zh': (300, 0, 0), 'cr_line_ends': (12, 8, 56), 'exact_duplicates/once': (60, 150, 1040), 'exact_duplicates/twice': (60, 150, 1040), 'id_whitespace/spaced': (40, 150, 1200), 'id_whitespace/right': (40, 150, 1200),
         'id_whitespace/leading': (40, 60, 423), 'image_column/urls': (12, 8, 56), 'image_column/hf_bytes': (12, 8, 56), 'int_and_text_ids/parquet': (12, 8, 56), 'int_and_text_ids/parquet_csv': (12, 8, 56), 'items_without_metadata': (11, 8, 51), 'long_titles': (40, 60, 423),
         'misread_name/ml100k': (5, 6, 36), 'null_words/users': (40, 101, 1200), 'one_part_of_several/hf_shards': (12, 8, 56), 'spark_folder': (12, 8, 56), 'tsv_stray_quote': (8, 5, 25), 'two_columns/right': (40, 150, 1200),
         'users_table/users_csv': (12, 8, 56), 'users_table/items_with_timestamp': (12, 8, 56)}

@pytest.mark.parametrize('case', cases())
def test_every_case_is_read_right_or_refused(shared, case):
    if not (shared/'cases'/case).is_dir(): pytest.skip('no folder of cases')
    if case in says: return refused(shared/'cases'/case, says[case], case)
    data = load(shared/'cases'/case)
    size = len(data.catalogue), len(data.histories), len(data.histories.items)
    assert size == sizes.get(case, size) and 'removed: ' in report(data)
