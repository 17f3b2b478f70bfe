"The codebook: ties, precision, starting, saving, reviving."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from gentok.quantize.codebook import EMA, Codebook, kmeans, nearest, _smoothed, straight_through
from gentok.quantize.revival import DeadCodeReset, _newcomers, _stream

def brute(r, e):
    "Distances in double precision, rounded once; the first of the smallest."
    d = (r[:, None].double() - e[None].double()).square().sum(-1).to(r.dtype)
    return (d == d.amin(-1, keepdim=True)).long().argmax(-1)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 33), st.integers(1, 40),
       st.sampled_from([1e-3, 1., 300.]), st.booleans())
def test_nearest_is_the_brute_force_answer(seed, b, d, k, scale, grid):
    g = torch.Generator().manual_seed(seed)
    r, e = scale*torch.randn(b, d, generator=g), scale*torch.randn(k, d, generator=g)
    if grid: r, e = r.round()/2, e.round()
    assert torch.equal(nearest(r, e), brute(r, e))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 17), st.integers(2, 70))
def test_exact_copies_never_win(seed, d, k):
    g = torch.Generator().manual_seed(seed)
    r, e = torch.randn(64, d, generator=g), torch.randn(k, d, generator=g)
    assert torch.equal(nearest(r, torch.cat([e, e, e])), nearest(r, e))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 16), st.integers(-8000, 8000))
def test_symmetric_ties_go_to_the_lower_index(seed, d, shift):
    g = torch.Generator().manual_seed(seed)
    middle = (512*torch.randn(20, d, generator=g)).round()/512 + shift  # exact in float32, and so are the ends
    step = torch.randint(1, 5, (20, d), generator=g)/4
    for m, s in zip(middle, step):
        assert nearest(m[None], torch.stack([m - s, m + s])).item() == 0
        assert nearest(m[None], torch.stack([m + s, m - s])).item() == 0

@pytest.mark.parametrize('K', [2, 3, 255, 256, 257, 1000, 1024, 1025, 3000])
@pytest.mark.parametrize('scale, shift', [(1e-20, 0), (1e-6, 0), (1, 0), (1e6, 0), (1e-3, 1)])
def test_all_sizes_and_scales(K, scale, shift):
    g = torch.Generator().manual_seed(K)
    r, e = (scale*torch.randn(n, 5, generator=g) + shift for n in (100, K))
    e[K//2] = e[0]
    r[:5] = e[0]
    assert torch.equal(nearest(r, e), brute(r, e)) and nearest(r, e)[:5].tolist() == [0]*5

def test_permuted_coordinates_tie():
    e = torch.tensor([[.1, .7, .3], [.3, .1, .7], [.7, .3, .1]])
    assert nearest(torch.zeros(1, 3), e).tolist() == [0]
    assert nearest(torch.full((1, 3), .2), e.flip(0)).tolist() == [0]

@pytest.mark.parametrize('offset', [0., 100., 10_000.])
def test_far_from_the_origin_and_in_any_batch(offset):
    torch.manual_seed(0)
    r, e = torch.randn(500, 8) + offset, torch.randn(40, 8) + offset
    codes = nearest(r, e)
    assert torch.equal(codes, brute(r, e))
    assert torch.equal(codes, torch.cat([nearest(part, e) for part in r.split(3)]))
    assert torch.equal(codes.flip(0), nearest(r.flip(0), e))

@pytest.mark.parametrize('name', ['high', 'medium'])
def test_coarse_matrix_products_do_not_change_codes(name):
    torch.manual_seed(0)
    r, e = torch.randn(300, 16), torch.randn(30, 16)
    before, codes = torch.get_float32_matmul_precision(), nearest(r, e)
    try:
        torch.set_float32_matmul_precision(name)
        assert torch.equal(nearest(r, e), codes)
    finally: torch.set_float32_matmul_precision(before)

def test_autocast_and_half_inputs_are_computed_in_float32():
    torch.manual_seed(0)
    r, e = torch.randn(300, 16), torch.randn(30, 16)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(nearest(r, e), nearest(r.clone(), e))
    assert torch.equal(nearest(r.bfloat16(), e), nearest(r.bfloat16().float(), e))
    book = Codebook(30, 16).place(e)
    with torch.autocast('cpu', dtype=torch.bfloat16): out = book(r.bfloat16())
    assert out.vectors.dtype == out.loss.dtype == torch.float32

def test_double_precision_stays():
    e = torch.tensor([[1.], [1 + 1e-12]], dtype=torch.float64)
    assert nearest(e, e).tolist() == [0, 1]
    assert nearest(e, e.float()).tolist() == [0, 0]

def test_shapes_at_the_edge():
    e = torch.randn(5, 3)
    assert nearest(torch.empty(0, 3), e).shape == (0,)
    assert nearest(torch.randn(4, 3), e[:1]).tolist() == [0]*4
    with pytest.raises(ValueError, match='give \\(b, d\\) and \\(k, d\\)'): nearest(torch.randn(3), e)
    with pytest.raises(ValueError, match='no codewords'): nearest(torch.randn(4, 3), e[:0])
    for bad in (torch.nan, torch.inf, 1e30):
        with pytest.raises(ValueError, match='1 of 4 vectors meet NaN'):
            nearest(torch.tensor([[0., 0., 0.]]*3 + [[bad]*3]), e)

def test_straight_through_is_exact_and_the_identity():
    r, e = torch.randn(9, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    out, up = straight_through(r, e), torch.randn(9, 4)
    assert torch.equal(out, e)
    g, none = torch.autograd.grad(out, (r, e), up, allow_unused=True)
    assert torch.equal(g, up) and none is None

def test_smoothing_keeps_the_total():
    size = torch.tensor([0., 5., 1e-9, 20.])
    assert torch.isclose(_smoothed(size, 1e-5).sum(), size.sum()) and (_smoothed(size, 1e-5) > 0).all()

@pytest.mark.parametrize('points', [torch.zeros(7, 3), torch.ones(1, 3)*4, torch.eye(3).repeat(5, 1), torch.randn(8, 3)])
def test_kmeans_with_few_distinct_points(points):
    centres = kmeans(points, 8, seed=3)
    assert centres.shape == (8, 3) and centres.isfinite().all() and len(centres.unique(dim=0)) == 8
    assert torch.equal(centres, kmeans(points, 8, seed=3))
    assert (centres[nearest(points, centres)] - points).abs().max() < .1

def test_kmeans_draws_a_sample_of_many():
    torch.manual_seed(0)
    x = torch.randn(5000, 2)
    assert torch.equal(kmeans(x, 4, seed=1), kmeans(x.clone(), 4, seed=1))
    assert not torch.equal(kmeans(x, 4, seed=1), kmeans(x, 4, seed=2))
    with pytest.raises(ValueError, match='no vectors'): kmeans(torch.empty(0, 2), 4)

@pytest.mark.parametrize('update', ['gradient', 'ema'])
def test_all_state_is_in_the_state_dict(update, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    def run(stop=None):
        book, draw = Codebook(16, 4, update, revival=DeadCodeReset(patience=3)).initialise(x, seed=1), torch.Generator().manual_seed(5)
        optim = torch.optim.SGD(book.parameters(), .1) if update == 'gradient' else None
        for step in range(30):
            if step == stop:
                torch.save(book.state_dict(), tmp_path/'book.pt')
                book = Codebook(16, 4, update, revival=DeadCodeReset(patience=3, seed=77))
                book.load_state_dict(torch.load(tmp_path/'book.pt', weights_only=True))
                book.initialise(x + 9)
                optim = torch.optim.SGD(book.parameters(), .1) if update == 'gradient' else None
            out = book(x[torch.randint(200, (8,), generator=draw)] + .1*step)
            if optim: optim.zero_grad(); out.loss.backward(); optim.step()
        return book.state_dict()
    whole, cut = run(), run(stop=13)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert int(whole['step']) == 30

def test_ema_codebook_has_no_parameters_and_follows_its_vectors():
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    book = Codebook(1, 3, EMA(decay=.5), revival=None)
    for _ in range(60): book(x)
    assert not list(book.parameters())
    assert torch.allclose(book.weight[0], x.mean(0), atol=1e-4)

def test_evaluation_never_learns():
    torch.manual_seed(0)
    for update in ('gradient', 'ema'):
        book = Codebook(8, 3, update, revival=DeadCodeReset(patience=1)).initialise(torch.randn(50, 3)).eval()
        before = {n: t.clone() for n, t in book.state_dict().items()}
        for _ in range(5): book(torch.randn(4, 3)); book.encode(torch.randn(4, 3))
        assert all(torch.equal(before[n], t) for n, t in book.state_dict().items())

def test_revival_brings_back_exactly_the_dead_and_resets_them():
    torch.manual_seed(0)
    x = torch.randn(32, 2)
    book = Codebook(6, 2, 'ema', revival=DeadCodeReset(patience=4, noise=0.)).place(torch.cat([x[:3], torch.full((3, 2), 99.)]))
    for step in range(4): book(x)
    assert (book.weight[3:].abs() < 10).all() and (book.weight[:, None] == x).all(-1).any(-1)[3:].all()
    assert (book.sizes[3:] == 1).all() and torch.equal(book.sums[3:], book.weight[3:]) and (book.idle == 0).all()
    book(x)
    assert int((book.idle > 0).sum()) < 3

def test_without_revival_dead_codes_stay():
    book = Codebook(4, 1, revival=None).place(torch.tensor([[0.], [90.], [91.], [92.]]))
    for _ in range(300): book(torch.randn(16, 1))
    assert book.weight[1:].flatten().tolist() == [90., 91., 92.] and book.idle.tolist() == [0, 4800, 4800, 4800]  # vectors

def test_revival_during_the_forward_leaves_gradients_right():
    x = torch.randn(16, 2, requires_grad=True)
    book = Codebook(4, 2, revival=DeadCodeReset(patience=1)).place(torch.tensor([[0., 0.], [9., 9.], [9., 8.], [8., 9.]]))
    out = book(x)
    out.loss.backward()
    assert torch.allclose(x.grad, .25*2*x.detach()/x.numel())
    assert (book.weight.grad[1:] == 0).all()

def test_newcomers_are_distinct_rows_first():
    r = torch.arange(10.)[:, None]
    assert _newcomers(r, 10, 0., _stream(3, 4)).flatten().sort().values.tolist() == r.flatten().tolist()
    assert len(_newcomers(r, 25, 1e-3, _stream(3, 4)).unique()) == 25
    assert _newcomers(r, 0, 0., _stream(0, 0)).shape == (0, 1)

def test_several_processes_keep_one_codebook():
    torch.manual_seed(0)
    x, start = torch.randn(40, 3), torch.cat([torch.randn(5, 3), torch.full((3, 3), 50.)])
    halves, mail = x.split(20), {}
    def run(rank, round_):
        calls = iter(range(100))
        def gather(t):
            i = next(calls)
            mail[rank, i] = t
            return torch.cat([mail.get((0, i), t), mail.get((1, i), t)])
        book = Codebook(8, 3, 'ema', revival=DeadCodeReset(patience=1), gather=gather).place(start)
        book(halves[rank])
        return book
    for round_ in range(4): books = [run(rank, round_) for rank in (0, 1)]  # repeated until the mail is complete
    assert all(torch.equal(a, b) for a, b in zip(books[0].state_dict().values(), books[1].state_dict().values()))
    alone = Codebook(8, 3, 'ema', revival=None).place(start)
    alone(x)
    assert torch.allclose(alone.weight[:5], books[0].weight[:5], atol=1e-6)
    assert (books[0].weight[5:].abs() < 10).all()

def test_threads_do_not_change_codes():
    torch.manual_seed(0)
    r, e, before = torch.randn(3000, 16), torch.randn(50, 16), torch.get_num_threads()
    try:
        codes = []
        for threads in (1, 2): torch.set_num_threads(threads); codes.append(nearest(r, e))
    finally: torch.set_num_threads(before)
    assert torch.equal(*codes)

def test_the_million_is_chunked():
    "The scores of 60,000 vectors with 256 codewords (60 MB) are never held at once."
    r, e, peak = torch.randn(60_000, 8), torch.randn(256, 8), []
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor): peak.append(out.numel())
            return out
    with Watch(): nearest(r, e)
    assert max(peak) <= 2**20

def test_bad_arguments_are_sentences():
    for call, words in ((lambda: Codebook(0, 3), 'at least 1 codeword'), (lambda: Codebook(3, 3, 'sgd'), "choose 'gradient'"),
                        (lambda: EMA(decay=1.), 'below 1'), (lambda: DeadCodeReset(patience=0), 'at least 1, or 2 and more'),
                        (lambda: DeadCodeReset(noise=-1.), 'give 0'), (lambda: Codebook(3, 3).place(torch.zeros(2, 3)), r'give \(3, 3\)'),
                        (lambda: Codebook(3, 3).decode([-1]), 'has 0 to 2')):
        with pytest.raises(ValueError, match=words): call()

def test_centres_do_not_depend_on_the_number_of_threads():
    x = torch.randn(3000, 48, generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads): found.append(kmeans(x, 200))
    assert torch.equal(*found)

def test_a_code_that_every_pass_uses_is_never_moved():
    "Patience counts passes: an epoch may have many steps, and a live code waits for its item"
    x = 10.*torch.randperm(400, generator=torch.Generator().manual_seed(0))[:, None].float()
    book = Codebook(400, 1, 'ema', revival=DeadCodeReset(patience=2)).initialise(x).train()
    assert len(book.encode(x).unique()) == 400
    for epoch in range(4):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(4): book(x[rows])  # a hundred steps an epoch
    assert len(book.encode(x).unique()) == 400 and int(book.per_pass) == 400
    assert int(book.idle.max()) < 800

@pytest.mark.parametrize('batch', (4, 50))
def test_a_code_that_no_pass_uses_is_moved_after_patience_passes_whatever_the_batch(batch):
    x = torch.arange(100.)[:, None]
    book = Codebook(5, 1, 'ema', revival=DeadCodeReset(patience=3, per_pass=100)).initialise(x, seed=1)
    book.place(torch.tensor([[1e6]]), torch.arange(5) == 4).train()
    seen, moved = 0, None
    while moved is None and seen < 1000:
        book(x[torch.arange(seen, seen + batch) % 100])
        seen += batch
        if book.weight[4] < 1e5: moved = seen
    assert moved is not None and 300 <= moved < 300 + batch

def test_a_codebook_saved_before_passes_were_counted_is_read():
    old, new = Codebook(3, 2).initialise(torch.randn(9, 2)), Codebook(3, 2)
    state = old.state_dict()
    del state['per_pass']
    new.load_state_dict(state)
    assert torch.equal(new.weight, old.weight) and int(new.per_pass) == 0
