"The report: harmless, deterministic, small, honest about what it leaves out, and looked at in a browser."
import re, threading
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from gentok.data.dataset import Catalogue
from gentok.data.toyshop import toyshop
from gentok.evaluate.page import _Shelf, _curve, _esc, _number, _thinned, _thumbnail
from gentok.evaluate.report import TreeLimits, _branches, _fields, _health_panel, _metrics_table, html_report, _tree
from gentok.quantize.health import health
from headless import Page, browser

evil = '<script>alert("1")</script><img src=x onerror=alert(2)> &amp; ' + 'unbroken'*25

class Outline(HTMLParser):
    "Tags, their balance, and every address that the page names."
    void = {'meta', 'link', 'img', 'line', 'circle', 'polyline', 'rect', 'path', 'br'}
    def __init__(self, text):
        super().__init__(); self.open, self.tags, self.addresses, self.handlers = [], [], [], []
        self.feed(text); assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
        self.handlers += [k for k, _ in attrs if k.startswith('on')]
        if tag not in self.void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.handle_starttag(tag, attrs); self.open.pop() if tag not in self.void else None
    def handle_endtag(self, tag): assert self.open.pop() == tag

def settings(catalogue, codes, **more):
    "A report with something in every section."
    n = len(catalogue)
    case = dict(history=list(range(9)), recommended=torch.tensor([*range(n-9, n), -1]), target=n-3)
    table = [{'name': 'ours', 'recall@5': .1, 'recall@10': .2, 'ndcg@5': .08, 'ndcg@10': .1, 'users': 4905, 'invalid_rate': .001, 'seconds': 83.2},
             {'name': 'Bayes limit', 'recall@5': .3, 'recall@10': .4, 'ndcg@5': .2, 'ndcg@10': .25}]
    return {**dict(title=f'A run {evil}', catalogue=catalogue, item_codes=codes, health=health(codes), curves={'loss': [3., 2., float('nan'), 1.], evil: [1., 2.]},
                   recommendations=[case, dict(case, target=0, user=evil)], metrics=table, config=dict(seed=0, note=evil, sizes=(5, 5))), **more}

@pytest.fixture(scope='module')
def pictured():
    shop, = toyshop(n_items=60, n_users=50, domains=('tiles',))
    shop.catalogue.images = list(shop.catalogue.images)
    return settings(shop.catalogue, shop.truth.values)

@pytest.fixture(scope='module')
def worded():
    catalogue = Catalogue([f'i{r}' for r in range(60)], [f'{r} {evil}' for r in range(60)], domain='words', titles=[f'{r} {evil}' for r in range(60)])
    g = torch.Generator().manual_seed(0)
    return settings(catalogue, torch.randint(0, 999, (60, 6), generator=g))

both = pytest.mark.parametrize('kind', ['pictured', 'worded'])

@both
def test_one_harmless_file(kind, request, tmp_path):
    "Balanced tags, no script, no handler, no address but data and its own anchors."
    path = html_report(tmp_path/'deep'/'report.html', **request.getfixturevalue(kind))
    page = Outline(text := path.read_text())
    assert 'script' not in page.tags and not page.handlers and '<script' not in text
    assert all(a.startswith(('data:', '#')) for a in page.addresses)
    assert not re.search(r'url\(|@import|https?://', text)
    anchors = {a[1:] for a in page.addresses if a.startswith('#')}
    assert anchors == set(re.findall(r'<section class="panel" id="(\w+)"', text)) == {'metrics', 'users', 'codes', 'health', 'curves', 'config'}
    assert page.tags.count('img') == text.count(' alt="') and (page.tags.count('img') > 60) == (kind == 'pictured')
    assert [p.name for p in path.parent.iterdir()] == ['report.html']

@both
def test_same_run_same_bytes(kind, request, tmp_path):
    parts = request.getfixturevalue(kind)
    assert html_report(tmp_path/'a.html', **parts).read_bytes() == html_report(tmp_path/'b.html', **parts).read_bytes()

def test_only_what_there_is_to_show(tmp_path):
    text = html_report(tmp_path/'r.html', title='t', catalogue=Catalogue([1], ['x']), item_codes=torch.tensor([[0]])).read_text()
    assert re.findall(r'href="#(\w+)"', text) == ['codes', 'health'] and '1 item, each written as 1 code.' in text

def test_a_thousand_pictures_stay_below_three_megabytes(tmp_path):
    "Noise is the worst case, the toy shop's drawings the usual one."
    g = torch.Generator().manual_seed(0)
    noise = [Image.fromarray(torch.randint(256, (64, 64, 3), generator=g, dtype=torch.uint8).numpy()) for _ in range(40)]
    catalogue = Catalogue(list(range(250)), ['a photograph']*250, images=[noise[r % 40] for r in range(250)])
    codes = torch.stack([torch.arange(1000) // 16, torch.arange(1000) % 16], 1)
    size = len(html_report(tmp_path/'r.html', **settings(catalogue, codes[:250])).read_bytes())
    assert size < 4e6/4 + 3e5  # photographs stay below; nothing compresses worse than noise
    shop, = toyshop(n_items=100, n_users=20, domains=('badges',))
    pictures = list(shop.catalogue.images)*10
    catalogue = Catalogue(list(range(1000)), ['a drawing']*1000, images=pictures)
    assert len(html_report(tmp_path/'r.html', **settings(catalogue, codes)).read_bytes()) < 3e6

def test_a_large_catalogue_is_cut_and_says_so(tmp_path):
    n = 30_000
    codes = torch.stack([torch.arange(n) // 300, torch.arange(n) // 10 % 30, torch.arange(n) % 10], 1)
    text = html_report(tmp_path/'r.html', title='large', catalogue=Catalogue(list(range(n)), ['x']*n), item_codes=codes).read_text()
    assert len(text) < 1e6 and 'and 14 more second codes, with 140 items' in text
    shown = text.count('class="leaf')
    assert 1000 <= shown < 1200 and re.search(r'and \d+ more first codes, with [\d,]+ items', text)

def test_the_tree_counts_every_item_once():
    codes = torch.randint(0, 7, (500, 3), generator=torch.Generator().manual_seed(0))
    shelf = _Shelf(Catalogue(list(range(500)), ['x']*500), codes)
    assert _tree(shelf, codes, TreeLimits(items=99)).count('class="leaf') == 500
    for limits in (TreeLimits(first=3), TreeLimits(second=2), TreeLimits(items=1), TreeLimits(3, 2, 1), TreeLimits(total=100)):
        text = _tree(shelf, codes, limits)
        firsts = sum(int(k.replace(',', '')) for k in re.findall(r'class="count">([\d,]+) item', text))
        hidden = re.search(r'more first codes?, with ([\d,]+) item', text)
        assert firsts + (int(hidden[1]) if hidden else 0) == 500
        left = [int(k) for k in re.findall(r'and (\d+) more items?<', text)]
        seconds = [int(k) for k in re.findall(r'more second codes?, with (\d+) item', text)]
        assert text.count('class="leaf') + sum(left) + sum(seconds) == firsts

def test_branches_part_all_rows():
    codes = torch.randint(0, 9, (200, 2))
    parts = _branches(codes, torch.arange(200), 1)
    assert sorted(torch.cat([r for _, r in parts]).tolist()) == list(range(200))
    assert [c for c, _ in parts] == sorted({*codes[:, 1].tolist()})

def test_pictures_of_every_kind_and_missing_ones(tmp_path):
    pictures = [Image.new(mode, (90, 30)) for mode in ('RGB', 'RGBA', 'L', 'P', '1', 'CMYK', 'LA')] + [None]
    for image in pictures[:-1]: assert _thumbnail(image).startswith('data:image/png;base64,')
    class Lazy(list):
        def __getitem__(self, row):
            if row == 8: raise OSError('truncated')
            return list.__getitem__(self, row)
    catalogue = Catalogue(list(range(9)), [f'item {r}' for r in range(9)], images=Lazy([*pictures, 0]))
    text = html_report(tmp_path/'r.html', title='t', catalogue=catalogue, item_codes=torch.arange(9)[:, None]).read_text()
    assert 'could not be read: 1;' in text and text.count('<img') == 14  # 7 peeks, 7 leaves

def test_limit_row_stands_last_and_measures_the_others():
    rows = [{'name': 'The limit', 'ndcg@10': .5}, {'name': 'a', 'ndcg@10': .25}, {'name': 'b', 'ndcg@10': float('nan')}, {'name': 'c', 'users': 3}]
    text = _metrics_table(rows)
    assert text.index('>c<') < text.index('The limit') and text.count('50% of limit') == 1 and text.count('of limit') == 1
    assert 'of limit' not in _metrics_table(rows[1:])
    assert 'of limit' not in _metrics_table([{'name': 'limit', 'ndcg@10': 0.}, {'name': 'a', 'ndcg@10': 0.}])

def test_health_of_any_shape():
    class Loose:
        def __init__(self): self.collision_rate, self.warnings = .5, ['try `x` < 3']
    codes = torch.tensor([[0, 1], [1, 1]])
    for said in (Loose(), dict(collision_rate=.5, warnings='try `x` < 3')):
        text = _health_panel(said, codes)
        assert '50.0%' in text and 'try <code>x</code> &lt; 3' in text
    assert _fields(health(codes))['items'] == 2 and 'class="level"' in _health_panel(None, codes)

def test_curves_skip_what_is_no_number():
    assert _thinned([None, float('inf'), 2.]) == [(3, 2.)] and _curve('x', []) == '' == _curve('x', [None])
    assert 'nan' not in _curve('x', [1., float('nan'), 1.]) and 'log scale' not in _curve('x', [-100., 1.])

def test_texts_and_numbers():
    assert _esc('"\'<>&') == '&quot;&#x27;&lt;&gt;&amp;' and _number(True) == 'True'
    assert _number(-.00012) == '-0.0001' and _number(float('inf')) == '–'

@pytest.mark.parametrize('wrong, words', [
    (dict(item_codes=torch.zeros(3, 2, dtype=torch.long)), 'for 60 items'), (dict(item_codes=-torch.ones(60, 2).long()), '0 or above'),
    (dict(item_codes=torch.zeros(60, 2)), 'float32'), (dict(item_codes=torch.zeros(60).long()), 'one row'),
    (dict(recommendations=[dict(history=[0])]), "lacks 'recommended'"), (dict(recommendations=[dict(history=[0], recommended=[60])]), 'names row 60'),
    (dict(recommendations=[dict(history=[0], recommended=[1], target=-1)]), 'None where'), (dict(metrics=[{'x': 1}]), 'add name')])
def test_parts_that_do_not_belong_together_write_nothing(worded, tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words) as error: html_report(tmp_path/'r.html', **{**worded, **wrong})
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())

measure = '''(() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const wide = document.documentElement.clientWidth, box = e => e.getBoundingClientRect();
  const inner = [...document.querySelectorAll('body *')].filter(e => box(e).width && box(e).right > wide + 1 && !e.closest('.peek,.chip,thead'));
  const texts = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(c => c.nodeType == 3 && c.data.trim()) && !e.closest('svg'));
  return { width: innerWidth, scroll: document.documentElement.scrollWidth, beyond: inner.slice(0, 3).map(e => e.outerHTML.slice(0, 90)),
    images: document.images.length, broken: [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length,
    smallest: Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize))), title: document.querySelector('h1').textContent };
})()'''

@pytest.fixture(scope='module')
def window(tmp_path_factory):
    if not browser(): pytest.skip('no chromium found on the path: the report was not looked at in a browser')
    page = Page(tmp_path_factory.mktemp('profile'))
    watchdog = threading.Timer(120, page.process.kill); watchdog.start()
    yield page
    watchdog.cancel(); page.close()

@both
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('dark', [False, True])
def test_in_a_browser(window, kind, width, dark, request, tmp_path):
    "No console error, no request, every image loads, nothing wider than the window, nothing too small to read."
    window.errors.clear(); window.requests.clear()
    window.open(html_report(tmp_path/'report.html', **request.getfixturevalue(kind)), width, dark=dark)
    seen = window.ask(measure)
    assert seen['width'] == width and seen['scroll'] <= width and seen['beyond'] == []
    assert (seen['images'] > 60) == (kind == 'pictured') and seen['broken'] == 0
    assert seen['smallest'] >= 9.9 and '<script>' in seen['title']
    assert window.errors == [] and window.requests == []
    ground = window.ask('getComputedStyle(document.body).backgroundColor')
    assert (int(ground[4:].split(',')[0]) < 60) == dark
