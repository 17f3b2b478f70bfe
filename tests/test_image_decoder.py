"The picture decoder: hidden patches that nobody sees, and no loss without a picture."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gentok.tokenize.image_decoder import ImageDecoder, _hidden_patches
from gentok.tokenize.text_decoder import _BidirectionalLayer

# ---------------------------------------------------------------- what is hidden

@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 30), st.floats(.01, 1.))
def test_so_many_of_each_picture_and_none_of_no_picture(there, p, share):
    there = torch.tensor(there)
    hidden = _hidden_patches(there, p, share, torch.Generator().manual_seed(0))
    counts = hidden.sum(1)
    assert hidden.shape == (len(there), p) and (counts[~there] == 0).all()
    assert (counts[there] >= share*p - 1e-6).all() and (counts[there] < share*p + 1).all() and (share < 1 or hidden[there].all())

def test_every_patch_may_be_hidden_and_pictures_differ():
    hidden = _hidden_patches(torch.ones(2000).bool(), 8, .25, torch.Generator().manual_seed(0)).float()
    assert abs(hidden.mean(0) - .25).max() < .04 and len(hidden.unique(dim=0)) == 28

def test_shares_that_cannot_be():
    there = torch.ones(2).bool()
    for share in (0, -.5, 1.5):
        with pytest.raises(ValueError, match='more than 0, at most 1'): _hidden_patches(there, 4, share)
    with pytest.raises(ValueError, match='torch.Generator'): _hidden_patches(there, 4, .5)

# ---------------------------------------------------------------- the decoder

def made(share=1., seed=0, b=4, p=9):
    decoder, draw = ImageDecoder(_BidirectionalLayer(16, 4, 2), 5, share).double(), torch.Generator().manual_seed(seed)
    for w in decoder.parameters(): w.data = .5*torch.randn(w.shape, generator=draw, dtype=w.dtype)
    states, latents = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((b, 3, 16), (b, p, 5)))
    return decoder, states, latents, torch.tensor([True, False, True, True])

def seeded(): return torch.Generator().manual_seed(7)

@pytest.mark.parametrize('share', [1., .4])
def test_states_first_then_patches_in_raster_order(share):
    decoder, states, latents, there = made(share)
    z, hidden = decoder(states, latents, there, seeded())
    inputs = [[decoder.mask if hidden[i, j] else decoder.patch(latents[i, j]) for j in range(9)] for i in range(4)]
    x = torch.cat([states, torch.stack([torch.stack(row) for row in inputs])], 1)
    assert torch.allclose(z, decoder.layer(x)[:, 3:], atol=1e-12)
    assert torch.equal(hidden, _hidden_patches(there, 9, share, seeded()))

@pytest.mark.parametrize('share', [1., .4])
def test_what_is_hidden_is_not_seen(share):
    decoder, states, latents, there = made(share)
    latents.requires_grad_()
    z, hidden = decoder(states, latents, there, seeded())
    slope, = torch.autograd.grad(z.square().sum(), latents)
    assert not slope[hidden].any() and (slope[~hidden] != 0).all()
    assert not hidden[1].any()
    changed = torch.where(hidden[..., None], 100., latents)
    assert torch.equal(decoder(states, changed, there, seeded()).z, z)

def test_all_have_pictures_by_default():
    decoder, states, latents, _ = made()
    assert decoder(states, latents).hidden.all()

def test_items_do_not_meet():
    decoder, states, latents, there = made()
    z = decoder(states, latents, there).z
    perm = torch.tensor([2, 0, 3, 1])
    out = decoder(states[perm], latents[perm], there[perm])
    assert torch.allclose(out.z, z[perm], atol=1e-12) and torch.equal(out.hidden.any(1), there[perm])

def slopes(decoder, states, latents, there):
    z, hidden = decoder(states, latents, there)
    ((z.square().mean(-1)*hidden).sum()/hidden.sum().clamp(min=1)).backward()
    return {name: p.grad for name, p in decoder.named_parameters()}

def test_nothing_is_learnt_without_a_picture_and_no_parameter_is_left_out():
    decoder, states, latents, there = made()
    found = slopes(decoder, states.requires_grad_(), latents, torch.zeros_like(there))
    assert all(s is not None and not s.any() for s in found.values()) and not states.grad.any()

def test_the_map_of_patches_rests_while_all_are_hidden():
    decoder, states, latents, there = made()
    found = slopes(decoder, states.requires_grad_(), latents, there)
    assert not found['patch.weight'].any() and not found['patch.bias'].any() and found['mask'].any()
    assert states.grad[there].any() and not states.grad[1].any()

def test_hidden_patches_differ_by_their_place():
    decoder, states, latents, _ = made()
    z = decoder(states, latents).z
    assert (z[:, 1:] - z[:, :1]).abs().amax(-1).min() > 1e-3 and (z[0] - z[2]).abs().max() > 1e-3

def test_start():
    torch.manual_seed(0)
    decoder = ImageDecoder(_BidirectionalLayer(512, 4, 2))
    assert decoder.patch.weight.shape == (512, 16) and abs(decoder.mask.std() - .02) < .002
    assert abs(decoder.patch.weight.std() - .02) < .002 and not decoder.patch.bias.any()

def test_saved_and_loaded(tmp_path):
    decoder, states, latents, there = made()
    save_file(decoder.state_dict(), tmp_path/'decoder.safetensors')
    other = made(seed=3)[0]
    other.load_state_dict(load_file(tmp_path/'decoder.safetensors'))
    assert torch.equal(other(states, latents, there).z, decoder(states, latents, there).z)

@pytest.mark.parametrize('states, latents', [((4, 3, 15), (4, 9, 5)), ((3, 3, 16), (4, 9, 5)), ((4, 3, 16), (4, 9, 6))])
def test_sizes_that_do_not_fit(states, latents):
    with pytest.raises(ValueError, match=r'give \(b, l, 16\) and \(b, p, 5\)'): made()[0](torch.randn(states), torch.randn(latents))

def test_half_precision():
    decoder, (states, latents) = ImageDecoder(_BidirectionalLayer(16, 4, 2), 5), torch.randn(2, 4, 6, 16).unbind()
    latents = latents[..., :5]
    z = decoder(states, latents).z
    with torch.autocast('cpu', dtype=torch.bfloat16): mixed = decoder(states, latents).z
    assert (mixed.float() - z).abs().max() < .1
    assert decoder.bfloat16()(states.bfloat16(), latents).z.dtype == torch.bfloat16
