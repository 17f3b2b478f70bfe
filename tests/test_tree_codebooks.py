"Tree codebooks: UTGRec's numbers and gradients, the manners of a residual quantizer, and a warm-up that counts what it should."
import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from gentok.ids.vocabulary import Vocabulary
from gentok.quantize.codebook import Codebook
from gentok.quantize.health import health
from gentok.quantize.linear_codebook import LinearCodebook
from gentok.quantize.prefix_residual import prefix_residual, prefix_sum
from gentok.quantize.revival import DeadCodeReset
from gentok.quantize.tree_codebooks import TreeCodebooks

def normal(seed, *shape): return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))

def made(sizes=(9, 14), d=6, L=3, seed=0, n=80, **how):
    torch.manual_seed(seed)
    return TreeCodebooks.of(sizes, d, L, **how), torch.randn(n, L, d)

def utgrec():
    books = []
    for K, (e, w) in ((6, (2, 3)), (10, (4, 5))):
        book = LinearCodebook(K, 8, frozen=False).double()
        book.E.data, book.W.data = normal(e, K, 8), (normal(w, 8, 8)*8**-.5).T.clone()
        books.append(book)
    return TreeCodebooks(*books)

# ---------------------------------------------------------------- the reference numbers

def test_utgrec_tree_quantiser(vectors):
    want = {k: torch.tensor(v, dtype=torch.float64) for k, v in vectors('utgrec')['tree_quantiser_simvq']['output'].items() if isinstance(v, (list, float))}
    tree, x = utgrec().train(), normal(7, 5, 3, 8).requires_grad_()
    out = tree(x)
    def close(a, b): assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert out.codes.tolist() == want['codes'].long().tolist()
    close(out.vectors, want['quantised'])
    close(out.loss, want['loss_total'])
    slopes = torch.autograd.grad(out.loss, [x, *(p for book in tree.books for p in (book.E, book.W))], retain_graph=True)
    close(slopes[0], want['grad_loss_wrt_x'])
    close(slopes[1], want['grad_loss_wrt_E_root'])
    close(slopes[2].T, want['grad_loss_wrt_W_root_linear'])
    close(slopes[3].abs().sum(), want['grad_loss_wrt_E_leaf_absum'])
    close(slopes[4].T, want['grad_loss_wrt_W_leaf_linear'])
    assert (torch.autograd.grad(out.vectors.sum(), x)[0] == 1).all()
    leaf = out.codes[:, 1:].unique().numel()
    assert 6 - out.codes[:, 0].unique().numel() + 10 - leaf == vectors('utgrec')['tree_quantiser_simvq']['output']['unused_codes']

def test_utgrec_vocabulary_offset(vectors):
    want = vectors('utgrec')['vocabulary_offset']['output']
    tree = TreeCodebooks.of(dim=4)
    vocabulary = Vocabulary(tree.sizes, blocks=tree.blocks)
    for codes, ids in (((3, 0, 7), want['a']), ((255, 511, 511), want['b'])):
        tokens = vocabulary.tokens(codes)
        assert (tokens - vocabulary.offsets[0]).tolist() == ids and vocabulary.codes(tokens).tolist() == list(codes)
    assert vocabulary.size == 2 + 256 + 512 and vocabulary.tokens([0, 0, 0]).min() == 2  # 0 pads

# ---------------------------------------------------------------- what it is

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(2, 5), st.sampled_from(['linear', 'plain', 'own']), st.sampled_from([1, 13, 4096]))
def test_forward_encode_decode_agree_to_the_last_bit(seed, L, kind, rows):
    sizes = (9, 14) if kind != 'own' else tuple(range(5, 5 + L))
    tree, r = made(sizes, L=L, seed=seed, kind=partial(Codebook, revival=None) if kind == 'plain' else LinearCodebook)
    out = tree.eval()(r)
    assert torch.equal(tree.encode(r, rows), out.codes) and torch.equal(tree.decode(out.codes), out.vectors)
    perm = torch.randperm(len(r))
    assert torch.equal(tree.encode(r[perm], rows), out.codes[perm])
    for l, book in enumerate(tree.codebooks): assert torch.equal(book.encode(r[:, l]), out.codes[:, l])
    assert tree.sizes == tuple(book.K for book in tree.codebooks) and tree.L == L == len(tree.sizes)

def test_loss_is_the_mean_over_codebooks_not_over_levels():
    tree, r = made(L=4)
    root, leaf = tree.books[0].eval()(r[:, 0]).loss, tree.books[1].eval()(r[:, 1:].reshape(-1, 6)).loss
    assert torch.allclose(tree.eval()(r).loss, (root + leaf)/2)
    norm = TreeCodebooks(*tree.books, L=4, loss='norm').eval()
    assert torch.allclose(norm(r).loss, 6*(root + leaf)/2)
    e, beta = tree.decode(tree.encode(r)), .25  # equations 5 to 7 of the paper, spelled out
    squares = (1 + beta)*(e - r).square().sum(-1).mean(0)
    assert torch.allclose(norm(r).loss, (squares[0] + squares[1:].mean())/2)
    own, r = made((9, 14, 14))
    assert torch.allclose(own.eval()(r).loss, sum(b.eval()(r[:, l]).loss for l, b in enumerate(own.books))/3) and own.blocks == (0, 1, 2)

def test_the_leaf_is_one_and_saved_once():
    tree, r = made(L=4)
    assert tree.codebooks[1] is tree.codebooks[2] is tree.codebooks[3] and len(list(tree.parameters())) == 2
    order = [0, 2, 3, 1]
    assert torch.equal(tree.encode(r[:, order]), tree.encode(r)[:, order])
    assert not any('codebooks' in name for name in tree.state_dict())

def test_levels_are_coded_apart():
    "Not a residual quantizer: another root codeword changes no other code"
    tree, r = made(kind=partial(Codebook, revival=None))
    before = tree.encode(r)
    tree.books[0].place(torch.randn(9, 6)*3)
    after = tree.encode(r)
    assert not torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 1:], after[:, 1:])

def test_from_states_to_states():
    torch.manual_seed(0)
    h = torch.randn(300, 3, 2)
    tree = TreeCodebooks.of((32, 64), 2, kind=Codebook).initialise(prefix_residual(h)).eval()
    back = prefix_sum(tree(prefix_residual(h)).vectors)
    assert (back - h).square().mean() < .2*h.square().mean()

def test_half_precision_gives_the_codes_of_float32():
    tree, r = made((64, 128), 16, n=400)
    half = r.bfloat16().requires_grad_()
    out = tree.eval()(half)
    with torch.autocast('cpu', dtype=torch.bfloat16): inside = tree(half)
    assert torch.equal(out.codes, tree.encode(r.bfloat16().float())) and torch.equal(inside.codes, out.codes)
    assert out.vectors.dtype == out.loss.dtype == inside.loss.dtype == torch.float32
    out.vectors.sum().backward()
    assert half.grad.dtype == torch.bfloat16

def test_initialise_once_and_seeded():
    (a, r), (b, _) = made(n=200), made(seed=1)
    a.initialise(r), b.initialise(r)
    assert torch.equal(a.encode(r), b.encode(r)) and bool(a.books[1].ready)
    assert torch.equal(a.initialise(r + 5).encode(r), b.encode(r)) and not torch.equal(a.initialise(r + 5, again=True).books[1].weight, b.books[1].weight)
    leaf = Codebook(14, 6).initialise(r[:, 1:].flatten(0, 1), 1)
    assert torch.equal(leaf.weight, b.books[1].weight)  # on all its levels together

def test_health_per_level_and_revival():
    tree, r = made(kind=partial(Codebook, revival=DeadCodeReset(patience=3)), n=300)
    assert tree.health(r) == health(tree.encode(r), (9, 14, 14))
    few = [len(p.unique()) for p in tree.by_book(tree.encode(r + 4))]
    assert tree.revive(r + 4) == [9 - few[0], 14 - few[1]]
    for _ in range(8): tree.train()(r + 4)
    assert all(n > f for n, f in zip((len(p.unique()) for p in tree.by_book(tree.encode(r + 4))), few))

def test_running_means_of_a_shared_leaf_see_all_levels():
    tree, r = made(kind=partial(Codebook, update='ema', revival=None))
    leaf = copy.deepcopy(tree.books[1]).train()
    tree.train()(r), leaf(r[:, 1:].flatten(0, 1))
    assert torch.equal(tree.books[1].weight, leaf.weight) and int(tree.books[1].step) == 1
    two, _ = made(kind=partial(Codebook, update='ema', revival=None))
    two.across(lambda t: torch.cat([t, t])).train()(r)
    assert torch.allclose(two.books[1].sizes - .99, 2*(tree.books[1].sizes - .99), atol=1e-5)

def test_empty_batch_encodes():
    tree, _ = made()
    assert tree.encode(torch.zeros(0, 3, 6)).shape == (0, 3)

# ---------------------------------------------------------------- warm-up

def warm(steps=3, seed=0, **how): return made(seed=seed, warmup=steps, frozen=False, **how)

def test_vectors_pass_through_and_codebooks_feel_nothing():
    tree, r = warm(kind=LinearCodebook)
    r = r.requires_grad_()
    tree.watch(torch.optim.SGD(tree.parameters(), .1))
    out = tree.train()(r)
    assert torch.equal(out.vectors, r) and out.loss == 0 and torch.equal(out.codes, tree.encode(r))
    (out.vectors.sum() + out.loss).backward()
    assert (r.grad == 1).all() and all(p.grad is None for p in tree.parameters())
    assert all(int(book.step) == 0 for book in tree.books)  # nor do their counters
    assert not torch.equal(tree.eval()(r).vectors, r)  # evaluation always quantises

def train(tree, r, steps, accumulate=1, evaluate=0):
    "What each step saw: was it quantised?"
    scale = nn.Parameter(torch.ones(6))
    optim, seen = torch.optim.AdamW([scale, *tree.parameters()], .01), []
    tree.watch(optim)
    for _ in range(steps):
        for _ in range(accumulate):
            batch = r*scale
            out = tree.train()(batch)
            seen.append(not torch.equal(out.vectors, batch))
            (out.vectors.square().mean() + out.loss).backward()
        for _ in range(evaluate): tree.eval()(r)
        optim.step(), optim.zero_grad()
    return seen

@pytest.mark.parametrize('accumulate, evaluate', [(1, 0), (4, 0), (1, 5), (3, 2)])
def test_optimiser_steps_count_and_nothing_else(accumulate, evaluate):
    tree, r = warm(3)
    seen = train(tree, r, 5, accumulate, evaluate)
    assert seen == [False]*3*accumulate + [True]*2*accumulate and int(tree.steps) == 5 and not tree.warming

@pytest.mark.parametrize('cut', [0, 1, 2, 3, 4])
def test_a_resumed_run_goes_on_counting(cut, tmp_path):
    tree, r = warm(3)
    seen = train(tree, r, cut)
    save_file(tree.state_dict(), tmp_path/'tree.safetensors')
    other, _ = warm(3, seed=9)
    other.load_state_dict(load_file(tmp_path/'tree.safetensors'))
    seen += train(other, r, 6 - cut)
    assert seen == [False]*3 + [True]*3 and int(other.steps) == 6

def test_a_skipped_step_is_none_and_another_optimiser_does_not_count():
    tree, r = warm(3)
    mine, other = (torch.optim.SGD([nn.Parameter(torch.ones(1))], .1) for _ in range(2))
    tree.watch(mine)
    other.step()
    assert int(tree.steps) == 0
    tree.watch(other), tree.watch(other)
    mine.step(), other.step()
    assert int(tree.steps) == 1

def test_an_accumulated_step_of_accelerate_counts_once():
    from accelerate import Accelerator
    tree, accelerator, model = warm(3)[0], Accelerator(gradient_accumulation_steps=2), nn.Linear(1, 1)
    model, optim = accelerator.prepare(model, torch.optim.SGD(model.parameters(), .1))
    tree.watch(optim)
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(1, 1, device=accelerator.device)).sum())
            optim.step(), optim.zero_grad()
    assert int(tree.steps) == 2

def test_without_warm_up_nothing_need_be_watched():
    tree, r = made()
    assert tree.train()(r).loss > 0 and not tree.warming
    done, _ = warm(3)
    done.steps += 3
    assert done.train()(r).loss > 0

def test_save_load_same_output(tmp_path):
    tree, r = warm(2)
    train(tree, r, 4)
    save_file(tree.state_dict(), tmp_path/'tree.safetensors')
    other = TreeCodebooks.of((9, 14), 6, warmup=2)  # E frozen: the names are the same
    other.load_state_dict(load_file(tmp_path/'tree.safetensors'))
    a, b = tree.eval()(r), other.eval()(r)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.vectors, b.vectors) and not other.warming
    E = [book.E.clone() for book in other.books]
    train(other, r, 5)
    assert all(torch.equal(book.E, e) for book, e in zip(other.books, E)) and not torch.equal(other.books[0].W, tree.books[0].W)

# ---------------------------------------------------------------- what is refused

def test_faults_are_sentences():
    tree, r = made()
    root, leaf = tree.books
    for call, words in ((lambda: tree(r[:, :2]), r'give \(items, 3, 6\)'), (lambda: tree.encode(r[0]), r'give \(items, 3, 6\)'),
                        (lambda: tree.decode(torch.zeros(4, 2)), r'give \(n, 3\)'), (lambda: tree.decode([[0, 0, 14]]), 'has 0 to 13'),
                        (lambda: TreeCodebooks(root, leaf, 1), 'L of at least 2'), (lambda: TreeCodebooks(root, [leaf], 3), '1 leaf codebooks for L = 3'),
                        (lambda: TreeCodebooks(root, Codebook(3, 5)), r'widths \[5, 6\]'), (lambda: TreeCodebooks(root, leaf, loss='sum'), "'mean' or 'norm'"),
                        (lambda: TreeCodebooks(root, leaf, warmup=-1), 'warmup is -1'), (lambda: warm(3)[0].train()(r), r'^warm-up counts optimiser steps and none is counted \(0 of 3\); [^.]*\.$'),
                        (lambda: TreeCodebooks.of((4, 5, 6, 7), 6), '3 leaf codebooks for L = 3')):
        with pytest.raises(ValueError, match=words): call()
