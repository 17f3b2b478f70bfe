"Picture encoders: raw pixels and CLIP, missing pictures and damaged ones."
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gentok.data.dataset import Catalogue
from gentok.embed.image import _ClipVision, ImageEncoder, PixelPca, _pixels, _small_clip

def pictures(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (int(rng.integers(8, 40)), int(rng.integers(8, 40)), 3), dtype=np.uint8)) for _ in range(n)]

@pytest.fixture(scope='module')
def clip(tmp_path_factory): return _small_clip(tmp_path_factory.mktemp('clip'))

@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'I;16'])
def test_every_mode_becomes_numbers_in_0_1(mode):
    x = _pixels(Image.new(mode, (7, 5)), 4)
    assert x.shape == (48,) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1

def test_transparency_is_white_paper():
    assert (_pixels(Image.new('RGBA', (4, 4), (9, 9, 9, 0)), 2) == 1).all()

def test_pca_equals_its_definition():
    images = pictures()
    x = np.stack([_pixels(p, 8) for p in images]).astype(np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    z = ImageEncoder('pca', dim=6, size=8).fit(images).encode(images).numpy()
    expected = (u*s)[:, :6]
    np.testing.assert_allclose(z*np.sign((z*expected).sum(0)), expected, atol=1e-4)

def test_missing_pictures_are_the_mean_and_counted():
    images = pictures()
    images[3] = images[11] = None
    encoder = ImageEncoder('pca', dim=5, size=8)
    with pytest.warns(UserWarning, match='2 of 20 items have no picture'): z = encoder.fit(images).encode(images)
    assert (z == 0).all(1).nonzero().flatten().tolist() == [3, 11]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder.encode(images[4:10])

def test_missing_pictures_of_a_clip_are_the_mean_of_the_others(clip):
    images = [*pictures(4), None]
    with pytest.warns(UserWarning, match='1 of 5'): z = ImageEncoder(clip).encode(images)
    torch.testing.assert_close(z[4], z[:4].mean(0))

def test_dimension_is_capped_and_told():
    images = pictures(4)
    encoder = ImageEncoder('pca', dim=50, size=8).fit(images)
    assert encoder.dim == 3 and 'of 50 asked' in repr(encoder)
    same = ImageEncoder('pca', dim=2, size=8).fit(images[:1]*3)
    assert same.dim == 1 and torch.isfinite(same.encode(images)).all()

def test_a_sample_of_a_large_catalogue_is_enough_and_seeded():
    images = pictures(40)
    a, b = (PixelPca(3, 8, seed=5).fit(images, sample=20) for _ in range(2))
    assert torch.equal(a.mean, b.mean) and torch.equal(a.directions, b.directions)
    assert not torch.equal(a.mean, PixelPca(3, 8, seed=6).fit(images, sample=20).mean)

def test_lazy_pictures_are_read_a_batch_at_a_time():
    class Lazy:
        open_now = 0
        def __len__(self): return 9
        def __getitem__(self, row):
            if row >= 9: raise IndexError(row)
            return Image.new('RGB', (6, 6), (row*20, 0, 0))
    z = ImageEncoder('pca', dim=2, size=4, batch_size=2).fit(Lazy()).encode(Lazy())
    assert z.shape == (9, 1)

def test_unreadable_pictures_name_their_row(tmp_path):
    (tmp_path/'bad.png').write_bytes(b'not a picture')
    class Torn:
        def __len__(self): return 3
        def __getitem__(self, row): return Image.new('RGB', (4, 4)) if row < 2 else Image.open(tmp_path/'bad.png')
    for images, found in ((Torn(), 'row 2 cannot be read'), ([np.zeros((4, 4, 3))], 'row 0 is a ndarray'), ([None, None], 'no picture among 2')):
        with pytest.raises(ValueError, match=found) as e: ImageEncoder('pca').fit(images)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')

def test_truncated_pictures_name_their_row(tmp_path):
    pictures(1)[0].resize((64, 64)).save(tmp_path/'cut.png')
    (tmp_path/'cut.png').write_bytes((tmp_path/'cut.png').read_bytes()[:4000])
    with pytest.raises(ValueError, match='row 1 cannot be read'):
        ImageEncoder('pca').fit([pictures(1)[0], Image.open(tmp_path/'cut.png')])

def test_save_and_load(tmp_path):
    images = pictures()
    encoder = ImageEncoder('pca', dim=6, size=8, normalise=True).fit(images)
    encoder.save(tmp_path)
    loaded = ImageEncoder.load(tmp_path)
    assert torch.equal(loaded.encode(images), encoder.encode(images)) and repr(loaded) == repr(encoder)
    assert {f.suffix for f in tmp_path.iterdir()} == {'.json', '.safetensors'}

def test_misuse_is_one_sentence(tmp_path, clip):
    encoder = ImageEncoder('pca')
    for call, found in ((lambda: encoder.encode(pictures(2)), 'call .fit'), (lambda: encoder.save(tmp_path), 'nothing to save'),
                        (lambda: encoder.embed(Catalogue([1], ['a'])), 'no pictures'), (lambda: ImageEncoder('pca', dim=0), 'at least 1'),
                        (lambda: ImageEncoder(clip, dim=64), 'gives 16 numbers'), (lambda: ImageEncoder('no/such/folder'), 'no folder here')):
        with pytest.raises(ValueError, match=found) as e: call()
        assert '\n' not in str(e.value) and str(e.value).endswith('.')

def test_embed_keeps_ids():
    images = pictures(5)
    table = ImageEncoder('pca', dim=2, size=8).embed(Catalogue(list('edcba'), ['']*5, images))
    assert table.ids == list('edcba') and table.source == 'pca'

def test_clip_does_not_depend_on_its_batch(clip):
    images = pictures(7)
    alone = torch.cat([ImageEncoder(clip).encode([p]) for p in images])
    for size in (2, 7): torch.testing.assert_close(ImageEncoder(clip, batch_size=size).encode(images), alone, atol=1e-5, rtol=1e-5)

def test_clip_equals_transformers_by_hand(clip):
    import transformers
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(clip)
    x = transformers.CLIPImageProcessorPil.from_pretrained(clip)(pictures(2), return_tensors='pt')['pixel_values']
    with torch.no_grad(): expected = model(pixel_values=x).image_embeds
    torch.testing.assert_close(ImageEncoder(clip).encode(pictures(2)), expected)

def test_a_whole_clip_gives_its_vision_half(tmp_path):
    import transformers
    part = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = transformers.CLIPConfig(text_config=dict(part, vocab_size=50, bos_token_id=0, eos_token_id=1, pad_token_id=1),
                                     vision_config=dict(part, image_size=32, patch_size=8), projection_dim=12)
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    transformers.CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)).save_pretrained(tmp_path)
    vision, images = _ClipVision(tmp_path), pictures(2)
    with torch.no_grad(): out = whole.get_image_features(pixel_values=vision.process(images, return_tensors='pt')['pixel_values'])
    torch.testing.assert_close(vision.batch(images), getattr(out, 'pooler_output', out))
    assert vision.dim == 12

def test_folders_that_are_no_clip(clip, tmp_path):
    from gentok.embed.pretrained import _small_model
    with pytest.raises(ValueError, match="'bert'"): ImageEncoder(_small_model('bert', ['a'], tmp_path/'bert'))
    for lost, found in (('preprocessor_config.json', 'no preprocessor'), ('model.safetensors', 'holds no model'), ('config.json', 'config.json')):
        folder = shutil.copytree(clip, tmp_path/lost)
        (folder/lost).unlink()
        with pytest.raises(ValueError, match=found) as e: ImageEncoder(folder)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')

def test_equal_pictures_and_a_single_one_work_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for n in (1, 3): assert ImageEncoder('pca', dim=2, size=4).fit(pictures(1)*n).dim == 1
