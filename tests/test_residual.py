"The residual quantizer: invariants, gradients, starting, reviving."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.quantize.codebook import Codebook
from gentok.quantize.residual import ResidualQuantizer
from gentok.quantize.revival import DeadCodeReset

def made(seed=0, sizes=(9, 7, 5), dim=6, n=200, **kw):
    torch.manual_seed(seed)
    x = torch.randn(n, dim)
    return ResidualQuantizer.of(sizes, dim, **kw).initialise(x, seed), x

@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from(['gradient', 'ema']), st.booleans(), st.sampled_from([1, 13, 4096]))
def test_encode_decode_forward_agree_to_the_last_bit(seed, update, attached, rows):
    q, x = made(seed, n=60, update=update, attached=attached)
    out = q.eval()(x)
    assert torch.equal(q.encode(x, rows), out.codes)
    assert torch.equal(q.decode(out.codes), out.vectors)
    perm = torch.randperm(len(x))
    assert torch.equal(q.encode(x[perm], rows), out.codes[perm])

def test_codes_of_a_training_forward_are_those_of_the_old_codebooks():
    q, x = made(update='ema')
    before = q.encode(x)
    assert torch.equal(q.train()(x).codes, before)

@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_gradients_reach_where_they_should(reduction):
    q, x = made(reduction=reduction)
    q.eval()
    def slopes(attached):
        q.attached = attached
        inp = x.clone().requires_grad_()
        out = q(inp)
        return torch.autograd.grad(out.loss, inp, retain_graph=True)[0], torch.autograd.grad(out.vectors.sum(), inp)[0]
    level = [1/3 if reduction == 'mean' else 1.]*3
    residual, want, shares = x, torch.zeros_like(x), []
    for book, w in zip(q.codebooks, level):
        left = residual - book.decode(book.encode(residual))
        shares.append(w*.25*2*left/x.numel())
        residual = left
    for attached, want in ((False, shares[0]), (True, sum(shares))):
        loss, out = slopes(attached)
        assert torch.allclose(loss, want, atol=1e-7)
        assert (out == 1).all()

def test_codebooks_learn_only_from_their_own_level():
    for attached in (False, True):
        q, x = made(attached=attached)
        out = q.eval()(x)
        grads = torch.autograd.grad(out.loss, [b.weight for b in q.codebooks])
        residual = x
        for book, grad in zip(q.codebooks, grads):
            one = torch.autograd.grad(book.eval()(residual).loss, book.weight)[0]/3
            assert torch.allclose(grad, one, atol=1e-7)
            residual = residual - book.decode(book.encode(residual))

def test_sum_is_levels_times_mean():
    q, x = made()
    mean = q.eval()(x).loss
    q.reduction = 'sum'
    assert torch.allclose(q(x).loss, 3*mean)

def test_initialise_is_seeded_and_once():
    a, x = made(3)
    b, _ = made(3)
    c = ResidualQuantizer.of((9, 7, 5), 6).initialise(x, seed=4)
    assert all(torch.equal(s.weight, t.weight) for s, t in zip(a.codebooks, b.codebooks))
    assert any(not torch.equal(s.weight, t.weight) for s, t in zip(a.codebooks, c.codebooks))
    a.initialise(x*3)
    assert all(torch.equal(s.weight, t.weight) for s, t in zip(a.codebooks, b.codebooks))
    assert not torch.equal(a.initialise(x*3, again=True).codebooks[0].weight, b.codebooks[0].weight)

def test_more_codewords_than_items():
    x = torch.randn(5, 4)
    q = ResidualQuantizer.of((16, 16), 4).initialise(x).eval()
    assert torch.allclose(q(x).vectors, x, atol=1e-3) and len(q.encode(x).unique(dim=0)) == 5

@pytest.mark.parametrize('update', ['gradient', 'ema'])
def test_save_load_resume_bit_identical(update):
    q, x = made(update=update, revival=DeadCodeReset(patience=2))
    other = ResidualQuantizer.of((9, 7, 5), 6, update, revival=DeadCodeReset(patience=2))
    q.train()
    for t in range(7): q(x[7*t:7*t + 7])
    other.load_state_dict(q.state_dict())
    other.train().initialise(x)
    for t in range(7, 20): q(x[7*t:7*t + 7]), other(x[7*t:7*t + 7])
    assert all(torch.equal(a, b) for a, b in zip(q.state_dict().values(), other.state_dict().values()))

def test_levels_draw_differently():
    q = ResidualQuantizer.of((4, 4), 2, revival=DeadCodeReset(seed=10))
    assert [int(b.seed) for b in q.codebooks] == [10, 11]
    assert ResidualQuantizer.of((4, 4), 2, revival=None).codebooks[0].revival is None

def test_revive_over_the_catalogue_fills_the_levels():
    torch.manual_seed(0)
    x = torch.randn(500, 3) + 4
    q = ResidualQuantizer.of((16, 16), 3)
    first = q.revive(x)
    used = [len(level.unique()) for level in q.encode(x).T]
    assert first[0] >= 8 and used[0] >= 12 and used[1] >= 12
    while sum(q.revive(x)): pass
    assert q.revive(x) == [0, 0]

def test_lower_precision_input_and_gradient_type():
    q, x = made()
    inp = x.bfloat16().requires_grad_()
    out = q.eval()(inp)
    out.vectors.sum().backward()
    assert out.vectors.dtype == torch.float32 and inp.grad.dtype == torch.bfloat16
    assert torch.equal(out.codes, q.encode(x.bfloat16()))

def test_bad_arguments_are_sentences():
    q, x = made()
    for call, words in ((lambda: ResidualQuantizer([]), 'one codebook or more'), (lambda: q.decode(torch.zeros(3).long()), r'give \(n, 3\)'),
                        (lambda: ResidualQuantizer([Codebook(2, 2)], reduction='max'), "choose 'mean'"),
                        (lambda: q.encode(x[:, :2]), 'give'), (lambda: q.decode(torch.full((1, 3), 9)), 'this codebook has')):
        with pytest.raises(ValueError, match=words): call()
