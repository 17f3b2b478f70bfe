"Whitening: unit variances with ddof 1, a stored fit, and nothing made out of nothing."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from gentok.embed.table import EmbeddingTable
from gentok.embed.whitening import Whitening, principal_axes

def table_of(x):
    return EmbeddingTable(range(len(x)), torch.as_tensor(x), 't')

def correlated(n=60, d=10, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(np.float32)

def numpy_whitening(x, d):
    "The recipe by singular values, as far from the code under test as can be"
    x = x.astype(np.float64) - x.astype(np.float64).mean(0)
    _, s, vt = np.linalg.svd(x, full_matrices=False)
    return x @ vt[:d].T/(s[:d]/np.sqrt(len(x) - 1))

@pytest.mark.parametrize('d', [1, 4, 10])
def test_equal_to_a_numpy_recipe_up_to_signs(d):
    x = correlated()
    z, reference = Whitening(d).fit(table_of(x))(table_of(x)).matrix.numpy(), numpy_whitening(x, d)
    signs = np.sign((z*reference).sum(0))
    np.testing.assert_allclose(z*signs, reference, atol=1e-5)

def test_equal_to_scikit_learn_with_signs():
    x = correlated()
    z = Whitening(6).fit(table_of(x))(table_of(x)).matrix.numpy()
    np.testing.assert_allclose(z, PCA(6, whiten=True, svd_solver='full').fit_transform(x.astype(np.float64)), atol=1e-5)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(.01, 100), st.floats(-50, 50))
def test_columns_are_white_and_scale_and_shift_do_not_matter(seed, d, scale, shift):
    x = correlated(40, 6, seed)
    z = Whitening(d).fit(table_of(x))(table_of(x)).matrix
    torch.testing.assert_close(z.T.cov(correction=1).reshape(d, d), torch.eye(d), atol=1e-3, rtol=0)
    y = Whitening(d).fit(table_of(x*scale))(table_of(x*scale)).matrix
    torch.testing.assert_close(y, z, atol=1e-2, rtol=1e-2)

def test_the_fit_is_stored_and_not_repeated(tmp_path):
    x = correlated(80)
    whitening = Whitening(5).fit(table_of(x[:50]))
    mean = whitening.mean.clone()
    whole = whitening(table_of(x)).matrix
    assert torch.equal(whitening.mean, mean)
    torch.testing.assert_close(whitening(table_of(x[50:])).matrix, whole[50:], atol=1e-6, rtol=0)
    whitening.save(tmp_path)
    assert torch.equal(Whitening.load(tmp_path)(table_of(x)).matrix, whole)
    assert {f.suffix for f in tmp_path.iterdir()} == {'.json', '.safetensors'}

def test_order_of_items_does_not_matter():
    x = correlated()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    a, b = Whitening(6).fit(table_of(x)), Whitening(6).fit(table_of(x[order]))
    torch.testing.assert_close(a(table_of(x)).matrix, b(table_of(x)).matrix, atol=1e-5, rtol=0)

def test_blocks_of_rows_do_not_matter():
    x = torch.from_numpy(correlated())
    whole, parts = principal_axes(x), principal_axes(x, rows=7)
    for a, b in zip(whole, parts): torch.testing.assert_close(a, b)
    w = Whitening(4).fit(table_of(x))
    torch.testing.assert_close(w.apply(x, rows=7), w.apply(x))

@pytest.mark.parametrize('x, d, found', [
    (np.ones((5, 3)), None, 'all the same'), (np.ones((5, 3)), 2, 'all the same'),
    (correlated(4, 10), 4, '3 independent directions'), (correlated(1, 10), 1, 'no spread'),
    (correlated(9, 3), 4, 'at most 3'), (np.repeat(correlated(20, 3), 2, 1), 6, '3 independent directions')])
def test_too_many_directions_are_one_sentence(x, d, found):
    with pytest.raises(ValueError, match=found) as e: Whitening(d).fit(table_of(x))
    assert str(e.value).endswith('.') and '\n' not in str(e.value)

def test_without_dim_all_independent_directions_are_kept():
    assert Whitening().fit(table_of(np.repeat(correlated(20, 3), 2, 1))).dim == 3

def test_misuse_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match='at least 1'): Whitening(0)
    with pytest.raises(ValueError, match='no axes yet'): Whitening(2)(table_of(correlated()))
    with pytest.raises(ValueError, match='nothing to save'): Whitening(2).save(tmp_path)
    with pytest.raises(ValueError, match='another width'): Whitening(2).fit(table_of(correlated()))(table_of(correlated(9, 4)))
    table_of(correlated()).save(tmp_path)
    with pytest.raises(ValueError, match='no whitening'): Whitening.load(tmp_path)
