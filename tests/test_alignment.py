"The alignments: reference numbers of ETEGRec's and UTGRec's code, properties, and what a bad batch is told."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.quantize.residual import ResidualQuantizer
from gentok.train.preference_semantic import _first_occurrence
from gentok.train.alignment import (co_occurrence_alignment, code_log_probabilities, info_nce,
                                    preference_semantic_alignment, sequence_item_alignment)

def normal(seed, *shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
def close(a, b, atol=1e-4): assert (torch.as_tensor(a).detach().double() - torch.as_tensor(b, dtype=torch.double)).abs().max() < atol

@pytest.fixture
def quantizer():
    found = ResidualQuantizer.of((8, 8, 8), 6, revival=None).eval()
    for book, e in zip(found.codebooks, .5*normal(0, 3, 8, 6)): book.place(e)
    return found

# ---------------------------------------------------------------- distances of a residual quantizer

def test_etegrec_distances(vectors, quantizer):
    want = vectors('etegrec')['residual_quantizer']
    found = quantizer.distances(normal(1, 5, 6))
    close(found, want['distance_matrix_called_logit_[B,L,K]'])
    close(code_log_probabilities(found).exp(), want['softmax_of_minus_distance_(paper Eq.6) [B,L,K]'])
    close(code_log_probabilities(found, 1).exp()[0, 0], want['softmax_of_plus_distance_(what the code feeds to its KL) level0 row0'])

@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_distances_follow_the_codes(seed, attached):
    torch.manual_seed(seed)
    q, x = ResidualQuantizer.of((5, 5), 3, revival=None, attached=attached).eval(), torch.randn(7, 3)
    for book in q.codebooks: book.place(torch.randn(5, 3))
    d, codes = q.distances(x), q.encode(x)
    assert torch.equal(d.argmin(-1), codes) and d.shape == (7, 2, 5)
    left = x - q.codebooks[0].decode(codes[:, 0])
    close(d[:, 1], (left[:, None] - q.codebooks[1].weight).square().sum(-1), 1e-4)
    order = torch.randperm(7)
    close(q.distances(x[order]), d[order], 1e-5)

def test_attached_residuals_carry_the_slope(quantizer):
    for attached, wanted in ((False, [True, False, False]), (True, [True, True, True])):
        quantizer.attached = attached
        x = normal(1, 5, 6).requires_grad_()
        d = quantizer.distances(x)
        slopes = [torch.autograd.grad(d[:, l].sum(), x, retain_graph=True)[0] for l in range(3)]
        assert [bool(s.abs().sum() > 0) for s in slopes] == wanted

def test_distances_ignore_autocast_and_learn_nothing(quantizer):
    quantizer.train()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    with torch.autocast('cpu', torch.bfloat16): found = quantizer.distances(normal(1, 5, 6).bfloat16())
    assert found.dtype == torch.float32
    close(found, quantizer.distances(normal(1, 5, 6).bfloat16().float()), 1e-6)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())

# ---------------------------------------------------------------- sequence and item

def test_etegrec_sia(vectors, quantizer):
    want = vectors('etegrec')['sia']
    item, state = normal(2, 5, 6), normal(3, 5, 6).requires_grad_()
    assert quantizer.encode(item).tolist() == want['codes_of_target']
    assert quantizer.encode(state.detach()).tolist() == want['codes_of_sequence']
    d, s = quantizer.distances(item), quantizer.distances(state)
    close(sequence_item_alignment(d, s, sign=1), want['code_value'])
    close(sequence_item_alignment(d, s), want["code_value_with_logits_negated_(paper's softmax(-d), mean over B and levels)"])
    close(sequence_item_alignment(d, s, levels='sum'), want['paper_sum_over_levels_mean_over_batch'])
    for l in range(3):
        close(sequence_item_alignment(d[:, [l]], s[:, [l]], 1), want['per_level_code_sign'][l])
        close(sequence_item_alignment(d[:, [l]], s[:, [l]]), want['per_level_paper_sign'][l])
        slope, = torch.autograd.grad(sequence_item_alignment(d[:, [l]], s[:, [l]], 1), state, retain_graph=True)
        close(slope.norm(), want['grad_norm_wrt_zE_per_level'][l])
    close(torch.autograd.grad(sequence_item_alignment(d, s, 1), state)[0], want['grad_wrt_zE_of_code_value'])

@given(st.integers(0, 10**6), st.sampled_from((-1, 1)), st.sampled_from((.1, 1., 30.)))
@settings(max_examples=40, deadline=None)
def test_sia_is_a_symmetric_divergence(seed, sign, scale):
    g = torch.Generator().manual_seed(seed)
    a, b = (scale*torch.rand(6, 2, 5, generator=g) for _ in range(2))
    loss = sequence_item_alignment(a, b, sign)
    assert loss >= 0 and sequence_item_alignment(a, a, sign) == 0
    close(loss, sequence_item_alignment(b, a, sign), 1e-4*max(1., float(loss)))
    order = torch.randperm(6, generator=g)
    close(loss, sequence_item_alignment(a[order], b[order], sign), 1e-4*max(1., float(loss)))
    close(loss, sequence_item_alignment(a + 3, b + 7, sign), 1e-3*max(1., float(loss)))  # a softmax knows differences only

def test_distributions_without_overlap_stay_finite():
    far = torch.tensor([[[0., 1e6]]], requires_grad=True)
    loss = sequence_item_alignment(far, far.flip(-1).detach())
    assert loss.isfinite() and torch.autograd.grad(loss, far)[0].isfinite().all()

# ---------------------------------------------------------------- preference and semantics

def test_etegrec_psa(vectors):
    want = vectors('etegrec')['psa']
    z, h = normal(4, 5, 7), normal(5, 5, 7)
    close(info_nce(z, h, .07), want['z_to_h'])
    close(info_nce(h, z, .07), want['h_to_z'])
    close(preference_semantic_alignment(z, h), want['psa'])
    close(preference_semantic_alignment(z, h, .2), want['psa_tau_0.2'])
    once = _first_occurrence(torch.tensor([3, 1, 3, 2, 1]))
    assert once.tolist() == want['unique_index_of_targets_(first occurrence, sorted by id)']
    close(preference_semantic_alignment(z[once], h[once]), want['psa_on_unique_targets'])

def test_utgrec_alignment(vectors):
    want = vectors('utgrec')['alignment_infonce']['output']
    a, b = (torch.tensor(np.random.default_rng(seed).standard_normal((6, 3, 8)), requires_grad=True) for seed in (11, 12))
    loss = co_occurrence_alignment(a, b)
    close(loss, want['total'], 1e-9)
    for l in range(3): close(info_nce(a[:, l], b[:, l], .1), want['per_level'][l], 1e-9)
    slope, = torch.autograd.grad(loss, a)
    close(slope[0, 0], want['grad_wrt_a_level0_item0'], 1e-9)
    close(slope.abs().sum(), want['grad_wrt_a_abs_sum'], 1e-9)

@given(st.lists(st.integers(0, 9), max_size=30))
@settings(deadline=None)
def test_first_occurrence_is_the_first(targets):
    found = _first_occurrence(torch.tensor(targets, dtype=torch.long)).tolist()
    assert found == [targets.index(t) for t in sorted(set(targets))]

def test_psa_does_not_see_lengths_or_order():
    z, h = normal(4, 5, 7), normal(5, 5, 7)
    order, lengths = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([.1, 1., 2., 30., 400.])[:, None]
    close(preference_semantic_alignment(z, h), preference_semantic_alignment(z[order], (lengths*h)[order]), 1e-4)
    assert preference_semantic_alignment(z[:1], h[:1]) == 0  # alone in the batch, nobody can be mistaken

# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize('call, text', [
    (lambda a: sequence_item_alignment(a[:0], a[:0]), r'the shapes \(0, 2, 4\) and \(0, 2, 4\)'),
    (lambda a: sequence_item_alignment(a, a[:, :1]), r'the shapes \(3, 2, 4\) and \(3, 1, 4\)'),
    (lambda a: sequence_item_alignment(a[:, 0], a[:, 0]), 'give one shape'),
    (lambda a: sequence_item_alignment(a, a, 2), 'sign is 2'),
    (lambda a: sequence_item_alignment(a, a, levels='total'), "levels is 'total'"),
    (lambda a: preference_semantic_alignment(a, a), r'\(b d\)'),
    (lambda a: preference_semantic_alignment(a[0], a[0], -1.), 'temperature is -1.0'),
    (lambda a: co_occurrence_alignment(a[0], a[0]), r'\(b l d\)'),
    (lambda a: _first_occurrence(a), r'give one item for each row'),
    (lambda a: ResidualQuantizer.of((2, 3), 4).distances(a[0]), r'levels have \(2, 3\) codewords')])
def test_bad_input_is_one_sentence(call, text):
    with pytest.raises(ValueError, match=text) as e: call(torch.ones(3, 2, 4))
    assert '\n' not in str(e.value) and str(e.value).endswith('.')
