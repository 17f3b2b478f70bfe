"The RQ-VAE: killed and continued, saved and read, shuffled, starved of items, and held to the reference architecture."
import json, os, random, signal, subprocess, sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from gentok.store.checkpoints import _checkpoint_paths
from gentok.embed.table import EmbeddingTable
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig, _Scaler, _Whitener, _kept_epochs, _mlp
from gentok.tokenize.tokenizer import RandomTokenizer, ResidualKMeans, Tokenizer, random_codes, residual_variance

small = RQVAEConfig(hidden=(24, 16), latent=8, levels=3, K=8)
quick = FitConfig(epochs=12, batch_size=50, every=6, measure=3)

def cloud(n=100, dim=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(9, dim, generator=draw)
    return centres[torch.randint(9, (n,), generator=draw)] + .3*torch.randn(n, dim, generator=draw)

def table(n=100, dim=12, seed=0): return EmbeddingTable([f'i{r}' for r in range(n)], cloud(n, dim, seed), 'cloud')

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

kinds = {'tiger': small, 'ema': replace(small, update='ema'),
         'tiger++': replace(small, update='ema', whiten=6), 'attached': replace(small, attached=True, revive=False),
         'uneven': replace(small, K=(16, 4, 2)), 'one scale': replace(small, whiten=0)}

# --- the network

def test_reference_architecture(vectors):
    reference = vectors('mtgrec')['rqvae_architecture']['output']
    model = RQVAE(RQVAEConfig(hidden=(2048, 1024, 512, 256), latent=128, update='ema', whiten=128))
    model.build(768)
    plain = lambda layers: [x for x in layers if not x.startswith('Dropout')]
    assert [repr(m) for m in model.encoder] == plain(reference['encoder'])
    assert [repr(m) for m in model.decoder] == plain(reference['decoder'])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == reference['trainable']
    assert sum(b.weight.numel() for b in model.quantizer.codebooks) == reference['codebook_parameters_not_trainable']

def test_widths_of_tiger():
    model = RQVAE()
    model.build(768)
    assert [m.out_features for m in model.encoder if isinstance(m, nn.Linear)] == [512, 256, 128, 32]
    assert [m.out_features for m in model.decoder if isinstance(m, nn.Linear)] == [128, 256, 512, 768]
    assert model.sizes == (256, 256, 256)

def test_loss_is_reconstruction_plus_quantisation():
    model, x = RQVAE(small), cloud()
    model.build(12); model.start(x); model.eval()
    z, terms = model.encoder(x), model.losses(x, torch.arange(100))
    r, levels, total = z, [], 0.
    for book in model.quantizer.codebooks:
        e = book.weight[torch.cdist(r, book.weight).argmin(1)]
        levels.append(1.25*(r - e).square().mean()); r, total = r - e, total + e
    torch.testing.assert_close(terms['quantisation'], torch.stack(levels).mean())
    torch.testing.assert_close(terms['reconstruction'], (model.decoder(total) - x).square().mean())

def test_reconstruction_gradient_passes_once():
    model, x = RQVAE(small), cloud()
    model.build(12); model.start(x); model.eval()
    z = model.encoder(x).detach().requires_grad_()
    latent = model.quantizer(z).vectors
    seen = torch.autograd.grad((model.decoder(latent) - x).square().mean(), z)[0]
    point = latent.detach().requires_grad_()
    straight = torch.autograd.grad((model.decoder(point) - x).square().mean(), point)[0]
    torch.testing.assert_close(seen, straight)

@pytest.mark.parametrize('attached', (False, True))
def test_deeper_commitment_reaches_the_encoder_only_if_attached(attached):
    model, x = RQVAE(replace(small, attached=attached)), cloud()
    model.build(12); model.start(x)
    model.quantizer.codebooks[0].beta = 0.
    model.quantizer(model.encoder(x)).loss.backward()
    norm = sum(p.grad.abs().sum() for p in model.encoder.parameters() if p.grad is not None)
    assert bool(norm > 0) == attached

# --- fitting

@pytest.mark.parametrize('kind', kinds)
def test_fit_learns_and_the_loss_falls(kind):
    model = RQVAE(kinds[kind], replace(quick, epochs=60, measure=0, lr=3e-3)).fit(table())
    recon = [r['reconstruction'] for r in model.history]
    assert recon[-1] < .7*recon[0]
    assert [r['epoch'] for r in model.history] == list(range(1, 61))
    assert model.encode(table()).shape == (100, 3) and not model.training
    if kind != 'uneven': assert residual_variance(model, table())[-1] < .6

@pytest.mark.parametrize('kind', kinds)
def test_same_seed_same_codes(kind):
    state = torch.random.get_rng_state()
    one = RQVAE(kinds[kind], quick).fit(table())
    torch.rand(7)
    two = RQVAE(kinds[kind], quick).fit(table())
    assert same(one, two) and torch.equal(one.encode(table()), two.encode(table()))
    other = RQVAE(replace(kinds[kind], seed=1), quick).fit(table())
    assert not same(one, other)
    torch.random.set_rng_state(state)

def test_fit_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5); expected = torch.rand(3)
    torch.manual_seed(5); RQVAE(small, quick).fit(table())
    assert torch.equal(torch.rand(3), expected)

def test_fit_again_begins_anew():
    model = RQVAE(small, quick).fit(table(seed=1))
    assert same(model.fit(table()), RQVAE(small, quick).fit(table()))
    assert len(model.history) == quick.epochs

@pytest.mark.parametrize('n', (1, 2, 5))
def test_fewer_items_than_codes(n):
    model = RQVAE(small, quick).fit(table(n))
    assert model.encode(table(n)).shape == (n, 3)
    assert ResidualKMeans(levels=3, K=8).fit(table(n)).health(table(n)).collision_rate == 0

def test_lowest_collisions_are_selected(tmp_path):
    c = replace(quick, epochs=30, measure=2, select='collisions', lr=1e-2)
    model = RQVAE(small, c).fit(table(), tmp_path)
    rates = [r['collisions'] for r in model.history if 'collisions' in r]
    assert model.health(table()).collision_rate == pytest.approx(min(rates))
    assert same(model, RQVAE(small, c).fit(table()))
    assert same(model, RQVAE(small, c).fit(table(), tmp_path))

@pytest.mark.parametrize('optimizer', ('adamw', 'adagrad'))
def test_optimizers(optimizer, tmp_path):
    c = replace(quick, optimizer=optimizer, lr=1e-2)
    RQVAE(small, replace(c, epochs=5)).fit(table(), tmp_path)
    assert same(RQVAE(small, c).fit(table(), tmp_path), RQVAE(small, c).fit(table()))

# --- going on

@pytest.mark.parametrize('kind', ('tiger', 'tiger++', 'uneven'))
def test_continued_equals_uninterrupted(kind, tmp_path):
    c = replace(quick, every=20)
    straight = RQVAE(kinds[kind], replace(c, epochs=40)).fit(table())  # more steps than the revival's patience
    for epochs in (3, 30, 40): model = RQVAE(kinds[kind], replace(c, epochs=epochs)).fit(table(), tmp_path)
    assert same(straight, model) and straight.history == model.history
    assert json.loads((tmp_path/'history.json').read_text()) == model.history

def test_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    model, again = RQVAE(small, quick).fit(table(), tmp_path), RQVAE(small, quick)
    monkeypatch.setattr(RQVAE, 'train_epoch', lambda *args: pytest.fail('trained again'))
    assert same(again.fit(table(), tmp_path), model)

def test_damaged_checkpoint_falls_back(tmp_path):
    RQVAE(small, replace(quick, epochs=9)).fit(table(), tmp_path)
    newest = _checkpoint_paths(tmp_path/'training')[-1]/'tensors.safetensors'
    data = bytearray(newest.read_bytes()); data[-3] ^= 1; newest.write_bytes(data)
    with pytest.warns(UserWarning, match='step-0000000009 is damaged'): model = RQVAE(small, quick).fit(table(), tmp_path)
    assert same(model, RQVAE(small, quick).fit(table()))

def test_all_checkpoints_damaged_starts_over(tmp_path):
    RQVAE(small, replace(quick, epochs=9)).fit(table(), tmp_path)
    for path in _checkpoint_paths(tmp_path/'training'): (path/'tensors.safetensors').write_bytes(b'')
    with pytest.warns(UserWarning, match='damaged'): model = RQVAE(small, quick).fit(table(), tmp_path)
    assert same(model, RQVAE(small, quick).fit(table()))

@pytest.mark.parametrize('change, said', [
    (dict(config=replace(small, beta=.5)), 'a run with beta = 0.25, and this one has 0.5'),
    (dict(fit_config=replace(quick, lr=.01)), 'a run with lr = 0.001, and this one has 0.01'),
    (dict(table=table(99)), "a run with data = '100 items"),
    (dict(fit_config=replace(quick, epochs=6)), 'a run of 12 epochs and 6 were asked for')])
def test_another_run_is_not_continued(change, said, tmp_path):
    RQVAE(small, quick).fit(table(), tmp_path)
    before = (tmp_path/'model.safetensors').read_bytes()
    with pytest.raises(ValueError, match=said):
        RQVAE(change.get('config', small), change.get('fit_config', quick)).fit(change.get('table', table()), tmp_path)
    assert (tmp_path/'model.safetensors').read_bytes() == before

def test_kept_epochs_are_those_of_the_straight_run(tmp_path):
    c = replace(quick, keep_last=3, save_at=(2, 5))
    RQVAE(small, replace(c, epochs=6, keep_last=0)).fit(table(), tmp_path)
    RQVAE(small, c).fit(table(), tmp_path)
    assert list(_kept_epochs(tmp_path)) == [2, 5, 10, 11, 12]
    for epoch, path in _kept_epochs(tmp_path).items():
        assert same(RQVAE.from_pretrained(path), RQVAE(small, replace(c, epochs=epoch)).fit(table()))

program = '''
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_rqvae import RQVAE, FitConfig, kinds, table
c = FitConfig(epochs=120, batch_size=50, every=10, keep_last=5, measure=9, select='collisions')
RQVAE(kinds[sys.argv[2]], c).fit(table(), sys.argv[3])
'''

@pytest.mark.parametrize('kind, moments', [('tiger', (1,)), ('tiger++', (6,))])
def test_killed_at_any_moment_ends_with_the_same_weights(kind, moments, tmp_path):
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, '-c', program, here, kind, str(tmp_path)]
    chance, lines = random.Random(), []
    for moment in moments:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
            for line in run.stderr:
                lines.append(line)
                if line.startswith(f'epoch {12*moment}/'): break
            try: run.wait(chance.random()*.1)
            except subprocess.TimeoutExpired: pass
            run.send_signal(signal.SIGKILL)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, ''.join(lines) + done.stderr
    model = RQVAE.from_pretrained(tmp_path)
    assert same(model, RQVAE(model.config, model.fit_config).fit(table()))
    assert len(_kept_epochs(tmp_path)) == 5

# --- encoding

@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)), st.integers(1, 31))
def test_the_order_of_items_and_the_batch_do_not_matter(order, batch):
    model, t = fitted(), table(30, seed=3)
    codes = model.encode(t)
    assert torch.equal(model.encode(t[torch.tensor(order)], batch=batch), codes[torch.tensor(order)])

cache = {}
def fitted():
    if not cache: cache['model'] = RQVAE(kinds['tiger++'], quick).fit(table())
    return cache['model']

def test_unseen_items_and_a_single_one():
    fresh = table(40, seed=0)
    codes = fitted().encode(EmbeddingTable([f'new{r}' for r in range(40)], fresh.matrix, 'cloud'))
    assert torch.equal(codes, fitted().encode(fresh))
    assert torch.equal(fitted().encode(fresh[5]), codes[5:6])
    assert fitted().encode(fresh[[]]).shape == (0, 3)

def test_a_vector_is_coded_by_its_nearest_codewords():
    model, x = RQVAE(small, quick).fit(table()), cloud(20, seed=4)
    r = model.encoder(x).detach()
    for l, book in enumerate(model.quantizer.codebooks):
        code = (r[:, None] - book.weight[None].detach()).square().sum(-1).argmin(1)
        assert torch.equal(model.encode(x)[:, l], code)
        r = r - book.weight[code].detach()

def test_encode_keeps_the_mode_and_changes_nothing():
    model = RQVAE(kinds['ema'], quick).fit(table())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train(); model.encode(table()); assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

def test_one_scale_and_back():
    x = 1e3 + 1e-2*cloud(50)
    s = _Scaler(12).fit(x)
    torch.testing.assert_close(s(x).square().mean(), torch.tensor(1.), atol=1e-3, rtol=0)
    torch.testing.assert_close(s.inverse(s(x)), x)
    with pytest.raises(ValueError, match='all the same'): _Scaler(12).fit(x[:1].expand(9, -1))

def test_the_scale_of_a_table_changes_no_code():
    model, louder = (RQVAE(RQVAEConfig(hidden=(16,), latent=8, levels=2, K=8, whiten=0), quick) for _ in range(2))
    assert torch.equal(model.fit(cloud(50)).encode(cloud(50)), louder.fit(8*cloud(50)).encode(8*cloud(50)))
    torch.testing.assert_close(8*model.decode(model.encode(cloud(50))), louder.decode(model.encode(cloud(50))), atol=1e-3, rtol=1e-3)

def test_whitening_and_back():
    x = cloud(50)
    w = _Whitener(12, 12).fit(x)
    torch.testing.assert_close(w(x).T.cov(), torch.eye(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(w.inverse(w(x)), x, atol=1e-4, rtol=0)

# --- files

@pytest.mark.parametrize('kind', kinds)
def test_saved_and_read(kind, tmp_path):
    model = RQVAE(kinds[kind], quick).fit(table())
    model.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert type(again) is RQVAE and same(model, again)
    assert (again.config, again.fit_config) == (model.config, model.fit_config)
    assert torch.equal(again.encode(table()), model.encode(table()))
    assert torch.equal(again.decode(model.encode(table())), model.decode(model.encode(table())))
    assert not list(tmp_path.glob('*.pkl')) + list(tmp_path.glob('*.bin'))

def test_class_is_found_in_a_fresh_process(tmp_path):
    RQVAE(small, quick).fit(table(), tmp_path)
    line = f'from gentok.tokenize.tokenizer import Tokenizer; print(Tokenizer.from_pretrained({str(tmp_path)!r}))'
    done = subprocess.run([sys.executable, '-c', line], capture_output=True, text=True)
    assert done.stdout.strip() == "RQVAE(12 numbers -> 8 × 8 × 8 codes, fitted on 'cloud')", done.stderr

def edited(folder, **changes):
    from gentok.store.files import read_folder, write_folder
    config, tensors = read_folder(folder)
    write_folder(folder, {**config, **changes}, tensors)

@pytest.mark.parametrize('changes, said', [
    (dict(dim=13), r'decoder.4.bias of shape \(12,\), config.json asks for \(13,\)'),
    (dict(tokenizer='Gone'), 'holds a Gone, which no imported module defines'),
    (dict(settings=dict(config=dict(colour=3), fit_config={})), 'colour'),
    (dict(settings=3), 'settings')])
def test_folders_that_do_not_fit(changes, said, tmp_path):
    RQVAE(small, quick).fit(table()).save_pretrained(tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=said): Tokenizer.from_pretrained(tmp_path)

def test_a_folder_of_another_kind(tmp_path):
    ResidualKMeans(levels=2, K=4).fit(table()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='holds a ResidualKMeans, expected a RQVAE'): RQVAE.from_pretrained(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)): RQVAE.from_pretrained(tmp_path/'nowhere')

# --- what a user may do wrong

def test_nan_and_other_misfits_are_refused(tmp_path):
    x = cloud(); x[3, 2] = float('nan')
    with pytest.raises(ValueError, match='NaN'): RQVAE(small, quick).fit(x, tmp_path/'out')
    assert not (tmp_path/'out').exists()
    with pytest.raises(ValueError, match='NaN'): fitted().encode(x)
    with pytest.raises(ValueError, match='fitted on vectors of 12 numbers'): fitted().encode(table(dim=13))
    with pytest.raises(ValueError, match='has not been fitted'): RQVAE(small).encode(table())
    with pytest.raises(ValueError, match='has not been fitted'): RQVAE(small).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='no rows'): RQVAE(small, quick).fit(table()[[]])
    with pytest.raises(ValueError, match='whiten is 20 and the vectors have 12'): RQVAE(replace(small, whiten=20)).fit(table())
    with pytest.raises(ValueError, match='differ in 3 directions'): RQVAE(replace(small, whiten=6), quick).fit(table(4))

def test_a_loss_that_explodes_is_named():
    with pytest.raises(ValueError, match='lower lr|learning rate'):
        RQVAE(small, replace(quick, lr=1e20)).fit(table())

@pytest.mark.parametrize('wrong', (dict(K=(8, 8)), dict(levels=0), dict(K=0), dict(latent=0), dict(hidden=(0,)),
                                   dict(update='sgd'), dict(whiten=-1), dict(beta=-1)))
def test_configurations_that_make_no_sense(wrong):
    with pytest.raises(ValueError): RQVAEConfig(**wrong)

@pytest.mark.parametrize('wrong', (dict(epochs=0), dict(batch_size=0), dict(every=0), dict(optimizer='sgd'), dict(lr=0.),
                                   dict(select='best'), dict(select='collisions', measure=0), dict(keep_last=-1)))
def test_fits_that_make_no_sense(wrong):
    with pytest.raises(ValueError): FitConfig(**wrong)

# --- the others behind the same interface

@pytest.mark.parametrize('make', (lambda: ResidualKMeans(levels=3, K=8), lambda: RandomTokenizer(levels=3, K=8),
                                  lambda: ResidualKMeans(levels=2, K=(8, 4)), lambda: RQVAE(small, quick)))
def test_every_tokenizer_keeps_the_promise(make, tmp_path):
    one, t = make().fit(table(), tmp_path), table()
    codes = one.encode(t)
    assert codes.dtype == torch.long and codes.shape == (100, len(one.sizes))
    assert (codes >= 0).all() and (codes < torch.tensor(one.sizes)).all()
    assert one.decode(codes).shape == (100, 12)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.encode(t[order]), codes[order])
    assert torch.equal(Tokenizer.from_pretrained(tmp_path).encode(t), codes)
    assert torch.equal(make().fit(t).encode(t), codes)
    assert one.health(t).items == 100

def test_random_codes_do_not_depend_on_the_vectors():
    assert torch.equal(RandomTokenizer(3, 8).fit(table(seed=1)).encode(table()), random_codes(table().ids, (8, 8, 8)))
    assert not torch.equal(random_codes(range(50), (8, 8)), random_codes(range(50), (8, 8), seed=1))

def test_mlp_without_hidden_layers(): assert [repr(m) for m in _mlp((3, 2))] == [repr(nn.Linear(3, 2))]

# --- a warm-up

warmed = replace(quick, warm=3, every=1)

@pytest.mark.parametrize('cut', [1, 3, 4])
@pytest.mark.parametrize('kind', ['tiger', 'tiger++'])
def test_cut_around_the_warm_up_it_continues(kind, cut, tmp_path, monkeypatch):
    straight = RQVAE(kinds[kind], warmed).fit(table())
    kept = RQVAE.keep
    def until(self, epoch, *rest):
        kept(self, epoch, *rest)
        if epoch == cut: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(RQVAE, 'keep', until)
        RQVAE(kinds[kind], warmed).fit(table(), tmp_path)
    again = RQVAE(kinds[kind], warmed).fit(table(), tmp_path)
    assert same(straight, again) and straight.history == again.history

def test_nothing_is_quantised_in_a_warm_up():
    model = RQVAE(small, warmed).fit(table())
    assert ['quantisation' in r for r in model.history] == [False]*3 + [True]*9
    assert [r['epoch'] for r in model.history if 'collisions' in r] == [6, 9, 12]

def test_without_a_warm_up_a_run_is_who_it_was():
    assert 'warm' not in RQVAE(small, quick).identity(torch.zeros(2, 12), ['a', 'b'])
    assert RQVAE(small, warmed).identity(torch.zeros(2, 12), ['a', 'b'])['warm'] == 3

def test_another_warm_up_is_another_run(tmp_path):
    RQVAE(small, warmed).fit(table(), tmp_path)
    with pytest.raises(ValueError, match='warm = 3'): RQVAE(small, quick).fit(table(), tmp_path)

@pytest.mark.parametrize('change', [dict(warm=12), dict(warm=-1), dict(warm=5, save_at=(5,)), dict(warm=5, keep_last=8), dict(warm=10, select='collisions', measure=5)])
def test_a_warm_up_that_leaves_nothing_is_refused(change):
    with pytest.raises(ValueError): replace(quick, **change)

@settings(max_examples=25, deadline=None)
@given(st.floats(-50, 50), st.floats(.01, 50), st.integers(0, 99))
def test_another_scale_for_the_latents_changes_nothing_that_is_said(shift, size, seed):
    from gentok.tokenize.rqvae import _mlp, _rescale
    torch.manual_seed(seed)
    encoder, decoder, x = _mlp((6, 8, 3)).double(), _mlp((3, 8, 6)).double(), torch.randn(50, 6).double()
    with torch.no_grad():
        encoder[-1].weight.mul_(size), encoder[-1].bias.add_(shift)
        said = decoder(encoder(x))
        _rescale(encoder[-1], decoder[0], encoder(x), .7)
        torch.testing.assert_close(decoder(encoder(x)), said)
        z = encoder(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    assert abs(z.square().mean().sqrt() - .7) < 1e-9

def test_a_warm_up_ends_with_an_empty_memory(tmp_path):
    tokenizer, x = RQVAE(RQVAEConfig(hidden=(8,), latent=4, levels=2, K=4), FitConfig(epochs=4, warm=3, measure=0)), torch.randn(64, 6)
    seen, old = [], tokenizer.train_epoch
    def watched(inputs, optimizer, epoch):
        seen.append(len(optimizer.state))
        return old(inputs, optimizer, epoch)
    tokenizer.train_epoch = watched
    tokenizer.fit(x)
    assert seen[0] == 0 and seen[2] > 0 and seen[3] == 0
