"The classical rivals against the numbers of the reference implementations."

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gentok.baselines.bert4rec import BERT4Rec, BERT4RecConfig
from gentok.baselines.caser import Caser, CaserConfig
from gentok.baselines.fdsa import FDSA, FDSAConfig
from gentok.baselines.fmlp_rec import FMLPRec, FMLPRecConfig, _Filter
from gentok.baselines.gru4rec import GRU4Rec, GRU4RecConfig
from gentok.baselines.hgn import HGN, HGNConfig
from gentok.baselines.hstu import HSTU, HSTUConfig, _HSTULayer, _time_buckets
from gentok.baselines.lightgcn import LightGCN, LightGCNConfig, _normalised
from gentok.baselines.mf import MF, MFConfig
from gentok.baselines.s3_rec import S3Rec, S3RecConfig, _attribute_questions, _Drawn
from gentok.baselines.s3_rec import _questions, _tasks
from gentok.baselines.sequence_model import _PostBlock, _rectangle, _vectors_of, _window
from gentok.data.dataset import Histories
from gentok.data.splits import Examples, windows
from gentok.embed.collaborative import CausalModel, SASRec, SASRecConfig, SequenceConfig
from gentok.embed.collaborative import _tokens_of
from gentok.search.beam import _as_examples

histories = [[3, 1, 5, 2], [4, 6], [7]]  # of most entries, numbered from 1


@pytest.fixture(scope='module')
def classical(vectors):
    return vectors('classical')


def near(found, wanted, rel=1e-8):
    "As many digits as are printed (ten), or what a reference of float32 allows"
    found, wanted = (
        torch.as_tensor(x, dtype=torch.double).detach() for x in (found, wanted)
    )
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=rel, atol=rel), (
        (found - wanted).abs().max()
    )


def drawn(entry, also=()):
    "The parameters of a reference, by its recipe"
    seed, scale = re.search(
        r'default_rng\((\d+)\); each parameter in the listed order = ([\d.]+)\*',
        entry['input']['weights'],
    ).groups()
    rng, found = np.random.default_rng(int(seed)), {}
    for name, shape in [*entry['input']['parameter_order'], *also]:
        x = torch.tensor(rng.standard_normal(shape))
        norm = len(shape) == 1 and name.endswith('.weight')
        found[name] = 1 + 0.1 * x if norm else float(scale) * x
    return found


def put(module, weight, bias=None):
    "Fill a layer"
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)


def fill(module, p, name):
    put(module, p[f'{name}.weight'], p.get(f'{name}.bias'))


def asked(rows, targets=None, users=None):
    "Histories numbered from 1 as examples of rows from 0, with targets behind them"
    targets = targets or [1] * len(rows)
    flat, stop = [], []
    for row, target in zip(rows, targets):
        flat += [i - 1 for i in row] + [target - 1]
        stop.append(len(flat) - 1)
    stop = torch.tensor(stop)
    start = stop - torch.tensor([len(r) for r in rows])
    users = torch.arange(len(rows)) if users is None else torch.tensor(users) - 1
    return Examples(torch.tensor(flat), start, stop, users, 0)


def post_block(p, at, inner, dim=8, heads=2):
    "RecBole's transformer layer as one of ours"
    block, a = _PostBlock(dim, heads, 0.0, inner).double(), f'{at}.multi_head_attention'
    qkv = [
        [p[f'{a}.{n}.{kind}'] for n in ('query', 'key', 'value')]
        for kind in ('weight', 'bias')
    ]
    put(block.qkv, *map(torch.cat, qkv))
    fill(block.out, p, f'{a}.dense')
    fill(block.norm, p, f'{a}.LayerNorm')
    fill(block.think.wide, p, f'{at}.feed_forward.dense_1')
    fill(block.think.narrow, p, f'{at}.feed_forward.dense_2')
    fill(block.think.norm, p, f'{at}.feed_forward.LayerNorm')
    return block


def stack(p, at, inner, n=2):
    return torch.nn.ModuleList(
        post_block(p, f'{at}.layer.{k}', inner) for k in range(n)
    )


def loss_over(scores, targets):
    return F.cross_entropy(scores, torch.tensor(targets) - 1)


# ---------------------------------------------------------------- SASRec, three ways


class PostSASRec(CausalModel):
    "RecBole's, of the parts of the book"

    def _build(self):
        self.places = torch.nn.Embedding(5, 8)
        self.norm, self.blocks = torch.nn.LayerNorm(8, eps=1e-12), torch.nn.ModuleList()

    def encode(self, examples, tokens):
        place, items, cell, shape = _rectangle(examples, tokens, 'cpu')
        x = self.norm(self.items(items) + self.places(place))
        for block in self.blocks:
            x = block(x, cell, shape)
        return x


@pytest.fixture(scope='module')
def recboles(classical):
    p = drawn(classical['sasrec_recbole'])
    model = PostSASRec(7, SequenceConfig(dim=8, max_length=5)).double().eval()
    put(model.items, p['item_embedding.weight'][1:])
    fill(model.places, p, 'position_embedding')
    fill(model.norm, p, 'LayerNorm')
    model.blocks = stack(p, 'trm_encoder', 16)
    return model, p


def test_sasrec_recbole(classical, recboles):
    out, (model, p) = classical['sasrec_recbole']['output'], recboles
    examples = asked(histories, [6, 2, 5])
    near(model.scores(examples), out['scores_of_items_1..7'])
    near(loss_over(model.scores(examples), [6, 2, 5]), out['loss_over_the_7_items'])
    states = model.states(examples)
    eight = torch.cat(
        [states @ p['item_embedding.weight'][:1].T, model.scores(states)], 1
    )
    loss = F.cross_entropy(eight, torch.tensor([6, 2, 5]))
    near(loss, out['loss_over_8_columns_as_RecBole'])
    model.zero_grad()
    loss.backward()
    names = dict(zip(('wide', 'narrow'), ('dense_1', 'dense_2')))
    for k, block in enumerate(model.blocks):
        for ours, theirs in names.items():
            at = f'trm_encoder.layer.{k}.feed_forward.{theirs}.weight'
            found = getattr(block.think, ours).weight.grad.norm()
            near(found, out['grad_norms_of_RecBoles_loss'][at])
    near(
        model.places.weight.grad.norm(),
        out['grad_norms_of_RecBoles_loss']['position_embedding.weight'],
    )


def test_prefixes_are_one_pass(classical, recboles):
    entry, model = classical['prefixes_are_one_pass'], recboles[0]
    rows = [s[:-1] for s in entry['input']['sequences']]
    whole = asked(rows, [s[-1] for s in entry['input']['sequences']])
    found = model.ask(whole)
    each = F.cross_entropy(model.scores(found.states), found.targets, reduction='none')
    near(each, entry['output']['loss_of_each_example_over_7_items'])
    near(model.loss(whole), entry['output']['mean'])


def test_sasrec_preln(classical):
    entry = classical['sasrec_preln']
    p, given, out = drawn(entry), entry['input'], entry['output']
    model = SASRec(7, SASRecConfig(dim=8, max_length=4)).double().eval()
    put(model.items, p['item_emb.weight'][1:])
    put(model.places, p['pos_emb.weight'][1:])
    fill(model.norm, p, 'last_layernorm')
    for k, block in enumerate(model.blocks):
        at = f'attention_layers.{k}'
        put(block.qkv, p[f'{at}.in_proj_weight'], p[f'{at}.in_proj_bias'])
        fill(block.out, p, f'{at}.out_proj')
        fill(block.before, p, f'attention_layernorms.{k}')
        fill(block.between, p, f'forward_layernorms.{k}')
        for layer, name in ((block.think[0], 'conv1'), (block.think[2], 'conv2')):
            at = f'forward_layers.{k}.{name}'
            put(layer, p[f'{at}.weight'][:, :, 0], p[f'{at}.bias'])
    for m in model.modules():
        if isinstance(m, torch.nn.LayerNorm):
            m.eps = 1e-8
    rows = asked(given['histories'])
    states = model(rows, _tokens_of(rows)).view(3, 4, 8)
    near(states, out['states_of_every_place'])
    near(model.scores(rows), out['scores_of_items_1..7_at_the_last_place'])
    right, wrong = (
        model.items(torch.tensor(given[k]) - 1) for k in ('positives', 'negatives')
    )
    bce = (
        F.softplus(-(states * right).sum(2)).mean()
        + F.softplus((states * wrong).sum(2)).mean()
    )
    near(bce, out['bce_as_the_paper (mean over places, positive + negative)'])


def test_sasrec_authors_blocks(classical):
    "The authors' order of things, of torch's own parts: what SASRec's page says of it"
    entry = classical['sasrec_authors_blocks']
    p, x = (
        drawn(entry),
        torch.tensor(np.random.default_rng(13).standard_normal((2, 5, 8))),
    )
    gone = torch.zeros(2, 5, 1, dtype=torch.bool)
    gone[1, :2] = True

    def norm(y, name, eps=1e-5):
        return F.layer_norm(y, (8,), p[f'{name}.weight'], p[f'{name}.bias'], eps)

    for k in range(2):
        at, x = f'transformer_blocks.{k}', x.masked_fill(gone, 0.0)
        q, a = norm(x, f'{at}.q_layer_norm'), f'{at}.multi_head_attn'
        parts = zip(
            (q, x, x),
            p[f'{a}.in_proj_weight'].chunk(3),
            p[f'{a}.in_proj_bias'].chunk(3),
        )
        heads = [(y @ W.T + b).view(2, 5, 2, 4).transpose(1, 2) for y, W, b in parts]
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        seen = seen.transpose(1, 2).reshape(2, 5, 8)
        x = q + seen @ p[f'{a}.out_proj.weight'].T + p[f'{a}.out_proj.bias']
        x, f = norm(x, f'{at}.ff_layer_norm'), f'{at}.feed_forward'
        y = F.relu(x @ p[f'{f}.ff_linear_1.weight'].T + p[f'{f}.ff_linear_1.bias'])
        x = x + y @ p[f'{f}.ff_linear_2.weight'].T + p[f'{f}.ff_linear_2.bias']
    wanted = entry['output']['states (row 1 from place 2 on)']
    found = norm(x, 'last_layernorm', 1e-8)
    near(found[0], wanted[0])
    near(found[1, 2:], wanted[1])


# ---------------------------------------------------------------- GRU4Rec


def test_gru4rec(classical):
    entry = classical['gru4rec']
    p, out = drawn(entry), entry['output']
    model = GRU4Rec(7, GRU4RecConfig(dim=6, hidden=10)).double().eval()
    put(model.items, p['item_embedding.weight'][1:])
    with torch.no_grad():
        for name in ('weight_ih_l0', 'weight_hh_l0'):
            getattr(model.gru, name).copy_(p[f'gru_layers.{name}'])
    fill(model.out, p, 'dense')
    examples = asked(histories, [6, 2, 5])
    states = model.states(examples)
    near(states, out['state_in_item_space'])
    near(model.scores(examples), out['scores_of_items_1..7'])
    near(loss_over(model.scores(examples), [6, 2, 5]), out['loss_over_the_7_items'])
    eight = torch.cat(
        [states @ p['item_embedding.weight'][:1].T, model.scores(states)], 1
    )
    loss = F.cross_entropy(eight, torch.tensor([6, 2, 5]))
    near(loss, out['loss_over_8_columns_as_RecBole'])
    loss.backward()
    grads = out['grad_norms_of_RecBoles_loss']
    near(model.gru.weight_ih_l0.grad.norm(), grads['gru_layers.weight_ih_l0'])
    near(model.gru.weight_hh_l0.grad.norm(), grads['gru_layers.weight_hh_l0'])
    near(model.out.weight.grad.norm(), grads['dense.weight'])


# ---------------------------------------------------------------- Caser and HGN


def right_padded(model, examples, length):
    "RecBole's windows: the oldest first, nothing behind"
    x = torch.zeros(examples.n, length, model.config.dim, dtype=torch.double)
    tokens = _tokens_of(examples)
    items = model.items(examples.items[tokens.at])
    return x.index_put((tokens.row, tokens.place), items)


def test_caser(classical):
    entry = classical['caser']
    p, out = drawn(entry), entry['output']
    p['item_embedding.weight'][0] = 0.0
    model = Caser(
        7, 3, CaserConfig(dim=6, max_length=4, vertical=2, horizontal=3, tied=True)
    )
    model.double().eval()
    put(model.items, p['item_embedding.weight'][1:])
    put(model.users, p['user_embedding.weight'][1:])
    put(model.down, p['conv_v.weight'][:, 0, :, 0], p['conv_v.bias'])
    for k, filters in enumerate(model.across):
        put(filters, p[f'conv_h.{k}.weight'][:, 0].mT, p[f'conv_h.{k}.bias'])
    fill(model.out, p, 'fc1')
    fill(model.last, p, 'fc2')
    examples = asked(histories, entry['input']['targets'], entry['input']['users'])
    near(model.scores(examples), out['scores_left_padded'])
    users = model.users(examples.users)
    states = model._read(right_padded(model, examples, 4), users)
    near(states, out['state'])
    near(model.scores(states), out['scores_of_items_1..7'])
    near(
        F.cross_entropy(model.scores(states), examples.targets),
        out['cross_entropy_over_the_7_items'],
    )
    tables = [
        p['user_embedding.weight'],
        p['item_embedding.weight'],
        p['conv_v.weight'],
        *(p[f'conv_h.{k}.weight'] for k in range(4)),
        p['fc1.weight'],
        p['fc2.weight'],
    ]
    near(0.001 * sum(t.norm() for t in tables), out['regularisation'])
    eight = torch.cat(
        [states @ p['item_embedding.weight'][:1].T, model.scores(states)], 1
    )
    near(
        F.cross_entropy(eight, examples.targets + 1) + out['regularisation'],
        out['loss_over_8_columns_as_RecBole'],
    )


def recboles_hgn(p):
    "RecBole's three biases of the feature gate are one"
    model = HGN(7, 3, HGNConfig(dim=6, max_length=4)).double().eval()
    put(model.items, p['item_embedding.weight'][1:])
    put(model.users, p['user_embedding.weight'][1:])
    put(model.answers, p['item_embedding_for_prediction.weight'][1:])
    put(model.features, p['w1.weight'], p['b'] + p['w1.bias'] + p['w2.bias'])
    for layer, name in (
        (model.features_of, 'w2'),
        (model.instance, 'w3'),
        (model.instance_of, 'w4'),
    ):
        put(layer, p[f'{name}.weight'])
    return model


def test_hgn(classical):
    entry = classical['hgn']
    p, out = drawn(entry), entry['output']
    model = recboles_hgn(p)
    examples = asked(histories, entry['input']['targets'], entry['input']['users'])
    x, users = right_padded(model, examples, 4), model.users(examples.users)
    gated, pooled = model._gated(x, users)
    near(gated, out['after_feature_gate'])
    near(pooled, out['after_instance_gate_and_pooling'])
    scores = model.scores(model._read(x, users))
    near(scores, out['scores_of_items_1..7'])
    near(
        F.cross_entropy(scores, examples.targets), out['cross_entropy_over_the_7_items']
    )


def test_hgn_bpr_bug(classical):
    "BPR of one table; RecBole takes the wrong item from the other one"
    entry = classical['hgn_bpr_bug']
    p, out, given = drawn(entry), entry['output'], entry['input']
    model = recboles_hgn(p)
    examples = asked(histories, given['targets'], given['users'])
    state = model._read(right_padded(model, examples, 4), model.users(examples.users))
    right, wrong = examples.targets, torch.tensor(given['negatives']) - 1

    def bpr(table):
        return F.softplus((state * (table(wrong) - model.answers(right))).sum(1)).mean()

    near(
        bpr(model.answers), out['bpr_with_both_vectors_from_the_prediction_table'], 1e-7
    )
    near(
        bpr(model.items) + out['of_which_regularisation'], out['loss_as_RecBole'], 1e-7
    )


def test_hgn_authors(classical):
    entry = classical['hgn_authors']
    p = drawn(entry, [('gate_item', (6, 1)), ('gate_user', (6, 4))])
    model = HGN(7, 3, HGNConfig(dim=6, max_length=4)).double().eval()
    put(model.items, p['item_embeddings.weight'][1:])
    put(model.users, p['user_embeddings.weight'][1:])
    put(model.answers, p['W2.weight'][1:])
    put(
        model.features,
        p['feature_gate_item.weight'],
        p['feature_gate_item.bias'] + p['feature_gate_user.bias'],
    )
    put(model.features_of, p['feature_gate_user.weight'])
    put(model.instance, p['gate_item'].T)
    put(model.instance_of, p['gate_user'].T)
    with torch.no_grad():
        model.bias.copy_(p['b2.weight'][1:, 0])
    rows = [[i for i in h if i] for h in entry['input']['histories_left_padded']]
    examples = asked(rows, users=entry['input']['users'])
    near(model.scores(examples), entry['output']['scores_of_items_1..7'])


# ---------------------------------------------------------------- BERT4Rec


@pytest.fixture(scope='module')
def bert(classical):
    p = drawn(classical['bert4rec_scores'])
    model = BERT4Rec(7, BERT4RecConfig(dim=8, max_length=5)).double().eval()
    put(model.items, p['item_embedding.weight'][1:8])
    fill(model.places, p, 'position_embedding')
    model.blocks = stack(p, 'trm_encoder', 16)
    for layer, name in (
        (model.norm, 'LayerNorm'),
        (model.head, 'output_ffn'),
        (model.head_norm, 'output_ln'),
    ):
        fill(layer, p, name)
    with torch.no_grad():
        model.mask.copy_(p['item_embedding.weight'][8])
        model.bias.copy_(p['output_bias'][1:])
    return model


def test_bert4rec_scores(classical, bert):
    out = classical['bert4rec_scores']['output']
    near(
        bert.scores(asked(histories)), out['scores_of_items_1..7_for_history_and_mask']
    )
    shorter = [row[: row.index(8)] for row in out['sequence_that_RecBole_makes']]
    assert shorter == [h[1:] for h in histories]  # it drops the oldest
    examples = asked(shorter)
    near(
        bert._compared(bert.states(examples), bert.output()),
        out['scores_of_items_1..7_as_RecBole'],
    )


def test_bert4rec_cloze_loss(classical, bert):
    entry = classical['bert4rec_cloze_loss']
    rows = [[i for i in row if i] for row in entry['input']['masked_sequences']]
    hidden = torch.tensor([i == 8 for row in rows for i in row])
    examples = asked([[1 if i == 8 else i for i in row] for row in rows])
    states = bert.encode(examples, _tokens_of(examples), hidden)[hidden]
    places = entry['input']['masked_places_and_items']
    items = torch.tensor([item for _, item, _ in places]) - 1
    each = F.cross_entropy(bert.scores(states), items, reduction='none')
    out = entry['output']
    near(each, next(v for k, v in out.items() if k.startswith('loss_of_each')))
    near(each.mean(), out['mean_of_the_four'])
    first = torch.tensor([place == 0 for place, _, _ in places])
    assert int((~first).sum()) == 2  # what RecBole learns from


def test_bert4rec_masking(classical, monkeypatch):
    "Which tokens are hidden; all are asked for, where RecBole keeps two a row"
    from gentok.baselines import bert4rec

    entry = classical['bert4rec_masking']
    draws = [x for x in entry['input']['draws'][1:] if isinstance(x, float)]
    given = iter([torch.ones(3), torch.tensor(draws), torch.zeros(3)])
    monkeypatch.setattr(bert4rec.torch, 'rand', lambda n: next(given))
    found = bert4rec._hidden(torch.tensor([4, 2, 1]), 0.4).split([4, 2, 1])
    monkeypatch.undo()
    masked = [
        [i == 8 for i in row if i] for row in entry['output']['Mask_item_id_list']
    ]
    assert [f.tolist() for f in found[:2]] == masked[:2]
    assert masked[2] == [False] and found[2].tolist() == [True]  # at least one


def test_bert4rec_mask_last(classical, monkeypatch):
    from gentok.baselines import bert4rec

    entry = classical['bert4rec_mask_last']
    given = iter([torch.zeros(3), torch.zeros(7), torch.zeros(3)])
    monkeypatch.setattr(bert4rec.torch, 'rand', lambda n: next(given))
    found = bert4rec._hidden(torch.tensor([4, 2, 1]), 0.4).tolist()
    monkeypatch.undo()
    rows = entry['output']['Mask_item_id_list']
    assert found == [i == 8 for row in rows for i in row if i]


# ---------------------------------------------------------------- FMLP-Rec


def test_fmlp_filter(classical):
    entry, rng = classical['fmlp_filter'], np.random.default_rng
    x = torch.tensor(rng(81).standard_normal((2, 6, 6)))
    layer = _Filter(6, 6).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rng(80).standard_normal((1, 4, 6, 2)))[0])
    near(layer(x), entry['output']['filtered'])
    near(
        F.layer_norm(x + layer(x), (6,), eps=1e-12),
        entry['output']['layer (LayerNorm of x + filtered)'],
    )


def test_fmlp_rec(classical):
    entry = classical['fmlp_rec']
    p, out = drawn(entry), entry['output']
    model = FMLPRec(7, FMLPRecConfig(dim=6, max_length=6)).double().eval()
    names = list(p)
    put(model.items, p['item_embeddings.weight'][1:])
    fill(model.places, p, 'position_embeddings')
    fill(model.norm, p, 'LayerNorm')
    for k in range(2):
        at = (
            next(n for n in names if f'layer.{k}.' in n).split(f'layer.{k}.')[0]
            + f'layer.{k}'
        )
        mine = {
            n.removeprefix(f'{at}.'): v for n, v in p.items() if n.startswith(f'{at}.')
        }
        with torch.no_grad():
            model.filters[k].weight.copy_(
                next(v for n, v in mine.items() if 'complex' in n)[0]
            )
        prefix = next(n for n in mine if 'complex' in n).rpartition('.')[0]
        fill(model.norms[k], mine, f'{prefix}.LayerNorm')
        rest = next(n for n in mine if 'dense_1' in n).rpartition('.dense_1')[0]
        fill(model.thinks[k].wide, mine, f'{rest}.dense_1')
        fill(model.thinks[k].narrow, mine, f'{rest}.dense_2')
        fill(model.thinks[k].norm, mine, f'{rest}.LayerNorm')
    examples = asked(histories, [6, 2, 5])
    scores = model.scores(examples)
    near(scores, out['scores_of_items_1..7_at_the_last_place'])
    near(model.loss(examples), out['cross_entropy_over_the_7_items'])
    at, wrong = torch.arange(3), torch.tensor(entry['input']['negatives']) - 1
    bce = F.softplus(-scores[at, examples.targets]) + F.softplus(scores[at, wrong])
    near(bce.mean(), out['bce_of_the_last_place'])


# ---------------------------------------------------------------- HSTU


def test_hstu_position_bias(classical):
    layer = _HSTULayer(2, 1, (2, 2), 4, 0.0)
    with torch.no_grad():
        layer.distance.copy_(torch.arange(7.0))
    back = torch.arange(4)
    bias = layer.distance[back - back[:, None] + layer.places - 1]
    near(bias, classical['hstu_position_bias']['output']['bias[i][j]'])


def test_hstu_time_buckets(classical):
    entry = classical['hstu_time_buckets']
    found = _time_buckets(torch.tensor(entry['input']['timestamps']))
    near(found, entry['output']['bucket[i][j]'])


def test_hstu_layer(classical):
    entry = classical['hstu_layer']
    p, out = drawn(entry), entry['output']
    layer = _HSTULayer(8, 2, (3, 4), 5, 0.0).double()
    with torch.no_grad():
        layer.uvqk.copy_(p['_uvqk'])
        layer.distance.copy_(p['_rel_attn_bias._w'])
    fill(layer.out, p, '_o')
    x = torch.tensor(np.random.default_rng(101).standard_normal((6, 8)))
    cell = torch.tensor([0, 1, 2, 3, 4, 5])
    y = layer(x, cell, (2, 4))  # a smaller rectangle than N
    near(y, out['y'])
    near(layer(x, torch.tensor([0, 1, 2, 3, 5, 6]), (2, 5)), out['y'])
    y.square().sum().backward()
    grads = out['grad_norms_of_sum_of_squares']
    near(layer.uvqk.grad.norm(), grads['_uvqk'])
    near(layer.distance.grad.norm(), grads['_rel_attn_bias._w'])
    fill_grads = layer.out.weight.grad.norm(), layer.out.bias.grad.norm()
    near(torch.stack(fill_grads), [grads['_o.weight'], grads['_o.bias']])


def test_hstu(classical):
    entry = classical['hstu']
    p, out = drawn(entry), entry['output']
    model = HSTU(7, HSTUConfig(dim=8, max_length=6, temperature=1.0)).double().eval()
    find = lambda *parts: next(v for n, v in p.items() if all(x in n for x in parts))
    put(model.items, find('item_emb')[1:])
    put(model.places, find('pos_emb')[:6])
    model.layers = torch.nn.ModuleList(
        _HSTULayer(8, 2, (4, 3), 6, 0.0) for _ in range(2)
    )
    model.double()
    for bias in (True, False):
        for k, layer in enumerate(model.layers):
            with torch.no_grad():
                layer.uvqk.copy_(find(f'.{k}.', '_uvqk'))
                pos, ts = (find(f'.{k}.', name) for name in ('_pos_w', '_ts_w'))
                layer.distance.copy_((pos + ts[0]) if bias else torch.zeros(11))
                layer.out.weight.copy_(find(f'.{k}.', '_o.weight'))
                layer.out.bias.copy_(find(f'.{k}.', '_o.bias'))
        examples, name = (
            asked(histories),
            'cosine_scores_of_items_1..7'
            if bias
            else 'cosine_scores_without_any_bias (no time stamps given)',
        )
        near(model.scores(examples), out[name])
        if bias:
            near(model.states(examples), out['state_behind_the_last_item (length 1)'])


# ---------------------------------------------------------------- FDSA


def fdsa_of(p, tables, config):
    model = FDSA(7, tables, config).double().eval()
    put(model.items, p['item_embedding.weight'][1:])
    fill(model.places, p, 'position_embedding')
    model.blocks = stack(p, 'item_trm_encoder', 16)
    model.feature_blocks = stack(p, 'feature_trm_encoder', 16)
    fill(model.norm, p, 'LayerNorm')
    fill(model.join, p, 'concat_layer')
    return model


def test_fdsa(classical):
    "Fields of tokens are tables of noughts and ones, or of shares"
    entry = classical['fdsa']
    p, given, out = drawn(entry), entry['input'], entry['output']
    brand = F.one_hot(torch.tensor(given['brand_of_item_0..7']), 4)[1:]
    words = F.one_hot(torch.tensor(given['words_of_item_0..7 (0 = none)'])[1:], 6).sum(
        1
    )
    words[:, 0] = 0
    words = words / words.sum(1, keepdim=True).clamp(min=1)
    model = fdsa_of(p, [brand, words], FDSAConfig(dim=8, max_length=5, relu=False))
    model.table_0, model.table_1 = brand.double(), words.double()
    at = 'feature_embed_layer.token_'
    put(
        model.fields[0],
        p[f'{at}embedding_table.item.embedding.weight'].T,
        torch.zeros(8),
    )
    put(model.fields[1], p[f'{at}seq_embedding_table.item.0.weight'].T, torch.zeros(8))
    fill(model.attend[0], p, 'feature_att_layer.projection.0')
    fill(model.attend[2], p, 'feature_att_layer.projection.2')
    items = torch.tensor([3, 2, 6, 7]) - 1
    fields = torch.stack(
        [f(t[items]) for f, t in zip(model.fields, (model.table_0, model.table_1))], 1
    )
    near(
        model.attend(fields).softmax(1)[:, :, 0],
        out['field_weights (words field stands second)'],
    )
    examples = asked(histories, given['targets'])
    near(model.scores(examples), out['scores_of_items_1..7'])
    near(
        F.cross_entropy(model.scores(examples), examples.targets),
        out['cross_entropy_over_the_7_items'],
    )


def test_fdsa_text(classical):
    entry = classical['fdsa_text']
    p, out = drawn(entry), entry['output']
    text = torch.tensor(np.random.default_rng(64).standard_normal((7, 6)))
    model = fdsa_of(p, text, FDSAConfig(dim=8, max_length=5))
    model.table_0 = text  # in double precision
    name = next(n for n in p if p[n].shape == (8, 6)).removesuffix('.weight')
    fill(model.fields[0], p, name)
    examples = asked(histories, entry['input']['targets'])
    near(model.scores(examples), out['scores_of_items_1..7'])
    near(
        F.cross_entropy(model.scores(examples), examples.targets),
        out['cross_entropy_over_the_7_items'],
    )


# ---------------------------------------------------------------- S3-Rec


def s3rec_of(p, table, inner):
    "The authors' network; attributes of a table of noughts and ones, or texts"
    model = S3Rec(7, table, S3RecConfig(dim=8, max_length=5)).double().eval()
    find = lambda *parts: next(n for n in p if all(x in n for x in parts)).rpartition(
        '.'
    )[0]
    put(model.items, p[f'{find("item_emb")}.weight'][1:8])
    with torch.no_grad():
        model.mask.copy_(p[f'{find("item_emb")}.weight'][8])
    fill(model.places, p, find('position_emb'))
    fill(model.norm, p, 'LayerNorm')
    at = next(n for n in p if 'layer.0.' in n).split('.layer.0.')[0]
    blocks = []
    for k in range(2):
        names = {
            n.replace('.attention.', '.multi_head_attention.').replace(
                '.intermediate.', '.feed_forward.'
            ): v
            for n, v in p.items()
        }
        blocks.append(post_block(names, f'{at}.layer.{k}', inner))
    model.blocks = torch.nn.ModuleList(blocks)
    for name in _tasks:
        fill(model.tasks[name], p, f'{name}_norm')
    return model


def row_by_row(model, entry, fields=None):
    "The four sums, each row at its own places, since the reference pads on the left"
    given, total = entry['input'], dict.fromkeys(_tasks, 0.0)
    places = model.places.weight.detach().clone()
    for r, row in enumerate(given['sequences']):
        n, rows = len(row), asked([row])
        cut = lambda name: torch.tensor(given[name][r][-n:])
        whole = dict(
            zip(
                ('hidden', 'wrong', 'segment', 'others'),
                (
                    cut('masked') == 8,
                    cut('negatives (at every place; only masked places count)') - 1,
                    cut('masked_segment') == 8
                    if 'masked_segment' in given
                    else torch.arange(n) < 1,
                    (cut('negative_segment') - 1).clamp(max=6)
                    if 'negative_segment' in given
                    else torch.zeros(n, dtype=torch.long),
                ),
            )
        )
        with torch.no_grad():
            model.places.weight.copy_(places.roll(n - 5, 0))
        found = _questions(model, rows, _Drawn(**whole))
        total = {name: total[name] + v.item() for name, v in found.items()}
    with torch.no_grad():
        model.places.weight.copy_(places)
    return total


def attributes(given, columns):
    rows = given['attributes_of_item_0..7'][1:]
    return torch.stack(
        [
            torch.zeros(columns).index_fill(0, torch.tensor(r, dtype=torch.long), 1.0)
            for r in rows
        ]
    )


@pytest.fixture(scope='module')
def s3rec(classical):
    entry = classical['s3rec_map_sp']
    p = drawn(entry)
    model = s3rec_of(p, attributes(entry['input'], 6), 32)
    name = next(n for n in p if 'attribute' in n)
    with torch.no_grad():
        model.attributes.weight.copy_(p[name].T)
    return model, p[name]


def test_s3rec_aap_mip(classical, s3rec):
    entry = classical['s3rec_aap_mip']
    found = row_by_row(s3rec[0], entry)
    near(found['aap'], entry['output']['aap_sum'])
    near(found['mip'], entry['output']['mip_sum'])


def test_s3rec_map_sp(classical, s3rec):
    entry = classical['s3rec_map_sp']
    found = row_by_row(s3rec[0], entry)
    near(found['map'], entry['output']['map_sum'])
    near(found['sp'], entry['output']['sp_sum'])


def test_s3rec_recbole_total(classical, s3rec):
    "RecBole's sums have no column for the attribute that nobody has"
    batch, entry = classical['s3rec_map_sp'], classical['s3rec_recbole_total']
    p = drawn(batch)
    model = s3rec_of(p, attributes(batch['input'], 6)[:, 1:], 32)
    with torch.no_grad():
        model.attributes.weight.copy_(s3rec[1][1:].T)
    found = row_by_row(model, batch)
    near([found[n] for n in _tasks], entry['output']['each_alone (aap, mip, map, sp)'])
    assert list(_tasks.values()) == entry['input']['weights_of_the_losses']
    near(sum(_tasks[n] * found[n] for n in _tasks), entry['output']['loss'])


def test_s3rec_text(classical):
    "The reference's padding is a column too: a text of zeros that no item has"
    entry = classical['s3rec_text']
    p = drawn(entry)
    text = torch.tensor(np.random.default_rng(64).standard_normal((7, 6)))
    model = s3rec_of(p, text, 16)
    model.table = text
    fill(
        model.attributes,
        p,
        next(n for n in p if p[n].shape == (8, 6)).removesuffix('.weight'),
    )
    extra, seen = F.relu(model.attributes.bias), {}
    for name in ('aap', 'map'):
        sums = seen[name] = []
        model.tasks[name].register_forward_hook(
            lambda module, x, y, sums=sums: sums.append(
                F.softplus(y @ extra).sum().item()
            )
        )
    found, out = row_by_row(model, entry), entry['output']
    for name in ('aap', 'map'):
        near(found[name] + sum(seen[name]), out[f'{name}_sum'])
    for name in ('mip', 'sp'):
        near(found[name], out[f'{name}_sum'])


def test_s3rec_finetune(classical, s3rec):
    entry, model = classical['s3rec_finetune'], s3rec[0]
    places = model.places.weight.detach().clone()
    wanted = entry['output']['scores_of_items_1..7_at_the_last_place']
    for padded, scores in zip(entry['input']['histories_left_padded'], wanted):
        row = [i for i in padded if i]
        with torch.no_grad():
            model.places.weight.copy_(places.roll(len(row) - 5, 0))
        near(model.scores(asked([row]))[0], scores)
    with torch.no_grad():
        model.places.weight.copy_(places)


def test_s3rec_pretraining_example(classical, monkeypatch):
    from gentok.baselines import s3_rec

    entry = classical['s3rec_pretraining_example']
    draws, out = entry['input']['draws'], entry['output']
    n, length, first, begin = 4, 2, 1, 3
    share = draws['masking of places 0..2 (masked below 0.2)'] + [0.5]
    stream = torch.tensor(entry['input']['long_sequence']) - 1
    given = iter(
        [
            torch.tensor(share),
            torch.tensor([0.5]),
            torch.tensor([first / 3 + 0.01]),
            torch.tensor([begin / (len(stream) - length + 1) + 0.01]),
        ]
    )
    monkeypatch.setattr(s3_rec.torch, 'rand', lambda n: next(given))
    items = torch.tensor([3, 1, 5, 2]) - 1
    found = s3_rec._draw_questions(torch.tensor([n]), items, stream, 7)
    monkeypatch.undo()
    assert found.hidden.tolist() == [i == 8 for i in out['masked'][1:]]
    assert found.segment.tolist() == [i == 8 for i in out['masked_segment'][1:]]
    other = out['negative_segment'][1:]
    assert found.others[found.segment].tolist() == [i - 1 for i in other if i != 8]
    assert not set(found.wrong.tolist()) & set(items.tolist())


# ---------------------------------------------------------------- MF and LightGCN


def test_mf_bpr(classical):
    entry = classical['mf_bpr']
    p, given, out = drawn(entry), entry['input'], entry['output']
    model = MF(7, 3, MFConfig(dim=5, reg=0.0)).double()
    put(model.users, p['user_embedding.weight'][1:])
    put(model.items, p['item_embedding.weight'][1:])
    users, right, wrong = (
        torch.tensor(given[k]) - 1 for k in ('users', 'items', 'negatives')
    )
    loss = model._pairwise(users, right, wrong)
    near(loss, out['loss'])
    loss.backward()
    near(model.users.weight.grad[2], out['grad_of_user_3'])
    near(model.items.weight.grad[4], out['grad_of_item_5'])
    near(model.scores(asked([[1]] * 3)), out['scores_of_users_1..3_for_items_1..7'])


def test_lightgcn(classical):
    entry = classical['lightgcn']
    p, out = drawn(entry), entry['output']
    pairs = torch.tensor(entry['input']['interactions (user, item)']) - 1
    model = LightGCN(7, 3, LightGCNConfig(dim=5, layers=2), pairs).double().eval()
    put(model.users, p['user_embedding.weight'][1:])
    put(model.items, p['item_embedding.weight'][1:])
    graph = _normalised(pairs, 3, 7, model.items.weight).to_dense()
    near(graph[0, 3 + 1], out['normalised_weight_of_user_1_item_2'], 1e-6)
    near(graph[2, 3 + 6], out['of_user_3_item_7'], 1e-6)
    users, items = model.vectors()
    near(users, out['user_vectors_1..3'], 1e-6)
    near(items, out['item_vectors_1..7'], 1e-6)
    near(model.scores(asked([[1]] * 3)), out['scores'], 1e-6)
    twice = LightGCN(7, 3, model.config, torch.cat([pairs, pairs])).double()
    twice.load_state_dict(model.state_dict() | {'pairs': twice.pairs})
    near(twice.vectors()[0], out['user_vectors_1..3'], 1e-6)  # repeats once


def test_recbole_examples(classical):
    entry = classical['recbole_examples']
    rows = [entry['input'][f'user {u}'] for u in (1, 2)]
    items, offsets = (
        torch.tensor(sum(rows, [])),
        torch.tensor([0, *map(len, rows)]).cumsum(0),
    )
    made = windows(
        Histories(['1', '2'], items, offsets),
        torch.ones(2, dtype=torch.long),
        torch.tensor([len(r) - 1 for r in rows]),
        3,
    )
    found = zip(made.users.tolist(), made.histories(), made.targets.tolist())
    wanted = entry['output']['(user, history, target)']
    assert [[u + 1, h.tolist(), t] for u, h, t in found] == wanted
    last = _window(made, 3)
    assert last[3].tolist() == wanted[3][1]
