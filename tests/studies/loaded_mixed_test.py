"""A trained Transfusion draws, edits and describes, from real files to the terminal."""

import dataclasses
import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.data import pipeline
from jaxmm.data.captions import CaptionFile
from jaxmm.evaluate import captions
from jaxmm.evaluate.distances import kernel_distance
from jaxmm.interop import efficientnet
from jaxmm.models.classifier import image_features
from jaxmm.studies import evaluation, latents, mixed_evaluation, tokens
from jaxmm.studies import run as runs
from jaxmm.studies import texts as of_texts
from jaxmm.task import example_keys
from tests.models.transfusion_uncached import Uncached

VAE = (
  'steps=2', 'batch=8', 'data.name=images', 'data.cache=False', 'data.labels=none',
  'model.vae.channels=8', 'model.vae.z_channels=8',
)  # fmt: skip
MODEL = (
  'steps=2', 'batch=8', 'model.width=32', 'model.depth=1', 'model.num_heads=2',
  'model.caption_dropout=0.1',
)  # fmt: skip


def trained(file, settings, at):
  config = configs.plain(runs.with_settings(configs.load_config(file), settings))
  runs.train_from_config(config, at, evaluates=False, echo=lambda line: None)
  return at


# Pictures beside folders and in them, in another order than their captions; two are none.
FILES = [f'{("", "b/", "a/z/", "train/")[i % 4]}{7 * i % 24:02}.png' for i in range(24)]
DAMAGED = (5, 14)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A run on pictures with captions, by way of an autoencoder, its scale and its latents."""
  at = tmp_path_factory.mktemp('mixed')
  rng, rows = np.random.default_rng(0), []
  for i, name in enumerate(FILES):
    file = at / 'pictures' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), rng.integers(256, size=3), np.uint8)).save(file)
    rows.append(json.dumps({'image': name, 'caption': f'colour {i}'}))
    if i in DAMAGED:
      file.write_bytes(file.read_bytes()[:60])
  (at / 'captions.jsonl').write_text('\n'.join(rows))
  data = {'path': 'pictures', 'mixed.captions': 'captions.jsonl', 'mixed.latents': 'latents'}
  data = [f'data.{key}={at / name}' for key, name in data.items()]
  data += ['data.max_bad_fraction=0.5', 'data.test_fraction=0.4']
  vae = trained('transfusion/vae_mini.py', (*VAE, data[0], data[-2]), at / 'vae')
  latents.measure(vae, echo=lambda line: None)
  tokens.write(vae, at / 'latents', split='all', views='one', echo=lambda line: None)
  return jaxmm.load(trained('transfusion/mini.py', (*MODEL, *data), at / 'model'))


def _pictures(model):
  return pathlib.Path(model.config['data']['path'])


def _latents_of_captions(config):
  """`{caption: latent}` of all rows that can be read."""
  out = {}
  for split in ('train', 'test'):
    section = dict(config['data'], split=split, test_fraction=0.1)
    for batch in runs.make_batches({**config, 'eval_data': section}, train=False).once():
      for b in np.flatnonzero(batch['valid_B']):
        for s in range(1, batch['segment_BL'][b].max() + 1):
          here = batch['segment_BL'][b] == s
          image, ids = batch['image_BL'][b][here], batch['ids_BL'][b][here]
          text = bytes(i for i in ids[image == 0].tolist() if i < 256).decode()
          assert text not in out
          out[text] = batch['latent_BIYXC'][b, image.max() - 1]
  return out


def test_each_caption_has_the_latent_of_its_own_picture(model, tmp_path):
  config = json.loads(json.dumps(dict(model.config)))
  found, folder = _latents_of_captions(config), _pictures(model)
  # A row with a damaged picture is lost, with the other pictures in it.
  lost = {f'colour {i}' for i in range(24)} - set(found)
  assert {f'colour {i}' for i in DAMAGED} <= lost and len(found) >= 12
  for text, latent in found.items():
    picture = np.asarray(Image.open(folder / FILES[int(text.split()[1])]))
    own = model.autoencoder().encode(picture[None])[0]
    np.testing.assert_allclose(latent, own, atol=1e-4)
  archive = tmp_path / 'p.zip'
  with zipfile.ZipFile(archive, 'w') as out:
    for name in FILES:
      out.write(folder / name, name)
  config['data']['path'] = str(archive)
  zipped = _latents_of_captions(config)
  assert zipped.keys() == found.keys()
  assert all((zipped[text] == latent).all() for text, latent in found.items())
  with zipfile.ZipFile(archive, 'w') as out:
    for name in FILES:
      out.write(folder / name, 'c.png' if name == FILES[3] else name)
  with pytest.raises(ConfigError, match='pictures with other names than those of data.path'):
    _latents_of_captions(config)


@pytest.mark.slow
def test_text_and_images_in_turn(model, tmp_path, capsys):
  images = model.draw(['colour 3', 'c'], steps=2)
  greedy = {'sampling': {'greedy': True}}
  said = model.compose([[image] for image in images], 5, images=0, **greedy)
  assert [''.join(parts) for parts in said] == model.describe(images, 5, greedy=True)
  rows, begins = ['colour 3', 'colour 4', 'colour 5'], {'allowed': (259, 260)}
  found = model.compose(rows, 66, steps=2, batch=2, sampling=begins)
  assert [len(parts) for parts in found] == [1, 1, 1]
  drawn = model.draw(rows, steps=2)
  assert np.abs(np.concatenate(found).astype(int) - drawn).max() <= 1
  with pytest.raises(ConfigError, match='has room for [0-9]+ positions behind the longest prompt'):
    model.compose(['c'], 500)
  lines, folder = [], tmp_path / 'images'
  done = of_texts.compose(
    model, rows, folder, length=66, show=lines.append, steps=2, sampling=begins
  )  # fmt: skip
  assert '3 images' in done and lines[1] == f'colour 4[{folder}/1-0.png]'
  np.testing.assert_array_equal(np.asarray(Image.open(folder / '1-0.png')), found[1][0])
  words = ['sample', '--run', str(model.directory), '--interleave', str(folder), '--steps', '2']
  assert cli.main([*words, '--prompt', 'a', 'b', '--length', '4']) == 0
  assert capsys.readouterr().out.count('\n') == 2


def test_images_of_texts_in_any_company(model):
  texts = ['colour 3', 'a longer caption', 'c']
  images = model.draw(texts, steps=3, guidance_scale=2.0, batch=2)
  assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
  alone = model.draw(['colour 3'], steps=3, guidance_scale=2.0)
  assert np.abs(alone[0].astype(int) - images[0]).max() <= 1
  other = model.draw(['colour 3'], steps=3, guidance_scale=2.0, seed=1)
  assert np.abs(alone[0].astype(int) - other[0]).max() > 1


def test_texts_of_images(model):
  images = model.draw(['colour 3', 'colour 4'], steps=2)
  texts = model.describe(images, 5, greedy=True, batch=1)
  assert len(texts) == 2 and all(isinstance(text, str) and len(text) <= 5 for text in texts)


def test_an_edit_is_what_an_uncached_loop_makes_of_image_and_instruction(model):
  config, coder = model.task.config, model.autoencoder()
  # Weights that make more of what they see than those of two steps.
  params = jax.tree.map(np.array, model.variables['params'])
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape, np.float32), params)
  model = dataclasses.replace(model, variables={'params': params})
  pictures = rng.integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
  given, words = coder.encode(pictures), ['blue', 'as it is']
  settings = {'steps': 3, 'guidance_scale': 2.0}
  found = model.latents_after(
    [[given[b], *words[b].encode()] for b in range(2)], seed=4, **settings
  )
  keys = example_keys(jax.random.key(4), np.arange(2, dtype=np.uint32))
  for b in range(2):
    # The run's documents begin with id 257.
    slow = Uncached(config, params, keys[b], 2, config.length)
    slow.given([257, given[b], *words[b].encode(), config.boi_id])
    slow.picture(SamplerConfig(**settings))
    np.testing.assert_allclose(found[b], slow.latents[1], atol=2e-5)
  edited = model.edit(pictures, words, seed=4, **settings)
  np.testing.assert_array_equal(edited, coder.decode(found))
  for pair in ((given[::-1], words), (given, words[::-1])):
    rows = [[picture, *text.encode()] for picture, text in zip(*pair)]
    assert np.abs(model.latents_after(rows, seed=4, **settings) - found).max() > 1e-3


@pytest.mark.slow
def test_held_out_pictures_are_drawn_and_described(model, capsys, monkeypatch):
  pixels_of = lambda images, params, **options: images.reshape(len(images), -1)[:, ::53] / 255
  monkeypatch.setattr(mixed_evaluation, 'feature_rows', pixels_of)
  words = ['evaluate', '--run', str(model.directory), '--batch', '8', '--samples', '99']
  assert cli.main([*words, '--steps', '2', '--guidance', '2']) == 0
  printed = capsys.readouterr().out
  record = json.loads((model.directory / 'evaluation.json').read_text())
  assert record['sampler'] == {'samples': 99, 'steps': 2, 'guidance_scale': 2.0}
  results, said = record['results'], model.directory / 'evaluation_described.jsonl'
  rows = [json.loads(line) for line in said.read_text().splitlines()]
  num = len(rows)
  assert num >= 5 and f'described: {num}/{num} images' in printed and 'drawn/similarity' in printed
  assert {row['image'] for row in rows}.isdisjoint({FILES[i] for i in DAMAGED})
  for row in rows:
    assert row['references'] == [f'colour {FILES.index(row["image"])}']
  others = [row['references'] for row in rows]
  texts = [row['text'] for row in rows]
  assert results['described/cider_d'] == captions.cider_d(texts, others).mean()
  assert results['described/bleu_4'] == captions.bleu(texts, others)
  for kind in ('drawn', 'described'):
    bad = results[f'{kind}/unreadable']
    assert results[f'{kind}/pictures'] == num and bad <= 2 and num + bad <= 24
  # What is measured is what `draw` draws, in the order of the plan.
  pixels = [np.asarray(Image.open(_pictures(model) / row['image'])) for row in rows]
  drawn = model.draw([row['references'][0] for row in rows], steps=2, guidance_scale=2.0)
  expected = mixed_evaluation.compared(drawn, np.stack(pixels), np.stack(pixels), print)
  for name in ('similarity', 'similarity_to_others', 'kernel_distance'):
    np.testing.assert_allclose(results[f'drawn/{name}'], expected[f'drawn/{name}'], rtol=0.02)
  for name, images in (('drawn', drawn), ('originals', np.stack(pixels))):
    kept = np.load(model.directory / f'evaluation_{name}.npz')['arr_0']
    assert kept.dtype == np.uint8 and np.abs(kept.astype(int) - images).max() <= 1
  grid = np.asarray(Image.open(model.directory / 'evaluation_drawn.png'))
  assert grid.shape[:2] == (33 * 2 * -(-num // 8) - 1, 33 * 8 - 1)
  for i, (above, below) in enumerate(zip(pixels, drawn)):
    y, x = 66 * (i // 8), 33 * (i % 8)
    assert (grid[y : y + 32, x : x + 32] == above).all()
    assert np.abs(grid[y + 33 : y + 65, x : x + 32].astype(int) - below).max() <= 1


@pytest.mark.slow
def test_pictures_that_are_like_their_originals_are_said_to_be():
  rng = np.random.default_rng(0)
  draw = lambda: rng.integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
  originals, other = draw(), draw()
  lines = []
  same = mixed_evaluation.compared(originals, originals, other, lines.append)
  assert same['drawn/similarity'] == pytest.approx(1, abs=1e-6)
  assert same['drawn/similarity_to_others'] < 1 - 1e-3
  params = mixed_evaluation.read_classifier()
  rows = [np.asarray(image_features(params, x, size=64)) for x in (originals, other)]
  assert same['drawn/kernel_distance_of_training'] == pytest.approx(
    kernel_distance(rows[1], rows[0]), rel=1e-3
  )
  assert 'drawn/frechet_distance' not in same and 'more than 1280 pictures' in lines[0]


@pytest.mark.parametrize(
  'words, said',
  [
    (['--samples', '1'], '--samples is 1, expected 2 or more'),
    (['--samples', '4', '--steps', '1001'], 'steps is 1001, expected 1 to the 1000 timesteps'),
    (['--samples', '4', '--method', 'euler'], "'ddpm': use ancestral or ddim"),
    (['--samples', '4', '--guidance', '0.5'], 'guidance_scale is 0.5, expected at least 1'),
    (['--samples', '4'], 'EfficientNet-Lite0 weights are not installed'),
  ],
)
def test_what_samples_need_is_checked_before_anything_is_evaluated(
  words, said, model, capsys, monkeypatch
):
  monkeypatch.setattr(efficientnet, '_PACKAGE', 'no_such_package')
  monkeypatch.setattr(evaluation, 'run_evaluations', lambda *_, **__: pytest.fail('evaluated'))
  assert cli.main(['evaluate', '--run', str(model.directory), '--batch', '8', *words]) == 2
  assert said in capsys.readouterr().err


def test_samples_are_refused_where_there_are_none(model, capsys):
  vae = str(model.directory.parent / 'vae')
  assert cli.main(['evaluate', '--run', vae, '--samples', '4']) == 2
  assert 'is a run of jaxmm.tokenizers.vae_task, which does' in capsys.readouterr().err
  words = ['evaluate', '--run', str(model.directory), '--batch', '8']
  assert cli.main([*words, '--config.data.path=x']) == 2
  assert 'data.path belongs to training' in capsys.readouterr().err
  assert cli.main([*words, '--config.model.width=64']) == 2
  assert 'model.width=64 wants other parameters' in capsys.readouterr().err


def test_what_is_drawn_and_described_of_a_source(tmp_path):
  with zipfile.ZipFile(tmp_path / 'p.zip', 'w') as archive:
    for i in range(6):
      with archive.open(f'{i}.png', 'w') as file:
        Image.new('RGB', (4, 4)).save(file, 'PNG')
  rows = [
    {'image': '0.png', 'caption': ['zero', 'nought']},
    {'parts': [{'image': '1.png'}, {'text': 'edit'}, {'image': '2.png'}]},
    {'parts': [{'image': '3.png'}, {'text': 'is three'}]},
    {'image': ['4.png', '5.png'], 'caption': 'two'},
    {'image': '4.png', 'caption': ''},
    {'image': [], 'caption': 'words'},
  ]
  (tmp_path / 'c.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  mixed = {'captions': str(tmp_path / 'c.jsonl'), 'patches': 4}
  data = {'name': 'mixed', 'path': str(tmp_path / 'p.zip'), 'split': 'all', 'mixed': mixed}
  source = pipeline.open_source(configs.from_mapping(pipeline.DataConfig, data, 'data'))
  text = lambda unit: bytes(unit.ids.tolist()).decode()
  found = mixed_evaluation.prompts(source)
  assert {i: (text(u), u.pictures, u.places) for i, u in found.items()} in (
    {0: (word, (0,), (n,)), 2: ('edit', (1, 2), (0, 4)), 5: ('two', (4, 5), (3, 3))}
    for word, n in (('zero', 4), ('nought', 6))
  )
  found = mixed_evaluation.described_pictures(source)
  assert {i: {text(u) for u in units} for i, units in found.items()} == {
    0: {'zero', 'nought'}, 3: {'is three'},
  }  # fmt: skip


@pytest.mark.parametrize(('objective', 'method'), [('ddpm', 'ancestral'), ('flow', 'euler')])
def test_a_model_is_drawn_from_as_its_objective_asks(model, objective, method):
  config = dataclasses.replace(model.task.config, objective=objective)
  of = dataclasses.replace(model, task=dataclasses.replace(model.task, config=config))
  assert of.sampler_config({'steps': 3}) == SamplerConfig(steps=3, method=method)
  assert of.sampler_config({'method': 'ddim'}).method == 'ddim'


def test_what_cannot_be_is_said(model):
  with pytest.raises(ConfigError, match='model.length'):
    model.draw(['a' * 200], steps=1)
  with pytest.raises(ConfigError, match='no prompt'):
    model.draw([], steps=1)
  with pytest.raises(ConfigError, match='euler'):
    model.draw(['a'], steps=1, method='euler')
  with pytest.raises(ConfigError, match='expected a latent|grid|multiple|image'):
    model.describe(np.zeros((1, 30, 30, 3), np.uint8), 3)
  picture = np.zeros((1, 32, 32, 3), np.uint8)
  with pytest.raises(ConfigError, match='1 images and 2 instructions'):
    model.edit(picture, ['a', 'b'], steps=1)
  with pytest.raises(ConfigError, match='longest prompt and an image take 195 positions'):
    model.edit(picture, ['a' * 62], steps=1)
  with pytest.raises(ConfigError, match='batch is 0'):
    model.draw(['a'], steps=1, batch=0)
  with pytest.raises(ConfigError, match='prompts is .a frog., expected a list of texts'):
    model.draw('a frog', steps=1)
  with pytest.raises(ConfigError, match='steps is 0'):
    model.draw(['a'], steps=0)
  for length in (0, 94):
    with pytest.raises(ConfigError, match=f'length is {length}, .* has room for 93 tokens'):
      model.describe(picture, length)
  with pytest.raises(ConfigError, match='guidance_scale of text is 2.0, but only images'):
    model.describe(picture, 3, guidance_scale=2.0)
  with pytest.raises(ConfigError, match=r'prompt 0 has id 999, but model.vocab_size is 261'):
    model.latents_after([[5, 999]], steps=1)
  with pytest.raises(ConfigError, match='is a run of jaxmm.models.transfusion, which makes no lat'):
    model.draw(['a'], steps=1, autoencoder=model.directory)


def test_the_same_on_one_device_as_on_all(model):
  alone = dataclasses.replace(model, variables=jax.device_put(model.variables, jax.devices()[5]))
  assert len(jax.tree.leaves(model.variables)[0].sharding.device_set) == 8
  rows = [[*b'colour 3'], [*b'another']]
  ours, theirs = (m.latents_after(rows, steps=3, guidance_scale=2.0) for m in (model, alone))
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
  pictures = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
  assert model.describe(pictures, 6, seed=1) == alone.describe(pictures, 6, seed=1)


def test_from_the_terminal(model, tmp_path, capsys):
  words, out = ['sample', '--run', str(model.directory)], tmp_path / 'x.png'
  assert cli.main([*words, '--prompt', 'a', 'b', '--steps', '2', '--output', str(out)]) == 0
  assert Image.open(out).size[0] >= 64
  one = tmp_path / 'one.png'
  Image.new('RGB', (40, 32)).save(one)
  rows = tmp_path / 'rows.jsonl'
  assert cli.main([*words, '--image', str(one), '--length', '4', '--output', str(rows)]) == 0
  assert json.loads(rows.read_text())['image'] == str(one)
  assert str(one) in capsys.readouterr().out
  assert cli.main([*words, '--prompt', 'a']) == 2
  assert '--output' in capsys.readouterr().err
  drawing = [*words, '--prompt', 'a', '--output', str(out)]
  for more, message in (
    (['--length', '3'], 'jaxmm sample: --length does nothing for images of a --prompt'),
    (['--num', '3'], '--num does nothing for images of a --prompt'),
    (['--method', 'magic'], "jaxmm sample: method is 'magic', expected one of ancestral"),
    (['--steps', '0'], 'steps is 0, expected at least 1 (--steps)'),
    (['--tokenizer', str(model.directory)], 'which makes no latents'),
  ):
    assert cli.main([*drawing, *more]) == 2
    assert message in capsys.readouterr().err
  for more, message in (
    (['--image', str(one), '--guidance', '3'], '--guidance does nothing for the description'),
    (['--image', str(one), '--length', '99'], 'room for 93 tokens: expected 1 to 93 (--length)'),
    (['--image', str(rows)], 'rows.jsonl is no picture that can be read'),
    (['--image', str(tmp_path / 'gone.png')], 'No such file'),
    (['--output', str(out)], 'expected an image model of classes; give this one a --prompt'),
  ):
    assert cli.main([*words, *more]) == 2
    assert message in capsys.readouterr().err


COLOURS = {'red': (220, 40, 40), 'blue': (40, 40, 220), 'green': (40, 200, 60)}


@pytest.mark.slow
def test_edits_from_triples_to_the_terminal(tmp_path, capsys):
  """Squares to recolour, through the verbs that a user types."""
  (tmp_path / 'pictures').mkdir()
  rows, rng = [], np.random.default_rng(0)
  for i in range(16):
    size, at = rng.integers(8, 20), rng.integers(0, 12, size=2)
    for name, colour in COLOURS.items():
      pixels = np.full((32, 32, 3), 255, np.uint8)
      pixels[at[0] : at[0] + size, at[1] : at[1] + size] = colour
      Image.fromarray(pixels).save(tmp_path / 'pictures' / f'{name}-{i}.png')
    for a, b in (('red', 'blue'), ('blue', 'green')):
      source, target = {'image': f'{a}-{i}.png'}, {'image': f'{b}-{i}.png'}
      rows.append(json.dumps({'parts': [source, {'text': f'make it {b}'}, target]}))
  records = tmp_path / 'edits.jsonl'
  records.write_text('\n'.join(rows))
  assert all(
    e.is_ordered for r in CaptionFile(str(records), 'all', 0.1).records() for e in r.entries
  )

  def verb(name, *words):
    assert cli.main([name, *map(str, words)]) == 0

  settings = lambda values: [f'--config.{value}' for value in values]
  vae, run = tmp_path / 'vae', tmp_path / 'run'
  verb('train', '--config', 'transfusion/vae_mini.py', '--workdir', vae,
       *settings((*VAE, f'data.path={tmp_path / "pictures"}')))  # fmt: skip
  verb('latent-scale', '--run', vae)
  verb('tokenize', '--run', vae, '--split', 'all', '--output', tmp_path / 'latents')
  verb('train', '--config', 'transfusion/mini.py', '--workdir', run,
       *settings((*MODEL, f'data.path={tmp_path / "pictures"}', f'data.mixed.captions={records}',
                  f'data.mixed.latents={tmp_path / "latents"}', 'data.mixed.length=192',
                  'model.length=192', 'model.clean_rate=0.5',
                  'data.test_fraction=0.4')))  # fmt: skip
  capsys.readouterr()
  pictures, out = [tmp_path / 'pictures' / f'red-{i}.png' for i in range(3)], tmp_path / 'b.png'
  words = ('--run', run, '--steps', 2, '--output', out)
  verb('sample', *words, '--image', pictures[0], '--prompt', 'make it blue')
  assert Image.open(out).size == (32, 32) and f'1 images: {out}' in capsys.readouterr().out
  verb('sample', *words, '--image', *pictures, '--prompt', 'make it blue')
  verb('sample', *words, '--image', pictures[0], '--prompt', 'a', 'b', '--guidance', 2)
  assert '2 images' in capsys.readouterr().out
  verb('evaluate', '--run', run, '--samples', 4, '--steps', 2)
  results = json.loads((run / 'evaluation.json').read_text())['results']
  assert 2 <= results['drawn/pictures'] <= 4 and 0 < results['drawn/similarity'] <= 1
  assert results['described/pictures'] == 0  # instructions are no captions
  wrong = ['sample', *words, '--image', *pictures, '--prompt', 'a', 'b']
  assert cli.main([*map(str, wrong)]) == 2
  assert '3 pictures (--image) and 2 prompts, expected one' in capsys.readouterr().err
