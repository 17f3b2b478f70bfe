"The linear codebook: rows of E W, learnt through W, an E that nothing moves, and the manners of every other codebook."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gentok.quantize.codebook import Codebook, nearest
from gentok.quantize.linear_codebook import LinearCodebook, _codewords
from gentok.quantize.residual import ResidualQuantizer
from gentok.quantize.revival import DeadCodeReset
from gentok.tokenize.tokenizer import sum_of_codewords

def normal(seed, *shape): return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))

def made(K=12, d=5, seed=0, **how):
    torch.manual_seed(seed)
    return LinearCodebook(K, d, **how)

def test_utgrecs_codebook_by_codebook(vectors):
    want = vectors('utgrec')['tree_quantiser_simvq']['output']
    x = normal(7, 5, 3, 8)
    for part, seeds, K, name, l in ((x[:, 0], (2, 3), 6, 'root', slice(0, 1)), (x[:, 1:].reshape(-1, 8), (4, 5), 10, 'leaf', slice(1, 3))):
        book = LinearCodebook(K, 8, frozen=False).double()
        book.E.data, book.W.data = normal(seeds[0], K, 8), (normal(seeds[1], 8, 8)*8**-.5).T.clone()  # the linear layer's matrix, transposed
        out = book(part)
        assert out.codes.tolist() == torch.tensor(want['codes'])[:, l].flatten().tolist()
        assert out.loss.item() == pytest.approx(want[f'loss_{name}'], rel=1e-9)
        assert torch.allclose(out.vectors, torch.tensor(want['quantised'], dtype=torch.float64)[:, l].reshape(-1, 8), rtol=1e-9, atol=1e-12)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_it_answers_as_a_plain_codebook_at_the_same_codewords(seed, K, d, frozen):
    book = made(K, d, seed, frozen=frozen).eval()
    plain = Codebook(K, d, revival=None).place(book.decode(range(K))).eval()
    r = torch.randn(40, d, requires_grad=True)
    a, b = book(r), plain(r)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.vectors, b.vectors) and torch.equal(a.loss, b.loss)
    assert torch.equal(book.encode(r), a.codes) and torch.equal(book.decode(a.codes), a.vectors)
    slopes = [torch.autograd.grad(out.loss + out.vectors.sum(), r)[0] for out in (a, b)]
    assert torch.equal(*slopes)

def test_start_and_convention():
    book = made(4000, 64)
    assert book.E.std().item() == pytest.approx(1/8, rel=.02) and book.W.abs().max() <= 1/8
    assert book.weight.norm(dim=1).mean().item() == pytest.approx(3**-.5, rel=.03)
    assert torch.allclose(book.weight[7], book.E[7] @ book.W, atol=1e-6)

def test_one_vector_moves_all_rows_along_one_direction():
    book = made(frozen=True)
    before, r = book.decode(range(12)), torch.randn(1, 5)
    code = book.encode(r)
    optim = torch.optim.SGD(book.parameters(), .3)
    book(r).loss.backward()
    optim.step()
    g = 2*(before[code] - r)/5
    assert torch.allclose(book.decode(range(12)) - before, -.3*(book.E @ book.E[code].T) @ g, atol=1e-6)
    assert ((book.decode(range(12)) - before).norm(dim=1) > 0).all()

def trained(book, x, steps=15, optim=None):
    optim = optim or torch.optim.AdamW(book.parameters(), .05, weight_decay=.1)
    for t in range(steps):
        optim.zero_grad()
        book.train()(x[t:t + 20]).loss.backward()
        optim.step()
    return book

def test_e_never_moves_when_frozen(tmp_path):
    x, book = torch.randn(60, 5), made()
    E, W = book.E.clone(), book.W.clone()
    trained(book, x)
    save_file(book.state_dict(), tmp_path/'book.safetensors')
    back = made(seed=9)
    back.load_state_dict(load_file(tmp_path/'book.safetensors'))
    trained(back, x)
    for b in (book, back): assert torch.equal(b.E, E) and not torch.equal(b.W, W) and not b.E.requires_grad
    assert 'E' not in dict(book.named_parameters())

def test_pre_training_and_fine_tuning_read_each_other(tmp_path):
    x, before = torch.randn(60, 5), made(frozen=False)
    E = before.E.detach().clone()
    trained(before, x)
    assert not torch.equal(before.E, E)
    save_file(before.state_dict(), tmp_path/'book.safetensors')
    tuned, full = made(seed=1), made(seed=2, frozen=False)
    for book in (tuned, full):
        book.load_state_dict(load_file(tmp_path/'book.safetensors'))
        assert torch.equal(book.weight, before.weight) and torch.equal(book(x).codes, before(x).codes)
        trained(book, x)
    assert torch.equal(tuned.E, before.E) and not torch.equal(full.E, before.E)

def test_an_optimiser_made_before_the_freeze_cannot_move_e():
    x, book = torch.randn(60, 5), made(frozen=False)
    optim = torch.optim.AdamW(book.parameters(), .1)
    trained(book, x, 3, optim)
    book(x).loss.backward()
    E = book.freeze().E.clone()
    optim.step()
    trained(book, x, 3, optim)
    assert torch.equal(book.E, E) and book.freeze() is book and book.frozen

def test_a_copy_stays_frozen():
    book = copy.deepcopy(made())
    assert book.frozen and torch.equal(book.E, made().E)
    assert made().double().weight.dtype == torch.float64

def test_half_precision_and_autocast_change_no_code():
    book, x = made(64, 16).eval(), torch.randn(300, 16)
    want = book(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = book(x)
    assert torch.equal(inside.codes, want.codes) and torch.equal(inside.vectors, want.vectors)
    half = copy.deepcopy(book).bfloat16()
    wide = made(64, 16)
    wide.E, wide.W.data = half.E.float(), half.W.data.float()
    out = half(x.bfloat16())
    assert out.vectors.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.codes, nearest(x.bfloat16().float(), wide.weight)) and torch.equal(out.codes, half.encode(x.bfloat16()))

@pytest.mark.parametrize('name', ['high', 'medium'])
def test_a_coarse_matrix_product_leaves_codewords_alone(name):
    book = made(64, 32)
    want, before = book.weight.clone(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(name)
        assert torch.equal(book.weight, want)
    finally: torch.set_float32_matmul_precision(before)

def test_copied_rows_tie_to_the_lowest():
    book = made(4, 5).eval()
    book.E[2:] = book.E[:2].clone()
    assert book.encode(torch.randn(200, 5)).max() <= 1

def test_initialise_once_and_again():
    x, book = torch.randn(200, 5), made()
    book.initialise(x)
    placed = book.weight.clone()
    assert torch.equal(book.W, torch.eye(5)) and bool(book.ready) and torch.equal(book.initialise(x + 9).weight, placed)
    assert not torch.equal(book.initialise(x + 9, again=True).weight, placed)
    assert F.mse_loss(made().initialise(x)(x).vectors, x) < F.mse_loss(made()(x).vectors, x)

def test_some_rows_are_placed_as_w_sees_them():
    book, goal = made(frozen=False, revival=DeadCodeReset(patience=3)), torch.randn(2, 5)
    where = torch.tensor([False, True, False, True] + [False]*8)
    others = book.decode((~where).nonzero()[:, 0])
    book.place(goal, where)
    assert torch.allclose(book.weight[where], goal, atol=1e-4) and torch.equal(book.decode((~where).nonzero()[:, 0]), others)
    book.W.data[:, 0] = 0  # W that is singular: as near as it can reach
    book.place(goal, where)
    assert torch.isfinite(book.E).all() and torch.allclose(book.weight[where][:, 1:], goal[:, 1:], atol=1e-3)

def test_revival_with_an_e_that_learns():
    x = torch.randn(300, 5) + 20
    book = made(frozen=False, revival=DeadCodeReset(patience=2))
    for _ in range(6): book.train()(x)
    assert len(book.encode(x).unique()) > 6
    frozen = made()
    for _ in range(6): frozen.train()(x)
    E = frozen.E.clone()
    assert frozen.revive(x) == 0 and torch.equal(frozen.E, E) and int(frozen.idle.max()) == 6*300

def test_in_a_residual_quantizer(tmp_path):
    torch.manual_seed(0)
    x, new = torch.randn(200, 5), lambda: ResidualQuantizer([LinearCodebook(9, 5) for _ in range(3)])
    q = new().initialise(x).eval()
    out = q(x)
    assert torch.equal(q.encode(x), out.codes) and torch.equal(q.decode(out.codes), out.vectors)
    assert torch.equal(sum_of_codewords(q, out.codes), out.vectors) and q.sizes == (9, 9, 9) and q.revive(x) == [0, 0, 0]
    other = new()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other.eval()(x).vectors, out.vectors)
    for book in q.codebooks: assert [n for n, _ in book.named_parameters()] == ['W']

def test_empty_batches_and_one_codeword():
    book = made(1, 3).eval()
    assert book.encode(torch.zeros(0, 3)).shape == (0,) and book(torch.randn(4, 3)).codes.tolist() == [0]*4

def test_what_is_refused():
    book = made()
    for call, words in ((lambda: made(revival=DeadCodeReset()), r'^revival moves single rows of E, and E is frozen; [^.]*\.$'),
                        (lambda: book.place(torch.zeros(1, 5), torch.tensor([True] + [False]*11)), r'^1 of 12 codewords cannot move alone: [^.]*\.$'),
                        (lambda: book.place(torch.zeros(3, 5)), r'give \(12, 5\)'), (lambda: book.decode([12]), 'this codebook has 0 to 11'),
                        (lambda: made(0), 'at least 1 codeword'), (lambda: book(torch.full((2, 5), torch.nan)), 'NaN')):
        with pytest.raises(ValueError, match=words): call()

def test_codewords_is_the_product():
    E, W = torch.randn(7, 4), torch.randn(4, 4)
    assert torch.equal(_codewords(E, W), (E.double() @ W.double()).float()) and _codewords(E.double(), W).dtype == torch.float64
