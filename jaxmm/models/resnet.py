"""A small residual network that classifies pictures, to be trained from scratch (He et al. 2016,
arXiv:1603.05027: normalisation and activation before each convolution).

What studies measure data with: an accuracy within seconds to minutes. It departs from the paper in
group normalisation (Wu & He 2018, arXiv:1803.08494), which has no running averages and does not mix
examples, and in swish. `models.classifier` is the published network for fixed features.

Axes: B batch, Y X rows and columns, C channels, V classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm import task as tasks
from jaxmm.config import ConfigError, from_mapping
from jaxmm.core import convnet, losses


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Sizes of the network.

  Attributes:
    num_classes: V.
    image_size: pixels a side.
    image_channels: 1 or 3.
    stem_stride: of the first convolution; 2 makes all that follows four times as cheap.
    channels: of each stage; every stage after the first halves rows and columns.
    res_blocks: residual blocks of a stage.
    norm_groups: groups of channels that are normalised together.
    dropout: on the pooled features.
    dtype: in which convolutions are computed.
  """

  num_classes: int = 10
  image_size: int = 32
  image_channels: int = 3
  stem_stride: int = 1
  channels: tuple[int, ...] = (16, 32, 64)
  res_blocks: int = 1
  norm_groups: int = 8
  dropout: float = 0.0
  dtype: str = 'float32'

  def __post_init__(self):
    lowest = {'num_classes': 2, 'image_channels': 1, 'stem_stride': 1, 'res_blocks': 1}
    for name, low in lowest.items():
      if getattr(self, name) < low:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected at least {low}')
    for width in self.channels:
      if width < 1 or width % self.norm_groups:
        raise ConfigError(
          f'model.channels is {self.channels}, expected multiples of model.norm_groups '
          f'{self.norm_groups}'
        )
    if not self.channels:
      raise ConfigError('model.channels is empty, expected the width of one stage or more')
    if not 0 <= self.dropout < 1:
      raise ConfigError(f'model.dropout is {self.dropout}, expected it in [0, 1)')
    factor = self.stem_stride * 2 ** (len(self.channels) - 1)
    if self.image_size < factor or self.image_size % factor:
      raise ConfigError(
        f'model.image_size is {self.image_size}, expected a multiple of {factor}, by which '
        'model.stem_stride and the stages of model.channels shrink it'
      )


class ResNet(nn.Module):
  """Class scores of pictures."""

  config: ResNetConfig

  @nn.compact
  def __call__(self, image_BYXC: jax.Array, dropout_key_B: jax.Array | None = None) -> jax.Array:
    """Logits, float32 [B, V].

    Args:
      image_BYXC: float, about in [-1, 1].
      dropout_key_B: one typed key an example; None drops nothing.
    """
    c = self.config
    stem = convnet.Conv(c.channels[0], stride=c.stem_stride, dtype=c.dtype, name='stem')
    x_BYXC = convnet.constrain(stem(image_BYXC))
    for stage, width in enumerate(c.channels):
      if stage:
        x_BYXC = convnet.Down(c.dtype, name=f'down_{stage}')(x_BYXC)
      for block in range(c.res_blocks):
        res = convnet.Res(width, c.norm_groups, c.dtype, name=f'stage_{stage}_block_{block}')
        x_BYXC = res(x_BYXC)
    x_BYXC = convnet.GroupNorm(c.norm_groups, swish=True, dtype='float32', name='norm')(x_BYXC)
    feature_B11C = x_BYXC.mean((1, 2), keepdims=True)
    if dropout_key_B is not None and c.dropout:
      feature_B11C = _dropped(feature_B11C, c.dropout, dropout_key_B)
    return convnet.pointwise(c.num_classes, 'float32', 'head')(feature_B11C)[:, 0, 0]


def _dropped(x_B11C: jax.Array, rate: float, key_B: jax.Array) -> jax.Array:
  keep_B11C = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_B11C.shape[1:]))(key_B)
  return jnp.where(keep_B11C, x_B11C / (1 - rate), 0.0)


@dataclasses.dataclass(frozen=True)
class ResNetTask(tasks.Task):
  """Cross-entropy of a picture's class; accuracy as the evaluation `classification`.

  Attributes:
    config: the network's.
  """

  config: ResNetConfig

  def init(self, key: jax.Array, batch: tasks.Batch) -> tasks.Variables:
    return ResNet(self.config).init(key, self.pixels(batch)[:1])

  def pixels(self, batch: tasks.Batch) -> jax.Array:
    """The batch's uint8 pictures in [-1, 1].

    Raises:
      ConfigError: pictures of another size or number of channels than the config's.
    """
    image, c = batch['image_BYXC'], self.config
    expected = (c.image_size, c.image_size, c.image_channels)
    if image.ndim != 4 or image.shape[1:] != expected:
      raise ConfigError(
        f'images have shape {tuple(image.shape[1:])} (rows, columns, channels), the network '
        f'expects {expected}; make data.image_size agree with model.image_size, data.channels with '
        'model.image_channels'
      )
    return image.astype(jnp.float32) / 127.5 - 1

  def counts(self, batch: tasks.Batch) -> dict[str, jax.Array]:
    return {'images': jnp.sum(batch['valid_B'])}

  def loss(self, variables, batch, key, step, counts):
    del step
    keys_B = tasks.example_keys(key, batch['index_B'])
    sums = self._sums(variables, batch, keys_B)
    return sums['cross_entropy'][0] / jnp.maximum(counts['images'], 1), sums, {}

  def evaluations(self) -> Mapping[str, Callable[..., tasks.Sums]]:
    return {'classification': self.classification}

  def classification(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """Without dropout: nats an image, and the share whose largest logit is that of its class."""
    del key
    return self._sums(variables, batch, None)

  def _sums(self, variables, batch, keys_B) -> tasks.Sums:
    net = ResNet(self.config)
    logits_BV = net.apply({'params': variables['params']}, self.pixels(batch), keys_B)
    label_B, valid_B = batch['label_B'], batch['valid_B']
    nll_B = losses.token_nll(logits_BV, label_B)
    # A class that the head does not have would count as logit 0.
    nll_B = jnp.where((label_B >= 0) & (label_B < self.config.num_classes), nll_B, jnp.nan)
    correct_B = (jnp.argmax(logits_BV, axis=-1) == label_B).astype(jnp.float32)
    return {
      'cross_entropy': losses.weighted_sum(nll_B, valid_B),
      'accuracy': losses.weighted_sum(correct_B, valid_B),
    }

  def step_flops(self, batch_size: int) -> float:
    c = self.config
    side, before = c.image_size // c.stem_stride, c.channels[0]
    products = side**2 * 9 * c.image_channels * before
    for stage, width in enumerate(c.channels):
      if stage:
        side //= 2
        products += side**2 * 9 * before**2
      for _ in range(c.res_blocks):
        products += side**2 * (9 * (before + width) + before * (before != width)) * width
        before = width
    products += before * c.num_classes
    # Forward 2 a product, backward twice that.
    return 6.0 * batch_size * products


def make_task(model: Mapping[str, Any]) -> ResNetTask:
  """The Task of a run's `model` section, settings of `ResNetConfig`."""
  return ResNetTask(from_mapping(ResNetConfig, dict(model), 'model'))
