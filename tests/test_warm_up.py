"What a warm-up is for, on the data and with the bounds of the pages, whose own comparisons are slow cells."
from dataclasses import replace

import pytest

from gentok.data.toyshop import toyshop
from gentok.embed.table import _domains_of, _concat_domains
from gentok.embed.text import TextEncoder
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig
from gentok.tokenize.unitok import ExpertsConfig, UniTok

@pytest.mark.parametrize('whiten', [None, 0])
def test_fewer_items_share_their_codes(whiten):
    table = TextEncoder('lsa', dim=32).embed(toyshop(n_items=300, n_users=50, seed=0, domains=('tiles',))[0].catalogue)
    config = RQVAEConfig(hidden=(128, 64), latent=16, K=16, whiten=whiten)
    def collide(seed, warm):
        plan = FitConfig(epochs=100, batch_size=100, lr=3e-3, measure=0, warm=warm)
        return RQVAE(replace(config, seed=seed), plan).fit(table).health(table).collision_rate
    without, after = (sum(collide(seed, warm) for seed in range(3)) for warm in (0, 40))
    assert after < .8*without

@pytest.mark.parametrize('change', [dict(whiten=None), {}, dict(hidden=(256, 128), latent=32)])
def test_every_expert_keeps_its_own_domain(change):
    shops = toyshop(n_items=80, n_users=10, domains=4)[:3]
    encoder = TextEncoder('lsa', 32).fit([text for shop in shops for text in shop.catalogue.text])
    three = _concat_domains({shop.name: encoder.embed(shop.catalogue) for shop in shops})
    sizes = RQVAEConfig(**dict(dict(hidden=(64,), latent=16, levels=2, K=16, whiten=0), **change))
    plan = FitConfig(epochs=80, warm=40, batch_size=128, measure=0)
    balance = UniTok(ExpertsConfig(_domains_of(three.ids).names), sizes, plan).fit(three).balance(three)
    assert balance.perplexity > 2.9
    assert balance.table.diag().mean() > .9
