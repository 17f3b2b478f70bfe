"Experts: the published gate and mixture, invariants, gradients, starts, ablations, growth, saving."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.quantize.codebook import nearest
from gentok.quantize.experts import _Balance, Router, TokenMoE, top_experts
from gentok.quantize.residual import ResidualQuantizer
from gentok.quantize.revival import DeadCodeReset

def normal(seed, *shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))

def world(n=60, M=3, dim=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    of = torch.arange(M).repeat_interleave(n//M)
    return 3*torch.randn(M, dim, generator=draw)[of] + torch.randn(len(of), dim, generator=draw), of

def made(M=3, sizes=(5, 4), seed=0, **kw):
    x, of = world(M=max(M, 1), seed=seed)
    torch.manual_seed(seed)
    return TokenMoE.of(M, sizes, 6, **kw).initialise(x, domains=of), x, of

switches = [dict(), dict(shared=False), dict(top=2), dict(top=3, shared_weight=.3), dict(update='ema'), dict(identity='suffix'),
            dict(mode='level_mixture', top=3, identity='suffix'), dict(mode='level_mixture', shared=False, top=2)]

# ---------------------------------------------------------------- the published code

def gate():
    router = Router(8, 10)
    with torch.no_grad():
        router.linear.weight.copy_(normal(5, 10, 8)), router.linear.bias.copy_(.1*normal(6, 10))
    return router

def test_unitok_gate(vectors):
    entry, z = vectors('unitok')['gate'], normal(7, 6, 8)
    g = gate()(z)
    assert torch.allclose(g, torch.tensor(entry['probs']), atol=1e-6)
    chosen, weights = top_experts(g, 10)
    assert chosen[:, 0].tolist() == entry['argmax_expert'] and torch.allclose(weights, g, atol=1e-6)

def test_level_mixture_is_the_published_recipe(vectors):
    "Ten experts behind the reference gate, against the formulas of the code written out"
    z, w = normal(7, 6, 8).requires_grad_(), .05
    moe = TokenMoE.of(10, (7, 7, 7), 8, mode='level_mixture', top=10, identity='suffix', revival=None).eval()
    moe.router = gate()
    books = torch.stack([torch.stack([b.weight for b in part.codebooks]) for part in (*moe.experts, moe.shared)])
    with torch.no_grad():
        for m, part in enumerate((*moe.experts, moe.shared)): # books that differ: with equal ones no share matters
            for l, b in enumerate(part.codebooks): b.place(normal(100 + 3*m + l, 7, 8))
    out = moe(z)
    p, r, total, losses, codes = torch.tensor(vectors('unitok')['gate']['probs']), z.detach(), 0, [], []
    for l in range(3):
        e = [part.codebooks[l].weight.detach() for part in (*moe.experts, moe.shared)]
        c = torch.stack([torch.cdist(r, k).argmin(1) for k in e], 1)
        mix = (1 - w)*sum(p[:, [k]]*e[k][c[:, k]] for k in range(10)) + w*e[10][c[:, 10]]
        losses.append(1.25*F.mse_loss(mix, r)); codes.append(c.gather(1, p.argmax(1)[:, None])[:, 0])
        r, total = r - mix, total + mix
    assert out.codes.tolist() == torch.stack([*codes, p.argmax(1)], 1).tolist()
    assert torch.allclose(out.vectors, total, atol=1e-5) and torch.allclose(out.loss, torch.stack(losses).mean(), atol=1e-5)
    slope, = torch.autograd.grad(out.vectors.sum(), z, retain_graph=True)
    assert (slope == 1).all()
    out.loss.backward()
    assert all(part.codebooks[l].weight.grad.abs().sum() > 0 for part in (*moe.experts, moe.shared) for l in range(3))
    assert moe.router.linear.weight.grad.abs().sum() > 0

# ---------------------------------------------------------------- router

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.data())
def test_top_experts_are_sorted_and_sum_to_one(seed, M, data):
    N = data.draw(st.integers(1, M))
    torch.manual_seed(seed)
    g = torch.randn(9, M).softmax(1)
    chosen, weights = top_experts(g, N)
    assert torch.allclose(weights.sum(1), torch.ones(9)) and ((weights > 0).sum(1) == N).all()
    assert torch.equal(g.gather(1, chosen), g.sort(1, descending=True).values[:, :N])

def test_ties_go_to_the_lowest_number():
    assert top_experts(torch.full((5, 300), 1/300), 3)[0].tolist() == [[0, 1, 2]]*5

def test_router_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    router, z = Router(32, 10), torch.randn(500, 32) + 100
    whole = router(z)
    assert torch.equal(whole, torch.cat([router(one[None]) for one in z]))
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(whole, router(z))

@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.floats(1e-3, 1e3))
def test_placed_router_sends_to_the_nearest_mean(seed, scale):
    torch.manual_seed(seed)
    means, z = scale*torch.randn(4, 5), scale*torch.randn(40, 5)
    got = Router(5, 4).place(means, scale**2)(z)
    far = (z[:, None].double() - means.double()).square().sum(-1)/scale**2
    assert torch.allclose(got.double(), (-far/2).softmax(1), atol=1e-4)

def test_identical_means_and_no_spread_stay_finite():
    router = Router(3, 2).place(torch.ones(2, 3), 0.)
    assert torch.allclose(router(torch.randn(4, 3)), torch.full((4, 2), .5))
    assert Router(3, 2).place(torch.zeros(2, 3), 0.)(torch.randn(4, 3)).isfinite().all()

# ---------------------------------------------------------------- invariants

@pytest.mark.parametrize('kw', switches)
@pytest.mark.parametrize('rows', (7, 4096))
def test_encode_is_forward_in_any_pieces_and_order(kw, rows):
    moe, x, _ = made(**kw)
    out = moe.eval()(x)
    assert torch.equal(moe.encode(x, rows), out.codes) and out.codes.shape == (60, moe.L) and len(moe.sizes) == moe.L
    assert ((out.codes >= 0) & (out.codes < torch.tensor(moe.sizes))).all()
    perm = torch.randperm(60)
    assert torch.equal(moe.encode(x[perm]), out.codes[perm])
    assert torch.allclose(moe(x[perm]).loss, out.loss, atol=1e-5)
    number = out.codes[:, 0 if moe.identity == 'prefix' else -1]
    assert torch.equal(number, moe.router(x).argmax(1))
    assert moe.encode(x[:0]).shape == (0, moe.L) and moe.decode(out.codes).shape == x.shape

def test_decode_is_what_the_decoder_saw_with_one_expert_and_no_shared_one():
    moe, x, _ = made(shared=False)
    out = moe.eval()(x)
    assert torch.equal(moe.decode(out.codes), out.vectors)

@pytest.mark.parametrize('top, shared', [(1, True), (2, True), (3, False)])
def test_mixture_is_the_weighted_sum(top, shared):
    moe, x, _ = made(top=top, shared=shared, shared_weight=.2)
    _, weights = top_experts(moe.router(x), top)
    each = torch.stack([e.decode(e.encode(x)) for e in moe.experts], 1)
    want = (weights[..., None]*each).sum(1)
    if shared: want = .8*want + .2*moe.shared.decode(moe.shared.encode(x))
    assert torch.allclose(moe.eval()(x).vectors, want, atol=1e-5)

def test_codes_are_the_chosen_experts_own():
    moe, x, _ = made()
    codes = moe.encode(x)
    for m, expert in enumerate(moe.experts):
        mine = codes[:, 0] == m
        assert torch.equal(codes[mine, 1:], expert.encode(x[mine]))

def test_prefixes_decode_ever_closer():
    moe, x, _ = made(shared=False)
    codes = moe.encode(x)
    errors = [(x - moe.decode(codes[:, :l])).square().mean() for l in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]

@pytest.mark.parametrize('kw', switches)
def test_training_forward_answers_with_the_old_codebooks(kw):
    moe, x, _ = made(**kw)
    before = moe.encode(x)
    assert torch.equal(moe.train()(x).codes, before)

# ---------------------------------------------------------------- who learns from what

def test_output_is_straight_through_and_reaches_no_codebook():
    moe, x, _ = made(top=2)
    z = x.clone().requires_grad_()
    moe(z).vectors.sum().backward()
    assert (z.grad == 1).all() and all(p.grad is None for p in moe.parameters())

@pytest.mark.parametrize('top', (1, 2, 3))
def test_router_learns_at_any_top(top):
    moe, x, of = made(top=top)
    moe.eval().router = Router(6, 3)
    g = moe.router(x)
    error = torch.stack([(x - e.decode(e.encode(x))).square().mean(1) for e in moe.experts], 1)
    want = torch.autograd.grad((g*error).sum(1).mean(), moe.router.linear.weight)[0]
    got = torch.autograd.grad(moe(x).loss, moe.router.linear.weight)[0]
    assert torch.allclose(got, want, atol=1e-6) and got.abs().sum() > 0

def test_experts_learn_from_their_own_vectors_only():
    moe, x, of = made()
    moe.router.place(torch.stack([x[of == m].mean(0) for m in range(3)]), .01)
    mine = moe.encode(x)[:, 0] == 1
    slope = lambda: torch.autograd.grad(moe.eval()(x).loss, moe.experts[1].codebooks[0].weight)[0]
    before = slope()
    want = mine.float().mean()*.95*torch.autograd.grad(moe.experts[1](x[mine]).loss, moe.experts[1].codebooks[0].weight)[0]
    assert torch.allclose(before, want, atol=1e-6)

def test_a_lost_router_learns_the_domains():
    moe, x, of = made()
    moe.router = Router(6, 3)
    optim = torch.optim.Adam(moe.train().router.parameters(), .1)
    for _ in range(60):
        optim.zero_grad(); moe(x).loss.backward(); optim.step()
    assert moe.balance(x, of).information > 1.4

def test_ema_moves_only_experts_that_were_asked():
    moe, x, of = made(update='ema')
    before = [e.codebooks[0].weight.clone() for e in moe.experts]
    moe.train()(x[of == 2])
    assert [torch.equal(b, e.codebooks[0].weight) for b, e in zip(before, moe.experts)] == [True, True, False]

# ---------------------------------------------------------------- starting

def test_start_is_per_domain_seeded_and_once():
    moe, x, of = made()
    for m in range(3):
        lone = ResidualQuantizer.of((5, 4), 6).initialise(x[of == m], m)
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(moe.experts[m].codebooks, lone.codebooks))
    state = {k: v.clone() for k, v in moe.state_dict().items()}
    moe.initialise(x*2, seed=5, domains=of)
    assert all(torch.equal(v, state[k]) for k, v in moe.state_dict().items())
    assert not torch.equal(moe.initialise(x*2, domains=of, again=True).router.linear.weight, state['router.linear.weight'])

def test_mean_and_noise():
    x, of = world()
    moe = TokenMoE.of(3, (50, 50), 6).initialise(x, domains=of, start='mean', noise=.05)
    for m in range(3):
        first, second = (b.weight for b in moe.experts[m].codebooks)
        assert torch.allclose(first.mean(0), x[of == m].mean(0), atol=.1) and second.mean(0).abs().max() < .1
        spread = (x[of == m] - x[of == m].mean(0)).square().mean().sqrt()
        assert .04 < (first - x[of == m].mean(0)).std()/spread < .06 and .04 < second.std()/spread < .06

def test_groups_are_found_where_nobody_names_them():
    x, of = world()
    moe = TokenMoE.of(3, (5, 4), 6).initialise(x)
    assert moe.balance(x, of).information > 1.5

def test_fewer_vectors_than_codewords():
    x, of = torch.randn(6, 4), torch.arange(3).repeat(2)
    moe = TokenMoE.of(3, (16, 16), 4).initialise(x, domains=of).eval()
    assert torch.isfinite(moe(x).vectors).all() and torch.isfinite(moe(x).loss)

# ---------------------------------------------------------------- ablations, growth, saving

def test_no_experts_is_a_residual_quantizer():
    moe, x, _ = made(0)
    plain = ResidualQuantizer.of((5, 4), 6).initialise(x, 0).eval()
    out, want = moe.eval()(x), plain(x)
    assert moe.router is None and moe.sizes == (5, 4)
    assert torch.equal(out.codes, want.codes) and torch.equal(out.vectors, want.vectors) and out.loss == want.loss
    assert torch.equal(moe.encode(x), want.codes) and torch.equal(moe.decode(want.codes), want.vectors)
    with pytest.raises(ValueError, match='no experts to balance'): moe.balance(x, torch.zeros(60).long())

def test_experts_draw_differently():
    moe = TokenMoE.of(3, (4, 4), 2, revival=DeadCodeReset(seed=10))
    assert [int(b.seed) for part in (*moe.experts, moe.shared) for b in part.codebooks] == list(range(10, 18))

def test_adding_an_expert_leaves_the_others():
    moe, x, of = made(shared=False)
    new = torch.randn(30, 6) + 12
    before, books = moe.encode(x), [b.weight.clone() for e in moe.experts for b in e.codebooks]
    moe.add_expert(new, x)
    assert moe.sizes == (4, 5, 4) and (moe.encode(new)[:, 0] == 3).all()
    assert torch.equal(moe.encode(x), before)
    assert all(torch.equal(a, b.weight) for a, b in zip(books, [b for e in list(moe.experts)[:3] for b in e.codebooks]))
    other = TokenMoE.of(4, (5, 4), 6, shared=False)
    other.load_state_dict(moe.state_dict())
    assert torch.equal(other.encode(new), moe.encode(new))

@pytest.mark.parametrize('kw', switches)
def test_save_load_resume_bit_identical(kw):
    kw = dict(kw, revival=DeadCodeReset(patience=2))
    moe, x, of = made(**kw)
    other = TokenMoE.of(3, (5, 4), 6, **kw)
    for t in range(5): moe.train()(x[torch.randperm(60)[:16]])
    other.load_state_dict(moe.state_dict())
    other.train().initialise(x + 1, domains=of)
    for t in range(8): moe(x[7*t:7*t + 7]), other(x[7*t:7*t + 7])
    assert all(torch.equal(a, b) for a, b in zip(moe.state_dict().values(), other.state_dict().values()))
    a, b = moe.eval()(x), other.eval()(x)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.vectors, b.vectors) and a.loss == b.loss

def test_balance_counts():
    moe = TokenMoE.of(2, (2,), 1)
    moe.router.place(torch.tensor([[-1.], [1.]]), 1.)
    z = torch.tensor([[-1.], [-2.], [-1.], [3.], [1.], [2.], [-5.], [9.]])
    found = moe.balance(z, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    assert isinstance(found, _Balance) and found.table.tolist() == [[.75, .25], [.25, .75]] and found.load.tolist() == [.5, .5]
    assert found.perplexity == pytest.approx(2) and found.information == pytest.approx(1 + .75*np.log2(.75) + .25*np.log2(.25))
    assert found.plot(['a', 'b']).get_title(loc='left').startswith('2.0 of 2 experts')

def test_half_precision_comes_in_and_float32_goes_out():
    moe, x, _ = made()
    z = x.bfloat16().requires_grad_()
    out = moe.eval()(z)
    out.vectors.sum().backward()
    assert out.vectors.dtype == torch.float32 and z.grad.dtype == torch.bfloat16
    assert torch.equal(out.codes, moe.encode(x.bfloat16()))
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(moe(z).codes, out.codes)

@pytest.mark.parametrize('call, words', (
    (lambda: TokenMoE([]), 'at least one of the two'), (lambda: TokenMoE.of(2, (4,), 3, top=3), 'top is 3 of 2'), (lambda: TokenMoE.of(2, (4,), 3, top=0), 'top is 0 of 2'),
    (lambda: TokenMoE.of(2, (4,), 3, shared_weight=1.), 'a share below 1'), (lambda: TokenMoE.of(2, (4,), 3, mode='dense'), "mode is 'dense'"),
    (lambda: TokenMoE.of(2, (4,), 3, identity='first'), "choose 'prefix' or 'suffix'"), (lambda: TokenMoE.of(2, (4,), 3, update='ema', mode='level_mixture'), "update='gradient'"),
    (lambda: TokenMoE([ResidualQuantizer.of((4,), 3), ResidualQuantizer.of((4,), 2)]), 'give all the same'),
    (lambda: made()[0].decode(torch.zeros(2, 4).long()), 'have 3 levels'), (lambda: made()[0].decode([[3, 0, 0]]), 'there are 0 to 2'),
    (lambda: made()[0].decode([[0, 9, 0]]), 'this codebook has 0 to 4'), (lambda: made(identity='suffix')[0].decode([[0, 1]]), 'have 3 levels'),
    (lambda: TokenMoE.of(3, (4,), 6).initialise(world()[0], domains=world()[1] % 2), r'\[40, 20, 0\] vectors'),
    (lambda: TokenMoE.of(2, (4,), 6).initialise(*world()[:1], domains=world()[1]), 'there are 2 experts'),
    (lambda: TokenMoE.of(2, (4,), 6).initialise(world()[0], domains=torch.zeros(5).long()), '5 domains for 60 vectors'),
    (lambda: TokenMoE.of(2, (4,), 6).initialise(world()[0], start='zeros'), "choose 'kmeans' or 'mean'"),
    (lambda: Router(3, 2).place(torch.zeros(3, 3), 1.), r'give \(2, 3\)'), (lambda: made()[0](torch.full((2, 6), torch.nan)), 'meet NaN')))
def test_faults_are_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as found: call()
    assert '\n' not in str(found.value)

def test_the_routers_loss_does_not_move_the_vectors():
    moe, z = TokenMoE.of(3, (4, 4), 5, shared=False), torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    moe.initialise(z, domains=torch.arange(40) % 3)
    far = z.clone().requires_grad_()
    found = moe(far)
    pull, = torch.autograd.grad(found.loss, far)
    assert pull.abs().max() > 0
    router = [p for p in moe.router.parameters()]
    for p in router: p.data.mul_(50.)  # a router that is surer of the same choices pulls no harder
    surer = z.clone().requires_grad_()
    again, = torch.autograd.grad(moe(surer).loss, surer)
    torch.testing.assert_close(again, pull)
