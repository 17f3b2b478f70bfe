"HSIC: the definition, the reference numbers, gradients, blind spots, and nothing that is not a number."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.tokenize.hsic import (DomainHSIC, biased_hsic, calibration_loss, _domain_hsic, gram, hsic, median_bandwidth,
                                  _squared_distances, unbiased_hsic)

def normal(seed, *shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))

def inputs():
    X = normal(0, 64, 16)
    return dict(X=X, Z_dependent=X @ normal(1, 16, 8)/4, Z_independent=normal(2, 64, 8), X768=normal(3, 64, 768), Z32=normal(4, 64, 32))

# ---------------------------------------------------------------- reference numbers

@pytest.mark.parametrize('sigma', (.5, 1., 2., 4.))
def test_unitok_hsic(vectors, sigma):
    want, x = vectors('unitok')['hsic']['values'][f'sigma={sigma}'], inputs()
    for pair, value in want.items():
        a, b = pair[5:-1].split(',')
        assert hsic(x[a], x[b], sigma).item() == pytest.approx(value, abs=2e-8 + 2e-6*value), pair

def test_unitok_degenerate_and_normalised(vectors):
    entry, x = vectors('unitok')['hsic'], inputs()
    for z in (x['Z32'], x['X768'].flip(0)):
        value = hsic(x['X768'], z, 1.).item()
        assert value == pytest.approx(entry['degenerate_at_sigma_1']['1/(n-1)'], abs=1e-6)
    assert hsic(x['X768'], x['Z32'], 1.).item() == pytest.approx(entry['degenerate_at_sigma_1']['hsic(X768,Z32)'], abs=1e-7)
    unit = [m/m.norm(dim=1, keepdim=True) for m in (x['X768'], x['Z32'])]
    assert hsic(*unit, 1.).item() == pytest.approx(entry['l2_normalised_768d']['hsic(X768/|X768|, Z32/|Z32|)'], abs=1e-7)

def test_unitok_calibration_loss(vectors):
    for name, want in vectors('unitok')['mi_loss_from_given_hsic'].items():
        if not name.startswith('['): continue
        given, *rest = name.partition(']')[0][1:], *name.partition(']')[2].split(',')
        values, weights = [float(v) for v in given.split(',')], dict(r.split('=') for r in rest if '=' in r)
        kw = dict(alpha=float(weights.get('alpha', 1)), beta=float(weights.get('beta', 1)))
        for kind in (values, torch.tensor(values), [torch.tensor(v) for v in values]):
            assert calibration_loss(kind, unbiased=True, **kw).item() == pytest.approx(want['loss'], abs=1e-7)
            assert calibration_loss(kind, **kw).item() == pytest.approx(want['loss_with_population_var'], abs=1e-7)

def test_what_the_published_code_trains_with_is_an_error_here(vectors):
    "Row against row: zero without a gradient there, a sentence here"
    as_trained, x = vectors('unitok')['mi_calibration_as_trained'], inputs()
    assert as_trained['loss'] == 0 and not as_trained['requires_grad']
    found = _domain_hsic(x['X'], x['Z_dependent'], torch.arange(64))
    assert len(found.values) == 0 and len(found.skipped) == as_trained['n_values']
    with pytest.raises(ValueError, match='leave this batch out'): calibration_loss(found.values)

# ---------------------------------------------------------------- the estimators

def brute(K, L):
    "Song et al.'s estimator as what it is: means over different rows"
    n, o = len(K), ~torch.eye(len(K), dtype=torch.bool)
    different = lambda *i: len(set(i)) == len(i)
    from itertools import permutations
    two = sum(K[i, j]*L[i, j] for i, j in permutations(range(n), 2))/(n*(n - 1))
    three = sum(K[i, j]*L[i, k] for i, j, k in permutations(range(n), 3))/(n*(n - 1)*(n - 2))
    four = sum(K[i, j]*L[k, m] for i, j, k, m in permutations(range(n), 4))/(n*(n - 1)*(n - 2)*(n - 3))
    return two + four - 2*three

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(4, 7))
def test_unbiased_is_the_mean_over_different_rows(seed, n):
    torch.manual_seed(seed)
    K, L = (gram(torch.randn(n, 2).double()) for _ in 'KL')
    assert unbiased_hsic(K, L).item() == pytest.approx(brute(K, L).item(), abs=1e-12)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(4, 30), st.booleans(), st.sampled_from([None, .7, (None, 2.), 'attached']))
def test_symmetric_in_rows_and_sides(seed, n, unbiased, sigma):
    torch.manual_seed(seed)
    x, z, p = torch.randn(n, 5).double(), torch.randn(n, 3).double(), torch.randperm(n)
    value = hsic(x, z, sigma, unbiased)
    assert torch.allclose(hsic(x[p], z[p], sigma, unbiased), value, atol=1e-12)
    turned = sigma[::-1] if isinstance(sigma, tuple) else sigma
    assert torch.allclose(hsic(z, x, turned, unbiased), value, atol=1e-12)
    if not unbiased: assert value >= -1e-12
    if sigma in (None, 'attached'): assert torch.allclose(hsic(3*x - 5, .1*z + 2, sigma, unbiased), value, atol=1e-9)

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(2, 25), st.floats(0, 1e4))
def test_distances_are_those_of_the_definition(seed, n, shift):
    torch.manual_seed(seed)
    x = torch.randn(n, 6) + shift
    want = (x[:, None].double() - x.double()).square().sum(-1).float()
    D = _squared_distances(x)
    assert torch.allclose(D, want, atol=1e-4, rtol=1e-4) and (D >= 0).all() and (D.diagonal() == 0).all()

def test_unbiased_has_no_bias_and_biased_has():
    torch.manual_seed(0)
    pairs = [[f(gram(torch.randn(12, 3)), gram(torch.randn(12, 3))) for f in (biased_hsic, unbiased_hsic)] for _ in range(300)]
    biased, unbiased = torch.tensor(pairs).T
    assert unbiased.mean().abs() < 4*unbiased.std()/300**.5 and biased.mean() > 10*biased.std()/300**.5

# ---------------------------------------------------------------- gradients

@pytest.mark.parametrize('unbiased', (False, True))
@pytest.mark.parametrize('sigma', (1.3, (2., .8), 'attached'))
def test_gradients_by_finite_differences(unbiased, sigma):
    torch.manual_seed(1)
    x, z = torch.randn(9, 4).double().requires_grad_(), torch.randn(9, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, z: hsic(x, z, sigma, unbiased), (x, z))

@pytest.mark.parametrize('unbiased', (False, True))
def test_gradient_of_the_median_is_that_of_its_value(unbiased):
    torch.manual_seed(1)
    x, z = torch.randn(30, 4), torch.randn(30, 3, requires_grad=True)
    widths = tuple(median_bandwidth(_squared_distances(m)).item() for m in (x, z))
    slopes = [torch.autograd.grad(hsic(x, z, s, unbiased), z)[0] for s in (None, widths)]
    assert torch.allclose(*slopes, atol=1e-8) and slopes[0].abs().max() > 1e-5

def test_equal_rows_leave_the_gradient_finite():
    z = torch.randn(5, 3).repeat(4, 1).requires_grad_()
    for sigma in (None, 'attached', 1.):
        slope, = torch.autograd.grad(hsic(torch.randn(20, 2), z, sigma), z)
        assert slope.isfinite().all()
    constant = torch.ones(20, 3, requires_grad=True)
    for sigma in (None, 'attached'):
        value = hsic(torch.randn(20, 2), constant, sigma)
        assert value == 0 and (torch.autograd.grad(value, constant)[0] == 0).all()

def test_gradient_reaches_every_measured_domain_and_no_other():
    torch.manual_seed(0)
    x, z = torch.randn(50, 4), torch.randn(50, 3, requires_grad=True)
    domains = torch.tensor([7]*20 + [2]*20 + [5]*10)
    found = _domain_hsic(x, z, domains)
    assert isinstance(found, DomainHSIC) and found.skipped == (5,)
    assert found.domains.tolist() == [2, 7] and found.rows.tolist() == [20, 20]
    slope, = torch.autograd.grad(calibration_loss(found.values, beta=.5), z)
    moved = slope.abs().sum(1) > 0
    assert moved[:40].all() and not moved[40:].any()
    for value, d in zip(found.values, (2, 7)): assert torch.equal(value, hsic(x[domains == d], z[domains == d]))

# ---------------------------------------------------------------- never a NaN

@pytest.mark.parametrize('n', (0, 1, 2, 3))
@pytest.mark.parametrize('unbiased', (False, True))
def test_too_few_rows_are_one_sentence(n, unbiased):
    with pytest.raises(ValueError, match=rf'^{n} rows are too few[^.]*\.$'): hsic(torch.randn(n, 3), torch.randn(n, 2), None, unbiased)

@pytest.mark.parametrize('unbiased', (False, True))
@pytest.mark.parametrize('make', (lambda: torch.zeros(4, 3), lambda: torch.full((9, 3), 1e-30), lambda: 1e18*torch.randn(9, 3), lambda: torch.randn(5, 1).repeat(3, 1),
                                  lambda: torch.cat([torch.zeros(30, 2), torch.ones(1, 2)]), lambda: torch.randn(9, 3).bfloat16(), lambda: 1e-18*torch.randn(9, 3)))
def test_odd_inputs_give_numbers(make, unbiased):
    torch.manual_seed(0)
    x = make()
    for sigma in (None, 'attached', 1.):
        for value in (hsic(x, torch.randn(len(x), 2), sigma, unbiased), hsic(x, x, sigma, unbiased)): assert value.isfinite() and -.1 < value < 1

def test_rounding_in_lower_precision_stays_outside():
    x = torch.randn(20, 4).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16): inside = hsic(x, x)
    assert inside.dtype == torch.float32 and torch.equal(inside, hsic(x.float(), x.float()))
    assert hsic(x.double(), x).dtype == torch.float64

@pytest.mark.parametrize('call, words', (
    (lambda x: hsic(x, x[:5]), 'with the same rows'), (lambda x: hsic(x[:, 0], x), 'with the same rows'),
    (lambda x: hsic(x, x*math.nan), '20 of 20 rows hold NaN'), (lambda x: hsic(x, 1e30*x), '20 of 20 rows hold NaN, infinity or numbers too large'), (lambda x: hsic(x, x, 0.), 'positive bandwidth'),
    (lambda x: hsic(x, x, -1), 'positive bandwidth'), (lambda x: hsic(x, x, math.nan), 'positive bandwidth'), (lambda x: hsic(x, x, 'median'), "sigma is 'median'"),
    (lambda x: _domain_hsic(x, x, torch.zeros(3)), '3 domains for 20 rows'), (lambda x: _domain_hsic(x, x, torch.zeros(20), least=3), 'at least 4 rows'),
    (lambda x: calibration_loss([]), '0 domains have a value'), (lambda x: calibration_loss([.1], unbiased=True), 'expected at least 2')))
def test_faults_are_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as found: call(torch.randn(20, 4))
    assert '\n' not in str(found.value)

def test_one_domain_has_variance_zero():
    value = torch.tensor([.3], requires_grad=True)
    loss = calibration_loss(value, beta=2.)
    assert loss.item() == pytest.approx(-.6) and torch.autograd.grad(loss, value)[0].item() == -2

# ---------------------------------------------------------------- what it is for

def test_it_sees_a_circle_and_is_blind_at_sigma_1():
    torch.manual_seed(0)
    t = 2*math.pi*torch.rand(200, 1)
    x, z = t.cos(), t.sin()
    chance = torch.stack([hsic(x, z[torch.randperm(200)]) for _ in range(50)]).max()
    assert hsic(x, z) > 1.5*chance
    wide = torch.randn(40, 768, requires_grad=True)
    value = hsic(wide, wide.detach() @ torch.randn(768, 8), (1., None))
    assert torch.autograd.grad(value, wide)[0].abs().max() == 0

def test_minimising_the_loss_brings_domains_together():
    "With the latents themselves as parameters nothing stands in the way"
    torch.manual_seed(0)
    x, domains = torch.randn(90, 4), torch.arange(3).repeat_interleave(30)
    noise = torch.tensor([.1, 1., 4.])[domains][:, None]
    z = (x + noise*torch.randn(90, 4)).requires_grad_()
    optim, spread = torch.optim.Adam([z], .1), []
    for _ in range(25):
        values = _domain_hsic(x, z, domains, 'attached').values
        spread.append(values.detach().var(correction=0).item())
        loss = calibration_loss(values, beta=0.)
        optim.zero_grad(); loss.backward(); optim.step()
    assert spread[-1] < spread[0]/10
