"""LlamaGen in PyTorch, as its authors ship it: the peer of the comparisons.

Needs torch and a checkout of FoundationVision/LlamaGen whose folder stands in LLAMAGEN_DIR.
`--attention` chooses what torch's scaled_dot_product_attention does: default (torch's own choice),
flash or math.
"""

import contextlib
import os
import sys

import harness

harness.limit_threads()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

torch.set_num_threads(harness.THREADS)
_DIR = os.environ.get('LLAMAGEN_DIR', '')
if not os.path.isdir(os.path.join(_DIR, 'autoregressive')):
  sys.exit('LLAMAGEN_DIR must name a checkout of FoundationVision/LlamaGen')
sys.path.insert(0, _DIR)


def _attention(name):
  if name == 'default':
    return contextlib.nullcontext
  from torch.nn.attention import SDPBackend, sdpa_kernel

  backend = {'flash': SDPBackend.FLASH_ATTENTION, 'math': SDPBackend.MATH}[name]
  return lambda: sdpa_kernel(backend)


def vq_train(options):
  """VQ-16 at 128x128: forward and backward of MSE, codebook and commitment terms."""
  from tokenizer.tokenizer_image.vq_model import VQ_16

  torch.manual_seed(0)
  model = VQ_16().train()
  # On a CPU the usage buffer stays a leaf that requires a gradient, and its in-place update raises.
  model.quantize.codebook_used = model.quantize.codebook_used.detach()
  x = torch.rand(options.batch or 2, 3, 128, 128) * 2 - 1

  def step():
    model.zero_grad(set_to_none=True)
    recon, (codebook, commitment, entropy, _) = model(x)
    (F.mse_loss(recon, x) + codebook + commitment + entropy).backward()

  return step


def gpt_train(options):
  """GPT at 256 tokens with its dropouts: forward and backward of the cross entropy."""
  from autoregressive.models import gpt

  torch.manual_seed(0)
  model = gpt.GPT_models[f'GPT-{options.preset}'](vocab_size=16384, block_size=256).train()
  batch = options.batch or 2
  codes, labels = torch.randint(0, 16384, (batch, 256)), torch.randint(0, 1000, (batch,))
  attention = _attention(options.attention)

  def step():
    model.zero_grad(set_to_none=True)
    with attention():
      _, loss = model(cond_idx=labels, idx=codes[:, :-1], targets=codes)
      loss.backward()

  return step


def gpt_sample(options):
  """256 tokens for each of `batch` classes, guidance 2.0, top-k 2000, its own generate()."""
  from autoregressive.models import gpt
  from autoregressive.models.generate import generate

  torch.manual_seed(0)
  model = gpt.GPT_models[f'GPT-{options.preset}'](vocab_size=16384, block_size=256).eval()
  torch.nn.init.normal_(
    model.output.weight, std=0.02
  )  # it is zero at first: give it a distribution
  model.requires_grad_(False)
  labels = torch.arange(options.batch or 4) * 97 % 1000
  attention = _attention(options.attention)

  def sample():
    with attention():
      generate(
        model, labels, 256, cfg_scale=2.0, cfg_interval=-1, temperature=1.0, top_k=2000,
        top_p=1.0, sample_logits=True,
      )  # fmt: skip

  return sample


if __name__ == '__main__':
  harness.serve({'vq_train': vq_train, 'gpt_train': gpt_train, 'gpt_sample': gpt_sample}, __doc__)
