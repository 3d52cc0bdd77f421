"""The verbs one after another: each reads what the one before it left."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.models import image_lm
from jaxmm.studies import convert, evaluation, loading
from jaxmm.train import log
from tests import tiny_runs
from tests.programs import run_verbs


def images_of(folder):
  """Pictures of the test split in the order of the data, uint8 [N, 8, 8, 3]."""
  files = sorted((folder / 'test').rglob('*.png'))
  return np.stack([np.asarray(Image.open(f)) for f in files])


@pytest.fixture(scope='module')
def tokenizer(path):
  return jaxmm.load(path.tokenizer)


def test_three_lines_encode_decode_and_sample(path, tokenizer):
  ids = tokenizer.encode(images_of(path.pictures))
  assert ids.shape == (10, 16) and ids.dtype == np.int32 and len(np.unique(ids)) > 1
  images = tokenizer.decode(ids)
  assert images.shape == (10, 8, 8, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(images[:3], tokenizer.decode(ids[:3]))
  with pytest.raises(ConfigError, match=r'ids run from .* to 16.*codes 0 to 15'):
    tokenizer.decode(ids * 0 + 16)


def test_a_second_call_compiles_nothing(path, tokenizer):
  images = images_of(path.pictures)[:2]
  ids = tokenizer.encode(images)
  tokenizer.decode(ids, (2, 8))
  again = jaxmm.load(path.tokenizer)
  compiled = []
  listen = lambda event, *_, **__: compiled.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    again.encode(images)
    again.decode(ids, (2, 8))
    assert not [event for event in compiled if 'compile' in event or 'trace' in event]
    again.decode(ids[:1], (2, 8))  # another shape, which shows that the count counts
    assert [event for event in compiled if 'compile' in event]
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_rows_without_a_batch_axis_are_refused(path, tokenizer):
  with pytest.raises(ConfigError, match=r'\[B, Y, X, C\], got \[8, 8, 3\]; .*image\[None\]'):
    tokenizer.encode(images_of(path.pictures)[0])
  with pytest.raises(ConfigError, match=r'ids \[B, L\], got int32\[16\]; .*reshape\(1, -1\)'):
    tokenizer.decode(np.zeros(16, np.int32))


def test_only_training_and_evaluation_need_the_file_of_lpips(path, tokenizer, tmp_path):
  shutil.copytree(path.tokenizer, tmp_path / 'run')
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  config['model']['perceptual'] = {'name': 'lpips', 'weights': 'gone.safetensors'}
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  loaded, images = jaxmm.load(tmp_path / 'run'), images_of(path.pictures)
  np.testing.assert_array_equal(loaded.encode(images), tokenizer.encode(images))
  with pytest.raises(ConfigError, match="perceptual.weights names 'gone.safetensors', but there"):
    evaluation.run_evaluations(loaded, batch=8)


def test_codes_of_the_store_are_those_of_the_tokenizer(path, tokenizer):
  store = ArrayStore(path.tokens / 'test')
  np.testing.assert_array_equal(store.read('codes'), tokenizer.encode(images_of(path.pictures)))
  assert store.meta['num_codes'] == tiny_runs.CODES and store.meta['grid'] == [4, 4]
  assert store.meta['tokenizer_step'] == 4


def test_an_unreadable_picture_is_named_counted_and_has_no_weight(path):
  store = ArrayStore(path.tokens / 'train')
  valid = store.read('valid')
  assert (~valid).sum() == 1 and not store.read('codes')[~valid].any()
  lines = [x for x in log.read(path.tokenizer / 'log.jsonl') if x['kind'] == 'train']
  named = {name for line in lines for name in line['unreadable']}
  assert len(named) == 1 and 'train/0/' in named.pop()


def test_evaluate_writes_what_the_log_says(path):
  results = json.loads((path.tokenizer / 'evaluation.json').read_text())['results']
  line = [x for x in log.read(path.tokenizer / 'log.jsonl') if x['kind'] == 'evaluate'][-1]
  assert results['reconstruction/mse'] == pytest.approx(line['reconstruction/mse'], rel=1e-5)
  assert 1 < results['reconstruction/code_perplexity'] <= tiny_runs.CODES
  assert 'reconstruction/mse' in path.printed


def test_sample_reconstruct_and_report_wrote_their_files(path):
  at = path.lm.parent
  assert np.load(at / 'samples.npz')['arr_0'].shape == (4, 8, 8, 3)
  for name in ('samples', 'rebuilt'):
    assert min(Image.open(at / f'{name}.png').size) >= 16
  assert '5 images, PSNR' in path.printed
  assert 'cross_entropy' in (path.lm / 'report.html').read_text()


@pytest.fixture
def moved(path, tmp_path):
  """Tokenizer, codes and image model copied to another place together."""
  for name in ('tokenizer', 'tokens', 'lm'):
    shutil.copytree(getattr(path, name), tmp_path / name)
  config = json.loads((tmp_path / 'lm' / 'config.json').read_text())
  config['data']['path'] = '../tokens'
  (tmp_path / 'lm' / 'config.json').write_text(json.dumps(config))
  return tmp_path


def test_moved_together_the_codes_still_lead_to_their_tokenizer(moved):
  directory, step = loading.tokenizer_of(loading.read_config(moved / 'lm'), moved / 'lm')
  assert directory.resolve() == (moved / 'tokenizer').resolve() and step == 4


@pytest.mark.slow
def test_codes_are_decoded_by_the_step_that_wrote_them(path, moved):
  before = jaxmm.load(moved / 'lm').sample(range(3))
  run_verbs(
    f'train --config {tiny_runs.__file__}:tokenizer --workdir {moved / "tokenizer"} '
    f'--config.steps=6 --config.data.path={path.pictures} --accept-config-change'
  )
  assert jaxmm.load(moved / 'tokenizer').step == 6
  lm = jaxmm.load(moved / 'lm')
  assert lm.tokenizer().step == 4
  np.testing.assert_array_equal(lm.sample(range(3)), before)
  shutil.rmtree(moved / 'tokenizer' / 'checkpoints' / '4')
  with pytest.raises(ConfigError, match='by step 4 of .*, which now has the steps 6; codes'):
    lm.sample(range(3))
  assert lm.sample(range(3), tokenizer=moved / 'tokenizer').shape == before.shape


def test_an_average_that_was_not_kept_is_not_converted(path, tmp_path, capsys):
  out = ['--input', str(path.tokenizer), '--output', str(tmp_path / 'vq.npz')]
  assert cli.main(['convert', '--format', 'llamagen-vq', '--ema', *out]) == 2
  assert 'kept no average of its parameters: ema is 0' in capsys.readouterr().err


def test_a_run_says_what_it_ran_on(path):
  said = json.loads((path.lm / 'environment.json').read_text())
  assert said['platform'] == 'cpu' and said['process_count'] == 1
  page = (path.lm / 'report.html').read_text()
  assert 'Environment' in page and said['versions']['jaxlib'] in page


def test_convert_out_and_in_again_is_bit_equal(path, tmp_path, monkeypatch):
  monkeypatch.setitem(convert._VQ_PRESETS, 'tiny', tiny_runs.NETWORK)
  monkeypatch.setitem(image_lm.PRESETS, 'tiny', tiny_runs.IMAGE_MODEL)
  for layout, run, size in (('vq.npz', path.tokenizer, 8), ('gpt.safetensors', path.lm, 64)):
    file, layout = tmp_path / layout, layout.partition('.')[0]
    back = tmp_path / layout
    verb = ['convert', '--format', f'llamagen-{layout}']
    assert cli.main([*verb, '--input', str(run), '--output', str(file)]) == 0
    more = ['--preset', 'tiny', '--image-size', str(size)]
    assert cli.main([*verb, *more, '--input', str(file), '--output', str(back)]) == 0
    ours, theirs = (jaxmm.load(d).variables['params'] for d in (run, back))
    ours = {'vqgan': ours['vqgan']} if layout == 'vq' else ours
    flat = lambda tree: {
      '/'.join(k.key for k in p): np.asarray(x)
      for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert flat(ours).keys() == flat(theirs).keys()
    for name, value in flat(ours).items():
      np.testing.assert_array_equal(value, flat(theirs)[name], err_msg=name)


def test_a_model_of_images_has_no_prompt(path, capsys):
  words = ['sample', '--run', str(path.lm)]
  for option, said in (('--prompt', 'takes no prompt'), ('--image', 'describes no pictures')):
    assert cli.main([*words, option, 'x.png']) == 2
    assert said in capsys.readouterr().err
