"""Vital signs of the pages as a reader meets them: what staging (tools/looks.py) leaves in sight, read from the notebooks alone.

    python tools/page_vitals.py                                # every page, one line each, then totals and the book's goals
    python tools/page_vitals.py --only 03_quantize 12_cli.ipynb
    python tools/page_vitals.py --why checks                   # the places behind a column
    python tools/page_vitals.py --max first=5 long=0           # exit 1 where a page exceeds a bound

    first    lines of code in sight before the first picture; '-' where a page shows none
    long     lines of code with more than 88 columns, exported ones even where they are folded
    checks   assertions in sight; allchk: all of them
    noalt    pictures without `#| fig-alt`; nocap: without `#| fig-cap`
    ctrl     control characters in prose and captions, such as the tab that a careless '\\tilde' becomes
    label    1 where the site calls the page something else than its own title, or does not list it
    imports  import lines in sight, but where the author has written `#| code-fold: false`; stderr: warnings among the outputs, which name folders of the machine
    words    of prose; code: lines in sight that are not exported; export: exported lines
"""
import argparse, ast, json, re, sys

import looks
from pages import Cell, Page, home, labels, pages, root, sidebars

columns = 'first long checks allchk noalt nocap ctrl label imports stderr words code export'.split()
goals = dict(first=5, long=0, checks=0, noalt=0, nocap=0, ctrl=0, label=0, imports=0, stderr=0)  # of the book that people would read
_control = re.compile(r'[\x00-\x09\x0b\x0c\x0e-\x1f\x7f\u200b\ufeff]')
_fence = re.compile(r'^(```|~~~).*?^\1\s*$', flags=re.S | re.M)

def prose(text:str) -> list:
    for pattern in (_fence, re.compile(r'\$\$.*?\$\$', re.S), re.compile(r'^:::.*$|\$[^$\n]+\$|`[^`\n]+`|<[^>]+>|\]\([^)]*\)', re.M)): text = pattern.sub(' ', text)
    return re.findall(r"[^\W\d_][\w'’-]*", text)

def vitals(page:Page, label:str|None) -> tuple:
    "Column -> number, and column -> the places behind it. `label`: what the site calls the page; None where it is not listed."
    v, why = dict.fromkeys(columns, 0) | {'first': None}, {c: [] for c in columns}
    def note(column, place, said, n=1):
        v[column] += n
        if n: why[column].append(f'{place}: {said[:110]}')
    if label != page.title: note('label', 'title', f'{page.title!r} is {label!r} on the site' if label else 'the page is not listed')
    seen, cells = 0, json.loads(page.path.read_text(encoding='utf-8'))['cells']
    for number, raw in enumerate(cells): raw['number'] = f'cell {number}'
    for raw in looks.lift(cells):
        text, at = looks.source(raw), raw['number']
        if raw['cell_type'] != 'code':
            for m in _control.finditer(_fence.sub(' ', text)): note('ctrl', at, repr(text[max(0, m.start()-30):m.end()+30]))
            v['words'] += len(prose(text))
            drawn = re.findall(r'!\[([^\]]*)\]\(', _fence.sub(' ', text))
            for alt in drawn: note('noalt', at, 'a picture in markdown', not alt.strip())
            if drawn and v['first'] is None: v['first'] = seen
            continue
        cell, it = Cell('code', text), looks.look(raw)
        v['allchk'] += looks.count_checks(cell.body)
        in_sight = '' if it.fold or it.kind == 'hidden' else it.shown
        lines = [line for line in in_sight.splitlines() if line.strip()]
        for line in cell.lines if cell.exported else lines: note('long', at, f'{len(line)} columns: {line.strip()}', len(line) > looks.columns)
        if cell.exported: v['export'] += len(cell.lines)
        else:
            v['code'] += len(lines)
            note('checks', at, f'{looks.count_checks(in_sight)} assertions in sight', looks.count_checks(in_sight))
            for n in (n for s in ('code-fold' not in cell.options and looks.statements(in_sight)) or [] for n in ast.walk(s) if looks.is_import(n)):
                note('imports', at, ast.unparse(n), n.end_lineno - n.lineno + 1)
        seen += len(lines)
        for m in _control.finditer(cell.options.get('fig-cap', '') + cell.options.get('fig-alt', '')): note('ctrl', at, f'{m[0]!r} in a caption')
        for out in raw.get('outputs', []):
            if out.get('name') == 'stderr': note('stderr', at, ''.join(out.get('text', '')).strip())
        for out in looks.pictures(raw):
            page_html = ''.join(out['data'].get('text/html', ''))
            tags = re.findall(r'<(?:img|svg)\b[^>]*>', page_html)
            if v['first'] is None: v['first'] = seen
            note('noalt', at, 'no `#| fig-alt`', not (cell.options.get('fig-alt') or tags and all(re.search(r'\balt\s*=\s*["\'][^"\']+|aria-label', t) for t in tags)))
            note('nocap', at, 'no `#| fig-cap`', not (cell.options.get('fig-cap') or tags))
    return v, why

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='*', default=[], help='pages or folders below nbs/')
    parser.add_argument('--why', choices=columns)
    parser.add_argument('--brief', action='store_true', help='totals and goals alone')
    parser.add_argument('--max', nargs='*', default=[], metavar='COLUMN=N', help='a bound for every page')
    args = parser.parse_args()
    listed, called = {h for rows in sidebars().values() for _, _, h in rows} | {home}, labels()
    book = [p for p in pages(root) if not args.only or any(p.name == o or p.name.startswith(o.rstrip('/') + '/') for o in args.only)]
    if not book: sys.exit('No page matches.')
    try: bounds = {c: int(n) for c, _, n in (b.partition('=') for b in args.max)}
    except ValueError: sys.exit(f'--max is {" ".join(args.max)!r}, expected COLUMN=N, as in first=5.')
    if unknown := sorted(bounds.keys() - set(columns)): sys.exit(f'No column is called {unknown[0]!r}; choose among {", ".join(columns)}.')
    found = {p.name: vitals(p, called[p.name] if p.name in listed else None) for p in book}
    rows = {name: v for name, (v, _) in found.items()}
    firsts = sorted(v['first'] for v in rows.values() if v['first'] is not None)
    total = {c: sum(v[c] or 0 for v in rows.values()) for c in columns} | {'first': firsts[len(firsts)//2] if firsts else None}
    if args.why: print(*(f'{name}, {said}' for name, (_, why) in found.items() for said in why[args.why]), sep='\n')
    else:
        wide = max(map(len, [*rows, 'total (first: median)']))
        print(' '*wide, *(f'{c:>7}' for c in columns))
        for name, v in {**({} if args.brief else rows), 'total (first: median)': total}.items():
            print(f'{name:<{wide}}', *(f'{"-" if v[c] is None else v[c]:>7}' for c in columns))
        print(f'{len(rows)} pages, {len(rows) - len(firsts)} without a picture. Pages beyond the goals: '
              + ', '.join(f'{c}={n} {sum(v[c] is None or v[c] > n for v in rows.values())}' for c, n in goals.items()))
    over = [f'{name}: {c} is {"no picture at all" if v[c] is None else v[c]}, at most {n}' for name, v in rows.items() for c, n in bounds.items() if v[c] is None or v[c] > n]
    if over: sys.exit('\n'.join([*over, f'{len(over)} numbers are beyond their bounds.']))

if __name__ == '__main__': main()
