"What a search promises: real items, each once, the same as brute force where it says so, and as Hugging Face's own beams."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.splits import Examples
from gentok.ids.item_ids import ItemIds
from gentok.ids.trie import Trie
from gentok.ids.vocabulary import Vocabulary
from gentok.fast.cached_decoding import CachedDecoder
from gentok.recommend.t5 import GenerativeRecommender, RecommenderConfig
from gentok.search.beam import _HistoryTokens, _Search, _Task, _as_examples, beam_search, _search_batch
from gentok.search.exact import exact_top_k, score_items, _with_proof

few = settings(max_examples=25, deadline=None, derandomize=True)
tiny = RecommenderConfig(d_model=16, d_ff=16, num_heads=2, d_kv=8, num_layers=1)

def catalogue(n_items, sizes, seed):
    "Random distinct identifiers."
    total = int(torch.tensor(sizes).prod())
    picked = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n_items]
    columns = []
    for K in reversed(sizes): columns.append(picked % K); picked = picked // K
    return ItemIds(torch.stack(columns[::-1], 1), sizes)

def shop(n_items=40, sizes=(4, 4, 4), seed=0, peak=1., n_user_tokens=0, config=tiny):
    "A random model, its trie and four histories; `peak` multiplies the embedding, and so the certainty."
    ids = catalogue(n_items, sizes, seed)
    model = GenerativeRecommender(Vocabulary(ids.sizes, n_user_tokens), config, seed=seed).eval()
    with torch.no_grad(): model.t5.shared.weight.mul_(peak)
    gen = torch.Generator().manual_seed(seed)
    return model, Trie(ids), [torch.randint(0, len(ids), (n,), generator=gen).tolist() for n in (1, 4, 2, 3)]

@st.composite
def shops(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    total = int(torch.tensor(sizes).prod())
    return shop(draw(st.integers(1, min(total, 60))), sizes, draw(st.integers(0, 999)),
                draw(st.sampled_from([0., .3, 1., 4., 15.])))

def rounding(scores):
    "What float32 may lose: absolutely for small numbers, relatively for large ones."
    finite = scores[scores.isfinite()]
    return 1e-5*max(1., finite.abs().max().item() if len(finite) else 1.)

def same_top(found, truth, k):
    "The k best by the truth, up to items whose scores are equal within rounding; every one valid and distinct."
    n, eps = truth.shape[1], rounding(truth)
    real = min(k, n)
    assert found.items.shape == found.scores.shape == (len(truth), k)
    assert (found.items[:, real:] == -1).all() and (found.scores[:, real:] == -torch.inf).all()
    rows, scores = found.items[:, :real], found.scores[:, :real]
    assert ((rows >= 0) & (rows < n)).all() and all(len(set(r)) == real for r in rows.tolist())
    assert (truth.gather(1, rows) - scores).abs().max() <= eps  # each score is its item's own
    assert (truth.topk(real).values - scores).abs().max() <= eps  # and no better item was missed
    assert (scores.diff() <= 0).all()

# ---------------------------------------------------------------- exact

@few
@given(shops(), st.sampled_from([1, 3, 10]), st.sampled_from([1, 4, 128]))
def test_exact_equals_brute_force_and_is_proven(made, k, beams):
    model, trie, histories = made
    found, truth = exact_top_k(model, trie, histories, k, beams), score_items(model, trie, histories)
    same_top(found, truth, k)
    assert (found.bound <= found.scores[:, -1]).all()
    assert (found.opened >= 1).all() and (beams < 128 or (found.opened <= 1 + sum(trie.nodes[:-1])).all())
    assert (found.invalid == 0).all()

@pytest.mark.parametrize('n_items, sizes', [(1, (1,)), (1, (3, 3)), (5, (5,)), (3, (2, 2, 2)), (64, (4, 4, 4)), (6, (1, 6, 1))])
@pytest.mark.parametrize('peak', [1., 40.])
def test_exact_at_the_edges(n_items, sizes, peak):
    model, trie, histories = shop(n_items, sizes, peak=peak)
    found = exact_top_k(model, trie, histories, k=10)
    same_top(found, score_items(model, trie, histories), 10)
    assert (found.bound <= found.scores[:, -1]).all()

def test_all_items_alike():
    "A model without an opinion ties every item; the answer is still k distinct items of the one score."
    model, trie, histories = shop(30, peak=0.)
    found, truth = exact_top_k(model, trie, histories, k=10), score_items(model, trie, histories)
    assert truth.max() - truth.min() < 1e-5
    same_top(found, truth, 10)

def asked(made, width, k, free=False, chunk=16):
    "What a search of one batch wants: its task, what was read, and for how many."
    (model, trie, histories), reader = made, CachedDecoder(made[0])
    inputs = _HistoryTokens(model, trie, _as_examples(histories, trie.n_items))(torch.arange(len(histories)))
    with torch.inference_mode(): return _Task(reader, trie, width, k, free, chunk), reader.encode(inputs), len(histories)

def test_an_answer_without_proof_is_looked_for_again():
    made = shop(60, (8, 8, 8))
    narrow, proven = _search_batch(*asked(made, 5, 5)), _with_proof(*asked(made, 5, 5))
    assert (narrow.bound > narrow.scores[:, -1]).any()
    assert (proven.bound <= proven.scores[:, -1]).all() and (proven.opened >= narrow.opened).all()
    same_top(exact_top_k(*made, 5, 5), score_items(*made), 5)

@few
@given(shops(), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_two_walks_find_what_one_finds(made, width, chunk, free):
    "Items early, by a few prefixes at each level, or every level in its turn: the same answer."
    few_at_once, many = (asked(made, width, 5, free, c) for c in (chunk, 1000))
    with torch.inference_mode():
        early, plain = _search_batch(*few_at_once), _Search(*many).walk(twice=False)
        assert (early.opened <= plain.opened).all() or _Search(*few_at_once).walk().lost.any()
    assert torch.allclose(early.scores, plain.scores, atol=1e-5, rtol=1e-5)
    off = (early.tokens != plain.tokens).any(-1)
    ties = torch.isclose(plain.scores[:, :-1], plain.scores[:, 1:], atol=1e-5) | plain.scores[:, 1:].isinf()
    assert (off & ~torch.nn.functional.pad(ties, (1, 0)) & ~torch.nn.functional.pad(ties, (0, 1)) & ~plain.scores.isinf()).sum() == 0

def test_an_opened_beam_that_is_cut_off_is_noticed():
    "One prefix at a time, a poor first guess falls out of its list, and what lay below it must go too."
    for seed in range(40):
        setting = asked(shop(60, (8, 8, 8), seed=seed, peak=2.), 2, 2, chunk=1)
        with torch.inference_mode(): first, plain = _Search(*setting).walk(), _Search(*setting).walk(twice=False)
        assert torch.allclose(_search_batch(*setting).scores, plain.scores, atol=1e-5)
        assert torch.allclose(first.scores[~first.lost], plain.scores[~first.lost], atol=1e-5)
        if (first.scores[first.lost] - plain.scores[first.lost]).abs().sum() > .01: return
    pytest.fail('no search lost a beam that mattered, so this test has shown nothing')

def test_half_precision_is_proven_too():
    model, trie, histories = shop(peak=3.)
    found = exact_top_k(model.bfloat16(), trie, histories, k=10)
    assert (found.bound <= found.scores[:, -1]).all() and (found.items >= 0).all()
    assert all(len(set(r)) == 10 for r in found.items.tolist())

@pytest.mark.parametrize('chunk', (7, 60))
def test_brute_force_reads_a_common_prefix_once(chunk, monkeypatch):
    model, trie, histories = shop(60, (8, 8, 8))
    seen, decode = [], CachedDecoder.decode
    def counted(self, tokens, *rest):
        seen.append(tokens.shape[1:].numel())
        return decode(self, tokens, *rest)
    monkeypatch.setattr(CachedDecoder, 'decode', counted)
    score_items(model, trie, histories, chunk=chunk)
    parts = trie.codes(torch.arange(60)).split(chunk)
    assert seen == [len({tuple(code[:l]) for code in part.tolist()}) for part in parts for l in range(trie.L)]

def test_chunks_and_batches_change_no_score():
    model, trie, histories = shop()
    whole = score_items(model, trie, histories)
    assert (score_items(model, trie, histories, batch_size=1, chunk=7) - whole).abs().max() < 1e-5
    assert (whole.exp().sum(1) <= 1 + 1e-5).all()

def test_room_for_more_beams_opens_no_more_than_looking_again():
    model, trie, histories = shop(60, (8, 8, 8), peak=6.)
    wide = exact_top_k(model, trie, histories, k=5)
    for beams in (2, 9, 64):
        found = exact_top_k(model, trie, histories, k=5, beams=beams)
        assert torch.equal(found.items, wide.items) and (found.bound <= found.scores[:, -1]).all()
    assert (wide.opened <= 1 + sum(trie.nodes[:-1])).all()

# ---------------------------------------------------------------- beams

@few
@given(shops(), st.sampled_from([1, 5, 10]))
def test_a_beam_as_wide_as_the_catalogue_equals_brute_force(made, k):
    model, trie, histories = made
    found = beam_search(model, trie, histories, beams=max(k, trie.n_items), k=k)
    same_top(found, score_items(model, trie, histories), k)
    assert (found.invalid == 0).all()

@few
@given(shops(), st.integers(1, 12))
def test_a_narrow_beam_gives_valid_distinct_items_with_their_own_scores(made, beams):
    model, trie, histories = made
    found, truth = beam_search(model, trie, histories, beams=beams, k=beams), score_items(model, trie, histories)
    real = found.items >= 0
    assert torch.equal(real, found.scores > -torch.inf) and (found.items < trie.n_items).all()
    assert (real.sum(1) >= 1).all() and (found.invalid == 0).all()
    for rows, there in zip(found.items, real): assert len(set(rows[there].tolist())) == there.sum()
    assert ((truth.gather(1, found.items.clamp(min=0)) - found.scores)[real].abs() <= rounding(truth)).all()

def hugging_face(model, trie, histories, beams, under_trie):
    "transformers' own beam search on the same weights: tokens u m l and sums of log-probabilities u m, user by user."
    v, answers = model.vocabulary, []
    paths = v.tokens(trie.codes(torch.arange(trie.n_items))).tolist()
    allowed = {}
    for path in paths:
        for l, token in enumerate(path): allowed.setdefault(tuple(path[:l]), set()).add(token)
    def follow(_, prefix): return sorted(allowed.get(tuple(prefix.tolist()[1:]), {paths[0][0]}))  # a dead beam stays dead
    read = _HistoryTokens(model, trie, _as_examples(histories, trie.n_items))
    for i in range(len(histories)):
        inputs = read(torch.tensor([i]))
        out = model.t5.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=v.L,
            num_beams=beams, num_return_sequences=beams, length_penalty=0., do_sample=False, return_dict_in_generate=True,
            output_scores=True, prefix_allowed_tokens_fn=follow if under_trie else None)
        answers.append((out.sequences[:, 1:], out.sequences_scores))
    return (torch.stack(x) for x in zip(*answers))

@pytest.mark.parametrize('peak', [1., 5.])
def test_beams_under_the_trie_equal_those_of_hugging_face(peak):
    model, trie, histories = shop(50, (6, 6, 6), seed=3, peak=peak)
    tokens, scores = hugging_face(model, trie, histories, 8, under_trie=True)
    ours, truth = beam_search(model, trie, histories, beams=8, k=8), score_items(model, trie, histories)
    assert (ours.scores - scores).abs().max() < 1e-5*max(1, scores.abs().max())
    theirs = trie.item[trie.find(model.vocabulary.codes(tokens))].long()
    differ = ours.items != theirs  # only where scores tie
    assert ((truth.gather(1, ours.items) - truth.gather(1, theirs)).abs()[differ] < 1e-5).all()
    assert differ.float().mean() < .1

@pytest.mark.parametrize('peak', [1., 5.])
def test_free_beams_equal_those_of_hugging_face(peak):
    model, trie, histories = shop(50, (6, 6, 6), seed=3, peak=peak)
    tokens, scores = hugging_face(model, trie, histories, 8, under_trie=False)
    ours = beam_search(model, trie, histories, beams=8, k=8, free=True)
    assert (ours.scores - scores).abs().max() < 1e-5*max(1, scores.abs().max())
    rows = {tuple(c): i for i, c in enumerate(model.vocabulary.tokens(trie.codes(torch.arange(50))).tolist())}
    theirs = torch.tensor([[rows.get(tuple(t), -1) for t in user] for user in tokens.tolist()])
    assert (ours.items != theirs).float().mean() < .1
    assert torch.equal(ours.invalid, (ours.items < 0).float().mean(1))

def test_free_beams_report_what_is_no_item():
    model, trie, histories = shop(8, (6, 6, 6))
    free, truth = beam_search(model, trie, histories, beams=50, k=50, free=True), score_items(model, trie, histories)
    real = free.items >= 0
    assert (free.invalid > 0).all() and torch.equal(free.invalid, 1 - real.float().mean(1))
    assert (truth.gather(1, free.items.clamp(min=0)) - free.scores)[real].abs().max() < 1e-5 if real.any() else True
    everything = beam_search(model, trie, histories, beams=20**3, k=20**3, free=True)  # the whole space: nothing can be missed
    assert all(sorted(r[r >= 0].tolist()) == list(range(8)) for r in everything.items)

# ---------------------------------------------------------------- who asks, and how

searches = pytest.mark.parametrize('search', [lambda *a: beam_search(*a, beams=12), exact_top_k, lambda *a: beam_search(*a, beams=12, free=True)],
                                   ids=['beam', 'exact', 'free'])

@searches
def test_neither_the_batch_nor_the_order_of_users_matters(search):
    model, trie, histories = shop(peak=3.)
    together = search(model, trie, histories)
    alone = [search(model, trie, [h]) for h in histories]
    backwards = search(model, trie, histories[::-1])
    for i in range(4):
        assert torch.equal(together.items[i], alone[i].items[0]) and torch.equal(together.items[i], backwards.items[3-i])
        assert (together.scores[i] - alone[i].scores[0]).abs().max() < 1e-4
    assert torch.equal(beam_search(model, trie, histories, beams=12, batch_size=1).items,
                       beam_search(model, trie, histories, beams=12, batch_size=3).items)
    assert torch.equal(exact_top_k(model, trie, histories, batch_size=1).items, exact_top_k(model, trie, histories).items)

@searches
def test_lists_and_examples_are_read_alike(search):
    model, trie, histories = shop(peak=3.)
    flat = torch.tensor([7, *histories[0], 5, *histories[1], 9])  # windows into sequences with something around them
    a, b = len(histories[0]), len(histories[1])
    start = torch.tensor([1, a + 2])
    examples = Examples(flat, start, start + torch.tensor([a, b]), torch.tensor([0, 1]), 0)
    listed, windowed = search(model, trie, histories[:2]), search(model, trie, examples)
    assert torch.equal(listed.items, windowed.items)
    tensors = search(model, trie, [torch.tensor(h) for h in histories[:2]])
    assert torch.equal(listed.items, tensors.items)

@searches
def test_only_the_latest_items_of_a_list_are_read(search):
    model, trie, _ = shop(config=RecommenderConfig(16, 16, 2, 8, 1, max_history=2))
    assert torch.equal(search(model, trie, [[9, 9, 9, 1, 2]]).items, search(model, trie, [[1, 2]]).items)

@searches
def test_a_model_in_training_is_read_without_dropout_and_handed_back(search):
    model, trie, histories = shop(peak=3.)
    calm = search(model.eval(), trie, histories)
    assert not model.training
    again = search(model.train(), trie, histories)
    assert model.training and torch.equal(calm.items, again.items)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    score_items(model, trie, histories)
    assert model.training

@searches
def test_user_tokens_are_read(search):
    model, trie, _ = shop(n_user_tokens=3, peak=4.)
    flat = torch.tensor([1, 2, 0])
    users = torch.tensor([5, 2, 3, 1])
    examples = Examples(flat, torch.zeros(4, dtype=torch.long), torch.full((4,), 2), users, 0)
    found = search(model, trie, examples)
    assert (found.scores[0] - found.scores[1]).abs().max() < 1e-4  # 5 and 2 share a token
    assert (found.scores[0] - found.scores[2]).abs().max() > 1e-3  # 3 has another
    assert torch.equal(found.items[0], found.items[1])
    read = _HistoryTokens(model, trie, examples)(torch.arange(4))
    assert read[:, 0].tolist() == [model.vocabulary.size - 3 + u % 3 for u in users.tolist()]

def test_user_tokens_keep_exact_exact():
    model, trie, histories = shop(n_user_tokens=3, peak=4.)
    same_top(exact_top_k(model, trie, histories), score_items(model, trie, histories), 10)

# ---------------------------------------------------------------- what is refused

@searches
def test_a_model_on_the_wrong_trie_is_refused(search):
    model, _, _ = shop()
    _, other, _ = shop(20, (5, 4, 4))
    with pytest.raises(ValueError, match=r'sizes \(4, 4, 4\).*\(5, 4, 4\).*trained on'): search(model, other, [[0]])
    _, shorter, _ = shop(4, (4, 4))
    with pytest.raises(ValueError, match='trained on'): search(model, shorter, [[0]])

@searches
def test_histories_that_cannot_be_read_are_refused(search):
    model, trie, _ = shop()
    with pytest.raises(ValueError, match='0 histories'): search(model, trie, [])
    with pytest.raises(ValueError, match='history 1 of 2 is empty'): search(model, trie, [[1], []])
    for row in (40, -1):
        with pytest.raises(ValueError, match=f'row {row} in a history, expected 0 to 39'): search(model, trie, [[0, row]])
    beyond = _as_examples([[0, 40]], 41)
    with pytest.raises(ValueError, match='row 40'): search(model, trie, beyond)

def test_numbers_that_make_no_sense_are_refused():
    model, trie, _ = shop()
    with pytest.raises(ValueError, match='raise beams'): beam_search(model, trie, [[0]], beams=5, k=10)
    with pytest.raises(ValueError, match='at least 1'): beam_search(model, trie, [[0]], beams=5, k=0)
    for wrong in (dict(k=0), dict(beams=0)):
        with pytest.raises(ValueError, match='at least 1'): exact_top_k(model, trie, [[0]], **wrong)
