"Words and pictures stay with their rows, however rows are chosen, and nothing is read before it is asked for."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from gentok.embed.items import ItemTable, ItemImages, _content_digest, _concat_domain_items
from gentok.embed.table import EmbeddingTable
from gentok.tokenize.tokenizer import ResidualKMeans

n = 6
names = [f'i{r}' for r in range(n)]

class Counting:
    "A catalogue's pictures that count how often they are read"
    def __init__(self): self.read = []
    def __len__(self): return n
    def __getitem__(self, row):
        self.read.append(row)
        return None if row == 2 else Image.new('RGB', (2, 2), (row, 0, 0))

def items(images=None): return ItemTable(EmbeddingTable(names, torch.arange(n*3.).view(n, 3), 'test'), [f'text {r}' for r in range(n)], images)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-n, n - 1), unique_by=lambda r: r % n), st.data())
def test_rows_keep_their_words_and_pictures_through_two_choices(rows, data):
    table = items(Counting())[rows]
    again = data.draw(st.permutations(range(len(rows))))
    for position, r in enumerate(again):
        row, chosen = rows[r] % n, table[list(again)] if again else table
        assert chosen.ids[position] == names[row] and chosen.text[position] == f'text {row}'
        picture = chosen.images[position]
        assert (picture is None) == (row == 2) and (picture is None or picture.getpixel((0, 0))[0] == row)

def test_choosing_and_joining_read_no_picture():
    images = Counting()
    joined = _concat_domain_items({'a': items(images)[1:5], 'b': items()})
    _content_digest(joined)
    assert images.read == []
    assert joined.images[0].getpixel((0, 0))[0] == 1 and images.read == [1]
    assert joined.images[4] is None and joined.ids[4] == 'b/i0'

def test_a_mask_and_ids_choose_too():
    mask = torch.tensor([True, False, False, True, False, False])
    assert items()[mask].text == ['text 0', 'text 3']
    assert items().for_ids(['i5', 'i0']).text == ['text 5', 'text 0']

def test_other_tokenizers_take_it_as_a_table():
    codes = ResidualKMeans(levels=1, K=2).fit(items()).encode(items())
    assert codes.shape == (n, 1)

def test_a_torn_picture_is_named_when_it_is_read():
    class Torn(Counting):
        def __getitem__(self, row): raise OSError('truncated')
    table = items(Torn())
    with pytest.raises(ValueError, match='row 3 cannot be read'): table.images[3]

@pytest.mark.parametrize('texts, images', [(['a'], None), (['a']*n, [None])])
def test_columns_of_another_length_are_refused(texts, images):
    with pytest.raises(ValueError, match='give one of each'):
        ItemTable(EmbeddingTable(names, torch.zeros(n, 1), 'test'), texts, images)

def test_the_digest_sees_words_order_and_presence_of_pictures():
    seen = {_content_digest(t) for t in (items(), items(Counting()), items()[::-1], items()[:5])}
    assert len(seen) == 4
    assert isinstance(ItemImages([(None, 0)]).pick([0])[0], type(None))
