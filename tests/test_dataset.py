"The dataset keeps ids, rows and offsets together, whatever they are."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from gentok.data.dataset import Catalogue, Dataset, Histories

ids = st.lists(st.one_of(st.integers(), st.text(max_size=6)), min_size=1, max_size=30, unique=True)

def catalogue_of(ids): return Catalogue(ids, [f'item {i}' for i in ids])

@given(ids, st.data())
@settings(max_examples=60, deadline=None)
def test_ids_to_rows_and_back(ids, data):
    c = catalogue_of(ids)
    some = data.draw(st.lists(st.sampled_from(ids), max_size=20))
    assert [c.ids[r] for r in c.rows(some)] == some
    assert [c.row(i) for i in some] == c.rows(some).tolist()
    assert c.rows(some).dtype == torch.long

@given(ids, st.data())
@settings(max_examples=60, deadline=None)
def test_histories_survive_the_flat_tensor(ids, data):
    histories = data.draw(st.dictionaries(st.text(max_size=5), st.lists(st.sampled_from(ids), min_size=1, max_size=9),
                                          min_size=1, max_size=8))
    d = Dataset('any', catalogue_of(ids), histories)
    h = d.histories
    assert {u: [ids[r] for r in rows] for u, rows in zip(h.users, h)} == histories
    assert [h[p].tolist() for p in range(len(h))] == [rows.tolist() for rows in h]
    assert h[-1].tolist() == h[len(h)-1].tolist()
    assert int(d.popularity().sum()) == len(h.items) == sum(map(len, histories.values()))
    assert h.lengths.tolist() == [len(v) for v in histories.values()]

@pytest.mark.parametrize('make, words', [
    (lambda: Catalogue([1, 2, 1], 'abc'), 'item id 1 stands 2 times'),
    (lambda: Catalogue([1, 2], ['a']), 'text has 1 entries for 2 item ids'),
    (lambda: Catalogue([1, 2], 'ab', images=[None]), 'images has 1 entries'),
    (lambda: Catalogue([1, 2], 'ab', titles=['one']), 'titles has 1 entries'),
    (lambda: Catalogue([1, 2], ['a', 3.5]), 'item 2 has 3.5 as text'),
    (lambda: Histories([], torch.tensor([]), torch.tensor([], dtype=torch.long)), 'expected 1 entries'),
    (lambda: Histories(['a', 'a'], torch.tensor([0, 1]), torch.tensor([0, 1, 2])), "user 'a' stands 2 times"),
    (lambda: Histories(['a', 'b'], torch.tensor([0, 1]), torch.tensor([0, 0, 2])), "user 'a' has an empty history"),
    (lambda: Histories(['a', 'b'], torch.tensor([0, 1]), torch.tensor([0, 3, 2])), 'empty history'),
    (lambda: Dataset('d', catalogue_of([7]), {'u': []}), "user 'u' has an empty history"),
    (lambda: Dataset('d', catalogue_of([7]), {}), 'no user has a history'),
    (lambda: Dataset('d', catalogue_of([7]), Histories(['u'], torch.tensor([-1]), torch.tensor([0, 1]))), 'rows -1'),
])
def test_bad_input_is_one_sentence(make, words):
    with pytest.raises(ValueError) as e: make()
    message = str(e.value)
    assert words in message and '\n' not in message and message.endswith('.')

def test_an_unknown_item_names_its_user():
    with pytest.raises(KeyError, match="history of user 'bo': item id 9 is not among the 2 items"):
        Dataset('d', catalogue_of([7, 8]), {'ann': [7], 'bo': [8, 9]})
    with pytest.raises(KeyError, match='of type int'): catalogue_of([7]).row('7')

def test_columns_may_be_generators_and_pictures_stay_unopened():
    class Pictures:
        def __len__(self): return 2
        def __getitem__(self, row): raise AssertionError('opened')
    c = Catalogue((i for i in 'ab'), (t for t in ('x'*70, 'y')), Pictures(), titles=(t for t in 'pq'))
    assert c.titles == ['p', 'q'] and len(c) == 2 and 'with pictures' in repr(c)
    assert Catalogue('a', ['x'*70]).titles == ['x'*60]

def test_repr_shows_size():
    d = Dataset('tiles', catalogue_of(range(1200)), {u: [u, 0] for u in range(1100)}, removed={'too short': 3})
    assert repr(d) == "Dataset('tiles': 1,200 items, 1,100 users, 2,200 interactions)"
    assert 'mean length 2.0' in repr(d.histories) and d.removed == {'too short': 3} and d.truth is None
