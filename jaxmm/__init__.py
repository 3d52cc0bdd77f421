"""jaxmm: multimodal generative modelling and data curation in JAX and Flax.

`import jaxmm` imports nothing heavy and touches no accelerator; rooms are imported by name
(`from jaxmm.tokenizers import vqgan`).
"""

__version__ = '0.1.0'
