"The prefix residual and its inverse: the reference numbers, exact ways there and back, and what it is not."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.quantize.codebook import Codebook
from gentok.quantize.prefix_residual import prefix_residual, prefix_sum

shapes = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(1, 7))

def drawn(seed, shape): return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))

def test_utgrec_prefix_residual(vectors):
    want = torch.tensor(vectors('utgrec')['prefix_residual']['output'], dtype=torch.float64)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4)))
    assert torch.allclose(prefix_residual(x), want, rtol=1e-9, atol=1e-12)
    assert torch.allclose(prefix_sum(want), x, rtol=1e-9, atol=1e-12)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), shapes)
def test_by_definition(seed, shape):
    h = drawn(seed, shape)
    r, s = prefix_residual(h), prefix_sum(h)
    for l in range(shape[1]):
        assert torch.equal(r[:, l], h[:, l] - h[:, l-1] if l else h[:, 0])
        assert torch.allclose(s[:, l], h[:, :l+1].sum(1), atol=1e-12)

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), shapes, st.sampled_from([torch.float32, torch.float64]))
def test_there_and_back(seed, shape, dtype):
    h = drawn(seed, shape).to(dtype)
    assert torch.allclose(prefix_sum(prefix_residual(h)), h, atol=1e-5)
    assert torch.allclose(prefix_residual(prefix_sum(h)), h, atol=1e-5)
    whole = (8*h).round()
    assert torch.equal(prefix_sum(prefix_residual(whole)), whole) and torch.equal(prefix_residual(prefix_sum(whole)), whole)
    assert prefix_residual(h).dtype == prefix_sum(h).dtype == dtype

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_items_do_not_meet(seed):
    h, perm = drawn(seed, (9, 3, 4)), torch.randperm(9)
    for f in (prefix_residual, prefix_sum):
        assert torch.equal(f(h)[perm], f(h[perm])) and torch.equal(f(h[0]), f(h)[0])

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_is_subtracted(dtype):
    h = (100 + drawn(0, (50, 4, 8))).to(dtype).requires_grad_()
    r = prefix_residual(h)
    assert r.dtype == torch.float32 and torch.equal(r, prefix_residual(h.float()))
    assert torch.equal(prefix_sum(r), h.float())  # differences of half numbers are exact in float32
    r.sum().backward()
    assert h.grad.dtype == dtype

def test_gradients_are_those_of_the_transposed_maps():
    for f in (prefix_residual, prefix_sum):
        matrix = torch.autograd.functional.jacobian(lambda v: f(v[None, :, None])[0, :, 0], torch.randn(5))
        assert torch.equal(matrix, f(torch.eye(5).T[..., None]).squeeze(-1).T)
    J = torch.autograd.functional.jacobian(lambda v: prefix_sum(v[None, :, None])[0, :, 0], torch.randn(4))
    assert torch.equal(J, torch.ones(4, 4).tril())

def test_neighbours_are_subtracted_as_they_are_not_as_they_were_quantised():
    h = torch.tensor([[[4.], [5.], [7.]]])
    book = Codebook(2, 1, revival=None).place(torch.tensor([[0.], [10.]])).eval()
    coded = book.decode(book.encode(h.view(-1, 1))).view_as(h)
    assert prefix_residual(h).flatten().tolist() == [4., 1., 2.] != [4., *(h[:, 1:] - coded[:, :-1]).flatten().tolist()]

def test_errors_of_levels_add_up():
    h = drawn(3, (20, 3, 4)).float()
    r = prefix_residual(h)
    rounded = r.round()
    assert torch.allclose(prefix_sum(rounded) - h, (rounded - r).cumsum(1), atol=1e-5)

@pytest.mark.parametrize('f', [prefix_residual, prefix_sum])
@pytest.mark.parametrize('x', [torch.ones(3), torch.ones(()), torch.ones(4, 0, 2)])
def test_no_levels_is_one_sentence(f, x):
    with pytest.raises(ValueError, match=r'^vectors are \(.*\); give \(items, levels, width\) with at least one level\.$'): f(x)
