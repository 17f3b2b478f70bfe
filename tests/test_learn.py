"The chapters of Learn keep one form, and the figure that answers does so in a browser."
import json

import pytest

import looks
import preview
from book import split_opening
from pages import pages, root, sidebars

chapters = [p for p in pages() if p.name.startswith('00_learn/')]
tour = next(p for p in pages() if p.name == '00_start/01_tour.ipynb')

def cells_of(page): return json.loads(page.path.read_text(encoding='utf-8'))['cells']

def test_learn_lists_its_chapters_in_their_order():
    listed = [href for _, _, href in sidebars()['Learn']]
    assert listed == [tour.name] + [p.name for p in chapters] and len(chapters) >= 5

@pytest.mark.parametrize('page', [tour, *chapters], ids=lambda p: p.name)
def test_a_chapter_has_one_question_one_picture_and_one_exercise(page):
    options = [c.options for c in page.cells if c.kind == 'code']
    question = page.cells[0].source.splitlines()[-1]
    assert question.startswith('> ') and question.endswith('?')
    assert sum('hero' in o for o in options) == 1 and not page.exports
    assert sum(o.get('code-summary') == '"Answer"' for o in options) == 1
    assert 'Next: ' in page.cells[-1].source and '](../' in page.cells[-1].source

@pytest.mark.parametrize('page', [tour, *chapters], ids=lambda p: p.name)
def test_a_chapter_shows_at_most_forty_lines_of_code(page):
    seen = [looks.look(c) for c in cells_of(page) if c['cell_type'] == 'code']
    lines = [line for it in seen if not it.fold and it.kind != 'hidden'
             for line in it.shown.splitlines() if line.strip()]
    assert len(lines) <= 40

def drawn(page, folder):
    "A page as the preview shows it, from its notebook alone"
    nb = dict(cells=cells_of(page))
    split_opening(nb)
    looks.prepare(nb, page, 'R')
    turn, figures = preview.Markdown(), preview.Figures(folder/'page.html')
    body = ''.join(turn(''.join(c['source'])) if c['cell_type'] == 'markdown'
                   else preview.shown(c, turn, figures) for c in nb['cells'])
    style = preview.palette(root/'nbs') + (root/'nbs/site.css').read_text()
    head = f'<!doctype html><meta charset="utf-8"><style>{style}</style>'
    (folder/'page.html').write_text(f'{head}<main>{body}</main>', encoding='utf-8')
    return folder/'page.html'

residual = next(p for p in chapters if p.name == '00_learn/05_residual.ipynb')
lit = "document.querySelectorAll('.prefixes label[data-codes]:not(.off)').length"
slider = "document.querySelector('.prefixes [type=range]')"
said = "document.querySelector('.prefixes output').textContent"

def moved(page, knob, n):
    "A slider as a reader leaves it"
    page.ask(f"(r => {{ r.value = {n}; r.dispatchEvent(new Event('input', "
             f"{{bubbles: true}})) }})({knob})")

def test_the_figure_of_prefixes_survives_staging(tmp_path):
    text = drawn(residual, tmp_path).read_text(encoding='utf-8')
    assert text.count('<script>') == text.count('</script>') == 1
    assert text.count('<label data-codes=') > 40
    without = text[:text.index('<script>')]  # what a reader sees without a script
    own = without.count('<label data-codes=') - without.count('class="off"')
    assert f'>{own} of ' in without and 'class="steer" hidden' in without

def test_the_figure_of_prefixes_answers(tmp_path):
    import headless
    if not headless.browser(): pytest.skip('Chromium is not installed')
    path, page = drawn(residual, tmp_path), headless.Page(tmp_path/'profile')
    def slide(n):
        moved(page, slider, n)
        return page.ask(lit), page.ask(said)
    def press(key, code):
        for kind in ('rawKeyDown', 'keyUp'):
            page.send('Input.dispatchKeyEvent', type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code)
    try:
        page.open(path, 1280)
        assert not page.ask("document.querySelector('.steer').hidden")
        counts = [slide(n)[0] for n in range(4)]
        assert counts[0] > counts[1] > counts[2] >= counts[3] > 0
        page.ask(f'{slider}.focus()')
        press('ArrowLeft', 37)
        assert page.ask(lit) == counts[2]
        page.ask("document.querySelector('.prefixes :checked').focus()")
        before = page.ask(said)
        for _ in range(9): press('ArrowRight', 39)
        assert page.ask(said) != before
        page.ask("document.querySelector('.prefixes label:last-child b').click()")
        assert page.ask("document.querySelector('.prefixes').dataset.length") == '1'
        assert page.ask(said).startswith(f'{page.ask(lit)} of ')
        assert page.errors == [] and page.requests == []
    finally: page.close()

collapse = next(p for p in pages() if p.name == '03_quantize/02_revival.ipynb')
knob = "document.querySelector('#collapse [type=range]')"
told = "document.querySelector('#collapse output').textContent"

def test_the_film_of_a_collapse_stands_still_without_scripts(tmp_path):
    text = drawn(collapse, tmp_path).read_text(encoding='utf-8')
    assert text.count('<script>') == text.count('</script>') == 1
    still = text[text.index('id="collapse"'):text.index('<script>')]
    rings, dots = still.count('class="e dead"'), still.count('class="e')
    used = int(still.partition('step 400: ')[2].partition(' of 64')[0])
    assert dots == 128 and 'class="controls" hidden' in still
    assert rings == (64 - used) + (64 - int(still.partition('revival, ')[2].split()[0]))

def test_the_film_of_a_collapse_answers(tmp_path):
    import headless
    if not headless.browser(): pytest.skip('Chromium is not installed')
    path, page = drawn(collapse, tmp_path), headless.Page(tmp_path/'profile')
    def slide(n):
        moved(page, knob, n)
        rings = page.ask("[...document.querySelectorAll('#collapse svg')].map("
                         "s => s.querySelectorAll('.dead').length).join(' ')")
        return [int(n) for n in rings.split()], page.ask(told)
    try:
        page.open(path, 1280)
        assert not page.ask("document.querySelector('#collapse .controls').hidden")
        (without, with_it), said = slide(0)
        assert (without, with_it) == (0, 0) and said.startswith('step 0: 64 of 64')
        (without, with_it), said = slide(20)
        assert without > 32 and with_it <= 1
        assert said == (f'step 400: {64 - without} of 64 codes in use without revival, '
                        f'{64 - with_it} with it')
        page.ask("document.querySelector('#collapse button').click()")
        assert page.ask("document.querySelector('#collapse button').textContent"
                        ) == 'stop'
        page.ask("document.querySelector('#collapse button').click()")
        assert page.errors == [] and page.requests == []
    finally: page.close()
