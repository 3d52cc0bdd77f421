"""jaxmm: multimodal generative modelling and data curation in JAX and Flax.

`import jaxmm` imports nothing heavy and touches no accelerator; rooms are imported by name
(`from jaxmm.tokenizers import vqgan`), and a trained run opens with

    run = jaxmm.load('runs/mini')
    ids = run.encode(images)
    images = run.decode(ids)
"""

from typing import Any

__version__ = '0.1.0'
__all__ = ['load']


def load(directory: str, **options: Any):
  """A trained run with encode and decode, or sample; see `jaxmm.studies.loading.load`."""
  from jaxmm.studies import loading

  return loading.load(directory, **options)
