"""Draws the pictures of the first page into nbs/images: hero.svg, hero-tall.svg, result.svg and, where Chromium is installed, card.png.

    python tools/hero.py             # twenty CPU seconds: a toy shop, its semantic IDs, a small T5, one customer

The customer is the first whose last three items share two, one and no first codes with the next item, which is among the
three that are recommended. The bars of result.svg are read from the table at the top of nbs/11_papers/07_strength.ipynb.
Inside a page the drawings take its colours; alone they bring light and dark ones of their own.
"""
import base64, io, re, shutil, subprocess, tempfile
from html import escape
from pathlib import Path
from typing import NamedTuple

from pages import Page, root

images = root/'nbs/images'
fonts = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans','Liberation Sans',Arial,sans-serif"
style = f"""<style>
.h{{--ink:var(--gt-ink,#1c2530);--soft:var(--gt-soft,#54616f);--line:var(--gt-line,#c9d1d9);--c1:var(--gt-1,#2563a8);--c2:var(--gt-2,#b8611a);--c3:var(--gt-3,#34784c)}}
.h text{{font-family:{fonts};fill:var(--ink)}} .h .t{{font-size:15px;font-weight:650}} .h .s{{font-size:12.5px;fill:var(--soft)}} .h .g{{fill:var(--c3);font-weight:650}}
.h .n{{font-size:13px;font-weight:650;fill:#fff;text-anchor:middle;font-family:ui-monospace,Menlo,Consolas,monospace}} .h .e{{stroke:var(--line);stroke-width:1.6;fill:none}}
.h .p{{stroke:var(--c1);stroke-width:2.6;fill:none}} .h .k1{{fill:var(--c1)}} .h .k2{{fill:var(--c2)}} .h .k3{{fill:var(--c3)}} .h .q{{fill:var(--soft);opacity:.5}}
@media (prefers-color-scheme:dark){{.h.alone{{--ink:#dfe5ec;--soft:#9aa8b6;--line:#3a4652;--c1:#2f6fb8;--c3:#35804f}}}}
</style>"""

class Run(NamedTuple):
    "What is drawn of a run."
    taken: list   # three rows, the last at the end
    best: list    # three rows, the best first
    next: int     # the row that was taken next
    codes: list   # of each row, without the suffix
    words: list   # of each row
    pictures: list  # of each row, as data

def customer(taken, best, after, codes) -> bool:
    "Whether a customer shows what prefixes are: two, one and no first codes in common with the next item, which is recommended."
    common = lambda i: next((k for k in range(3) if codes[i][k] != codes[after][k]), 3)
    return after in best and sorted(map(common, set(taken))) == [0, 1, 2]

def gather() -> Run:
    "A shop, a run, and its first customer who shows what prefixes are."
    import gentok
    from gentok.data.splits import leave_one_out
    from gentok.data.toyshop import _traits
    shop = gentok.toyshop(n_items=100, n_users=500).in_canonical_order()
    rec = gentok.fit('tiger', shop, tokenizer='rqvae', codebook_size=16, levels=3, policy='suffix', tokenizer_epochs=150,
                     text_dim=32, epochs=30, batch_size=128, d_model=32, layers=1, lr=5e-3)
    test, ids = leave_one_out(shop).test, shop.catalogue.ids
    histories = [h.tolist() for h in test.histories()]
    frame = rec.recommend([[ids[i] for i in h] for h in histories], k=3)
    best = [ids.index(i) for i in frame['id']]
    codes = [row[:3] for row in rec.fitted.item_ids.table.tolist()]
    print({k: round(v, 3) for k, v in rec.evaluate(shop).items() if '@' in k})
    def words(v): return ' '.join(_traits[t][v[k]] for t, k in (('colour', 1), ('pattern', 2), ('shape', 0)))
    def data(row):
        file = io.BytesIO()
        shop.catalogue.images[row].convert('RGB').resize((144, 144)).quantize(32).save(file, 'PNG', optimize=True)
        return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()
    for u, (history, after) in enumerate(zip(histories, map(int, test.targets))):
        taken, mine = history[-3:], best[3*u:3*u+3]
        if customer(taken, mine, after, codes):
            return Run(taken, mine, after, codes, [words(v) for v in shop.truth.values.tolist()], [data(i) for i in range(len(ids))])
    raise SystemExit('No customer of this run shows two, one and no first codes in common; change its seed.')

# ---------------------------------------------------------------- drawing

class Drawing:
    def __init__(self, w:int, h:int, title:str): self.w, self.h, self.title, self.parts = w, h, title, []
    def add(self, *parts): self.parts += parts
    def text(self, x, y, said, cls='s'): self.add(f'<text x="{x:g}" y="{y:g}" class="{cls}">{escape(str(said))}</text>')
    def chip(self, x, y, code, level): self.add(f'<rect x="{x:.1f}" y="{y:.1f}" width="32" height="24" rx="5" class="k{level}"/>'); self.text(x + 16, y + 16.6, code, 'n')
    def chips(self, x, y, codes): [self.chip(x + 35*k, y, c, k + 1) for k, c in enumerate(codes)]
    def tile(self, x, y, size, data, ring=False):
        self.add(f'<image x="{x:g}" y="{y:g}" width="{size}" height="{size}" href="{data}" style="clip-path:inset(0 round 8px)"/>')
        if ring: self.add(f'<rect x="{x-4:g}" y="{y-4:g}" width="{size+8}" height="{size+8}" rx="10" class="p"/>')
    def svg(self) -> str:
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.w} {self.h}" class="h alone"><title>{escape(self.title)}</title>{style}'
                + ''.join(self.parts) + '</svg>\n')

title = 'Three items become codes, the codes form a tree, and a model writes the codes of the next item'

def tree(d:Drawing, run:Run, x, y, dx, dy):
    "The codes of the items taken and of the next one as a tree, with the path to the next one marked."
    codes = {i: tuple(run.codes[i]) for i in [*run.taken, run.next]}
    goal = codes[run.next]
    order = sorted(sorted(codes, key=codes.get), key=lambda i: (codes[i][0] != goal[0], codes[i][:2] != goal[:2], i == run.next))
    leaf = {i: y + dy*k for k, i in enumerate(order)}
    below = {}
    for i in order:
        for k in range(4): below.setdefault(codes[i][:k], []).append(leaf[i])
    at = {p: (x + dx*len(p), sum(ys)/len(ys)) for p, ys in below.items()}
    path = {goal[:k] for k in range(4)}
    for p in sorted(at, key=lambda p: p in path):
        if not p: continue
        (px, py), (qx, qy) = at[p], at[p[:-1]]
        d.add(f'<path class="{"p" if p in path else "e"}" d="M{qx:.1f} {qy:.1f}C{qx + dx*.5:.1f} {qy:.1f} {px - dx*.62:.1f} {py:.1f} {px:.1f} {py:.1f}"/>')
    d.add(f'<circle cx="{x:g}" cy="{at[()][1]:.1f}" r="6" style="fill:var(--ink)"/>')
    for p, (px, py) in at.items():
        if p: d.chip(px - 16, py - 12, p[-1], len(p))
    for i in order: d.tile(x + 3*dx + 26, leaf[i] - 24, 48, run.pictures[i], i == run.next)

def ranked(d:Drawing, run:Run, x, y, dy, size):
    for k, i in enumerate(run.best):
        top = y + dy*k
        d.text(x, top + size*.58, k + 1, 't')
        d.tile(x + 24, top, size, run.pictures[i], i == run.next)
        d.text(x + size + 38, top + size*.36, run.words[i])
        d.chips(x + size + 38, top + size*.5, run.codes[i])
        if i == run.next: d.text(x + size + 150, top + size*.5 + 16, '✓ taken next', 's g')

def wide(run:Run) -> str:
    d = Drawing(1160, 330, title)
    d.text(0, 18, 'Items become codes', 't'); d.text(0, 38, 'what a customer took, each with its semantic ID')
    for k, i in enumerate(run.taken):
        d.tile(0, 58 + 88*k, 72, run.pictures[i]); d.text(86, 84 + 88*k, run.words[i]); d.chips(86, 94 + 88*k, run.codes[i])
    d.text(330, 18, 'Alike items share a prefix', 't'); d.text(330, 38, 'all codes in one tree, the trie: no other sequence can be written')
    tree(d, run, 342, 86, 112, 64)
    d.text(800, 18, 'A model writes the next codes', 't'); d.text(800, 38, 'the three best of 100 items for this customer')
    ranked(d, run, 800, 58, 88, 72)
    return d.svg()

def tall(run:Run) -> str:
    d = Drawing(360, 800, title)
    d.text(0, 18, 'Items become codes', 't')
    for k, i in enumerate(run.taken): d.tile(20 + 122*k, 32, 72, run.pictures[i]); d.chips(5 + 122*k, 112, run.codes[i])
    d.text(0, 190, 'Alike items share a prefix', 't'); d.text(0, 210, 'all codes in one tree, the trie')
    tree(d, run, 10, 252, 88, 62)
    d.text(0, 520, 'A model writes the next codes', 't'); d.text(0, 540, 'the three best of 100 items')
    ranked(d, run, 0, 556, 82, 68)
    return d.svg()

def measured() -> list:
    "(name, NDCG@10) of the rows at the top of the page of reference rows."
    text = Page(root/'nbs/11_papers/07_strength.ipynb', '').cells[0].source
    rows = re.findall(r'^\|\s*([^|]+?)\s*\|\s*\**([.\d]+)\**\s*\|\s*\**([.\d]+)\**\s*\|', text, flags=re.M)
    return [(name, float(ndcg)) for name, _, ndcg in rows]

def result(rows:list) -> str:
    d = Drawing(520, 40*len(rows) + 6, 'NDCG@10 on Office_Products: ' + ', '.join(f'{n.replace("*", "")} {v:.4f}' for n, v in rows))
    for k, (name, value) in enumerate(rows):
        y, w = 4 + 40*k, max(2, 420*value/max(v for _, v in rows))
        d.text(0, y + 10, name.replace('*', ''))
        d.add(f'<rect x="0" y="{y+15}" width="{w:.1f}" height="15" rx="4" class="{"k1" if name.startswith("*") else "q"}"/>')
        d.text(w + 9, y + 28, f'{value:.4f}'[1:], 't')
    return d.svg()

def card(run:Run, to:Path) -> bool:
    "The picture that a link to the site shows elsewhere, photographed; False where there is no Chromium."
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not browser: return False
    icon = (images/'favicon.svg').read_text(encoding='utf-8').replace('width="64" height="64"', 'width="44" height="44"')
    page = (f'<body style="margin:0;padding:52px 44px;width:1112px;font-family:{fonts};color:#1c2530;background:#fff">'
            f'<h1 style="margin:0;font-size:46px">{icon} gentok</h1>'
            f'<p style="font-size:33px;color:#54616f;margin:10px 0 44px">Semantic IDs for generative recommendation, in PyTorch</p>{wide(run)}')
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp)/'card.html').write_text(page, encoding='utf-8')
        subprocess.run([browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1200,630', f'--user-data-dir={tmp}/profile',
                        f'--screenshot={tmp}/card.png', f'file://{tmp}/card.html'], check=True, capture_output=True, timeout=120)
        from PIL import Image
        Image.open(f'{tmp}/card.png').convert('RGB').quantize(128).save(to, optimize=True)
    return True

def main():
    run = gather()
    for name, drawing in {'hero': wide(run), 'hero-tall': tall(run), 'result': result(measured())}.items(): (images/f'{name}.svg').write_text(drawing, encoding='utf-8')
    print('hero.svg, hero-tall.svg, result.svg' + ', card.png'*card(run, images/'card.png'))

if __name__ == '__main__': main()
