"Paired tests against scipy, by hand, and on twins whose true difference is zero."
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from gentok.evaluate.significance import (Comparison, compare, _in_chunks, mean_over_seeds, paired_bootstrap,
                                          paired_t_test, sign_flip_test)

every_test = pytest.mark.parametrize('test', [paired_t_test, sign_flip_test, paired_bootstrap, compare])

def values(seed, n=200, lift=0.):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n)
    return torch.as_tensor(shared + rng.normal(size=n) + lift), torch.as_tensor(shared + rng.normal(size=n))

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 300))
def test_t_test_equals_scipy(seed, n):
    a, b = values(seed, n)
    ours, theirs = paired_t_test(a, b), stats.ttest_rel(a.numpy(), b.numpy())
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6)
    interval = theirs.confidence_interval(.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))

def test_sign_flips_equal_all_sign_patterns():
    "Ten users: the 1,024 patterns one by one, against random draws of counts."
    rng = np.random.default_rng(0)
    d = rng.choice([-.5, 0., .5, 1.], size=10, p=[.1, .2, .3, .4])
    exact = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product([-1, 1], repeat=10)])
    assert sign_flip_test(d, np.zeros(10), draws=40_000).p == pytest.approx(exact, abs=.01)

def test_bootstrap_equals_resampling_users():
    "The counts of distinct values against plain resampling, by their quantiles."
    rng = np.random.default_rng(1)
    d = rng.choice([-1., 0., .25, 1.], size=120, p=[.1, .5, .2, .2])
    plain = np.quantile(d[rng.integers(120, size=(20_000, 120))].mean(1), [.025, .975])
    ours = paired_bootstrap(d, np.zeros(120), draws=20_000)
    assert (ours.low, ours.high) == pytest.approx(plain, abs=.01)

@every_test
def test_swapping_mirrors(test):
    a, b = values(0, lift=.1)
    one, two = test(a, b), test(b, a)
    assert one.difference == pytest.approx(-two.difference) and one.p == pytest.approx(two.p, abs=.02)
    assert one.low <= one.difference <= one.high

@every_test
def test_same_run_twice_and_constant_lift(test):
    a, _ = values(1)
    same = test(a, a)
    assert (same.difference, same.low, same.high, same.p) == (0., 0., 0., 1.)
    assert test(torch.ones(100), torch.zeros(100)).p < .001

@every_test
def test_false_alarms_and_sight(test):
    few = dict(draws=300) if test in (sign_flip_test, paired_bootstrap) else {}
    twins = np.mean([test(*values(s, 80), **few).p < .05 for s in range(200)])
    lifted = np.mean([test(*values(s, 80, lift=.8), **few).p < .05 for s in range(50)])
    assert twins <= stats.binom.ppf(.999, 200, .05)/200 and lifted > .95

@pytest.mark.parametrize('test', [sign_flip_test, paired_bootstrap])
def test_seeded(test):
    a, b = values(2)
    assert test(a, b, seed=4) == test(a, b, seed=4) != test(a, b, seed=5)

def test_seeds_are_counted():
    "A seed's luck common to all users: the users alone are sure, the careful test is not."
    rng = np.random.default_rng(0)
    luck = np.array([.3, -.2, .1]), np.array([-.3, .2, -.1])
    a, b = (torch.as_tensor(rng.normal(size=5_000)*.1 + l[:, None]) for l in luck)
    assert paired_t_test(mean_over_seeds(a), mean_over_seeds(b)).p < 1e-6 < .3 < compare(a, b).p
    assert compare(a, b).low < 0 < compare(a, b).high
    assert compare(list(a), list(b)) == compare(a, b)
    assert compare(a[:1], b[:1]) == paired_t_test(a[0], b[0]) and compare(a, b[0]).method == 'paired t-test'

def test_mean_over_seeds_takes_lists_and_one_run():
    runs = [torch.tensor([1., 0.]), torch.tensor([0., 0.])]
    assert mean_over_seeds(runs).tolist() == [.5, 0.] == mean_over_seeds(torch.stack(runs)).tolist()
    assert mean_over_seeds(runs[0]).tolist() == [1., 0.]

def test_chunks_sum_to_draws():
    assert len(_in_chunks(lambda n: np.zeros(n), 1_001, 7, cells=70)) == 1_001
    assert len(_in_chunks(lambda n: np.zeros(n), 5, 0)) == 5

@pytest.mark.parametrize('a, b, words', [
    ([1., 0.], [1., 0., 1.], 'same users'), ([1.], [0.], 'two users'), (torch.tensor(.3), torch.tensor(.2), 'not its mean'),
    ([1., float('nan')], [0., 0.], '1 NaN'), (torch.ones(2, 3), torch.ones(2, 3), 'mean_over_seeds')])
def test_bad_input_is_one_sentence(a, b, words):
    with pytest.raises(ValueError, match=words) as error: paired_t_test(a, b)
    assert '\n' not in str(error.value) and str(error.value).endswith('.')

def test_reads_as_a_sentence():
    text = str(Comparison(-.01, -.03, .01, .3, 4905, .95, 'paired t-test'))
    assert text.startswith('no difference shown, ours is worse by 0.0100') and '4,905 users' in text
