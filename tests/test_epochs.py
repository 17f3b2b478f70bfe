"Neighbouring epochs: none is missing, none is mistaken for another, and a run that was cut keeps the same ones."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.embed.table import EmbeddingTable
from gentok.tokenize.epochs import EpochTokenizers, _again, _changed, last_epochs, independent_tokenizers
from gentok.tokenize.rqvae import RQVAE, FitConfig, RQVAEConfig, _kept_epochs
from gentok.tokenize.tokenizer import RandomTokenizer, ResidualKMeans

def table(n=50, seed=0):
    return EmbeddingTable(range(n), torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), 'noise')

def small(**fit):
    return RQVAE(RQVAEConfig(hidden=(8,), latent=4, levels=2, K=8), FitConfig(**{'epochs': 12, 'batch_size': 16, 'every': 4, 'measure': 0, **fit}))

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_changed_counts_what_a_loop_counts(n, m, l, seed):
    codes = torch.randint(0, 2, (n, m, l), generator=torch.Generator().manual_seed(seed))
    for row in _changed(codes):
        gap = row['interval']
        pairs = [(codes[k, i], codes[k + gap, i]) for k in range(n - gap) for i in range(m)]
        assert row['first'] == pytest.approx(sum(a[0] != b[0] for a, b in pairs).item()/len(pairs))
        assert row['any'] == pytest.approx(sum(bool((a != b).any()) for a, b in pairs)/len(pairs))
    assert [r['interval'] for r in _changed(codes)] == list(range(1, n))

def test_each_epoch_is_what_a_run_of_that_length_ends_with(tmp_path):
    "The codes of an epoch are those of the codebooks after its last update"
    epochs = last_epochs(small(), table(), 3, tmp_path/'run')
    assert [f.name for f in epochs.folders] == ['epoch-000010', 'epoch-000011', 'epoch-000012']
    for k, length in enumerate((10, 11, 12)):
        alone = small(epochs=length).fit(table())
        assert torch.equal(epochs.encode(table())[k], alone.encode(table())) and torch.equal(epochs[k].encode(table()), alone.encode(table()))

@pytest.mark.parametrize('cut', (3, 6, 10, 11))
def test_a_run_that_was_cut_keeps_the_same_epochs(cut, tmp_path, monkeypatch):
    whole = last_epochs(small(), table(), 4, tmp_path/'whole').encode(table())
    class Cut(Exception): pass
    train_epoch = RQVAE.train_epoch
    def until(self, x, optimizer, epoch):
        if epoch > cut: raise Cut
        return train_epoch(self, x, optimizer, epoch)
    monkeypatch.setattr(RQVAE, 'train_epoch', until)
    with pytest.raises(Cut): last_epochs(small(), table(), 4, tmp_path/'cut')
    monkeypatch.undo()
    assert torch.equal(last_epochs(small(), table(), 4, tmp_path/'cut').encode(table()), whole)

# ---------------------------------------------------------------- the rate at the end

def test_a_rate_that_falls_brings_neighbours_together(tmp_path):
    "At a constant rate Adam never comes to rest, and items near a border change codes in every epoch"
    def apart(final): return _changed(last_epochs(small(epochs=60, lr=.01, final=final), table(), 6, tmp_path/str(final)).encode(table()))
    constant, falling, still = (apart(f) for f in (1., .25, .01))
    assert constant[0]['any'] > 1.5*falling[0]['any'] > 0 and falling[0]['any'] > 2*still[0]['any']
    assert _changed(last_epochs(small(epochs=60, lr=.01), table(), 6, tmp_path/'default').encode(table())) == constant

def test_the_rate_of_an_epoch():
    one = small(epochs=41, lr=.02, final=.1)
    rates = [one.rate(e) for e in range(1, 42)]
    assert rates[0] == .02 and rates[-1] == pytest.approx(.002) and rates[20] == pytest.approx(.011) and rates == sorted(rates, reverse=True)
    assert {small(lr=.02).rate(e) for e in range(1, 13)} == {.02} and small(epochs=1, final=.1).rate(1) == small().rate(1)
    for wrong in (0, -1, 1.5, float('nan')):
        with pytest.raises(ValueError, match=r'^final is .*, expected a share of lr, more than 0 and at most 1; [^.]*\.$'): FitConfig(final=wrong)

def test_a_falling_rate_goes_on_where_it_was(tmp_path, monkeypatch):
    whole, train_epoch = last_epochs(small(final=.1), table(), 4, tmp_path/'whole').encode(table()), RQVAE.train_epoch
    class Cut(Exception): pass
    def until(self, x, optimizer, epoch):
        if epoch > 6: raise Cut
        return train_epoch(self, x, optimizer, epoch)
    monkeypatch.setattr(RQVAE, 'train_epoch', until)
    with pytest.raises(Cut): last_epochs(small(final=.1), table(), 4, tmp_path/'cut')
    monkeypatch.undo()
    with pytest.raises(ValueError, match='a run with epochs = 12, and this one has 13'): last_epochs(small(final=.1, epochs=13), table(), 4, tmp_path/'cut')
    assert torch.equal(last_epochs(small(final=.1), table(), 4, tmp_path/'cut').encode(table()), whole)

def test_epochs_that_were_not_kept_are_not_made_up(tmp_path):
    last_epochs(small(), table(), 2, tmp_path)
    with pytest.raises(ValueError, match=r'did not keep epoch 10; fit in another folder\.$'): last_epochs(small(), table(), 3, tmp_path)
    (_kept_epochs(tmp_path)[11]/'config.json').unlink()
    with pytest.raises(ValueError, match='did not keep epoch 11'): last_epochs(small(), table(), 2, tmp_path)

@pytest.mark.parametrize('n', (0, -1, 13))
def test_a_number_that_cannot_be_kept(n, tmp_path):
    with pytest.raises(ValueError, match=rf'^{n} epochs of 12 are to be kept, expected 1 to 12\.$'): last_epochs(small(), table(), n, tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_another_table_is_refused(tmp_path):
    last_epochs(small(), table(), 2, tmp_path)
    with pytest.raises(ValueError, match='holds a run with data'): last_epochs(small(), table(seed=1), 2, tmp_path)

def test_strangers_have_seeds_of_their_own(tmp_path):
    runs = independent_tokenizers(small(), table(), 3, tmp_path)
    assert [t.config.seed for t in runs] == [0, 1000, 2000]
    assert all(r['first'] > .5 for r in _changed(runs.encode(table())))
    assert torch.equal(independent_tokenizers(small(), table(), 2, tmp_path).encode(table()), runs.encode(table())[:2])

def test_again_changes_what_it_is_told_and_nothing_else():
    one = small()
    two = _again(one, keep_last=5, seed=7)
    assert (two.fit_config.keep_last, two.config.seed, two.fit_config.epochs) == (5, 7, 12)
    assert (one.fit_config.keep_last, one.config.seed) == (0, 0) and type(two) is RQVAE
    for kind in (ResidualKMeans(levels=2, K=4), RandomTokenizer(levels=2, K=4)):
        with pytest.raises(ValueError, match=rf'^a {type(kind).__name__} is not trained in epochs and keeps none; [^.]*\.$'): _again(kind, keep_last=2)

def test_no_folders(): 
    with pytest.raises(ValueError, match='there are no folders'): EpochTokenizers([])

def test_a_class_of_the_same_name_does_not_take_over(tmp_path):
    "As in a notebook that defines RQVAE again: what the library saved, the library's class reads"
    from gentok.tokenize.tokenizer import Tokenizer
    epochs, kinds = last_epochs(small(), table(), 1, tmp_path), dict(Tokenizer.kinds)
    try:
        type('RQVAE', (Tokenizer,), {})
        assert type(epochs[0]) is RQVAE
    finally: Tokenizer.kinds.update(kinds)
