"""The staged book as plain HTML, without Quarto: the same folds, frames, figures and colours, no script, no other host.

It reads what staging has written (notebooks and the reference's markdown) and uses the site's own stylesheet.
"""
import base64, html, json, re, shutil
from pathlib import Path

import yaml

from budget import cpu_seconds
from pages import Cell, home, labels, pages, root, slug

# ---------------------------------------------------------------- markdown

_raw = re.compile(r'^```\{=html\}\n(.*?)\n```$', flags=re.M | re.S)
_kept = re.compile(r'^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)|\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?![\s$])(?P<inline>[^$\n]+?)(?<![\s\\])\$(?!\d)', flags=re.M | re.S)

def mathml(tex:str, display:str) -> str:
    "A formula as MathML, which a browser shows without a script; what cannot be read stays readable as TeX."
    from latex2mathml.converter import convert
    try: found = convert(tex.strip().replace('\\arg', r'\operatorname{arg}'), display=display)
    except Exception: return f'<code>{html.escape(tex)}</code>'
    return found.replace('<mo>&#x02016;', '<mo stretchy="false">&#x02016;')  # a norm's bars keep their height

def here(target:str) -> str:
    "Where a link to a notebook or to a page of the reference leads in the preview."
    path, hash_, anchor = target.partition('#')
    if re.match(r'[a-z]+:', path): return target
    if path.endswith('.ipynb'): path = to_html(path.removesuffix('.ipynb'))
    return path.removesuffix('.qmd') + '.html'*path.endswith('.qmd') + hash_ + anchor

def to_html(path:str) -> str:
    head, _, name = path.rpartition('/')
    return (f'{head}/' if head else '') + re.sub(r'^\d+[a-zA-Z0-9]*_', '', name.lower()) + '.html'

class Markdown:
    "The markdown of pandoc that the book uses: divs, spans, raw HTML, formulas, tables, headings with anchors."
    def __init__(self):
        import mistune
        self.turn = mistune.create_markdown(escape=False, plugins=['table', 'strikethrough'])
        self.heads = []  # (level, anchor, text) of what has been turned

    def __call__(self, text:str) -> str:
        kept = []
        def keep(piece, block=False):
            kept.append(piece)
            return f'\n\n<div>\x02{len(kept)-1}\x03</div>\n\n' if block else f'\x02{len(kept)-1}\x03'
        text = _raw.sub(lambda m: keep(m[1], True), text)
        text = _kept.sub(lambda m: keep(mathml(m['block'], 'block')) if m['block'] else keep(mathml(m['inline'], 'inline')) if m['inline'] else m[0], text)
        text = re.sub(r'^:{3,}\s*\{([^}]*)\}\s*$', lambda m: keep(f'<div class="{m[1].replace(".", "")}">', True), text, flags=re.M)
        text = re.sub(r'^:{3,}\s*$', lambda m: keep('</div>', True), text, flags=re.M)
        text = re.sub(r'^: \{tbl-[^}]*\}$', '', text, flags=re.M)
        text = re.sub(r'(?<!\!)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\{\.([\w-]+)\}', r'<span class="\2">\1</span>', text)
        page = self.turn(text)
        page = re.sub(r'<h(\d)>(.*?)</h\1>', self.heading, page, flags=re.S)
        page = re.sub(r'<pre><code class="language-(python|py)">(.*?)</code></pre>', lambda m: code(html.unescape(m[2])), page, flags=re.S)
        page = re.sub(r'<pre><code', '<div class="sourceCode"><pre><code', page).replace('</code></pre>\n', '</code></pre></div>\n')
        page = re.sub(r'(<a href=")([^"]+)', lambda m: m[1] + here(m[2]), page)
        page = re.sub(r'<p>(<img [^>]*alt="([^"]*)"[^>]*>)(?:\{[^}]*\})?</p>', r'<figure>\1<figcaption>\2</figcaption></figure>', page)
        page = re.sub(r'<div>\x02(\d+)\x03</div>', lambda m: kept[int(m[1])], page)
        return re.sub(r'\x02(\d+)\x03', lambda m: kept[int(m[1])], page)

    def heading(self, m) -> str:
        given = re.search(r'\s*\{#([\w.:-]+)[^}]*\}\s*$', m[2])
        text = m[2][:given.start()] if given else m[2]
        plain = html.unescape(re.sub(r'<[^>]+>', '', text))
        self.heads.append((int(m[1]), given[1] if given else slug(plain), text))
        return f'<h{m[1]} id="{self.heads[-1][1]}">{text}</h{m[1]}>'

# ---------------------------------------------------------------- cells

_words = {'Keyword.Constant': 'cn', 'Keyword.Namespace': 'im', 'Keyword': 'kw', 'Comment': 'co', 'Literal.String.Doc': 'co', 'Literal.String': 'st',
          'Literal.Number': 'dv', 'Name.Builtin': 'bu', 'Name.Decorator': 'at'}

def code(text:str) -> str:
    "Python with the classes that pandoc gives its words."
    from pygments.lexers import PythonLexer
    out = []
    for kind, piece in PythonLexer(ensurenl=False).get_tokens(text):
        name = str(kind).removeprefix('Token.')
        as_ = next((v for k, v in _words.items() if name.startswith(k)), '')
        out.append(f'<span class="{as_}">{html.escape(piece)}</span>' if as_ else html.escape(piece))
    return f'<div class="sourceCode"><pre class="sourceCode python"><code>{"".join(out)}</code></pre></div>'

class Figures:
    "Writes the pictures of one page beside it."
    def __init__(self, page:Path): self.folder, self.n = page.with_name(page.stem + '_files'), 0

    def __call__(self, data:bytes, kind:str) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.n += 1
        (self.folder/f'{self.n}.{kind}').write_bytes(data)
        return f'{self.folder.name}/{self.n}.{kind}'

def picture(out:dict, figures:Figures) -> str:
    "The file of an output that is a picture, '' for others."
    data = out.get('data', {})
    if svg := ''.join(data.get('image/svg+xml', '')): return figures(svg.encode(), 'svg')
    for kind in ('png', 'jpeg'):
        if b64 := ''.join(data.get(f'image/{kind}', '')): return figures(base64.b64decode(b64), kind)
    return ''

def shown(raw:dict, turn:Markdown, figures:Figures) -> str:
    "A code cell and its outputs, as its options say."
    cell = Cell('code', ''.join(raw['source']))
    option = lambda k: yaml.safe_load(cell.options[k]) if k in cell.options else None
    classes = option('classes') or []
    parts, outputs = [], list(raw.get('outputs', []))
    if cell.body and option('echo') is not False:
        body = code(cell.body)
        parts.append(f'<details class="code-fold"><summary>{html.escape(str(option("code-summary") or "Code"))}</summary>{body}</details>' if option('code-fold') else body)
    caption, alt = option('fig-cap') or '', html.escape(str(option('fig-alt') or ''), quote=True)
    if isinstance(caption, list): caption = caption[0]
    said = f'<figcaption>{turn(caption).removeprefix("<p>").removesuffix("</p>" + chr(10))}</figcaption>' if caption else ''
    if option('renderings') and len(outputs) == 2:
        light, dark = (picture(o, figures) for o in outputs)
        parts.append(f'<div class="cell-output-display"><figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
                     f'<img src="{light}" alt="{alt}" loading="lazy"></picture>{said}</figure></div>')
        outputs = []
    for out in outputs:
        data = out.get('data', {})
        if file := picture(out, figures): inner = f'<figure><img src="{file}" alt="{alt}" loading="lazy">{said}</figure>'
        elif 'text/markdown' in data: inner = turn(''.join(data['text/markdown']))
        else: parts.append(f'<div class="cell-output"><pre>{html.escape("".join(data.get("text/plain", out.get("text", "")))).rstrip()}</pre></div>'); continue
        parts.append(f'<div class="cell-output-display">{inner}</div>')
    return f'<div class="cell {" ".join([classes] if isinstance(classes, str) else classes)}">{"".join(parts)}</div>' if parts else ''

# ---------------------------------------------------------------- pages

_style = """
* { box-sizing: border-box } body { margin: 0; font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; color: var(--gt-ink); background: var(--gt-bg) }
a { color: var(--gt-blue); text-decoration: none } h1, h2, h3, h4 { line-height: 1.25 } table { border-collapse: collapse; margin-bottom: 1rem } td, th { border-bottom: 1px solid var(--gt-line); text-align: left }
blockquote { margin: .5rem 0; padding-left: 1rem } p { margin: 0 0 1rem }
.bar { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: .8rem 1.4rem; border-bottom: 1px solid var(--gt-line); font-size: .92rem } .bar a { color: inherit } .bar a:first-child { font-weight: 700 } .bar a.here { color: var(--gt-blue) }
.columns { display: grid; gap: 1.4rem; max-width: 80rem; margin: 0 auto; padding: 1.2rem 1.4rem } main { min-width: 0 }
.side { font-size: .86rem } .side a, .side summary { color: var(--gt-soft); display: block; padding: .1rem 0; line-height: 1.35; cursor: pointer } .side .here { color: var(--gt-blue); font-weight: 600 } .side details a, .side details details { padding-left: .6rem } .side input { position: absolute; opacity: 0 } .side label { cursor: pointer } .side label::before { content: "☰ " } .side input:focus-visible + label { outline: 2px solid var(--gt-blue) }
.toc { font-size: .82rem } .toc a { display: block; color: var(--gt-soft); line-height: 1.35; padding: .12rem 0 } .toc .l3 { padding-left: .8rem }
.turn { display: flex; justify-content: space-between; gap: 1rem; margin: 2.4rem 0 1rem; font-size: .92rem } footer { border-top: 1px solid var(--gt-line); padding: 1rem 1.4rem; font-size: .8rem; color: var(--gt-soft) }
@media (min-width: 62rem) { .columns { grid-template-columns: 13rem minmax(0, 1fr) 12.5rem } .side label, .side input { display: none } }
@media (max-width: 62rem) { .toc, .side input:not(:checked) ~ div { display: none } }
"""
_page = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="{up}images/favicon.svg"><link rel="stylesheet" href="{up}preview.css"></head>
<body class="{kind}"><nav class="bar">{bar}</nav>{body}<footer>{footer}</footer></body></html>
"""

def palette(nbs:Path) -> str:
    "The site's colours as variables, light and dark, read from the themes."
    read = lambda name: '; '.join(f'--gt-{k}: {v}' for k, v in re.findall(r'^\$gt-([\w-]+):\s*(#\w+)', (nbs/name).read_text(encoding='utf-8'), flags=re.M))
    return (f':root {{ color-scheme: light dark; {read("theme.scss")} }}\n'
            f'@media (prefers-color-scheme: dark) {{ :root {{ {read("theme-dark.scss")} }} }}\n')

def written(proc:Path) -> list: return sorted(proc.glob('api/*.qmd')) + sorted(proc.glob('overview/*.qmd'))  # by staging

class Site:
    "The frame around a page: the bar, the sidebar of its section, what comes before and after it."
    def __init__(self, top:Path, proc:Path):
        config = yaml.safe_load((proc/'_quarto.yml').read_text(encoding='utf-8'))['website']
        self.bar = [(e['text'], e['href']) for e in config['navbar']['left']]
        self.called = labels(top) | {f'{p.parent.name}/{p.name}': yaml.safe_load(p.read_text(encoding='utf-8').split('---')[1])['title'] for p in written(proc)}
        self.sections = {bar['title']: bar['contents'] for bar in config['sidebar']}
        self.order = {title: self.flat(contents) for title, contents in self.sections.items()}

    def flat(self, contents) -> list:
        return [h for e in contents for h in ([e] if isinstance(e, str) else self.flat(e['contents']) if 'contents' in e else [e['href']])]

    def link(self, href:str, up:str, now:str, text:str='') -> str:
        return f'<a{" class=here" if href == now else ""} href="{up}{here(href)}">{html.escape(text or self.called[href])}</a>'

    def contents(self, entries, up:str, now:str) -> str:
        out = []
        for e in entries:
            if isinstance(e, dict) and 'contents' in e:
                inside = self.contents(e['contents'], up, now)
                out.append(f'<details{" open" if now in self.flat([e]) else ""}><summary>{html.escape(e["section"])}</summary>{inside}</details>')
            else: out.append(self.link(e if isinstance(e, str) else e['href'], up, now))
        return '\n'.join(out)

    def section(self, name:str) -> str: return next((t for t, order in self.order.items() if name in order), '')

    def page(self, name:str, title:str, body:str, heads:list, links:list) -> str:
        up, at = '../'*name.count('/'), self.section(name)
        bar = f'<a href="{up}index.html">gentok</a>' + ''.join(f'<a{" class=here" if t == at else ""} href="{up}{here(h)}">{t}</a>' for t, h in self.bar)
        inside = self.order['Internals'][0] if self.order.get('Internals') else home
        frame = dict(title=html.escape(title), up=up, bar=bar, kind='home' if name == home else '', footer=f'Every page is a notebook that runs and is tested. · {self.link(inside, up, "", "Internals")}')
        if not at: return _page.format(body=f'<div id="quarto-content"><main>{body}</main></div>', **frame)
        order = self.order[at]
        i = order.index(name)
        turn = ''.join(f'<span>{sign[0]}{self.link(order[j], up, "")}{sign[1]}</span>' if 0 <= j < len(order) else '<span></span>'
                       for j, sign in ((i-1, ('← ', '')), (i+1, ('', ' →'))))
        toc = ''.join(f'<a class="l{level}" href="#{anchor}">{text}</a>' for level, anchor, text in heads if level in (2, 3))
        toc = f'<p>On this page</p>{toc}'*bool(toc) + '<p>This page</p>'*bool(links) + ''.join(f'<a href="{html.escape(x["href"])}">{x["text"]}</a>' for x in links)
        side = f'<nav class="side"><input type="checkbox" id="contents"><label for="contents">Contents: {at}</label><div>{self.contents(self.sections[at], up, name)}</div></nav>'
        return _page.format(body=f'<div class="columns">{side}<main>{body}<nav class="turn">{turn}</nav></main><aside class="toc">{toc}</aside></div>', **frame)

def opening(meta:dict) -> str:
    said = f'<p class="description">{html.escape(str(meta["description"]))}</p>' if meta.get('description') else ''
    return f'<header id="title-block-header"><h1 class="title">{html.escape(str(meta["title"]))}</h1>{said}</header>'

def build(proc:Path, spent:dict, top:Path=root, only:list|None=None) -> Path:
    "Every staged page, or only some, as HTML below `_preview`; notes the CPU seconds."
    out = top/'_preview'
    shutil.rmtree(out, ignore_errors=True)
    site = Site(top, proc)
    for path in (p for p in proc.rglob('*') if p.suffix in ('.svg', '.png', '.jpg', '.gif')):
        (out/path.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, out/path.relative_to(proc))
    for name in [p.name for p in pages(top)] + [f'{p.parent.name}/{p.name}' for p in written(proc)]:
        if only and name not in only: continue
        start, to, turn = cpu_seconds(), out/here(name), Markdown()
        to.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.qmd'):
            _, front, text = (proc/name).read_text(encoding='utf-8').split('---\n', 2)
            meta, body = yaml.safe_load(front), turn(text)
        else:
            cells, figures = json.loads((proc/name).read_text(encoding='utf-8'))['cells'], Figures(to)
            meta = yaml.safe_load(''.join(cells[0]['source']).strip().strip('-'))
            body = ''.join(turn(''.join(c['source'])) if c['cell_type'] == 'markdown' else shown(c, turn, figures) if c['cell_type'] == 'code' else '' for c in cells[1:])
        to.write_text(site.page(name, meta.get('pagetitle') or f'{meta["title"]} · gentok', opening(meta) + body, turn.heads, meta.get('code-links', [])), encoding='utf-8')
        spent[f'{name} as HTML'] = cpu_seconds() - start
    (out/'preview.css').write_text(palette(top/'nbs') + _style + (top/'nbs/site.css').read_text(encoding='utf-8'), encoding='utf-8')
    return out

def troubles(out:Path) -> list:
    "Links and pictures of the built pages that lead to no file, one sentence each."
    found = []
    for path in sorted(out.rglob('*.html')):
        text = re.sub(r'<pre.*?</pre>|<svg.*?</svg>', '', path.read_text(encoding='utf-8'), flags=re.S)
        for target in re.findall(r'<(?:a|img|link|source)\b[^>]*?\b(?:href|src|srcset)="([^"]+)"', text):
            target = html.unescape(target).partition('#')[0]
            if not target or re.match(r'[a-z]+:', target): continue
            if not (path.parent/target).exists():
                found.append(f'{path.relative_to(out.parent)}: leads to {target}, which the preview does not have.')
    return found
