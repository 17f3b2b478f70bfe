"load(path): every layout under its true header, real data, and each bad input as one clear sentence with nothing written."
import csv, gzip, hashlib, io, json
from collections import Counter
from functools import lru_cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from gentok.data.columns import _clean, _encode, _sentence, canonical_order, _times
from gentok.data.formats import load, report
from gentok.data.interactions import _drop_repeats, _gather, _histories, _in_order, k_core, _keep_first
from gentok.data.dataset import Catalogue
from gentok.data.splits import leave_one_out

# ---- what a folder is made of -------------------------------------------------------------------------------------

def put(folder, **files):
    "Write files: __ in a name stands for a dot, text is compressed where the name ends in .gz, a frame is Parquet or Arrow."
    for name, data in files.items():
        path = folder/name.replace('__', '.')
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, pl.DataFrame): (data.write_parquet if path.suffix == '.parquet' else data.write_ipc_stream)(path); continue
        raw = data.encode() if isinstance(data, str) else data
        path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' and isinstance(data, str) else raw)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

def jsonl(rows): return ''.join(json.dumps(r) + '\n' for r in rows)
def lines(*rows): return ''.join(r + '\n' for r in rows)
def ids(data): return {u: [data.catalogue.ids[i] for i in h] for u, h in zip(data.histories.users, data.histories)}
def text(data): return dict(zip(data.catalogue.ids, data.catalogue.text))
def picture(size=(3, 2)):
    Image.new('RGB', size, 'red').save(out := io.BytesIO(), 'PNG')
    return out.getvalue()

pair = {'shop.inter.json': '{"ann": [0, 1],\n "bob": [1]}', 'shop.item.json': '{"0": {"title": "red"},\n "1": {"title": "blue"}}'}
atomic = {'shop.inter': lines('user_id:token\titem_id:token\ttimestamp:float', 'ann\tb\t2', 'ann\ta\t1', 'bob\tb\t1'),
          'shop.item': lines('item_id:token\ttitle:token_seq', 'a\tred', 'b\tblue')}
own = {'interactions.csv': 'user,item,time\nann,b,2\nann,a,1\nbob,b,1\n', 'items.csv': 'item,text\na,red\nb,blue\n'}

def review(u, b, t, **more): return dict(rating=5.0, title='Fine', text='So, "fine"', images=[], asin=b + 'x', parent_asin=b, user_id=u, timestamp=t,
                                         helpful_vote=0, verified_purchase=True, **more)
def product(b, **more): return dict(main_category='All', title=f'Tile {b}', average_rating=4.8, rating_number=10, features=['red'], description=[], price=None,
                                    images=[], videos=[], store='S', categories=['Home'], details={'Brand': 'S'}, parent_asin=b, bought_together=None) | more
many = [review(f'U{u}', f'B{b}', 10*b + u) for u in range(5) for b in range(5)]
amazon = {'Shop.jsonl': jsonl(many), 'meta_Shop.jsonl': jsonl(product(f'B{b}') for b in range(5))}
grid = {f'U{u}': [f'B{b}' for b in range(5)] for u in range(5)}

def old_review(u, b, t): return dict(overall=5.0, verified=True, reviewTime='01 1, 2018', reviewerID=u, asin=b, style={'Size:': ' S'}, reviewerName='N', reviewText='x',
                                     summary='y', unixReviewTime=t)
def old_product(b): return dict(category=['Home', 'Tiles'], tech1='', description=['Soft &amp; warm'], fit='', title=f'Tile {b}', also_buy=[], tech2='', brand='S', feature=['x'],
                                rank='1', also_view=[], details={}, main_cat='Home', similar_item='', date='', price='$1,299.00', asin=b, imageURL=['https://e/s.jpg'],
                                imageURLHighRes=['https://e/l.jpg'])
old = jsonl(old_review(f'U{u}', f'B{b}', 1514764800 + 86400*b) for u in range(5) for b in range(5))
old_meta = jsonl(old_product(f'B{b}') for b in range(5))
old_text = {f'B{b}': f'Tile B{b}. S. Home Tiles. Soft & warm' for b in range(5)}
python_meta = lines(*(repr(dict(asin=f'B{b}', salesRank={'Home': 3}, imUrl='http://e/i.jpg', categories=[['Home', "Kid's"]], title=f'Tile B{b}')) for b in range(5)))

articles = ('article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,graphical_appearance_no,graphical_appearance_name,colour_group_code,'
            'colour_group_name,perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,perceived_colour_master_name,department_no,department_name,'
            'index_code,index_name,index_group_no,index_group_name,section_no,section_name,garment_group_no,garment_group_name,detail_desc')
def article(id, name): return (f'{id},{id[:-3]},{name},253,Vest top,Garment Upper body,1010016,Solid,09,Black,4,Dark,5,Black,1676,Jersey Basic,A,Ladieswear,1,Ladieswear,16,'
                               'Womens Everyday Basics,1002,Jersey Basic,"Top, with straps."')
played = 'user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio'
kuairec = {'big_matrix.csv': lines(played, '0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.27', '0,9598,13665,10984,2020-07-05 00:13:41.297,20200705,1593879221.297,1.24',
                                   '1,3649,851,7908,2020-07-05 00:16:06.687,20200705,1593879366.687,0.1'),
           'kuairec_caption_category.csv': lines('video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,second_level_category_id,'
                                                 'second_level_category_name,third_level_category_id,third_level_category_name',
                                                 '3649,UNKNOWN,精神小伙路难走,[],8,颜值,673,颜值随拍,-124,UNKNOWN', '9598,五爱街最美美女,"搞笑, 一家人","[搞笑,上热门]",27,高新数码,-124,UNKNOWN,-124,UNKNOWN'),
           'user_features.csv': lines('user_id,user_active_degree,is_lowactive_period', '0,high_active,0'), 'social_network.csv': lines('user_id,friend_list', '3371,[2975]'),
           'item_daily_features.csv': lines('video_id,date,author_id,video_type', '3649,20200705,3309,NORMAL'), 'item_categories.csv': lines('video_id,feat', '3649,[8]')}
small_matrix = lines(played, '14,148,4381,6067,2020-07-05 05:27:48.378,20200705,1593898068.378,0.72')
shown = ('user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,'
         'comment_stay_time,is_profile_enter,is_rand,tab')
def view(u, v, t, click=1, rand=0): return f'{u},{v},20220421,700,{t},{click},0,0,0,0,0,0,0,15000,0,0,0,{rand},1'
steam_review = "{{u'username': u'{}', u'hours': 0.1, u'products': 41, u'product_id': u'{}', u'page_order': 0, u'date': u'{}', u'text': u'It\\'s fun', u'early_access': False, u'page': 1}}"
steam_game = ("{{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Indie'], u'app_name': u'{1}', u'title': u'{1}', u'url': u'http://s/app/{0}', u'release_date': u'2018-01-04', "
              "u'tags': [u'Strategy'], u'discount_price': 4.49, u'reviews_url': u'http://s/{0}', u'specs': [u'Single-player'], u'price': 4.99, u'early_access': False, u'id': u'{0}', u'developer': u'K'}}")
yelp = {'yelp_academic_dataset_review.json': jsonl(dict(review_id=f'r{t}', user_id=u, business_id=b, stars=4.0, useful=0, funny=0, cool=0, text='Nice,\nyes', date=f'2018-07-0{t} 22:09:11')
                                                   for u, b, t in (('mh_-eM', 'XQfw', 7), ('mh_-eM', '7ATY', 3), ('OyoG', 'XQfw', 5))),
        'yelp_academic_dataset_business.json': jsonl(dict(business_id=b, name=n, address='1 St', city='Tampa', state='FL', postal_code='1', latitude=1.5, longitude=-2.5, stars=4.0, review_count=7,
                                                          is_open=1, attributes={'WiFi': "u'no'"}, categories=c, hours=None) for b, n, c in (('XQfw', 'Turning Point', 'Cafes, Food'), ('7ATY', 'Zaika', None))),
        'yelp_academic_dataset_user.json': jsonl([dict(user_id='mh_-eM', name='Ann', yelping_since='2007-01-25 16:47:26')]),
        'yelp_academic_dataset_checkin.json': jsonl([dict(business_id='XQfw', date='2020-03-13 21:10:56, 2020-06-02 22:18:06')]),
        'yelp_academic_dataset_tip.json': jsonl([dict(user_id='mh_-eM', business_id='XQfw', text='Go', date='2012-05-18 02:17:21', compliment_count=0)])}
ab = {'ann': ['a', 'b'], 'bob': ['b']}
log_frame = pl.DataFrame(dict(user=['ann', 'ann', 'bob'], item=['b', 'a', 'b'], time=[2, 1, 1]))
item_frame = pl.DataFrame(dict(item=['a', 'b'], text=['red', 'blue']))
hf_info = {'dataset_info.json': '{"citation": "", "features": {}}', 'state.json': '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'}
def saved(name, frame): return {f'{name}/{k}': v for k, v in {'data-00000-of-00001.arrow': frame, **hf_info}.items()}

# name: files, what is asked for, histories, texts (None: none are there)
published = {
    'JSON pair': (pair, {}, {'ann': ['0', '1'], 'bob': ['1']}, {'0': 'red', '1': 'blue'}),
    'RecBole': ({'shop.inter': lines('user_id:token\titem_id:token\trating:float\ttimestamp:float', 'ann\tb\t3\t2', 'ann\ta\t5\t1', 'bob\tb\t1\t1'),
                 'shop.item': lines('item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq', 'a\tToy "Story\t1995\tAnimation Comedy', 'b\tHeat\t1996\tAction'),
                 'shop.user': lines('user_id:token\tage:token', 'ann\t24')}, {}, ab, {'a': 'Toy "Story. 1995. Animation Comedy', 'b': 'Heat. 1996. Action'}),
    'own CSV': (own, {}, ab, {'a': 'red', 'b': 'blue'}),
    'own TSV': ({k.replace('.csv', '.tsv'): v.replace(',', '\t') for k, v in own.items()}, {}, ab, {'a': 'red', 'b': 'blue'}),
    'own Parquet': ({'interactions.parquet': log_frame, 'items.parquet': item_frame}, {}, ab, {'a': 'red', 'b': 'blue'}),
    'own JSON lines': ({'log.jsonl': jsonl(dict(who=u, what=i, at=t, kind='buy') for u, i, t in log_frame.rows()), 'goods.jsonl': jsonl(dict(what=i, words=[t]) for i, t in item_frame.rows())},
                       dict(user='who', item='what', time='at', text=['words']), ab, {'a': 'red', 'b': 'blue'}),
    'Amazon 2023': (amazon, {}, grid, {f'B{b}': f'Tile B{b}. red. Home' for b in range(5)}),
    'Amazon 2023 gz': ({k + '.gz': v for k, v in amazon.items()}, {}, grid, {f'B{b}': f'Tile B{b}. red. Home' for b in range(5)}),
    'Amazon 2023 benchmark': ({'Shop.csv': lines('user_id,parent_asin,rating,timestamp', 'U1,B1,5.0,1588687728923', 'U1,B0,4.0,1588615855070', 'U2,B1,1.0,1588615855070')}, {},
                              {'U1': ['B0', 'B1'], 'U2': ['B1']}, None),
    'Amazon 2023 benchmark, described': ({'Shop.csv.gz': lines('user_id,parent_asin,rating,timestamp', 'U1,B1,5.0,1588687728923', 'U1,B0,4.0,1588615855070', 'U2,B1,1.0,1588615855070'),
                                          'meta_Shop.jsonl.gz': jsonl([product('B0'), product('B1')])}, {}, {'U1': ['B0', 'B1'], 'U2': ['B1']}, {b: f'Tile {b}. red. Home' for b in ('B0', 'B1')}),
    'Amazon 2018': ({'Shop.json.gz': old, 'meta_Shop.json.gz': old_meta}, {}, grid, old_text),
    'Amazon 2018, 5-core': ({'Shop_5.json.gz': old, 'meta_Shop.json.gz': old_meta}, {}, grid, old_text),
    'Amazon 2014': ({'reviews_Shop_5.json.gz': old, 'meta_Shop.json.gz': python_meta}, {}, grid, {f'B{b}': f"Tile B{b}. Home Kid's" for b in range(5)}),
    'MovieLens 1M': ({'ratings.dat': lines('1::1193::5::978300760', '1::661::3::978302109', '2::661::4::978298413'), 'users.dat': lines('1::F::1::10::48067'),
                      'movies.dat': lines("661::James and the Giant Peach (1996)::Animation|Children's|Musical", '1193::Café au Lait (1993)::Comedy').encode('latin-1'), 'README': 'x'}, {},
                     {'1': ['1193', '661'], '2': ['661']}, {'661': "James and the Giant Peach (1996). Animation|Children's|Musical", '1193': 'Café au Lait (1993). Comedy'}),
    'MovieLens': ({'ratings.csv': lines('userId,movieId,rating,timestamp', '1,3,4.0,964981247', '1,1,4.0,964980868', '2,3,.5,1445714835'),
                   'movies.csv': lines('movieId,title,genres', '1,Toy Story (1995),Adventure|Animation', '3,"American President, The (1995)",(no genres listed)'),
                   'links.csv': lines('movieId,imdbId,tmdbId', '1,0114709,862'), 'tags.csv': lines('userId,movieId,tag,timestamp', '2,3,funny,1445714994'), 'README.txt': 'Summary\n=======\n'}, {},
                  {'1': ['1', '3'], '2': ['3']}, {'1': 'Toy Story (1995). Adventure|Animation', '3': 'American President, The (1995). (no genres listed)'}),
    'MovieLens 100K': ({'u.data': lines('196\t242\t3\t881250949', '196\t302\t3\t881250940', '22\t242\t1\t878887116'), 'u.user': lines('1|24|M|technician|85711'), 'u.genre': lines('unknown|0', 'Action|1'),
                        'u.item': lines('242|Kolya (1996)|24-Jan-1997||http://us.imdb.com/M/title-exact?Kolya%20(1996)|' + '|'.join('0'*19),
                                        '302|L.A. Confidéntial (1997)|01-Jan-1997||http://us.imdb.com/M|' + '|'.join('0'*19)).encode('latin-1'),
                        'u1.base': lines('1\t1\t5\t874965758'), 'u1.test': lines('1\t6\t5\t887431973'), 'ua.base': lines('1\t1\t5\t874965758'), 'u.info': lines('943 users'), 'u.occupation': lines('artist')}, {},
                       {'196': ['302', '242'], '22': ['242']}, {'242': 'Kolya (1996). 24-Jan-1997', '302': 'L.A. Confidéntial (1997). 01-Jan-1997'}),
    'Yelp': (yelp, {}, {'mh_-eM': ['7ATY', 'XQfw'], 'OyoG': ['XQfw']}, {'XQfw': 'Turning Point. Cafes, Food. Tampa', '7ATY': 'Zaika. Tampa'}),
    'Steam': ({'steam_reviews.json.gz': lines(*(steam_review.format(*r) for r in (('Chaos Syren', '725280', '2017-12-17'), ('Chaos Syren', '328100', '2017-08-02'), ('Bob', '328100', '2018-01-04')))),
               'steam_games.json.gz': lines(steam_game.format('725280', 'Lost'), steam_game.format('328100', 'Ironbound'))}, {},
              {'Chaos Syren': ['328100', '725280'], 'Bob': ['328100']}, {i: f'{t}. Action Indie. Strategy. Single-player. Kotoshiro' for i, t in (('725280', 'Lost'), ('328100', 'Ironbound'))}),
    'Steam recommendations': ({'recommendations.csv': lines('app_id,helpful,funny,date,is_recommended,hours,user_id,review_id', '975370,0,0,2022-12-12,true,36.3,51580,0', '304390,4,0,2017-02-17,false,11.5,51580,1',
                                                            '975370,2,0,2019-11-17,true,336.5,2586,2'),
                               'games.csv': lines('app_id,title,date_release,win,mac,linux,rating,positive_ratio,user_reviews,price_final,price_original,discount,steam_deck',
                                                  '975370,"Dwarf, Fortress",2022-12-06,true,false,false,Very Positive,95,20000,29.99,29.99,0.0,true', '304390,FOR HONOR™,2017-02-13,true,false,false,Mixed,68,76000,14.99,14.99,0.0,true'),
                               'users.csv': lines('user_id,products,reviews', '51580,359,0'), 'games_metadata.json': jsonl([dict(app_id=975370, description='Deep', tags=['Sim'])])}, {},
                              {'51580': ['304390', '975370'], '2586': ['975370']}, {'975370': 'Dwarf, Fortress', '304390': 'FOR HONOR™'}),
    'RetailRocket': ({'events.csv': lines('timestamp,visitorid,event,itemid,transactionid', '1433221332117,257597,view,355908,', '1433224214164,257597,transaction,248676,4000', '1433221999827,111016,addtocart,355908,'),
                      'item_properties_part1.csv': lines('timestamp,itemid,property,value', '1435460400000,355908,categoryid,1338', '1441508400000,248676,888,1116713 960601 n277.200'),
                      'item_properties_part2.csv': lines('timestamp,itemid,property,value', '1435460300000,248676,categoryid,770', '1435460500000,355908,categoryid,1400'), 'category_tree.csv': lines('categoryid,parentid', '1338,', '1400,1338')}, {},
                     {'257597': ['355908', '248676'], '111016': ['355908']}, {'355908': '1400', '248676': '770'}),
    'H&M': ({'transactions_train.csv': lines('t_dat,customer_id,article_id,price,sales_channel_id', '2018-09-21,000058a1,0663713001,0.0508,2', '2018-09-20,000058a1,0541518023,0.0304,2', '2018-09-20,00007d2d,0663713001,0.0152,2'),
             'articles.csv': lines(articles, article('0663713001', 'Atlanta'), article('0541518023', 'Rae')), 'images/066/0663713001.jpg': picture(),
             'customers.csv': lines('customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code', '000058a1,,,ACTIVE,NONE,49.0,52043'),
             'sample_submission.csv': lines('customer_id,prediction', '000058a1,0706016001 0706016002')}, {},
            {'000058a1': ['0541518023', '0663713001'], '00007d2d': ['0663713001']},
            {i: f'{n}. Vest top. Garment Upper body. Black. Womens Everyday Basics. Top, with straps' for i, n in (('0663713001', 'Atlanta'), ('0541518023', 'Rae'))}),
    'KuaiRec': (kuairec, {}, {'0': ['3649', '9598'], '1': ['3649']}, None),
    'KuaiRand': ({'log_standard_4_08_to_4_21_pure.csv': lines(shown, view(0, 4154, 1649990441870), view(0, 7, 1649990441871, click=0), view(0, 2525, 1649990441000)),
                  'log_standard_4_22_to_5_08_pure.csv': lines(shown, view(1, 2525, 1650990441000), view(0, 11, 1650990441000)), 'log_random_4_22_to_5_08_pure.csv': lines(shown, view(0, 99, 1650990442000, rand=1)),
                  'video_features_basic_pure.csv': lines('video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag',
                                                         *(f'{v},3712,NORMAL,2022-04-02,ShortImport,1.0,15000.0,720,1280,1,9.0,{t}' for v, t in ((4154, 12), (7, 8), (2525, '"12,39"'), (11, '')))),
                  'user_features_pure.csv': lines('user_id,user_active_degree', '0,full_active'), 'video_features_statistic_pure.csv': lines('video_id,counts,show_cnt', '7,1,2')}, {},
                 {'0': ['2525', '4154', '11'], '1': ['2525']}, None),
    'MIND': ({'behaviors.tsv': lines('1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0', '2\tU1\t11/12/2019 6:11:30 PM\tN1 N2\tN4-1 N3-0', '3\tU2\t11/12/2019 6:11:30 AM\t\tN4-0 N2-1'),
              'news.tsv': lines(*(f'N{n}\tsports\tgolf\t"Title {n}\tAbstract\thttps://n/{n}.html\t[{{"Label": "X"}}]\t[]' for n in range(1, 5))), 'entity_embedding.vec': 'Q41\t-0.063\n', 'relation_embedding.vec': 'P31\t1\n'}, {},
             {'U1': ['N1', 'N2', 'N3', 'N4'], 'U2': ['N2']}, {f'N{n}': f'"Title {n}. sports. golf. Abstract' for n in range(1, 5)}),
    'lines of items (P5)': ({'sequential_data.txt': lines('1 1 2 3', '2 3 1')}, {}, {'1': ['1', '2', '3'], '2': ['3', '1']}, None),
    'lines of items (SASRec)': ({'Beauty.txt': lines('1 1', '1 2', '2 3')}, {}, {'1': ['1', '2'], '2': ['3']}, None),
    'shards': ({f'train-0000{n}-of-00003.parquet': log_frame[n:n + 1].with_columns(text=pl.lit(f'Tile {"bab"[n]}')) for n in range(3)}, {}, ab, {'a': 'Tile a', 'b': 'Tile b'}),
    'shards of CSV': ({f'log-0000{n}-of-00002.csv': log_frame[n:n + 1 + n].write_csv() for n in range(2)}, {}, ab, None),
    'Spark, Parquet': ({'interactions.parquet/part-00000-b1e-c000.snappy.parquet': log_frame[:1], 'interactions.parquet/part-00001-b1e-c000.snappy.parquet': log_frame[1:], 'interactions.parquet/_SUCCESS': '',
                        'items.parquet/part-00000-b2e-c000.snappy.parquet': item_frame, 'items.parquet/_SUCCESS': ''}, {}, ab, {'a': 'red', 'b': 'blue'}),
    'Spark, CSV': ({'interactions/part-00000-b1e-c000.csv': log_frame[:1].write_csv(), 'interactions/part-00001-b1e-c000.csv': log_frame[1:].write_csv(), 'interactions/_SUCCESS': '', 'interactions/._SUCCESS.crc': b'crc\0',
                    'items/part-00000-b2e-c000.csv': item_frame.write_csv(), 'items/_SUCCESS': ''}, {}, ab, {'a': 'red', 'b': 'blue'}),
    'Hugging Face': ({**saved('interactions', log_frame), **saved('items', item_frame)}, {}, ab, {'a': 'red', 'b': 'blue'}),
}

@pytest.fixture(scope='session')
def real(shared):
    "real('Yelp') -> the data set, read once."
    return lru_cache(None)(lambda name: load(shared/'data'/name))

# ---- the table of formats -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', published)
def test_each_layout_under_its_true_header(tmp_path, name):
    files, asked, want, words = published[name]
    data = load(put(tmp_path/'d', **files), **asked)
    assert ids(data) == want
    if words: assert text(data) == words
    said = report(data)
    assert 'removed' in said and said.count('\n') == len(said.splitlines()) - 1

@pytest.mark.parametrize('name', ['JSON pair', 'RecBole', 'own CSV', 'own Parquet', 'Amazon 2023', 'Amazon 2018', 'MovieLens 1M', 'MovieLens 100K', 'Steam', 'H&M', 'MIND', 'KuaiRec', 'shards'])
def test_a_folder_and_its_table_of_interactions_give_the_same(tmp_path, name):
    files, asked, want, words = published[name]
    folder = put(tmp_path/'d', **files)
    data = load(str(folder/list(files)[0]), **asked)
    assert ids(data) == want and (words is None or text(data) == words)

@pytest.mark.parametrize('name', published)
def test_rows_are_in_standard_order_and_files_beside_are_named(tmp_path, name):
    files, asked, *_ = published[name]
    data = load(put(tmp_path/'d', **files), **asked)
    for names in (data.catalogue.ids, data.histories.users): assert (canonical_order(names) == np.arange(len(names))).all()
    for beside in ('users.dat', 'u.user', 'links.csv', 'customers.csv', 'user_features.csv', 'category_tree.csv', 'entity_embedding.vec', 'shop.user'):
        if beside in files: assert beside in report(data) or ' more' in report(data)

def test_a_folder_of_hugging_face_alone(tmp_path):
    put(tmp_path, **saved('d', log_frame.with_columns(text=pl.Series(['blue', 'red', 'blue']))))
    data = load(tmp_path/'d')
    assert ids(data) == ab and text(data) == {'a': 'red', 'b': 'blue'}
    assert ids(load(put(tmp_path/'e', **{'data-00000-of-00001.arrow': log_frame, **hf_info}))) == ab

@pytest.mark.parametrize('twice', (dict(user='user', item='user'), dict(item='time'), dict(user='item')))
def test_two_roles_share_no_column(tmp_path, twice):
    (tmp_path/'interactions.csv').write_text('user,item,time\n' + ''.join(f'u{u},i{i},{i}\n' for u in range(3) for i in range(5)))
    with pytest.raises(ValueError, match=r'line 1: \w+ and \w+ are both column \w+, expected a column for each; name another\.$'): load(tmp_path, **twice)

def test_a_missing_shard_is_named(tmp_path):
    files = dict(published['shards'][0])
    files.pop('train-00001-of-00003.parquet')
    folder = put(tmp_path, **files)
    for path in (folder, folder/'train-00000-of-00003.parquet'):
        with pytest.raises(ValueError, match='2 of 3 shards of train .number 00001 is missing.'): load(path)

def test_a_shard_names_all_of_them(tmp_path):
    folder = put(tmp_path, **published['shards'][0])
    data = load(folder/'train-00002-of-00003.parquet')
    assert ids(data) == ab and 'train.parquet is 3 files, read together' in report(data)

def test_train_and_test_of_hugging_face_are_not_joined_nor_chosen(tmp_path):
    put(tmp_path, **saved('train', log_frame), **saved('test', log_frame[:1]), **{'dataset_dict.json': '{"splits": ["train", "test"]}'})
    with pytest.raises(ValueError, match='test and train'): load(tmp_path)

def test_both_matrices_of_kuairec_are_refused(tmp_path):
    folder = put(tmp_path, **kuairec, **{'small_matrix.csv': small_matrix})
    with pytest.raises(ValueError, match='big_matrix.csv and small_matrix.csv could both be the interactions'): load(folder)
    assert ids(load(folder/'big_matrix.csv'))['1'] == ['3649']

def test_both_files_of_amazon_2018_are_refused(tmp_path):
    with pytest.raises(ValueError, match='Shop.json.gz and Shop_5.json.gz'): load(put(tmp_path, **{'Shop.json.gz': old, 'Shop_5.json.gz': old, 'meta_Shop.json.gz': old_meta}))

def test_kuairec_says_more_than_the_caption(tmp_path):
    said = text(load(put(tmp_path, **kuairec)))
    assert '精神小伙路难走' in said['3649'] and '搞笑, 一家人' in said['9598'] and '高新数码' in said['9598']

def test_kuairand_counts_what_was_not_clicked(tmp_path):
    data = load(put(tmp_path, **published['KuaiRand'][0]))
    assert [n for what, n in data.removed.items() if 'is_click' in what] == [1] and 'log_random_4_22_to_5_08_pure.csv' in report(data)
    assert '2 files, read together' in report(data)

def test_the_latest_property_of_an_item_is_taken(tmp_path):
    data = load(put(tmp_path, **published['RetailRocket'][0]), where="event = 'transaction'")
    assert ids(data) == {'257597': ['248676']} and text(data)['355908'] == '1400'
    assert data.removed == {"rows without event = 'transaction'": 2}

def test_pictures_of_hm_are_found_by_their_ids(tmp_path):
    c = load(put(tmp_path, **published['H&M'][0])).catalogue
    assert c.images[c.row('0663713001')].size == (3, 2) and c.images[c.row('0541518023')] is None
    assert c.titles[c.row('0663713001')] == 'Atlanta'

def test_games_without_an_id_are_counted_and_dropped(tmp_path):
    "the real steam_games.json.gz has two of them"
    files = dict(published['Steam'][0])
    files['steam_games.json.gz'] += "{u'url': u'http://store.steampowered.com/', u'price': 19.99, u'early_access': False}\n"
    data = load(put(tmp_path, **files))
    assert len(data.catalogue) == 2 and 'removed: 1 ' in report(data)

def test_matrices_with_missing_times(tmp_path):
    "the real small_matrix.csv of KuaiRec has rows without a time"
    files = {k: v for k, v in kuairec.items() if k != 'big_matrix.csv'}
    folder = put(tmp_path, **files, **{'small_matrix.csv': lines(played, '0,3649,1,2,,,,.5', '0,9598,1,2,2020-07-05 05:27:48.378,20200705,1593898068.378,.5')})
    with pytest.raises(ValueError, match='small_matrix.csv, line 2: the time is missing'): load(folder)
    assert ids(load(folder, where='timestamp IS NOT NULL')) == {'0': ['9598']}

@pytest.mark.parametrize('name', ['Amazon 2023', 'Amazon 2018', 'Yelp', 'Steam', 'H&M', 'MIND', 'MovieLens 1M', 'RecBole', 'JSON pair'])
def test_a_log_alone_says_nothing_of_its_items(tmp_path, name):
    "the title and text of a review are not those of the item"
    files, asked, want, _ = published[name]
    data = load(put(tmp_path, **dict(list(files.items())[:1])), **asked)
    assert ids(data) == want and set(data.catalogue.text) == {''} and 'items have no text' in report(data)

@pytest.mark.parametrize('name, where, left', [('MovieLens', 'rating >= 4 AND userId = 1', 2), ('MovieLens', 'movieId = 3', 2), ('Amazon 2018', "overall > 4", 25), ('Yelp', "date < '2018-07-06'", 2), ('KuaiRec', 'watch_ratio > 1', 2), ('Steam recommendations', "is_recommended = 'true'", 2)])
def test_where_on_published_layouts(tmp_path, name, where, left):
    assert len(load(put(tmp_path, **published[name][0]), where=where).histories.items) == left

@pytest.mark.parametrize('name', ['JSON pair', 'lines of items (P5)', 'MIND', 'H&M'])
@pytest.mark.parametrize('asked', [dict(min_rating=2), dict(where='stars > 2'), dict(rating='grade', min_rating=1)])
def test_what_a_layout_does_not_say_cannot_be_asked(tmp_path, name, asked):
    folder = put(tmp_path, **published[name][0])
    with pytest.raises(ValueError, match='rating|stars|grade') as e: load(folder, **asked)
    assert str(folder) in str(e.value) and '\n' not in str(e.value) and str(e.value).endswith('.')

@pytest.mark.parametrize('name', ['JSON pair', 'RecBole', 'MovieLens', 'Yelp', 'H&M', 'MIND', 'lines of items (P5)'])
@pytest.mark.parametrize('asked', [dict(core=2), dict(dedupe=True), dict(max_users=1), dict(strict=True)])
def test_filters_of_every_layout(tmp_path, name, asked):
    files, _, want, _ = published[name]
    folder, n = put(tmp_path, **files), sum(map(len, want.values()))
    try: data = load(folder, **asked)
    except ValueError as e: assert 'core' in asked and 'in the 2-core' in str(e); return
    assert n == len(data.histories.items) + sum(c for what, c in data.removed.items() if 'interactions' in what)

def test_the_folder_of_pictures_is_not_called_unread(tmp_path):
    assert 'images' not in report(load(put(tmp_path, **published['H&M'][0]))).partition('not read')[2]

# ---- real data ----------------------------------------------------------------------------------------------------

digests = dict(Beauty='dcd2f835c1c5962d', Instruments='8e7da927700b828b', Office_Products='ac6dd8a963c12ade', Office_Products_2018='7d4c60014a477a6c', Sports_and_Outdoors='7cd993fc86090323',
               Video_Games='f1ba0fed25d06cc4', Video_Games_2018='9f5c513889ec2eb7', Yelp='a387bd281f9a699a') | {'ml-100k': 'eeb4c490e88a392f', 'ml-1m': '002cdea238767385', 'ml-1m_pictures': '002cdea238767385'}

@pytest.mark.parametrize('name', digests)
def test_real_histories_are_those_of_the_first_reader(real, name):
    data = real(name)
    ids, ends = data.catalogue.ids, data.histories.offsets.tolist()
    flat = [str(ids[i]) for i in data.histories.items.tolist()]
    found = {str(u): flat[a:b] for u, a, b in zip(data.histories.users, ends, ends[1:])}
    assert hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16] == digests[name]
    assert 'removed: nothing' in report(data)

@pytest.mark.parametrize('name, users, items, n', [('Office_Products', 4905, 2420, 53258), ('Office_Products_2018', 3231, 3459, 22447), ('Instruments', 24772, 9922, 206153),
                                                   ('ml-100k', 943, 1682, 100_000), ('Yelp', 30431, 20033, 316354)])
def test_sizes_of_real_data(real, name, users, items, n):
    data = real(name)
    assert (len(data.histories), len(data.catalogue), len(data.histories.items)) == (users, items, n) and data.removed == {}

def test_office_products_splits_as_published(shared):
    data = load(shared/'data'/'Office_Products'/'Office_Products.inter.json')
    split, c = leave_one_out(data), data.catalogue
    assert [p.n for p in split] == [38543, 4905, 4905]
    row = c.row('1')
    assert c.titles[row] == 'Texas Instruments TI-1795 SV Standard Function Calculator'
    assert c.text[row].startswith(f'{c.titles[row]}. Texas Instruments. The classic mini-desktop calculator')
    assert c.text_columns == ('title', 'brand', 'description') and all(c.text)
    assert not any('&mdash;' in t or '\n' in t or '<br' in t for t in c.text)

def test_lists_that_were_written_as_text_are_opened(real):
    data = real('Office_Products_2018')
    assert not any(d.startswith(("['", '["')) for d in data.catalogue.frame['description'])
    assert '142 of 3,459 items are in no history' in report(data)

def test_interactions_alone_say_that_nothing_is_described(real):
    data = real('Instruments')
    assert set(data.catalogue.text) == {''} and '9,922 of 9,922 items have no text' in report(data)

def test_names_and_categories_of_yelp(real):
    c = real('Yelp').catalogue
    assert c.text[c.row('0')] == 'The Great Greek. Diners, Greek, Mediterranean, Restaurants'

def test_movielens_atomic_files(real, shared):
    data = real('ml-100k')
    assert text(data)['1'] == "Toy Story. 1995. Animation Children's Comedy" and data.catalogue.titles[data.catalogue.row('1')] == 'Toy Story'
    with open(shared/'data'/'ml-100k'/'ml-100k.inter') as f: mine = [r for r in list(csv.reader(f, delimiter='\t'))[1:] if r[0] == '196']
    assert ids(data)['196'] == [r[1] for r in sorted(mine, key=lambda r: float(r[3]))]

def test_posters_of_movielens_are_opened_late(real):
    images = real('ml-1m_pictures').catalogue.images
    assert sum(f is not None for f in images.files) == 3256 and max(next(i for i in images if i).size) <= 128

# ---- tables of one's own ------------------------------------------------------------------------------------------

shop = {'events.csv': lines('timestamp,visitorid,event,itemid,stars', '3,v1,transaction,b,5', '1,v1,view,a,1', '2,v1,transaction,a,2', '1,v2,transaction,b,4', '9,v2,view,c,3'),
        'goods.csv': lines('itemid,brand,title,colour', 'a,Acme,Mug,red', 'b,Acme,Lamp &amp; shade,', 'c,,Rug,blue')}
roles = dict(user='visitorid', item='itemid', time='timestamp', text=['title', 'brand'])

def test_naming_the_columns(tmp_path):
    data = load(put(tmp_path, **shop), **roles, where="event = 'transaction'")
    assert ids(data) == {'v1': ['a', 'b'], 'v2': ['b']} and text(data) == {'a': 'Mug. Acme', 'b': 'Lamp & shade. Acme', 'c': 'Rug'}
    said = report(data)
    assert "removed: 2 rows without event = 'transaction'" in said and 'stars' in said and 'colour' in said and '1 of 3 items are in no history' in said
    assert data.catalogue.text_columns == ('title', 'brand')

def test_names_of_columns_in_any_case(tmp_path):
    put(tmp_path, **{k: v.replace('visitorid', 'VisitorID') for k, v in shop.items()})
    assert ids(load(tmp_path, **{**roles, 'user': 'VisitorId'}, where="event = 'transaction'"))['v2'] == ['b']

@pytest.mark.parametrize('where, left', [("event = 'view'", 2), ('stars >= 4', 2), ("event = 'transaction' AND stars < 5", 2), ("event IN ('view', 'transaction')", 5), ('stars IS NOT NULL', 5)])
def test_where_is_sql(tmp_path, where, left):
    assert len(load(put(tmp_path, **shop), **roles, where=where).histories.items) == left

@pytest.mark.parametrize('asked, says', [(dict(where='colour = 1'), "where='colour = 1' names 'colour', expected one of"), (dict(where='event = '), 'is not SQL'), (dict(core=-1), 'core is -1'), (dict(max_users=0), 'max_users is 0'),
    (dict(user='nobody'), 'nobody'), (dict(time='when'), 'when'), (dict(text=['title', 'size']), 'no column size among'), (dict(title='heading'), 'no column heading'), (dict(rating='grade', min_rating=2), 'grade'),
    (dict(where="event = 'gone'"), 'events.csv'), (dict(core=9), 'in the 9-core'), (dict(rating='event', min_rating=2), "line 2: rating 'transaction' is no number"), (dict(image='photo'), 'photo')])
def test_asking_for_what_is_not_there(tmp_path, asked, says):
    with pytest.raises(ValueError) as e: load(put(tmp_path, **shop), **{**roles, **asked})
    assert says in str(e.value) and str(e.value).endswith('.') and '\n' not in str(e.value)

def test_min_rating_and_dedupe_are_counted(tmp_path):
    data = load(put(tmp_path, **shop), **roles, rating='stars', min_rating=2, dedupe=True)
    assert ids(data) == {'v1': ['a', 'b'], 'v2': ['b', 'c']} and data.removed == {'interactions rated below 2': 1}
    assert load(tmp_path, **roles, min_rating=2).removed == {'interactions rated below 2': 1}
    data = load(tmp_path, **roles, rating='stars', dedupe=True)
    assert data.removed == {'repeated interactions of a user with an item': 1} and ids(data)['v1'] == ['a', 'b']

def test_a_core_is_iterative_and_counted(tmp_path):
    rows = [(u, i) for u in 'uvw' for i in 'abc'] + [('x', 'a'), ('x', 'd'), ('y', 'd')]
    data = load(put(tmp_path, **{'log.csv': lines('user,item,time', *(f'{u},{i},{t}' for t, (u, i) in enumerate(rows)))}), core=3)
    assert ids(data) == {u: list('abc') for u in 'uvw'} and len(data.catalogue) == 3
    assert {k: v for k, v in data.removed.items() if 'core' in k} == {'interactions outside the 3-core': 3, 'users outside the 3-core': 2, 'items outside the 3-core': 1}

@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_sample_of_users_is_of_no_order(tmp_path_factory, rng, n):
    rows = [f'u{u},i{i},{10*u + i}' for u in range(7) for i in range(3)]
    folder = tmp_path_factory.mktemp('m')
    first = load(put(folder/'a', **{'log.csv': lines('user,item,time', *rows)}), max_users=n)
    rng.shuffle(rows)
    again = load(put(folder/'b', **{'log.csv': lines('user,item,time', *rows)}), max_users=n)
    assert ids(first) == ids(again) and len(first.histories) == n
    assert first.removed == ({'users beyond the %d asked for' % n: 7 - n, 'interactions of those users': 21 - 3*n} if n < 7 else {})

def test_nothing_is_removed_where_nothing_is_missing(tmp_path):
    data = load(put(tmp_path, **own))
    assert report(data) == f"{data!r}\nremoved: nothing\nnote: 1 of 2 users have one item only; nobody can be asked what came next"

def test_items_without_metadata_are_counted_or_refused(tmp_path):
    put(tmp_path, **{**own, 'interactions.csv': own['interactions.csv'] + 'bob,z,2\ncy,y,1\n'})
    data = load(tmp_path)
    assert ids(data) == ab and data.removed == {'interactions with items without metadata': 2, 'items without metadata': 2, 'users who took only those': 1}
    with pytest.raises(ValueError, match="2 of 5 interactions are with items that items.csv does not describe .first: '[zy]'"): load(tmp_path, strict=True)

def test_repeated_lines_of_items_are_counted_or_refused(tmp_path):
    put(tmp_path, **{**own, 'items.csv': own['items.csv'] + 'a,red\n'})
    assert load(tmp_path).removed == {'repeated lines of the items': 1}
    with pytest.raises(ValueError, match="items.csv, line 4: item 'a' stands already in line 2"): load(tmp_path, strict=True)

def test_exact_repeats_are_counted_and_other_repeats_stay(tmp_path):
    data = load(put(tmp_path, **{'i.csv': 'user,item,time\nu,a,3\nu,a,1\nu,b,2\nu,a,1\n', 'c.csv': 'item,text\na,x\nb,y\nc,z\n'}))
    assert ids(data) == {'u': ['a', 'b', 'a']} and data.removed == {'exact repeats (the same user, item and time)': 1}

def test_text_of_telling_columns(tmp_path):
    data = load(put(tmp_path, **{**own, 'items.csv': lines('item,description,brand,size,title', 'a,soft,Acme,3,Mug', 'b,,,4,Lamp')}))
    assert text(data) == {'a': 'Mug. Acme. soft', 'b': 'Lamp'} and data.catalogue.titles[data.catalogue.row('a')] == 'Mug'
    assert 'the text is made of title, brand, description; columns kept beside it: size' in report(data)

def test_a_catalogue_without_texts_is_a_note(tmp_path):
    data = load(put(tmp_path, **{**own, 'items.csv': lines('item,size', 'a,3', 'b,4')}))
    assert set(data.catalogue.text) == {''} and '2 of 2 items have no text' in report(data)

def test_five_rows_in_one_file(tmp_path):
    data = load(put(tmp_path, **{'mine.csv': 'user,item,time,text\nu,a,1,red\nu,b,2,blue\nv,a,1,red\nv,c,2,green\nw,c,1,green\n'})/'mine.csv')
    assert data.name == 'mine' and text(data) == dict(a='red', b='blue', c='green') and ids(data) == {'u': ['a', 'b'], 'v': ['a', 'c'], 'w': ['c']}

@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('names', [('user', 'item', 'time'), ('user_id', 'item_id', 'timestamp'), (' User', 'ITEM ', 'Time')])
def test_separators_and_common_column_names(tmp_path, separator, names):
    put(tmp_path, **{'i.csv': separator.join(names) + '\n' + separator.join('ua1') + '\n', 'c.csv': 'item,text\na,"x, ""y""\nz"\n'})
    data = load(tmp_path)
    assert ids(data) == {'u': ['a']} and data.catalogue.text == ['x, "y" z']

@pytest.mark.parametrize('wrap', [lambda s: '\ufeff' + s, lambda s: s.replace('\n', '\r\n'), lambda s: s.replace('\n', '\r'), lambda s: s.rstrip('\n'), lambda s: s.replace('\n', '\n\n'), lambda s: s + '\n\n'])
@pytest.mark.parametrize('gz', ['', '.gz'])
def test_dialects_of_line_ends(tmp_path, wrap, gz):
    data = load(put(tmp_path, **{k + gz: wrap(v) for k, v in own.items()}))
    assert ids(data) == ab and text(data) == {'a': 'red', 'b': 'blue'}

def test_ids_stay_as_they_are_written(tmp_path):
    data = load(put(tmp_path, **{'s.inter.json': '{"u": ["007", "B0", " x "]}', 's.item.json': '{"B0": {"title": "x"}, "007": {"title": "y"}, "x": {"title": "z"}}'}))
    assert ids(data) == {'u': ['007', 'B0', 'x']}

def test_parquet_keeps_numbers_and_reads_dates(tmp_path):
    day = pl.Series(['2024-01-02', '2024-01-01', '2024-01-01']).str.to_datetime()
    data = load(put(tmp_path, **{'i.parquet': pl.DataFrame(dict(user=[1, 1, 2], item=[5., 3., 3.], time=day)), 'c.parquet': pl.DataFrame(dict(item=[3, 5], text=['x', None], image=[None, None]))}))
    assert ids(data) == {'1': ['3', '5'], '2': ['3']} and text(data) == {'3': 'x', '5': ''} and data.catalogue.images is None

# ---- times --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('early, late', [('1600000000', '1600000001'), ('1600000000000', '1600000000001'), ('1600000000.25', '1600000000.5'), ('9', '10'), ('-5', '-4'), ('2024-01-02', '2024-01-10'), ('2024-01-02 03:04:05', '2024-01-02 03:04:06'),
    ('2024-01-02T03:04:05.25', '2024-01-02T03:04:05.5'), ('2024-01-02T23:00:00+02:00', '2024-01-02T22:00:00Z'), ('2024-01-02 03:04', '2024-01-02 13:04'), ('2023-09-07 09:00:00 UTC', '2023-09-07 10:00:00 UTC'), ('1e9', '1.1e9'),
    ('11/9/2019 9:05:58 AM', '11/10/2019 1:05:58 AM'), ('0001-01-01', '9999-12-31')])
@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'parquet'])
def test_kinds_of_time(tmp_path, early, late, ending):
    frame = pl.DataFrame(dict(user=['u', 'u'], item=['b', 'a'], time=[late, early]))
    put(tmp_path, **{f'log.{ending}': frame if ending == 'parquet' else frame.write_csv() if ending == 'csv' else frame.write_ndjson()})
    assert ids(load(tmp_path)) == {'u': ['a', 'b']}

def test_long_integers_keep_their_order(tmp_path):
    near = 1_600_000_000_000_000_001
    assert ids(load(put(tmp_path, **{'log.csv': lines('user,item,time', f'u,b,{near + 1}', f'u,a,{near}')}))) == {'u': ['a', 'b']}

@pytest.mark.parametrize('odd, says', [('noon', 'of one kind'), ('1600000000000', 'milliseconds'), ('2024-01-01', 'of one kind'), ('', 'missing'), ('nan', 'of one kind'), ('inf', 'of one kind')])
@pytest.mark.parametrize('before, line', [('', 4), ('\n\n', 6)])
def test_a_time_of_another_kind_is_named_with_its_line(tmp_path, odd, says, before, line):
    put(tmp_path, **{'log.csv': f'user,item,time\n{before}u,a,1600000000\nu,b,1600000001\nu,c,{odd}\nu,d,1600000003\n'})
    with pytest.raises(ValueError) as e: load(tmp_path)
    assert f'log.csv, line {line}: ' in str(e.value) and says in str(e.value)

def test_a_line_is_counted_after_quoted_line_breaks(tmp_path):
    put(tmp_path, **{'log.csv': 'user,item,note,time\nu,a,"two\nlines",1\n\nu,b,"x\n\ny",2\nu,c,z,noon\n'})
    with pytest.raises(ValueError, match="log.csv, line 8: time 'noon'"): load(tmp_path)

def test_a_line_is_counted_after_filtered_rows(tmp_path):
    put(tmp_path, **{'log.csv': 'user,item,time,event\nu,a,1,view\nu,b,2,buy\nu,c,noon,buy\n'})
    with pytest.raises(ValueError, match="log.csv, line 4: time 'noon'"): load(tmp_path, where="event = 'buy'")
    put(tmp_path, **{'log.csv': 'user,item,time,event\nu,a,noon,view\nu,b,2,buy\nu,c,3,buy\n'})
    assert ids(load(tmp_path, where="event = 'buy'")) == {'u': ['b', 'c']}

@settings(max_examples=60, deadline=None)
@given(st.datetimes(), st.datetimes())
def test_moments_grow_with_dates(a, b):
    x, y = _times(pl.Series([a.isoformat(), b.isoformat()]))
    assert (x < y) == (a < b) and (x == y) == (a == b)

# ---- steps of the log against loops -------------------------------------------------------------------------------

def log_of(rows):
    u, i = (_encode(pl.Series(name, [str(r[x]) for r in rows], pl.String)) for x, name in enumerate(('user', 'item')))
    return _gather(u, i, np.array([r[2] for r in rows], np.int64))
def told(log): return [(log.users[int(u)], log.items[int(i)], t) for u, i, t in zip(log.u, log.i, log.time.tolist())]

@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=120), st.integers(1, 4), st.sampled_from([0, 10**9, -10**18, 10**18]))
def test_steps_of_the_log_against_loops(rows, k, origin):
    rows = [(str(u), str(i), t*(origin or 1)) for u, i, t in rows]
    log = _in_order(log_of(rows))
    people = list(log.users)
    assert people == [people[r] for r in canonical_order(people)]
    ordered = sorted(rows, key=lambda r: (people.index(r[0]), r[2]))
    assert told(log) == ordered
    seen = set()
    assert told(_drop_repeats(log)) == [r for r in ordered if not (r in seen or seen.add(r))]
    assert told(_keep_first(log)) == [r for r in ordered if not (r[:2] in seen or seen.add(r[:2]))]
    core = ordered
    while thin := [(x, name) for x in (0, 1) for name, n in Counter(r[x] for r in core).items() if n < k]:
        core = [r for r in core if r[thin[0][0]] != thin[0][1]]
    left = k_core(log, k)
    assert told(left) == core
    if not core: return
    want = {}
    for u, i, _ in core: want.setdefault(u, []).append(int(i))
    made = _histories(left, Catalogue(map(str, range(8)), ['']*8))
    assert {u: h.tolist() for u, h in zip(made.users, made)} == want

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
    assert ids(data) == want and set(data.catalogue.ids) == {i for h in want.values() for i in h}
    gone = lambda *words: sum(n for what, n in data.removed.items() if any(w in what for w in words))
    assert n == len(data.histories.items) + gone('interactions', 'exact repeats')
    assert len({r[0] for r in rows}) == len(data.histories) + gone('users outside', 'users who')
    assert len({r[1] for r in rows} | described) == len(data.catalogue) + sum(n for what, n in data.removed.items() if what.startswith('items'))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('uvw'), st.sampled_from(['a', 'b,', '"c"', 'd;']), st.integers(-5, 5)), min_size=1, max_size=30))
def test_any_rows_come_back_in_time_order(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp('csv')
    for name, head, table in (('i', ('user', 'item', 'time'), rows), ('c', ('item', 'text'), [(x, f'item {x}') for x in ['a', 'b,', '"c"', 'd;']])):
        with open(folder/f'{name}.csv', 'w', newline='') as f: csv.writer(f).writerows([head, *table])
    want, seen = {}, set()
    for u, i, t in sorted(rows, key=lambda r: r[2]):
        if not ((u, i, t) in seen or seen.add((u, i, t))): want.setdefault(u, []).append(i)
    assert ids(load(folder)) == want

# ---- texts and the catalogue --------------------------------------------------------------------------------------

def test_text_is_cleaned_and_nothing_else():
    cases = {'a &lt;b&gt;c&lt;/b&gt;': 'a c', 'x <!-- y\n --> z': 'x z', '5 < 6 > 4': '5 < 6 > 4', '"quoted"': '"quoted"', "['a', 'b']": 'a b', '[1] see': '[1] see', '': '', '\u00a0x\u2028y': 'x y', 'I <3 it': 'I <3 it',
             "['Tom's', 'x']": "Tom's x", '[]': '', '["a\\d"]': 'a\\d'}
    assert {t: _clean(t) for t in cases} == cases
    assert _clean('x'*5000) == 'x'*5000 and _clean([['a'], None, 'b']) == 'a b' and _clean(3) == '3' and _clean(float('nan')) == ''
    assert _sentence(['a.', '', 'b. . .', '...']) == 'a. b'

@settings(max_examples=100, deadline=None)
@given(st.text())
def test_clean_text_has_no_line_breaks(text): assert _clean(text) == ' '.join(_clean(text).split())

@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters='\r', exclude_categories=['Cs'])), min_size=1, max_size=6))
def test_texts_of_a_table_are_those_of_clean(tmp_path_factory, said):
    folder = tmp_path_factory.mktemp('t')
    with open(folder/'items.csv', 'w', newline='') as f: csv.writer(f).writerows([('item', 'text'), *((f'i{n}', t) for n, t in enumerate(said))])
    pl.DataFrame(dict(item=[f'i{n}' for n in range(len(said))], text=said)).write_parquet(folder/'b.parquet')
    for name in ('items.csv', 'b.parquet'): assert text(load(folder/name)) == {f'i{n}': _clean(t) for n, t in enumerate(said)}

@pytest.mark.parametrize('name, said', [('items.csv', 'item,text\na,"Lamp &amp; <b>shade</b>\nwide"\n'), ('items.tsv', 'item\ttext\na\tLamp &amp; <b>shade</b> \twide\n'.replace(' \twide', '  wide')),
    ('x.item', 'item_id:token\ttitle:token_seq\na\tLamp &amp; <b>shade</b>  wide\n'), ('x.item.json', json.dumps({'a': dict(title='Lamp &amp; <b>shade</b>\nwide')})), ('items.jsonl', jsonl([dict(item='a', text=['Lamp &amp;', '<b>shade</b>\nwide'])])),
    ('items.parquet', pl.DataFrame(dict(item=['a'], text=[['Lamp &amp; <b>shade</b>', 'wide']]))), ('movies.dat', b'a::Lamp &amp; <b>shade</b>  wide::\n')])
def test_texts_of_every_layout_are_cleaned(tmp_path, name, said): assert text(load(put(tmp_path, **{name: said}))) == {'a': 'Lamp & shade wide'}

def test_columns_of_the_catalogue(tmp_path):
    meta = [product(f'B{b}') for b in range(5)]
    meta[0].update(title='A &amp; <b>B</b>', features=['soft', 'warm\nhands'], categories=['Home', 'Tiles'], description=['long', 'text'], price=9.99,
                   images=[dict(thumb='t', large='https://e/1.jpg', variant='PT01'), dict(thumb='t', large='https://e/0.jpg', variant='MAIN', hi_res=None)])
    c = load(put(tmp_path, Shop__jsonl__gz=jsonl(many[::-1]), meta_Shop__jsonl__gz=jsonl(meta))).catalogue
    r = c.row('B0')
    assert c.text[r] == 'A & B. soft warm hands. Home Tiles' and c.titles[r] == 'A & B' and c.text_columns == ('title', 'features', 'categories')
    assert c.image_urls[r] == 'https://e/0.jpg' and c.image_urls[c.row('B1')] is None and c.images is None
    assert c.frame['description'][r] == 'long text' and c.categories[r] == ('Home', 'Tiles') and c.frame['price'][r] == 9.99 and c.frame['price'][c.row('B1')] is None
    assert c.with_text(['description']).text[r] == 'long text' and c.with_text(('title', 'store')).text[r] == 'A & B. S' and c.text[r].startswith('A & B. soft')
    assert c.with_text(['title']).ids == c.ids and c.with_text(['title']).image_urls == c.image_urls
    with pytest.raises(ValueError, match='no column colour'): c.with_text(['colour'])

def test_categories_are_paths_root_first(tmp_path):
    items = jsonl([dict(item='a', title='x', category=['Home', 'Mugs']), dict(item='b', title='y', category=[['Home', 'Lamps'], ['Light']]), dict(item='c', title='z', category='Home > Rugs'), dict(item='d', title='w', category=None)])
    c = load(put(tmp_path, items__jsonl=items)).catalogue
    assert dict(zip(c.ids, c.categories)) == dict(a=('Home', 'Mugs'), b=('Home', 'Lamps'), c=('Home', 'Rugs'), d=())

def test_prices_are_numbers(tmp_path):
    c = load(put(tmp_path, **{'items.csv': 'item,text,price\na,x,"$1,299.00"\nb,y,\nc,z,4.5\nd,w,from 3 to 5\n'})).catalogue
    assert dict(zip(c.ids, c.frame['price'])) == dict(a=1299., b=None, c=4.5, d=3.)

def test_prices_of_amazon_2018(tmp_path):
    c = load(put(tmp_path, **published['Amazon 2018'][0])).catalogue
    assert set(c.frame['price']) == {1299.} and set(c.image_urls) == {'https://e/l.jpg'} and set(c.categories) == {('Home', 'Tiles')}

def test_pictures_are_opened_late_and_a_missing_one_is_a_note(tmp_path):
    data = load(put(tmp_path, **{'items.csv': 'item,text,image\na,x,a.png\nb,y,\nc,z,gone.png\n', 'a.png': picture()}))
    c = data.catalogue
    assert c.images[c.row('a')].size == (3, 2) and c.images[c.row('b')] is None and '1 pictures do not exist (first: gone.png)' in report(data)
    (tmp_path/'a.png').write_bytes(b'x')
    for item in 'ac':
        with pytest.raises(ValueError, match='png is not a picture that pillow can read'): c.images[c.row(item)]

# ---- bad input: one sentence, nothing written ---------------------------------------------------------------------

layouts = dict(pair=pair, atomic=atomic, own=own, amazon=amazon)

def bad(base, says, *, where='', error=ValueError, drop=(), **files):
    files = {k.replace('__', '.'): v for k, v in files.items()}
    return pytest.param({k: v for k, v in {**layouts.get(base, {}), **files}.items() if k not in drop}, where, error, says)

cases = dict(
    malformed_interactions=bad('pair', 'shop.inter.json, line 2: not JSON', shop__inter__json='{"ann": [0],\n "bob": [1'),
    malformed_items=bad('pair', 'shop.item.json, line 1: not JSON', shop__item__json='{"0": {"title": }}'),
    unknown_items=bad('pair', 'shop.inter.json: 1 of 1 interactions are with items that shop.item.json does not describe', shop__inter__json='{"bob": [7]}'),
    padded_item=bad('pair', "writes differently ('00' here, '0' there)", shop__inter__json='{"ann": ["00"]}'),
    floating_item=bad('own', "1 of 3 interactions are with items that items.csv writes differently ('1.0' here, '1' there)", interactions__csv='user,item,time\nu,1.0,1\nu,2,2\nu,2,3\n', items__csv='item,text\n1,x\n2,y\n'),
    upper_item=bad('own', "writes differently ('A' here, 'a' there)", interactions__csv='user,item,time\nu,A,1\n'),
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
    header_only_inter=bad('atomic', 'shop.inter, line 1: a header and no rows', shop__inter=atomic['shop.inter'].split('\n')[0]),
    header_only_item=bad('atomic', 'shop.item, line 1: a header and no rows', shop__item='item_id:token\ttitle:token_seq\n'),
    no_timestamp=bad('atomic', 'shop.inter, line 1: no column time', shop__inter='user_id:token\titem_id:token\nann\ta\n'),
    no_item_id=bad('atomic', 'item_id', shop__item='id:token\ttitle:token_seq\na\tred\n'),
    short_row=bad('atomic', 'shop.inter, line 3: 2 values, expected 3', shop__inter=atomic['shop.inter'].replace('ann\ta\t1', 'ann\ta')),
    twice_atomic=bad('atomic', "shop.item, line 3: item 'a' stands already in line 2", shop__item=atomic['shop.item'].replace('\nb', '\na')),
    no_user_column=bad('own', 'user', interactions__csv='who,item,time\nann,a,1\n'),
    no_time_column=bad('own', 'interactions.csv, line 1: no column time among user, item', interactions__csv='user,item\nann,a\n'),
    no_known_column=bad('', 'other.csv: x, y; expected', other__csv='x,y\n1,2\n'),
    two_times=bad('own', 'columns time and date could both be the time', interactions__csv='user,item,time,date\nann,a,1,2024-01-01\n'),
    two_users=bad('own', 'columns user and customer_id could both be the user', interactions__csv='user,customer_id,item,time\nDE,ann,a,1\n'),
    two_items=bad('own', "two columns are called 'item'", interactions__csv='user,item,Item,time\nann,a,a,1\n'),
    twice_csv=bad('own', "items.csv, line 3: item 'a' stands already in line 2", items__csv='item,text\na,red\na,rot\n'),
    blank_item=bad('own', "items.csv, line 2: item '' names nothing", items__csv='item,text\n,red\n'),
    blank_user=bad('own', "interactions.csv, line 2: user '' names nothing", interactions__csv='user,item,time\n,a,1\n'),
    blank_taken=bad('own', "interactions.csv, line 3: item", interactions__csv='user,item,time\nu,a,1\nu," ",2\n'),
    no_time=bad('own', "interactions.csv, line 2: time 'noon' is neither", interactions__csv='user,item,time\nann,a,noon\n'),
    nan_time=bad('own', "line 2: time 'nan' is neither", interactions__csv='user,item,time\nann,a,nan\n'),
    open_quote=bad('own', 'items.csv', items__csv='item,text\na,"red\nb,blue\n'),
    wide_row=bad('own', 'items.csv, line 3: 3 values, expected 2', items__csv='item,text\na,red\nb,blue,and green\n'),
    narrow_row=bad('own', 'interactions.csv, line 3: 2 values, expected 3', interactions__csv='user,item,time\nann,a,1\nann,b\n'),
    empty_csv=bad('own', 'items.csv is empty', items__csv=''),
    header_only_csv=bad('own', 'interactions.csv, line 1: a header and no rows', interactions__csv='user,item,time\n'),
    header_only_items=bad('own', 'items.csv, line 1: a header and no rows', items__csv='item,text\n'),
    latin_csv=bad('own', 'items.csv, line 3: not UTF-8', items__csv='item,text\na,red\nb,café\n'.encode('latin-1')),
    utf16_csv=bad('own', 'UTF-16', items__csv='item,text\na,red\n'.encode('utf-16')),
    two_texts=bad('', "rows.csv, line 3: item 'a' stands already in line 2", rows__csv='user,item,time,text\nu,a,1,red\nv,a,1,rot\n'),
    cut_csv=bad('own', 'the gzip data is cut or damaged', drop=['items.csv'], items__csv__gz=gzip.compress(b'item,text\na,red\nb,blue\n')[:-9]),
    bare_gzip=bad('own', 'items.csv looks like gzip; name it items.csv.gz', items__csv=gzip.compress(b'item,text\na,red\n')),
    not_parquet=bad('own', 'items.parquet is not Parquet or is damaged', drop=['items.csv'], items__parquet='item,text\n'),
    empty_parquet=bad('own', 'items.parquet is empty', drop=['items.csv'], items__parquet=''),
    no_rows_parquet=bad('own', 'items.parquet', drop=['items.csv'], items__parquet=item_frame.clear()),
    ids_are_lists=bad('own', 'column item holds List', drop=['items.csv'], items__parquet=pl.DataFrame(dict(item=[['a']], text=['x']))),
    bytes_are_no_text=bad('own', 'column text holds bytes that are not UTF-8', drop=['items.csv'], items__parquet=pl.DataFrame(dict(item=['a', 'b'], text=[b'\xff\xfe\xfd', b'x']))),
    cut_reviews=bad('amazon', 'Shop.jsonl.gz, after line', drop=['Shop.jsonl'], Shop__jsonl__gz=gzip.compress(amazon['Shop.jsonl'].encode())[:-20]),
    not_gzip=bad('amazon', 'the gzip data is cut or damaged', drop=['Shop.jsonl'], Shop__jsonl__gz=amazon['Shop.jsonl'].encode()),
    malformed_review=bad('amazon', 'Shop.jsonl, line 26: not JSON', Shop__jsonl=amazon['Shop.jsonl'] + '{"user_id": '),
    review_is_a_list=bad('amazon', "Shop.jsonl, line 1: '[1]' is not an object", Shop__jsonl='[1]\n'),
    late_list=bad('amazon', "Shop.jsonl, line 26: '[1]' is not an object", Shop__jsonl=amazon['Shop.jsonl'] + '[1]\n'),
    no_user_id=bad('amazon', 'Shop.jsonl', Shop__jsonl='{"reviewerID": "U"}\n'),
    bad_timestamp=bad('amazon', "Shop.jsonl, line 1: time 'noon'", Shop__jsonl=jsonl([review('U', 'B0', 'noon')])),
    twice_meta=bad('amazon', "meta_Shop.jsonl, line 6: item 'B0' stands already in line 1", meta_Shop__jsonl=amazon['meta_Shop.jsonl'] + jsonl([product('B0', title='Other')])),
    empty_core=bad('amazon', 'none of its 24 interactions is in the 5-core', Shop__jsonl=jsonl(many[1:])),
    empty_reviews=bad('amazon', 'Shop.jsonl is empty', Shop__jsonl=''),
    one_word=bad('', 'a.txt, line 2: one word', a__txt='1 2 3\n2\n'),
    prose=bad('', 'notes.txt, line 1: one word', notes__txt='x'),
    nowhere=bad('own', 'nowhere does not exist', where='nowhere', error=FileNotFoundError),
    empty_folder=bad('', 'holds no data that is recognised (found nothing)'),
    other_files=bad('', 'holds no data that is recognised (found notes.md)', notes__md='x'),
    other_file=bad('own', 'holds no data that is recognised', where='notes.md', notes__md='x'),
    two_names=bad('pair', 'holds more than one data set', other__inter__json='{"u": [1]}'),
    two_layouts=bad('pair', 'holds more than one data set', **atomic),
    two_catalogues=bad('', 'a.csv and b.csv could both be the items', log__csv='user,item,time\nu,a,1\n', a__csv='item,text\na,x\n', b__csv='item,text\na,y\n'),
    two_catalogues_for_a_file=bad('', 'a.csv and b.csv could both be the items', where='log.csv', log__csv='user,item,time\nu,a,1\n', a__csv='item,text\na,x\n', b__csv='item,text\na,y\n'),
    two_logs=bad('', 'a.csv and b.csv could both be the interactions', a__csv='user,item,time\nu,a,1\n', b__csv='user,item,time\nu,a,1\n'),
    plain_and_gzip=bad('amazon', 'meta_Shop.jsonl and meta_Shop.jsonl.gz could both be the items', meta_Shop__jsonl__gz=amazon['meta_Shop.jsonl']),
    csv_and_parquet=bad('own', 'items.csv and items.parquet could both be the items', items__parquet=item_frame),
    parts_of_a_split=bad('', 'd.train.inter and d.valid.inter', **{f'd__{p}__inter': atomic['shop.inter'] for p in ('train', 'valid')}),
    one_part_named=bad('', 'd.train.inter and d.valid.inter', where='d.train.inter', **{f'd__{p}__inter': atomic['shop.inter'] for p in ('train', 'valid')}),
    parts_of_amazon=bad('', 'Shop.test.csv and Shop.train.csv', **{f'Shop__{p}__csv': 'user_id,parent_asin,rating,timestamp,history\nU,B,5.0,1588687728923,A\n' for p in ('train', 'test')}),
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


@pytest.mark.parametrize('bits', [0, 1, 5])
def test_ids_whose_hashes_begin_alike_stay_apart(monkeypatch, bits):
    usual, column = pl.Series.hash, pl.Series([f'id{n % 977}' for n in range(5000)] + [None])
    def poor(self, seed=0): return usual(self, seed) if seed else usual(self, 0) & np.uint64((1 << bits) - 1 << 64 - bits)
    monkeypatch.setattr(pl.Series, 'hash', poor)
    codes, names = _encode(column)
    assert names.n_unique() == len(names) == 978
    assert names.gather(codes).equals(column.rename(names.name))
