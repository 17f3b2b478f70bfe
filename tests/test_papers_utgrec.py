"UTGRec, the paper: stages that resume, domains that mix, histories that do not leak, ablations, and the command line"
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentok import cli
from gentok.data.dataset import Catalogue, Dataset, Histories
from gentok.data.splits import Examples, leave_one_out
from gentok.data.toyshop import toyshop
from gentok.ids.item_ids import ItemIds
from gentok.ids.sequences import batch_tokens, item_tokens
from gentok.ids.vocabulary import Vocabulary
from gentok.papers import utgrec
from gentok.papers.tiger import TigerConfig
from gentok.papers.unitok import _by_name
from gentok.papers.utgrec import UtgrecConfig, ablations, _pretrain_tokenizer, _mix_domains, run, run_tiger_m, run_transfer, _tokenizer_of
from two import torchrun

tiny = UtgrecConfig(text_dim=8, codebook_size=8, width=16, patch=0, tokenizer_epochs=3, tokenizer_batch=20, tokenizer_warm=2, tokenizer_fine_tune_epochs=2,
                    pretraining_epochs=2, epochs=1, validate_every=1, d_model=8, layers=1, batch_size=64, beams=10)

def bare(dataset): # without pictures, which take time
    c = dataset.catalogue
    made = Dataset(dataset.name, Catalogue(c.ids, c.text, None, c.domain), dataset.histories)
    return made

@pytest.fixture(scope='module')
def shops(): return [bare(d) for d in toyshop(n_items=20, n_users=16, domains=3)]

@pytest.fixture(scope='module')
def common(tmp_path_factory): return tmp_path_factory.mktemp('common')

def silent(shop, name='silent'): # a catalogue that nobody took anything from
    made = Dataset(name, shop.catalogue, shop.histories)
    made.histories = Histories([], torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    return made

def equal(a, b):
    drop = lambda m: {k: v for k, v in m.items() if k not in ('seconds', 'config')}
    return drop(a.metrics) == drop(b.metrics) and torch.equal(a.fitted.item_ids.table, b.fitted.item_ids.table) and all(
        torch.equal(x, y) for x, y in zip(a.fitted.model.state_dict().values(), b.fitted.model.state_dict().values()))

@pytest.fixture(scope='module')
def whole(shops, common, tmp_path_factory): return run_transfer(shops[:2], shops[2], tiny, tmp_path_factory.mktemp('whole'), common)

@pytest.mark.parametrize('stage', ['_resolve_codes', '_pretrain', '_tune_tokenizer', 'fit_recommender', 'finish_run'])
@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_killed_between_stages_it_continues(stage, shops, whole, tmp_path, monkeypatch):
    def cut(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(utgrec, stage, cut)
        run_transfer(shops[:2], shops[2], tiny, tmp_path)
    assert equal(run_transfer(shops[:2], shops[2], tiny, tmp_path), whole)
    written = json.loads((tmp_path/'metrics.json').read_text())
    assert written['ndcg@10'] == whole.metrics['ndcg@10']

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_identifiers_stay_as_they_were_made_first(shops, tmp_path, monkeypatch):
    first = run_transfer(shops[:2], shops[2], tiny, tmp_path)
    def others(tokenizer, items, seed=0): # what rounding may do to a tie
        return ItemIds(first.fitted.item_ids.table.flip(0), first.fitted.item_ids.sizes)
    monkeypatch.setattr(utgrec, '_resolve_codes', others)
    assert equal(run_transfer(shops[:2], shops[2], tiny, tmp_path), first)

def test_a_finished_run_trains_nothing(shops, whole, common, monkeypatch):
    monkeypatch.setattr(utgrec.UTGRecTokenizer, 'train_epoch', lambda *args: pytest.fail('trained again'))
    assert equal(run_transfer(shops[:2], shops[2], tiny, whole.out, common), whole)

def told(examples, table): return [table[torch.cat([h, t[None]])].flatten().tolist() for h, t in zip(examples.histories(), examples.targets)]

@given(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 6)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_mixed_sequences_are_those_of_the_domains(sizes, seed):
    gen, v = torch.Generator().manual_seed(seed), Vocabulary((4, 8, 8), blocks=(0, 1, 1))
    parts, tables = [], []
    for n, e in sizes:
        codes = torch.stack([torch.tensor([i % 4, i % 8, i % 8]) for i in range(n)])
        codes[:, 2] = torch.arange(n) // 4
        tables.append(item_tokens(ItemIds(codes, v.sizes), v))
        items = torch.randint(n, (20,), generator=gen)
        start = torch.randint(9, (e,), generator=gen)
        parts.append(Examples(items, start, start + torch.randint(1, 9, (e,), generator=gen), torch.arange(e), 1))
    every, table = _mix_domains(parts, tables)
    assert told(every, table) == [t for p, own in zip(parts, tables) for t in told(p, own)]
    assert not table[-1].any() and len(table) == sum(len(t) - 1 for t in tables) + 1
    assert len(every.users.unique()) == every.n and every.skipped == len(sizes)
    if not every.n: return
    rows, done = batch_tokens(every, torch.arange(every.n), table), 0
    for p, own in zip(parts, tables):
        if not p.n: continue
        alone = batch_tokens(p, torch.arange(p.n), own)
        there = rows.inputs[done:done + p.n]
        assert torch.equal(there[:, :alone.inputs.shape[1]], alone.inputs) and not there[:, alone.inputs.shape[1]:].any()
        assert torch.equal(rows.labels[done:done + p.n], alone.labels)
        done += p.n

def scrambled(shop, seed=0): # everybody's last two items are others
    h = shop.histories
    items, gen = h.items.clone(), torch.Generator().manual_seed(seed)
    for stop in h.offsets[1:].tolist(): items[stop-2:stop] = torch.randint(len(shop.catalogue), (2,), generator=gen)
    return Dataset(shop.name, shop.catalogue, Histories(h.users, items, h.offsets))

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_nobodys_last_two_items_teach_anything(shops, tmp_path):
    a, b = (_pretrain_tokenizer(_by_name(part), tiny) for part in (shops[:2], [scrambled(s) for s in shops[:2]]))
    for name in a.item_ids: assert torch.equal(a.item_ids[name].table, b.item_ids[name].table)
    curves = [utgrec._pretrain(_by_name(part), a, tiny, tmp_path/str(k)).curve for k, part in enumerate((shops[:2], [scrambled(s) for s in shops[:2]]))]
    assert [row['loss'] for row in curves[0]] == [row['loss'] for row in curves[1]]
    mine, theirs = (utgrec._tune_tokenizer(d, a, tiny) for d in (shops[2], scrambled(shops[2])))
    assert torch.equal(mine.item_ids.table, theirs.item_ids.table)

def test_and_the_items_before_them_do(shops):
    h = shops[0].histories
    other = Dataset(shops[0].name, shops[0].catalogue, Histories(h.users, h.items.flip(0), h.offsets))
    strong = replace(tiny, mu=3., eta=3.)
    a, b = (_pretrain_tokenizer(_by_name([d, shops[1]]), strong) for d in (shops[0], other))
    assert not torch.equal(a.tokenizer.residuals(a.items['badges']), b.tokenizer.residuals(b.items['badges']))

@pytest.mark.parametrize('name', ablations)
@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_each_ablation_runs(name, shops, whole, common, tmp_path):
    shared = common if name in ('w/o FT(T)', 'full FT', 'w/o PT(R)') else None
    config = replace(tiny, **ablations[name])
    result = run_transfer(shops[:2], shops[2], config, tmp_path, shared)
    table = result.fitted.item_ids.table
    assert len(table.unique(dim=0)) == 20 and result.metrics['invalid_rate'] == 0 and 0 <= result.metrics['recall@10'] <= 1
    assert not equal(result, whole)
    assert result.fitted.model.vocabulary.blocks == ((0, 1, 2) if name == 'w/o TreeCode' else (0, 1, 1))
    if name == 'w/o PT(R)': assert torch.equal(table, whole.fitted.item_ids.table)
    assert (tmp_path/'tokenizer').exists() == (name not in ('w/o FT(T)', 'w/o PT'))

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_identifiers_are_unique_within_each_domain_and_comparable(shops):
    learnt = _pretrain_tokenizer(_by_name(shops), tiny)
    for ids in learnt.item_ids.values(): assert len(ids.table.unique(dim=0)) == 20 and ids.sizes == (8, 16, 16)
    swapped = utgrec._resolve_codes(learnt.tokenizer, learnt.items['tiles'], seed=0)
    assert torch.equal(swapped.table, learnt.item_ids['tiles'].table)

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_a_catalogue_without_histories_teaches_the_tokenizer_only(shops, tmp_path):
    quiet = silent(shops[1])
    learnt = _pretrain_tokenizer(_by_name([shops[0], quiet]), tiny)
    assert len(learnt.item_ids['silent']) == 20
    trained = utgrec._pretrain(_by_name([shops[0], quiet]), learnt, tiny, tmp_path/'a')
    assert trained.curve[-1]['loss'] == utgrec._pretrain(_by_name(shops[:1]), learnt, tiny, tmp_path/'b').curve[-1]['loss']
    with pytest.raises(ValueError, match='no-recommender-pretraining'): utgrec._pretrain(_by_name([quiet]), learnt, tiny, tmp_path/'c')

def test_as_many_codewords_with_and_without_a_tree():
    count = lambda t: sum(dict(zip(t.config.blocks, t.sizes)).values())
    for levels in (2, 3, 4): assert len({count(_tokenizer_of(replace(tiny, levels=levels, tree=tree))) for tree in (True, False)}) == 1

def test_refusals(shops, whole, common, tmp_path):
    with pytest.raises(ValueError, match='use --no-pretraining'): run(shops[0], tiny, tmp_path/'none')
    with pytest.raises(ValueError, match='different names'): run_transfer(shops, shops[2], tiny, tmp_path/'twice')
    with pytest.raises(ValueError, match='eta'): run_transfer(shops[:2], shops[2], replace(tiny, eta=.5), whole.out, common)
    with pytest.raises(ValueError, match='codebook|mu'): run_transfer(shops[:2], shops[2], replace(tiny, mu=.5), tmp_path/'mu', common)
    assert not (tmp_path/'none').exists()

def test_the_rival_sees_pictures(tmp_path, monkeypatch):
    shop = toyshop(n_items=20, n_users=16, domains=1)[0]
    config = TigerConfig(text_dim=8, codebook_size=8, tokenizer_epochs=4, epochs=1, d_model=8, layers=1, beams=10)
    one, two = (run_tiger_m(d, config, tmp_path/str(k)) for k, d in enumerate((shop, bare(shop))))
    monkeypatch.setattr(utgrec, '_unique_ids', lambda *args: two.fitted.item_ids)  # what rounding may do to a tie
    again = run_tiger_m(shop, config, tmp_path/'0')
    assert equal(one, again) and not torch.equal(one.fitted.item_ids.table, two.fitted.item_ids.table)

def written(shop, folder):
    folder.mkdir()
    users = {str(u): row.tolist() for u, row in enumerate(shop.histories)}
    (folder/f'{shop.name}.inter.json').write_text(json.dumps(users))
    (folder/f'{shop.name}.item.json').write_text(json.dumps({str(i): dict(title=t) for i, t in enumerate(shop.catalogue.text)}))
    return folder

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_from_the_command_line(shops, tmp_path, capsys):
    folders = [written(shop, tmp_path/shop.name) for shop in shops]
    sizes = ('text_dim', 'codebook_size', 'width', 'patch', 'tokenizer_epochs', 'tokenizer_batch', 'tokenizer_warm', 'tokenizer_fine_tune_epochs',
             'pretraining_epochs', 'epochs', 'validate_every', 'd_model', 'layers', 'beams')
    asked = [x for name in sizes for x in (f'--{name.replace("_", "-")}', str(getattr(tiny, name)))]
    def gentok(out, *more): return cli.main(['run', 'utgrec', str(folders[2]), '--out', str(tmp_path/out), *asked, *more])
    assert gentok('with', '--others', f'{folders[0]},{folders[1]}') == 0
    metrics = json.loads((tmp_path/'with'/'metrics.json').read_text())
    assert metrics['items'] == 20 and metrics['config']['others'] == f'{folders[0]},{folders[1]}'
    assert gentok('alone') == 2 and 'no-pretraining' in capsys.readouterr().err and not (tmp_path/'alone').exists()
    assert gentok('alone', '--no-pretraining') == 0 and (tmp_path/'alone'/'metrics.json').exists()

# ---------------------------------------------------------------- two processes

def all_of_it(folder):
    "Every stage by all processes; what each ends with is left in the folder"
    from safetensors.torch import save_file
    from gentok.train.scale_out import process_state
    shops = [bare(d) for d in toyshop(n_items=20, n_users=16, domains=3)]
    done = run_transfer(shops[:2], shops[2], tiny, f'{folder}/run')
    weights = {name: p.detach().clone() for name, p in done.fitted.model.named_parameters()}
    save_file(dict(codes=done.fitted.item_ids.table, **weights), f'{folder}/{process_state().process_index}.safetensors')

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_two_processes_end_with_one_result(tmp_path, shops):
    from safetensors.torch import load_file
    torchrun(tmp_path, f'from test_papers_utgrec import all_of_it; all_of_it({str(tmp_path)!r})')
    one, two = (load_file(tmp_path/f'{k}.safetensors') for k in (0, 1))
    assert one.keys() == two.keys() and all(torch.equal(t, two[name]) for name, t in one.items())
    assert len(one['codes'].unique(dim=0)) == 20
    read = run_transfer(shops[:2], shops[2], tiny, tmp_path/'run')  # finished: nothing is trained
    assert torch.equal(read.fitted.item_ids.table, one['codes']) and read.metrics['invalid_rate'] == 0

def test_a_domain_contributes_so_many_examples(shops):
    train = leave_one_out(shops[0]).train
    few = utgrec._sample_examples(train, 5, 0)
    assert few.n == 5 and set(few.stop.tolist()) <= set(train.stop.tolist()) and utgrec._sample_examples(train, 10**6, 0) is train
    assert not torch.equal(few.stop, utgrec._sample_examples(train, 5, 1).stop)
    with pytest.raises(ValueError, match='pretraining_examples is -1'): replace(tiny, pretraining_examples=-1)

# ---------------------------------------------------------------- at the paper's architecture, small

@pytest.mark.filterwarnings('ignore:.*left their prefix')
def test_with_a_qwen_and_an_autoencoder(tmp_path):
    "All stages with the paper's classes, small and with random weights"
    pytest.importorskip('peft'), pytest.importorskip('diffusers')
    from gentok.embed.qwen import small_qwen
    from gentok.tokenize.latents import _small_kl
    pair = toyshop(n_items=6, n_users=12, domains=2)
    small_qwen(tmp_path/'qwen', [t for d in pair for t in d.catalogue.text], width=64, layers=1), _small_kl(tmp_path/'kl')
    config = replace(tiny, encoder=str(tmp_path/'qwen'), autoencoder=str(tmp_path/'kl'), patch=16, tokenizer_epochs=1, tokenizer_batch=8, tokenizer_warm=0, tokenizer_fine_tune_epochs=1)
    done = run_transfer(pair[:1], pair[1], config, tmp_path/'run')
    tokenizer = utgrec.UTGRecTokenizer.from_pretrained(tmp_path/'run'/'tokenizer')
    assert type(tokenizer.encoder).__name__ == 'QwenEncoder' and tokenizer.frozen and tokenizer.history == []
    assert len(done.fitted.item_ids.table.unique(dim=0)) == 6 and done.metrics['invalid_rate'] == 0
    assert tokenizer.pictures_of(done.fitted.item_ids.table[:1], steps=2)[0].size == (256, 256)
    assert equal(run_transfer(pair[:1], pair[1], config, tmp_path/'run'), done)
