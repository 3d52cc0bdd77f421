"""MEGABYTE-pytorch, the peer of the comparisons: 512 patches of 8 bytes, dims 512 and 256.

Needs torch and the package MEGABYTE-pytorch. `--attention flash` is its own flag `flash_attn`, off
by default.
"""

import harness

harness.limit_threads()

import torch  # noqa: E402

torch.set_num_threads(harness.THREADS)
SHAPE = dict(num_tokens=256, dim=(512, 256), depth=(6, 4), heads=8, dim_head=64)


def _model(options):
  from MEGABYTE_pytorch import MEGABYTE

  torch.manual_seed(0)
  return MEGABYTE(**SHAPE, max_seq_len=(512, 8), flash_attn=options.attention == 'flash')


def megabyte_train(options):
  """Forward and backward of rows of 4,096 bytes."""
  model = _model(options)
  ids = torch.randint(1, 256, (options.batch or 2, 512, 8))  # byte 0 is its padding

  def step():
    model.zero_grad(set_to_none=True)
    model(ids, return_loss=True).backward()

  return step


def _sampled(options, given: int, new: int):
  from MEGABYTE_pytorch import megabyte

  megabyte.tqdm = lambda steps, **_: steps  # no progress bar in what is timed
  model = _model(options).eval().requires_grad_(False)
  model.max_seq_len = ((given + new) // 8, 8)  # generate() always runs to the end of its context
  prompt = torch.randint(1, 256, (1, given)) if given else None

  def sample():
    with torch.no_grad():
      model.generate(prompt)

  return sample


def megabyte_sample(options):
  """The first 256 bytes from nothing, its own generate()."""
  return _sampled(options, 0, 256)


def megabyte_sample_late(options):
  """16 bytes after 3,840."""
  return _sampled(options, 3840, 16)


def megabyte_sample_after(options):
  """The same: it keeps nothing of what it has read, every byte takes a pass over all."""
  return megabyte_sample_late(options)


if __name__ == '__main__':
  works = (megabyte_train, megabyte_sample, megabyte_sample_late, megabyte_sample_after)
  harness.serve({work.__name__: work for work in works}, __doc__)
