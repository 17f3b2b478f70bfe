"UniTok, the tokenizer: what it learns, what it saves, what it refuses"
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok.data.toyshop import toyshop
from gentok.embed.table import EmbeddingTable, _domains_of, _concat_domains
from gentok.embed.text import TextEncoder
from gentok.quantize.experts import Router, _add_level
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from gentok.tokenize.tokenizer import Tokenizer
from gentok.papers.unitok import UnitokConfig
from gentok.tokenize.unitok import ExpertsConfig, UniTok, _gradient_shares

sizes, plan = RQVAEConfig(hidden=(16,), latent=8, levels=2, K=8, whiten=0), FitConfig(epochs=6, batch_size=64, every=2, measure=2)

@pytest.fixture(scope='module')
def tables():
    shops = toyshop(n_items=40, n_users=5, domains=3)
    encoder = TextEncoder('lsa', 12).fit([t for s in shops for t in s.catalogue.text])
    return {s.catalogue.domain: encoder.embed(s.catalogue) for s in shops}

@pytest.fixture(scope='module')
def two(tables): return _concat_domains(dict(list(tables.items())[:2]))

@pytest.fixture(scope='module')
def experts(two): return ExpertsConfig(_domains_of(two.ids).names)

switches = {'paper': {}, 'no experts': dict(use=False), 'no shared': dict(shared_weight=0.), 'no calibration': dict(calibration=0.),
            'suffix': dict(identity='suffix'), 'two of them': dict(top=2), 'published': dict(mode='level_mixture', top=2), 'means': dict(start='mean')}

@pytest.mark.parametrize('name', switches)
def test_every_switch_learns_saves_and_comes_back(name, two, experts, tmp_path):
    model = UniTok(replace(experts, **switches[name]), sizes, plan).fit(two, tmp_path)
    codes = model.encode(two)
    assert codes.shape == (80, len(model.sizes)) and all(int(c.max()) < K for c, K in zip(codes.T, model.sizes))
    assert ('calibration' in model.history[-1]) == (name != 'no calibration')
    assert model.history[-1]['reconstruction'] < model.history[0]['reconstruction']
    again = Tokenizer.from_pretrained(tmp_path)
    assert type(again) is UniTok and again.experts == model.experts
    assert torch.equal(again.encode(two), codes) and torch.equal(again.decode(codes), model.decode(codes))

@pytest.mark.parametrize('name', ['paper', 'published'])
def test_continued_equals_uninterrupted(name, two, experts, tmp_path):
    e = replace(experts, **switches[name])
    whole = UniTok(e, sizes, plan).fit(two, tmp_path/'whole')
    UniTok(e, sizes, replace(plan, epochs=2)).fit(two, tmp_path/'cut')
    rest = UniTok(e, sizes, plan).fit(two, tmp_path/'cut')
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), rest.state_dict().values()))
    assert whole.history == rest.history

def test_other_experts_are_another_run(two, experts, tmp_path):
    UniTok(experts, sizes, replace(plan, epochs=2)).fit(two, tmp_path)
    with pytest.raises(ValueError, match='calibration'): UniTok(replace(experts, calibration=.5), sizes, plan).fit(two, tmp_path)

def test_the_order_of_rows_mislabels_nobody(two, experts):
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    model = UniTok(experts, sizes)
    assert torch.equal(model.numbers(two[order].ids), model.numbers(two.ids)[order])

def test_without_experts_it_is_an_rqvae(two, experts):
    alone = UniTok(replace(experts, use=False, calibration=0.), sizes, plan).fit(two)
    assert torch.equal(alone.encode(two), RQVAE(sizes, plan).fit(two).encode(two))

def test_the_calibration_reaches_the_encoder_alone(two, experts):
    model = UniTok(experts, sizes, replace(plan, epochs=1)).fit(two)
    model.zero_grad()
    model.losses(model.inputs(two.matrix), torch.arange(80))['calibration'].backward()
    felt = {n.split('.')[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert felt == {'encoder'}

def test_the_calibration_of_the_method_is_felt(two, experts):
    "On vectors of one scale, as `UnitokConfig` has them; the paper's weight is not"
    model = UniTok(replace(experts, calibration=UnitokConfig().calibration), sizes, replace(plan, epochs=1)).fit(two)
    x, rows = model.inputs(two.matrix), torch.arange(80)
    shares = _gradient_shares(model, x, rows)
    assert sum(shares.values()) == pytest.approx(1) and .02 < shares['calibration'] < .9
    model.experts = replace(experts, calibration=.03)
    assert _gradient_shares(model, x, rows)['calibration'] < .01

def test_refuses_what_it_does_not_know(two, tables, experts):
    with pytest.raises(ValueError, match='there are experts for'): UniTok(ExpertsConfig(('shoes',)), sizes, plan).fit(two)
    with pytest.raises(ValueError, match='name no domain'): UniTok(experts, sizes, plan).fit(next(iter(tables.values())))
    with pytest.raises(ValueError, match='not been fitted'): UniTok(experts, sizes).balance(two)
    with pytest.raises(ValueError, match='each once'): ExpertsConfig(())
    with pytest.raises(ValueError, match='no gradient'): ExpertsConfig(('a', 'b'), mode='level_mixture')
    with pytest.raises(ValueError, match='attached=False'): UniTok(experts, replace(sizes, attached=True))

# --- a domain that comes later

def test_a_further_domain_leaves_everything_as_it_was(tables, two, experts, tmp_path):
    model = UniTok(experts, sizes, plan).fit(two)
    name, table = list(tables.items())[2]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    more = model.with_domain(name, table, keep=two)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert more.sizes == (3, 8, 8) and torch.equal(more.encode(two), model.encode(two))
    more.save_pretrained(tmp_path)
    again = UniTok.from_pretrained(tmp_path)
    assert torch.equal(again.encode(table), more.encode(table)) and again.experts.domains == (*experts.domains, name)

@pytest.mark.parametrize('change', [dict(use=False), dict(mode='level_mixture', top=2)])
def test_a_further_domain_wants_experts_that_code_by_themselves(change, tables, two, experts):
    model = UniTok(replace(experts, **change), sizes, replace(plan, epochs=1)).fit(two)
    with pytest.raises(ValueError, match='code by themselves'): model.with_domain('new', list(tables.values())[2], two)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.integers(1, 4))
def test_no_known_vector_ever_moves(seed, shift, M):
    gen = torch.Generator().manual_seed(seed)
    known, new = torch.randn(40, 5, generator=gen), shift + torch.randn(15, 5, generator=gen)
    router = Router(5, M).place(torch.randn(M, 5, generator=gen), 5.)
    wider = _add_level(router, new, known)
    assert torch.equal(wider(known).argmax(1), router(known).argmax(1)) and wider.linear.out_features == M + 1
    assert torch.equal(wider.linear.weight[:M], router.linear.weight)
