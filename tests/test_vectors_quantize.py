"The quantizers give the reference numbers of MTGRec's and ETEGRec's own code."
import numpy as np
import pytest
import torch

from gentok.quantize.codebook import Codebook
from gentok.quantize.residual import ResidualQuantizer

def normal(seed, *shape): return np.random.default_rng(seed).standard_normal(shape)

def close(ours, theirs, atol=1e-5):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    assert ours.shape == theirs.shape
    assert (ours.detach().double() - theirs).abs().max() < atol

precisions = pytest.mark.parametrize('dtype, atol', [(torch.float32, 1e-5), (torch.float64, 1e-9)])

@precisions
@pytest.mark.parametrize('update, name', [('ema', 'residual_quantisation_ema'), ('gradient', 'residual_quantisation_vq')])
def test_mtgrec_residual_quantisation(vectors, update, name, dtype, atol):
    entry = vectors('mtgrec')[name]
    want = entry['output']
    quantizer = ResidualQuantizer.of((5, 5, 5), 4, update, revival=None).to(dtype).eval()
    for book, seed, scale in zip(quantizer.codebooks, (61, 62, 63), (1., .5, .25)):
        book.place(torch.tensor(normal(seed, 5, 4)*scale))
    x = torch.tensor(normal(60, 6, 4), dtype=dtype, requires_grad=True)
    out = quantizer(x)
    assert out.codes.tolist() == want['codes']
    close(out.vectors, want['quantised_sum'], atol)
    close(out.loss, want['loss'], atol)
    close(torch.autograd.grad(out.loss, x)[0], want['grad_loss_wrt_x'], atol)
    assert sum(5 - len(level.unique()) for level in out.codes.T) == want['unused_codes_total']
    slope, = torch.autograd.grad(quantizer(x).vectors.sum(), x)
    assert (slope == 1).all()
    if update == 'ema':
        quantizer.attached = True
        close(torch.autograd.grad(quantizer(x).loss, x)[0], entry['own_not_theirs_gradient_if_residual_kept_attached'], atol)

@precisions
def test_mtgrec_ema_codebook_update(vectors, dtype, atol):
    want = vectors('mtgrec')['ema_codebook_update']['output']
    book = Codebook(5, 4, 'ema', revival=None).to(dtype).train()
    book.place(torch.tensor(normal(71, 5, 4)))
    book.sums.copy_(torch.tensor(normal(72, 5, 4)))
    book.sizes.copy_(torch.tensor(np.random.default_rng(73).uniform(.5, 3., 5)))
    x = torch.tensor(normal(74, 7, 4), dtype=dtype, requires_grad=True)
    out = book(x)
    assert out.codes.tolist() == want['codes']
    close(out.vectors, want['quantised'], atol)
    close(out.loss, want['loss'], atol)
    close(torch.autograd.grad(out.loss, x)[0], want['grad_loss_wrt_x'], atol)
    close(book.sizes, want['cluster_size_after'], atol)
    close(book.sums, want['embed_avg_after'], atol)
    close(book.weight, want['embed_after'], atol)
    assert int((book.idle > 0).sum()) == want['unused']

@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_etegrec_residual_quantizer(vectors, reduction):
    want = vectors('etegrec')['residual_quantizer']
    codebooks = torch.tensor(.5*normal(0, 3, 8, 6).astype(np.float32))
    quantizer = ResidualQuantizer.of((8, 8, 8), 6, revival=None, reduction=reduction).eval()
    for book, e in zip(quantizer.codebooks, codebooks): book.place(e)
    x = torch.tensor(normal(1, 5, 6).astype(np.float32), requires_grad=True)
    out = quantizer(x)
    assert out.codes.tolist() == want['codes']
    close(out.vectors, want['quantised_sum'])
    close(x - out.vectors, want['residual_after_last_level'])
    close(out.loss, want['rq_loss_(mean over levels)' if reduction == 'mean' else 'rq_loss_if_summed_over_levels'])
    if reduction == 'mean': close(torch.autograd.grad(out.loss, x)[0], want['grad_wrt_x_of_rq_loss'])

def test_etegrec_losses_level_by_level(vectors):
    want = vectors('etegrec')['residual_quantizer']
    codebooks = torch.tensor(.5*normal(0, 3, 8, 6).astype(np.float32))
    x = torch.tensor(normal(1, 5, 6).astype(np.float32), requires_grad=True)
    residual, norms = x, []
    for l, e in enumerate(codebooks):
        out = Codebook(8, 6, revival=None).place(e).eval()(residual)
        close(out.loss, want['per_level_loss_(mse_codebook + 0.25*mse_commit, mean over B*d)'][l])
        distance = (residual[:, None] - e).square().sum(-1)
        close(distance, [row[l] for row in want['distance_matrix_called_logit_[B,L,K]']])
        slope, = torch.autograd.grad(out.loss, x, retain_graph=True, allow_unused=True)
        norms.append(slope.norm())
        residual = residual - out.vectors
    close(torch.stack(norms), want['norm_of_d(level_l loss)/dx'])
