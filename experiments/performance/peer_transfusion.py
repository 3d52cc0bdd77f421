"""transfusion-pytorch, the peer of the comparisons: width 256, depth 6, 256 latents of 8 channels.

Needs torch and the package transfusion-pytorch.
"""

import functools

import harness

harness.limit_threads()

import torch  # noqa: E402

torch.set_num_threads(harness.THREADS)


def _model():
  from transfusion_pytorch import Transfusion

  torch.manual_seed(0)
  return Transfusion(
    num_text_tokens=256,
    dim_latent=8,
    modality_default_shape=(16, 16),
    transformer=dict(dim=256, depth=6),
  )


def transfusion_train(options):
  """Forward and backward of rows of 32 text tokens, a picture, 32 text tokens."""
  model = _model()
  text = lambda: torch.randint(0, 256, (32,))
  rows = [[text(), torch.randn(16, 16, 8), text()] for _ in range(options.batch or 4)]

  def step():
    model.zero_grad(set_to_none=True)
    model(rows).backward()

  return step


def transfusion_sample(options):
  """A guided picture for each of `batch` texts of 32 tokens, its own sample_many().

  It ends right after the picture; the cache it keeps is that of the last evaluation.
  """
  import transfusion_pytorch.transfusion as package

  package.tqdm = functools.partial(package.tqdm, disable=True)
  model = _model().eval().requires_grad_(False)
  texts = [torch.randint(0, 256, (32,)) for _ in range(options.batch or 4)]

  # The midpoint rule evaluates the network twice in each interval between times.
  times = options.evaluations // 2 + 1

  def sample():
    with torch.no_grad():
      model.sample_many(
        texts, max_length=1, force_modality_at_start=0, modality_steps=times, cfg_scale=3.0
      )

  return sample


if __name__ == '__main__':
  works = (transfusion_train, transfusion_sample)
  harness.serve({work.__name__: work for work in works}, __doc__)
