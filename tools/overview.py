"""The overview pages of the book, made while staging: a card for each page of a section, with its first picture.

What a card says is read from its page: title, sentence, first picture; of a paper the paragraph that begins with **Here.**
"""
import json, re
from pathlib import Path

import yaml

from looks import raw_html
from pages import Page

sections = dict(papers=('Papers', 'Papers of generative recommendation, each run here: its idea, its claim, and what came out.'),
                components=('Components', 'What a semantic ID is made of, one idea a page: from a catalogue to ranked items.'))

def _outputs(cells:list) -> list: return [o['data'] for c in cells for o in c.get('outputs', []) if o.get('data')]

def _plain(text:str) -> str:
    "A paragraph without its links; a formula keeps its TeX."
    return ' '.join(re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text).split())

def said_here(page:Page) -> str:
    "What came out here, as a paper's page says it in its opening; '' for other pages."
    found = re.search(r'^\*\*Here\.\*\*\s+(.+?)(?:\n\s*\n|\Z)', page.markdown, flags=re.M | re.S)
    return _plain(found[1]) if found else ''

def picture(cells:list, folder:Path, name:str, title:str) -> str:
    "The first picture of a staged page as HTML, its files written to a folder; '' where there is none."
    drawn = [''.join(d['image/svg+xml']) for d in _outputs(cells) if 'image/svg+xml' in d]
    shelf = next((''.join(d['text/markdown']) for d in _outputs(cells) if re.search(r'<(img|svg)\b', ''.join(d.get('text/markdown', '')))), '')
    hero = next((c for c in cells if c.get('outputs')), None)
    first = _outputs([hero])[0] if hero else {}
    if drawn and 'text/markdown' not in first:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for mode, svg in zip(('light', 'dark'), drawn):
            (folder/f'{name}-{mode}.svg').write_text(svg, encoding='utf-8')
            files.append(f'<img class="{mode}-content" alt="" src="{folder.name}/{name}-{mode}.svg">')
        return ''.join(files)
    page = re.sub(r'```\{=html\}|```$|<figcaption.*|<script.*?</script>|\s(?:id|for|name)="[^"]*"', '', shelf, flags=re.S)
    return re.sub(r'<input\b[^>]*>', '', page).strip()

def cards(book:dict, hrefs:list, titles:dict, proc:Path, up:str, folder:Path|None=None) -> str:
    "Cards of some pages as markdown; `folder`: where their pictures go, None for cards without."
    out = [':::: {.cards .pages}']
    for href in hrefs:
        page, nb = book[href], json.loads((proc/href).read_text(encoding='utf-8'))
        front = yaml.safe_load(''.join(nb['cells'][0]['source']).strip().strip('-'))
        drawn = picture(nb['cells'], folder, page.module.replace('.', '-'), titles[href]) if folder else ''
        shown = [raw_html(f'<div class="card-picture" aria-hidden="true">{drawn}</div>'), '']*bool(drawn)
        out += ['::: {}', f'[{titles[href]}]({up}{href})', '', *shown, said_here(page) or str(front.get('description', '')), ':::']
    return '\n'.join([*out, '::::'])

def write(book:list, titles:dict, contents:dict, proc:Path) -> dict:
    "Writes `_proc/overview/`; returns name of a sidebar -> its contents with the overview in front. `contents`: of each sidebar."
    named, folder = {p.name: p for p in book}, proc/'overview'
    folder.mkdir(exist_ok=True)
    for name, (title, sentence) in sections.items():
        text = ['---', f'title: {json.dumps(title)}', f'description: {json.dumps(sentence)}', 'toc: false', '---', '']
        parts = [e for e in contents[name] if isinstance(e, str)] and [dict(section='', contents=[e for e in contents[name] if isinstance(e, str)])]
        for part in parts + [e for e in contents[name] if not isinstance(e, str)]:
            if part['section']: text += [f'## {part["section"]}', '']
            hrefs = [e if isinstance(e, str) else e['href'] for e in part['contents']]
            text += [cards(named, hrefs, titles, proc, '../', folder/name), '']
        (folder/f'{name}.qmd').write_text('\n'.join(text), encoding='utf-8')
    return {name: [f'overview/{name}.qmd', *contents[name]] for name in sections}

def fill_home(nb:dict, book:list, titles:dict, proc:Path) -> dict:
    "The home page with a card for every paper whose page says what came out, where it has `:::: {.paper-cards}`."
    hrefs = [p.name for p in book if p.name.startswith('11_papers/') and said_here(p)]
    for c in nb['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown' and '{.paper-cards}' in source:
            filled = cards({p.name: p for p in book}, hrefs, titles, proc, '')
            c['source'] = re.sub(r':{3,} \{\.paper-cards\}\n:{3,}', lambda _: filled, source).splitlines(True)
    return nb
