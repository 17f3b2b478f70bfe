"The diffusion loss and the latents: UTGRec's numbers, a second reckoning in numpy, batches without pictures, drawings from states."
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.tokenize.diffusion_loss import (DenoisingNetwork, DiffusionLoss, _draw_rows, _row_losses, ddpm_sample, noise_schedule,
                                            _shade_log_likelihood, _squared_cosine, _tiled, _timestep_embedding, _reverse_scheduler)
from gentok.tokenize.latents import (KLLatents, PixelLatents, _as_picture, _as_pixels, _cropped, _from_patches, _load_kl, _small_kl,
                                     _to_patches)

def normal(seed, *shape): return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
def seeded(seed): return torch.Generator().manual_seed(seed)

def made(c=4, w=8, d=6, depth=2, seed=0, moved=True, **how):
    "A loss whose network says something, and a batch of 3 items of 5 patches"
    torch.manual_seed(seed)
    network = DenoisingNetwork(c, w, d, depth)
    if moved:
        for p in network.parameters(): nn.init.normal_(p, std=.3)
    return DiffusionLoss(network, **how), torch.randn(3, 5, d), torch.randn(3, 5, c)

# ---------------------------------------------------------------- the reference numbers

def test_utgrec_schedule(vectors):
    want = vectors('utgrec')['diffusion_schedule']
    out, s = want['output'], noise_schedule()
    assert len(s.beta) == out['num_timesteps'] and s.beta.dtype == torch.float64
    for name, table in (('betas', s.beta), ('alphas_cumprod', s.signal**2), ('posterior_log_variance_clipped', s.low)):
        for t, value in out[name].items(): assert table[int(t)].item() == pytest.approx(value, rel=1e-9), (name, t)
    assert torch.equal(s.beta, _squared_cosine()) and torch.allclose(s.high, s.beta.log())
    steps = want['sampling_timesteps_100']
    moments = _reverse_scheduler(100).timesteps.tolist()[::-1]
    assert moments[:5] == steps['first'] and moments[-3:] == steps['last'] and len(moments) == 100

def test_utgrec_timestep_embedding(vectors):
    want = torch.tensor(vectors('utgrec')['timestep_embedding']['output'])
    assert torch.allclose(_timestep_embedding(torch.tensor([0, 1, 999]), 8), want, atol=1e-5)

def test_utgrec_network(vectors):
    entry = vectors('utgrec')['diffusion_network']
    network = DenoisingNetwork(4, 8, 6, depth=1)
    assert sum(not p.any() for p in network.parameters()) == entry['zero_initialised_at_construction']
    assert not network(torch.randn(3, 4), torch.arange(3), torch.randn(3, 6)).any()
    weights = entry['input']['weights']
    parts = network.double().of_step[0], network.of_step[2], network.of_state, network.start, network.blocks[0].norm, \
        network.blocks[0].mlp[0], network.blocks[0].mlp[2], network.blocks[0].modulation[1], network.end.out, network.end.modulation[1]
    parameters = [p for part in parts for p in (part.weight, part.bias)]
    assert len(parameters) == len(weights) == len(list(network.parameters()))
    for i, (p, recipe) in enumerate(zip(parameters, weights)):
        assert list(p.shape) == recipe['shape'] and f'default_rng({100 + i})' in recipe['recipe']
        p.data = normal(100 + i, *p.shape)*.3
    out = network(normal(31, 3, 4), torch.tensor([0, 10, 999]), normal(32, 3, 6))
    want = torch.tensor(entry['output'], dtype=torch.float64)
    assert torch.allclose(out, want, rtol=1e-5, atol=1e-5)

def test_the_released_network_has_20_8_million_weights():
    with torch.device('meta'): assert sum(p.numel() for p in DenoisingNetwork().parameters()) == 20_786_208

# ---------------------------------------------------------------- a second reckoning, in numpy and float64

def second_opinion(x0, eps, guess, v, t):
    "Row losses from the equations, with other code: one row at a time, by densities and steps"
    T, f = 1000, lambda u: math.cos((u + .008)/1.008*math.pi/2)**2
    beta = np.array([min(1 - f((i + 1)/T)/f(i/T), .999) for i in range(T)])
    bar = np.cumprod(1 - beta)
    rows = []
    for x, e, g, w, i in zip(x0, eps, guess, v, t):
        a, before = bar[i], bar[i - 1] if i else 1.
        xt = math.sqrt(a)*x + math.sqrt(1 - a)*e
        def back(x): return (beta[i]*math.sqrt(before)*x + (1 - before)*math.sqrt(1 - beta[i])*xt)/(1 - a)
        low = beta[i]*(1 - before)/(1 - a) if i else beta[1]*(1 - bar[0])/(1 - bar[1])
        var = beta[i]**((1 + w)/2)*low**((1 - w)/2)
        mean, true = back((xt - math.sqrt(1 - a)*g)/math.sqrt(a)), back(x)
        if i: nats = .5*(np.log(var/low) + (low + (true - mean)**2)/var - 1)
        else:
            def cdf(z): return .5*(1 + np.tanh(math.sqrt(2/math.pi)*(z + .044715*z**3)))
            above, below = cdf((x - mean + 1/255)/np.sqrt(var)), cdf((x - mean - 1/255)/np.sqrt(var))
            nats = -np.log(np.maximum(np.where(x < -.999, above, np.where(x > .999, 1 - below, above - below)), 1e-12))
        rows.append(((e - g)**2).mean() + nats.mean()/math.log(2))
    return np.array(rows)

@pytest.mark.parametrize('dtype, rtol', [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_row_losses_are_those_of_the_equations(dtype, rtol):
    t = torch.tensor([0, 0, 0, 0, 1, 2, 10, 100, 250, 500, 750, 900, 998, 999])
    x0, eps, guess, v = (normal(seed, len(t), 6) for seed in range(4))
    x0[1], guess = x0[1]*.1, eps + .3*guess  # t = 0 with x inside, too
    out = _row_losses(lambda x, t, z: torch.cat([guess, v], -1), x0.to(dtype), t, None, eps.to(dtype))
    want = second_opinion(*(a.numpy() for a in (x0, eps, guess, v)), t.tolist())
    assert out.error.dtype == dtype and torch.allclose((out.error + out.bits).double(), torch.from_numpy(want), rtol=rtol, atol=rtol)

def test_what_the_network_is_asked():
    "It sees the noisy latents, the step of each row, and its state"
    seen, (x0, eps), t = [], normal(0, 2, 4, 3).float(), torch.tensor([0, 3, 500, 999])
    def network(x, t, z): return seen.append((x, t, z)) or torch.zeros(4, 6)
    _row_losses(network, x0, t, 'states', eps)
    bar = noise_schedule().signal[t, None]**2
    assert torch.allclose(seen[0][0].double(), bar.sqrt()*x0 + (1 - bar).sqrt()*eps, atol=1e-6) and seen[0][1] is t and seen[0][2] == 'states'

def test_the_mean_is_detached_and_each_term_teaches_its_half():
    said = torch.randn(6, 8, requires_grad=True)
    out = _row_losses(lambda x, t, z: said, torch.randn(6, 4), torch.tensor([0, 1, 5, 400, 998, 999]), None, torch.randn(6, 4))
    error, bits = (torch.autograd.grad(part.sum(), said, retain_graph=True)[0] for part in out)
    assert error[:, :4].all() and not error[:, 4:].any()
    assert bits[:-2, 4:].any(1).all() and not bits[:, :4].any() and bits.isfinite().all()

@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.floats(-4, 1))
def test_shades_have_all_the_probability(mean, log_scale):
    shades = torch.linspace(-1, 1, 256, dtype=torch.float64)
    p = _shade_log_likelihood(shades, torch.full_like(shades, mean), torch.full_like(shades, log_scale)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)

# ---------------------------------------------------------------- repeats, masks, randomness

def test_all_patches_are_repeated_as_one_list():
    x = normal(0, 2, 3, 4)
    assert np.array_equal(_tiled(x, 4).numpy(), np.tile(x.numpy().reshape(6, 4), (4, 1)))
    assert _tiled(x[..., 0], 4).tolist() == x[..., 0].flatten().tolist()*4
    loss, z, x = made()
    t, eps = _draw_rows(60, 4, x, seeded(0))
    one_by_one = []
    for n in range(60):
        i, j = n % 15//5, n % 5
        rows = _row_losses(loss.network, x[i, j][None], t[n:n+1], z[i, j][None], eps[n:n+1])
        one_by_one.append(rows.error + rows.bits)
    assert torch.allclose(loss(z, x, t=t, epsilon=eps), torch.cat(one_by_one).mean(), rtol=1e-5)

@pytest.mark.parametrize('kind', [torch.bool, torch.float32, torch.long])
def test_masked_mean(kind):
    loss, z, x = made(repeats=2)
    mask = torch.zeros(3, 5).bernoulli(.5, generator=seeded(1))
    t, eps = _draw_rows(30, 4, x, seeded(0))
    rows = _row_losses(loss.network, _tiled(x, 2), t, _tiled(z, 2), eps)
    weight = _tiled(mask, 2)
    assert torch.allclose(loss(z, x, mask.to(kind), t=t, epsilon=eps), (weight*(rows.error + rows.bits)).sum()/weight.sum(), rtol=1e-5)
    assert torch.equal(loss(z, x, torch.ones(3, 5, dtype=kind), t=t, epsilon=eps), loss(z, x, t=t, epsilon=eps))

def test_a_batch_without_pictures_costs_nothing_and_is_no_fault():
    loss, z, x = made()
    z.requires_grad_()
    out = loss(z, x, torch.zeros(3, 5, dtype=torch.bool), seeded(0))
    assert out.item() == 0 and out.requires_grad
    (out + 0*z.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in [z, *loss.parameters()])
    optim = torch.optim.AdamW(loss.parameters(), .1, weight_decay=0)
    optim.step()
    assert all(p.isfinite().all() for p in loss.parameters())

def test_what_is_masked_does_not_matter():
    loss, z, x = made()
    mask = torch.tensor([True, False, True])[:, None].expand(3, 5)
    spoilt = [a.masked_fill(~mask[..., None], bad) for a, bad in ((z, torch.nan), (x, torch.inf))]
    for a in spoilt: a.requires_grad_()
    out = loss(*spoilt, mask, seeded(0))
    assert torch.equal(out, loss(z, x, mask, seeded(0)))
    out.backward()
    assert spoilt[0].grad.isfinite().all() and spoilt[0].grad[[0, 2]].any() and not spoilt[0].grad[1].any()

def test_the_batch_may_be_permuted():
    loss, z, x = made()
    mask, order = torch.rand(3, 5, generator=seeded(0)) < .6, torch.tensor([2, 0, 1])
    t, eps = _draw_rows(60, 4, x, seeded(0))
    moved = torch.arange(60).view(4, 3, 5)[:, order].flatten()
    assert torch.allclose(loss(z, x, mask, t=t, epsilon=eps), loss(z[order], x[order], mask[order], t=t[moved], epsilon=eps[moved]), rtol=1e-6)

def test_a_seed_is_all_there_is_to_chance():
    loss, z, x = made()
    state = torch.get_rng_state()
    a, b, c = loss(z, x, None, seeded(0)), loss(z, x, None, seeded(0)), loss(z, x, None, seeded(1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(loss(z, x), loss(z, x))
    t, eps = _draw_rows(200_000, 1, x, seeded(0))
    counts = torch.bincount(t, minlength=1000)
    assert len(counts) == 1000 and 120 < counts.min() and counts.max() < 280 and abs(eps.mean()) < .01 and abs(eps.std() - 1) < .01

def test_no_gradient_reaches_a_decoder_in_the_very_first_step():
    loss, z, x = made(moved=False)
    z.requires_grad_()
    optim, moved = torch.optim.SGD(loss.parameters(), .1), []
    for step in range(3):
        z.grad = None
        loss(z, x, None, seeded(step)).backward()
        moved.append(bool(z.grad.any()))
        optim.step(), optim.zero_grad()
    assert not moved[0] and moved[-1]

def test_half_precision_and_autocast_reckon_in_float32():
    loss, z, x = made()
    full = loss(z, x, None, seeded(0))
    with torch.autocast('cpu', dtype=torch.bfloat16): inside = loss(z, x, None, seeded(0))
    half = loss.bfloat16()(z.bfloat16(), x, None, seeded(0))
    assert full.dtype == inside.dtype == half.dtype == torch.float32
    assert torch.allclose(inside, full, rtol=.1) and torch.allclose(half, full, rtol=.1)
    assert ddpm_sample(loss.network, z.bfloat16(), 3, seeded(0)).dtype == torch.float32

def test_tables_that_evaluation_asked_for_first_serve_training_too():
    noise_schedule.cache_clear()
    loss, z, x = made()
    with torch.inference_mode(): loss(z, x, None, seeded(0))
    with torch.device('meta'): noise_schedule(1000, torch.float32)
    loss(z, x, None, seeded(0)).backward()
    assert not noise_schedule(1000, torch.float32).beta.is_inference()

def test_save_and_load(tmp_path):
    loss, z, x = made()
    save_file(loss.state_dict(), tmp_path/'loss.safetensors')
    other = made(seed=5)[0]
    other.load_state_dict(load_file(tmp_path/'loss.safetensors'))
    assert torch.equal(other(z, x, None, seeded(0)), loss(z, x, None, seeded(0)))
    assert torch.equal(ddpm_sample(other.network, z, 5, seeded(0)), ddpm_sample(loss.network, z, 5, seeded(0)))

# ---------------------------------------------------------------- drawing

def by_hand(network, z, steps, generator, clip):
    "Ancestral sampling over a respaced schedule, in float64, with betas of its own"
    bar = np.cumprod(1 - _squared_cosine().numpy())
    moments = np.linspace(0, 999, steps).round().astype(int)
    kept = bar[moments]
    before = np.append(1., kept[:-1])
    beta = 1 - kept/before
    x = _draw_rows(len(z), network.channels, torch.zeros(1), generator).epsilon.double()
    for i in reversed(range(steps)):
        with torch.no_grad(): guess, v = network(x.float(), torch.full((len(x),), int(moments[i])), z).double().chunk(2, -1)
        x0 = (x - math.sqrt(1 - kept[i])*guess)/math.sqrt(kept[i])
        if clip: x0 = x0.clamp(-clip, clip)
        x = (beta[i]*math.sqrt(before[i])*x0 + (1 - before[i])*math.sqrt(1 - beta[i])*x)/(1 - kept[i])
        if i:
            low = math.log(beta[i]*(1 - before[i])/(1 - kept[i]))
            scatter = ((v + 1)/2*math.log(beta[i]) + (1 - v)/2*low).div(2).exp()
            x = x + scatter*torch.randn(x.shape, generator=generator)
    return x

@pytest.mark.parametrize('steps, clip', [(7, 1.), (100, 1.), (20, 3.)])
def test_sampling_is_ancestral_with_the_learnt_width(steps, clip):
    loss, z, _ = made()
    for p in loss.network.end.out.parameters(): p.data *= .2
    out = ddpm_sample(loss.network, z, steps, seeded(3), clip)
    assert out.shape == (3, 5, 4) and torch.allclose(out.flatten(0, 1).double(), by_hand(loss.network, z.flatten(0, 1), steps, seeded(3), clip), atol=2e-3)

def test_who_knows_the_distribution_draws_from_it():
    "Latents that are Gaussian have a best guess in closed form; what it draws has their mean and their width"
    mean, sd = .4, .3
    def exact(x, t, z):
        s = noise_schedule(1000, x.dtype).at(t)
        guess = s.noise*(x - s.signal*mean)/(s.signal**2*sd**2 + s.noise**2)
        return torch.cat([guess, torch.zeros_like(guess)], -1)
    exact.channels = 2
    x = ddpm_sample(exact, torch.zeros(1, 4000, 1), 250, seeded(0))
    assert abs(x.mean() - mean) < .02 and abs(x.std() - sd) < .02

def test_one_seed_one_drawing():
    loss, z, _ = made(w=8)
    state = torch.get_rng_state()
    a, b = ddpm_sample(loss.network, z, 5, seeded(0), 1.), ddpm_sample(loss.network, z, 5, seeded(0), 1.)
    assert torch.equal(a, b) and not a.requires_grad and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(a, ddpm_sample(loss.network, z, 5, seeded(1), 1.))

def test_learning_separates_two_states():
    torch.manual_seed(0)
    x = torch.stack([torch.full((4, 3), -.7), torch.full((4, 3), .7)])
    z, loss = nn.Parameter(torch.randn(2, 4, 6)), DiffusionLoss(DenoisingNetwork(3, 32, 6, depth=1))
    optim, random, curve = torch.optim.Adam([z, *loss.parameters()], 5e-3), seeded(0), []
    for _ in range(250):
        now = loss(z, x, None, random)
        optim.zero_grad(), now.backward(), optim.step()
        curve.append(now.item())
    drawn = ddpm_sample(loss.network, z, 50, seeded(1), 1.)
    assert np.mean(curve[-20:]) < .3*np.mean(curve[:20]) and (drawn - x).abs().mean() < .15

# ---------------------------------------------------------------- latents

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_patches_in_reading_order_and_back(b, k, rows, columns, q):
    x = torch.randn(b, k, rows*q, columns*q)
    cut = _to_patches(x, q)
    a = np.einsum('nchpwq->nhwcpq', x.numpy().reshape(b, k, rows, q, columns, q)).reshape(b, rows*columns, k*q*q)
    assert np.array_equal(cut.numpy(), a) and torch.equal(_from_patches(cut, q, columns), x)

def test_patches_of_one_are_the_raster():
    x = normal(0, 2, 16, 16, 16)
    assert torch.equal(_to_patches(x), x.flatten(2).transpose(1, 2)) and torch.equal(_from_patches(_to_patches(x)), x)

@pytest.mark.parametrize('size', [(64, 64), (200, 70), (33, 130), (9, 20), (16, 16), (17, 16)])
def test_crops_keep_the_middle(size):
    yes = Image.new('RGB', size, (10, 200, 30))
    assert _cropped(yes, 16).size == (16, 16) and set(_cropped(yes, 16).getdata()) == {(10, 200, 30)}
    half = Image.new('L', size)
    half.paste(255, (size[0]//2, 0, *size))
    middle = np.asarray(_cropped(half, 16))[8, :, 0]
    assert middle[:6].max() < 80 and middle[10:].min() > 175

@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK'])
def test_every_mode_becomes_numbers_in_range(mode):
    x = _as_pixels(Image.new(mode, (7, 5)), 4)
    assert x.shape == (3, 4, 4) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert np.array_equal(np.asarray(_as_picture(x)), np.asarray(_cropped(Image.new(mode, (7, 5)), 4)))

def pictures(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (int(rng.integers(20, 70)), int(rng.integers(20, 70)), 3), dtype=np.uint8)) for _ in range(n)]

@pytest.fixture(scope='module')
def kl(): return _small_kl()

def ways(kl): return PixelLatents(16, 4), KLLatents(kl, size=32), KLLatents(kl, size=32, patch=2)

def test_missing_pictures_are_zero_images_and_masked(kl):
    images = [pictures()[0], None, pictures()[1]]
    for way in ways(kl):
        x, mask = way.latents(images), way.mask(images)
        assert x.shape == (3, way.patches, way.channels) and mask.dtype == torch.bool and mask.shape == x.shape[:2]
        assert mask.all(1).tolist() == [True, False, True] and mask.any(1).tolist() == [True, False, True]
        assert not way.pixels(images)[1].any() and torch.allclose(x[1], way.latents([None])[0], atol=1e-6)
        assert way.latents([]).shape == (0, way.patches, way.channels) and way.mask([]).shape == (0, way.patches)
        assert len(way.pictures(x)) == 3 and way.pictures(x[:0]) == []

def test_pixels_there_and_back():
    way = PixelLatents(16, 4)
    for p, q in zip(pictures(), way.pictures(way.latents(pictures()))): assert np.array_equal(np.asarray(_cropped(p, 16)), np.asarray(q))

def test_chance_is_for_training_and_has_a_seed(kl):
    images = pictures(6)
    for way in ways(kl):
        assert torch.equal(way.latents(images), way.latents(images))
        assert torch.equal(way.latents(images, seeded(0)), way.latents(images, seeded(0))) and not torch.equal(way.latents(images, seeded(0)), way.latents(images))
    plain = KLLatents(kl, size=32, flip=False, mean=True)
    assert torch.equal(plain.latents(images, seeded(0)), plain.latents(images))
    both = PixelLatents(16, 4)
    seen = {tuple((both.latents(images, seeded(s)) == both.latents(images)).all((1, 2)).tolist()) for s in range(8)}
    assert len(seen) > 3

def test_an_autoencoder_of_a_folder_is_that_of_the_model(kl, tmp_path):
    kl.save_pretrained(tmp_path)
    a, b = KLLatents(tmp_path, size=32), KLLatents(kl, size=32)
    x = a.latents(pictures())
    assert torch.equal(x, b.latents(pictures())) and (a.patches, a.channels) == (64, 4) and not x.requires_grad
    dist = kl.encode(b.pixels(pictures())).latent_dist
    assert torch.allclose(x, _to_patches(dist.mean)*.2325, atol=1e-6)
    assert torch.allclose(KLLatents(kl, 1., size=32).latents(pictures())*.2325, x, atol=1e-6)
    back = kl.decode(dist.mean).sample
    assert all(np.abs(np.asarray(p).astype(int) - np.asarray(_as_picture(y))).max() <= 1 for p, y in zip(a.pictures(x), back))

def test_a_damaged_autoencoder_is_refused(kl, tmp_path):
    kl.save_pretrained(tmp_path)
    file = tmp_path/'diffusion_pytorch_model.safetensors'
    tensors = load_file(file)
    lost = tensors.pop('encoder.conv_in.weight')
    save_file(tensors, file, {'format': 'pt'})
    with pytest.raises(ValueError, match=r'lacks 1 weights, encoder.conv_in.weight for one; copy the autoencoder again\.$'): _load_kl(tmp_path)
    save_file(tensors | {'encoder.conv_in.weight': lost[:4].clone()}, file, {'format': 'pt'})
    with pytest.raises(ValueError, match='copy it again|copy the autoencoder again'): _load_kl(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match='holds no AutoencoderKL'): _load_kl(tmp_path)

def test_a_small_autoencoder_leaves_the_global_dice_alone():
    state = torch.get_rng_state()
    a, b = _small_kl(seed=3), _small_kl(seed=3)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(a.encoder.conv_in.weight, b.encoder.conv_in.weight)

# ---------------------------------------------------------------- what is refused

def test_without_diffusers_pixels_still_train_and_the_rest_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    loss, z, x = made()
    assert loss(z, x, None, seeded(0)).isfinite() and PixelLatents(16).latents(pictures()).shape == (4, 16, 48)
    for call in (lambda: ddpm_sample(loss.network, z), _small_kl):
        with pytest.raises(ImportError, match=r"needs the package diffusers, .* pip install 'gentok\[multimodal\]'\.$"): call()

def test_faults_are_sentences(kl):
    loss, z, x = made()
    t, eps = _draw_rows(60, 4, x)
    for call, words in ((lambda: loss(z, x[:2]), r'give \(b, p, 6\), \(b, p, 4\)'), (lambda: loss(z[..., :5], x), r'give \(b, p, 6\)'),
                        (lambda: loss(z[0], x[0]), r'give \(b, p, 6\)'), (lambda: loss(z, x, torch.ones(3)), 'mask are .*give'),
                        (lambda: loss(z, x, t=t[:15], epsilon=eps), r'give \(60\) and \(60, 4\)'), (lambda: loss(z, x, t=t, epsilon=eps[:1]), r'give \(60\) and \(60, 4\)'),
                        (lambda: DiffusionLoss(loss.network, 0), 'repeats is 0'), (lambda: ddpm_sample(loss.network, z, 1), 'give 2 to 1000'),
                        (lambda: ddpm_sample(loss.network, z, 1001), 'give 2 to 1000'), (lambda: _timestep_embedding(t, 7), 'dim is 7'),
                        (lambda: _to_patches(torch.zeros(1, 3, 9, 8), 4), 'both multiples of 4'), (lambda: _from_patches(torch.zeros(1, 6, 4), 2), 'fill no 2 × 2'),
                        (lambda: _from_patches(torch.zeros(1, 4, 5), 2), 'fill no 2 × 2'), (lambda: PixelLatents(30, 4), 'patches of 4'),
                        (lambda: KLLatents(kl, size=30), 'multiple of 4'), (lambda: KLLatents('no/such/folder'), 'no folder here'),
                        (lambda: PixelLatents(16).latents(['a.png']), 'row 0 is a str')):
        with pytest.raises(ValueError, match=words) as e: call()
        assert '\n' not in str(e.value) and str(e.value).endswith('.')
