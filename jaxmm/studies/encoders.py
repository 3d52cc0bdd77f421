"""Encoders for the embedding job: published sentence and image encoders, and LMs and tokenizers of
our own.

Axes: B batch, L tokens, D width, Y X rows and columns, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation.embedding_inputs import ImageInputs, TextInputs, text_lengths
from jaxmm.curation.embedding_job import Embedder
from jaxmm.interop import bert, efficientnet
from jaxmm.models import classifier
from jaxmm.models.lm import Lm, LmConfig, LmTask
from jaxmm.models.sentence_encoder import SentenceEncoder
from jaxmm.studies import loading
from jaxmm.tokenizers import text
from jaxmm.tokenizers.vqgan_task import VqganTask


def minilm(folder: str | os.PathLike | None = None, max_tokens: int | None = None) -> Embedder:
  """A BERT-family sentence encoder; all-MiniLM-L6-v2 unless a folder is named.

  Args:
    folder: of published weights (see `interop.bert`); None for that of the package.
    max_tokens: where texts are cut off; None as published (256 for all-MiniLM-L6-v2).
  """
  model = bert.read_bert(folder, max_tokens=max_tokens)

  def encode(params, batch):
    network = SentenceEncoder(model.config)
    return network.apply({'params': params}, batch['ids_BL'], batch['valid_BL'])

  longest = model.tokenizer.length
  identity = {
    'encoder': 'minilm',
    'config': dataclasses.asdict(model.config),
    'max_tokens': longest,
    'weights': weights_digest(model.params),
  }
  inputs = TextInputs(model.tokenizer.encode_many, text_lengths(longest))
  return Embedder(identity, model.config.width, encode, model.params, inputs)


def image(weights: str | os.PathLike | None = None, size: int | None = None) -> Embedder:
  """Pooled features of EfficientNet-Lite0.

  Args:
    weights: a file of published weights; None for that of the package.
    size: side in pixels at which the network sees pictures; None is 224.
  """
  config = classifier.LITE0
  size = config.image_size if size is None else size
  if size < 32:
    raise ConfigError(f'the image size is {size}, expected 32 or more pixels')
  params = efficientnet.read_classifier(weights, config)

  def encode(params, batch):
    return classifier.image_features(params, batch['image_BYXC'], size=size, config=config)

  identity = {'encoder': 'image', 'size': size, 'weights': weights_digest(params)}
  return Embedder(identity, config.features, encode, params, ImageInputs(size))


def tokenizer(run_dir: str | os.PathLike) -> Embedder:
  """What the encoder of an image tokenizer that `jaxmm train` trained gives, averaged over
  positions, before it is projected to the width of a code.

  A picture is seen at the size that the tokenizer was trained at: shorter side to it, the centre.

  Args:
    run_dir: of the run (VQGAN, with or without CRT's regularizer).
  """
  loaded = loading.load(run_dir)
  if not isinstance(loaded.task, VqganTask):
    raise ConfigError(
      f'{run_dir} is a run of {loaded.config["task"]}, expected jaxmm.tokenizers.vqgan_task'
    )
  config, variables = loaded.task.config, loaded.network()
  identity = {
    'encoder': 'tokenizer',
    'config': dataclasses.asdict(config.network),
    'size': config.image_size,
    'weights': weights_digest(variables['params']),
  }
  inputs = ImageInputs(config.image_size, config.network.image_channels)
  encode = functools.partial(mean_latent, task=loaded.task)
  return Embedder(identity, config.network.z_channels, encode, variables, inputs)


def mean_latent(
  variables: Mapping[str, Any], batch: Mapping[str, jax.Array], task: VqganTask
) -> jax.Array:
  """The tokenizer's features, averaged over positions, float32 [B, D]."""
  feature_BYXD = task.model.apply(variables, task.pixels(batch), method='features')
  return feature_BYXD.astype(jnp.float32).mean((1, 2))


def lm(run_dir: str | os.PathLike, max_tokens: int | None = None) -> Embedder:
  """The last token's state of an LM that `jaxmm train` trained, as D4 takes it (arXiv:2308.12284).

  A text is read as in training: after the run's bos token, if it has one, and without an eos.

  Args:
    run_dir: of the run.
    max_tokens: where texts are cut off, bos included; None is the model's length.
  """
  loaded = loading.load(run_dir)
  if not isinstance(loaded.task, LmTask):
    raise ConfigError(f'{run_dir} is a run of {loaded.config["task"]}, expected jaxmm.models.lm')
  config, longest = loaded.task.config, max_tokens or loaded.task.config.length
  if not 2 <= longest <= config.length:
    raise ConfigError(f"max_tokens is {longest}, expected 2 to the model's length {config.length}")
  settings = loaded.config['data']['text']
  tokenizer = text.load(settings['tokenizer'])
  first = [] if settings.get('bos_id') is None else [settings['bos_id']]

  def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array((first + tokenizer.encode(t))[:longest], np.int32) for t in texts]

  identity = {
    'encoder': 'lm',
    'config': dataclasses.asdict(config),
    'max_tokens': longest,
    'bos': first,
    'tokenizer': hashlib.sha256(''.join(map(repr, tokenize(_PROBES))).encode()).hexdigest()[:16],
    'weights': weights_digest(loaded.variables['params']),
  }
  inputs = TextInputs(tokenize, text_lengths(longest))
  encode = functools.partial(last_token_state, config=config)
  return Embedder(identity, config.width, encode, loaded.variables['params'], inputs)


# Texts whose ids tell tokenizers apart.
_PROBES = ('The quick brown fox, 1,234 naïve cafés; def f(x): return x**2  # ok', 'Ω' * 40)


def last_token_state(
  params: Mapping[str, Any], batch: Mapping[str, jax.Array], config: LmConfig
) -> jax.Array:
  """What the head sees at each row's last valid token, float32 [B, D]; zeros without one."""
  hidden_BLD = Lm(config).apply({'params': params}, batch['ids_BL'], method='hidden')
  count_B = jnp.sum(batch['valid_BL'].astype(jnp.int32), axis=1)
  last_B = jnp.maximum(count_B - 1, 0)
  x_BD = jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]
  return jnp.where(count_B[:, None] > 0, x_BD.astype(jnp.float32), 0.0)


def weights_digest(params: Any) -> str:
  """Of names, shapes, types and values of a tree of arrays."""
  of = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    value = np.ascontiguousarray(jax.device_get(leaf))
    of.update(f'{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n'.encode())
    of.update(value.tobytes())
  return of.hexdigest()[:16]
