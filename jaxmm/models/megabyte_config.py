"""Sizes of a MEGABYTE and what a forward pass of it costs.

Axes: P bytes of a patch, K patches of a row, D_G width of a byte in the global model, D_L local
width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

from jaxmm.config import ConfigError
from jaxmm.core import transformer

PADS = ('learned', 'ids')
CONV_SIZES = (3, 5, 7)
INIT_CUT = 2.0  # standard deviations


@dataclasses.dataclass(frozen=True)
class MegabyteConfig:
  """Sizes and training switches of a MEGABYTE.

  Attributes:
    global_depth, global_width, global_heads: of the Stack over patches. The width is P * D_G: a
      patch is the concatenation of its bytes' vectors.
    local_depth, local_width, local_heads: of the Stack over the bytes of a patch.
    global_head_dim, local_head_dim: of one head; None is width / heads.
    patch: P.
    length: the longest row in bytes, a multiple of P; the global position table has this length.
    vocab_size: V; ids are 0 .. V - 1, and V itself is padding, which is never a target.
    pads: what stands before the first patch and before the first byte of each. 'learned' are free
      vectors (the paper's equations), 'ids' the padding id, embedded like a byte (the pseudocode of
      its appendix, where a global position is that of the slot and not of the byte in it).
    cross_patch: r, how many last positions of the patch before a local layer also attends to, with
      rotary relative positions; 0 is none. The paper does not say its r.
    conv_encoder: causal convolutions of sizes 3, 5 and 7 on the global bytes' embeddings.
    separate_documents: patches see those of their own segment only and positions count from its
      first patch; documents must then begin at patch boundaries.
    dropout: on what attention and MLP add; embeddings have none.
    init_std: of the initial weights, cut at two standard deviations.
    norm_eps: of the layer norms.
    local_chunk: patches whose local model runs at one time, and again for the gradient, so that
      memory does not grow with the row; 0 is all.
    remat, unroll, dtype: of both Stacks, see `core.transformer.StackConfig`.
    attention_backend, attention_chunk: of the global Stack.
    local_attention_backend: of the local one, whose lengths are P + r.
  """

  global_depth: int
  global_width: int
  global_heads: int
  local_depth: int
  local_width: int
  local_heads: int
  global_head_dim: int | None = None
  local_head_dim: int | None = None
  patch: int = 8
  length: int = 8192
  vocab_size: int = 256
  pads: str = 'learned'
  cross_patch: int = 0
  conv_encoder: bool = False
  separate_documents: bool = False
  dropout: float = 0.1
  init_std: float = 0.006
  norm_eps: float = 1e-5
  local_chunk: int = 0
  remat: str = 'none'
  unroll: int = 1
  attention_backend: str = 'xla'
  attention_chunk: int = 512
  local_attention_backend: str = 'xla'
  dtype: str = 'float32'

  def __post_init__(self):
    lowest = {'patch': 1, 'length': 1, 'vocab_size': 1, 'cross_patch': 0, 'local_chunk': 0}
    for name, low in lowest.items():
      if getattr(self, name) < low:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected at least {low}')
    if self.pads not in PADS:
      raise ConfigError(f'model.pads is {self.pads!r}, expected one of {", ".join(PADS)}')
    for name in ('length', 'global_width'):
      if getattr(self, name) % self.patch:
        near = -(-getattr(self, name) // self.patch) * self.patch
        raise ConfigError(
          f'model.{name} is {getattr(self, name)}, expected a multiple of model.patch '
          f'{self.patch}, such as {near}'
        )
    if self.cross_patch > self.patch:
      raise ConfigError(
        f'model.cross_patch is {self.cross_patch}, expected at most model.patch {self.patch}: '
        'there are no more positions in the patch before'
      )
    _, local = self.global_stack(), self.local_stack()  # their own checks
    if self.cross_patch and local.head_width % 2:
      raise ConfigError(
        f'model.cross_patch needs rotary positions, but local heads are {local.head_width} wide; '
        'choose local_width / local_heads even, or set local_head_dim'
      )
    if self.cross_patch and 0 < self.local_chunk < self.local_depth:
      raise ConfigError(
        f'model.local_chunk is {self.local_chunk}, expected at least model.local_depth '
        f'{self.local_depth}: with cross_patch each chunk begins that many patches earlier'
      )

  @property
  def byte_width(self) -> int:
    """D_G."""
    return self.global_width // self.patch

  @property
  def pad_id(self) -> int:
    """The id of padding."""
    return self.vocab_size

  def global_stack(self) -> transformer.StackConfig:
    """The Stack over patches."""
    return self._stack('global', self.attention_backend)

  def local_stack(self) -> transformer.StackConfig:
    """The Stack over the bytes of a patch."""
    return self._stack('local', self.local_attention_backend)

  def _stack(self, which: str, backend: str) -> transformer.StackConfig:
    sizes = {name: getattr(self, f'{which}_{name}') for name in ('depth', 'width', 'head_dim')}
    return transformer.StackConfig(
      num_heads=getattr(self, f'{which}_heads'),
      hidden=4 * sizes['width'],
      mlp='relu',
      norm='layer',
      norm_eps=self.norm_eps,
      bias=True,
      dropout=self.dropout,
      init_std=self.init_std,
      init_cut=INIT_CUT,
      remat=self.remat,
      unroll=self.unroll,
      attention_backend=backend,
      attention_chunk=self.attention_chunk,
      dtype=self.dtype,
      **sizes,
    )

  def num_patches(self, length: int) -> int:
    """K of a row of `length` bytes.

    Raises:
      ConfigError: the length is no multiple of P, or above `length`.
    """
    if length % self.patch:
      raise ConfigError(
        f'rows have {length} bytes, which is no multiple of model.patch {self.patch}; pad them to '
        f'{-(-length // self.patch) * self.patch} with segment 0'
      )
    if length > self.length:
      raise ConfigError(f'rows have {length} bytes, but model.length is {self.length}')
    return length // self.patch


def stack_weights(stack: transformer.StackConfig) -> int:
  """m, the entries of all matrices of a plain Stack."""
  heads = 2 * stack.head_width * (stack.num_heads + stack.kv_heads)
  return stack.depth * stack.width * (heads + 2 * stack.hidden)


def forward_flops(config: MegabyteConfig, length: int) -> float:
  """FLOPs of one row's forward pass, a multiply-add being two.

  The Stacks' matrices cost 2 T (m_g / P + m_l) (section 3.1 of the paper; m are their entries).
  To these come w_GL, the head, the convolutions, and attention's two products as if not causal
  (O(T^2 / P^2 + T P)).

  Args:
    config: the model's.
    length: T, bytes of the row.
  """
  patches, glob, local = config.num_patches(length), config.global_stack(), config.local_stack()
  dense = patches * stack_weights(glob) + length * stack_weights(local)
  dense += length * config.local_width * (config.byte_width + config.vocab_size)
  if config.conv_encoder:
    dense += length * config.byte_width**2 * sum(CONV_SIZES)
  attention = patches**2 * glob.depth * glob.num_heads * glob.head_width
  seen = config.patch + config.cross_patch
  attention += length * seen * local.depth * local.num_heads * local.head_width
  return 2.0 * dense + 4.0 * attention
