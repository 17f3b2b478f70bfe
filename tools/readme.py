"""README.md is nbs/index.ipynb, written as markdown: the same cells in the same order, links from the root of the project.

    python tools/readme.py           # writes README.md
    python tools/readme.py --check   # says whether README.md is up to date

It needs no Quarto, so that the README is the same whoever makes it.
"""
import argparse, html, json, re, sys
from pathlib import Path

from pages import Cell, root, sidebars

_target = re.compile(r'(\]\(|(?:href|src)=["\'])(?![a-z]+:|#|/)')

def _output(out:dict, where:str) -> str:
    "One output as markdown: text stays text, a table stays a table."
    if out['output_type'] == 'error': raise ValueError(f'{where} ended in an error; run the page again.')
    data = {'text/plain': out.get('text')} if out['output_type'] == 'stream' else out['data']
    if any(k.startswith('image/') for k in data):
        raise ValueError(f'{where} draws a picture, which a README cannot hold; save it below nbs/images and link it.')
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(data.get('text/plain', [])).rstrip('\n')
    return f'```\n{html.unescape(text)}\n```' if text.strip() else ''

def plain(text:str) -> str:
    "Markdown without what only the site understands: divs, spans and classes, a second drawing for phones, its reference."
    text = re.sub(r'^:{3,}.*$\n?', '', text, flags=re.M)
    text = re.sub(r'^!\[[^\]]*\]\([^)]*\)\{[^}]*\.tall[^}]*\}$\n?', '', text, flags=re.M)
    text = re.sub(r'(\]\([^)\s]*\))\{[^}]*\}', r'\1', text)
    text = re.sub(r'^\[([^\[\]]*)\]\{\.[\w-]+\}$', r'\1', text, flags=re.M)
    text = re.sub(r'\(overview/(\w+)\.qmd\)', lambda m: f'({first_of(m[1])})', text)
    return re.sub(r'\n{3,}', '\n\n', re.sub(r'\[([^\]]*)\]\(api/[^)]*\)', r'\1', text))

def first_of(bar:str) -> str:
    "The first page of a section, where the site has an overview that a README cannot show."
    return next(h for rows in (sidebars()[bar.title()],) for _, _, h in rows if h)

def readme_text(top:Path=root) -> str:
    "What README.md should hold."
    nb = json.loads((top/'nbs/index.ipynb').read_text(encoding='utf-8'))
    parts = ['<!-- Written from nbs/index.ipynb by `make readme`. Do not edit here. -->']
    for i, raw in enumerate(nb['cells']):
        cell = Cell(raw['cell_type'], ''.join(raw['source']))
        if cell.kind == 'markdown': parts.append(_target.sub(r'\1nbs/', plain(cell.source)).replace('(nbs/../', '('))
        if cell.kind != 'code' or cell.flags.keys() & {'hide', 'default_exp'}: continue
        code = '\n'.join(cell._split[1]).strip('\n')
        if code and cell.flags.get('echo') != ['false']: parts.append(f'```python\n{code}\n```')
        parts += [_output(o, f'nbs/index.ipynb: cell {i}') for o in raw['outputs']]
    return '\n\n'.join(p.strip('\n') for p in parts if p.strip()) + '\n'

def readme_troubles(top:Path=root) -> list:
    "What is wrong with README.md, one sentence each."
    path = top/'README.md'
    if not (top/'nbs/index.ipynb').exists(): return ['nbs/index.ipynb is missing, and README.md is made from it; write it.']
    try: text = readme_text(top)
    except ValueError as e: return [str(e)]
    if not path.exists(): return ['README.md is missing; write it with make readme.']
    return [] if path.read_text(encoding='utf-8') == text else ['README.md differs from nbs/index.ipynb; write it again with make readme.']

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if README.md is out of date')
    if parser.parse_args().check:
        troubles = readme_troubles()
        print('\n'.join(troubles) or 'README.md is up to date.')
        sys.exit(bool(troubles))
    try: (root/'README.md').write_text(readme_text(), encoding='utf-8')
    except (ValueError, FileNotFoundError) as e: sys.exit(str(e))
    print('README.md written from nbs/index.ipynb.')

if __name__ == '__main__': main()
