"""Writes llama.npz: what transformers 5.23.0 (on PyTorch 2.13) computes for a small Llama.

    python make_llama.py     # with transformers and torch installed, in the root of the repository

Weights follow from their names (`tests/references/golden_weights.py`). `mixed` is a sequence of
embeddings with the mask of Transfusion: causal, and both ways within each of two images.
"""

import json
import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.references.golden_weights import golden_weights

SIZES = dict(
  vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
  max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None,
  eos_token_id=None, pad_token_id=None,
)  # fmt: skip
# Key/value heads and rotary base.
MODELS = {'llama': (4, 1e4), 'grouped': (2, 300.0)}
# Of the mixed sequence: 0 is text, else the number of the image that the position is a patch of.
IMAGES = [0, 0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 0, 0]


def main():
  draw, out = np.random.default_rng(0), {}
  out['ids'] = draw.integers(0, SIZES['vocab_size'], (2, 20))
  out['x'] = draw.standard_normal((2, len(IMAGES), SIZES['hidden_size'])).astype(np.float32)
  out['images'] = np.array(IMAGES)
  image = torch.tensor(IMAGES)
  place = torch.arange(len(IMAGES))
  seen = (place[:, None] >= place) | ((image[:, None] == image) & (image > 0))
  mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
  for name, (heads, base) in MODELS.items():
    config = LlamaConfig(
      **SIZES,
      num_key_value_heads=heads,
      rope_parameters=dict(rope_type='default', rope_theta=base),
      attn_implementation='eager',
    )
    model = LlamaForCausalLM(config).eval()
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    state = {k: torch.from_numpy(v) for k, v in golden_weights(shapes).items()}
    model.load_state_dict(state)
    out[f'{name}_shapes'] = json.dumps(shapes)
    ids = torch.from_numpy(out['ids'])
    with torch.no_grad():
      text = model(ids, labels=ids, output_hidden_states=True)
      mixed = model(
        inputs_embeds=torch.from_numpy(out['x']),
        attention_mask=mask[None, None].expand(2, 1, -1, -1),
      )
      # With the cache of keys and values.
      greedy = model.generate(
        ids[:, :7], attention_mask=torch.ones(2, 7, dtype=torch.long), max_new_tokens=12,
        do_sample=False,
      )  # fmt: skip
    out[f'{name}_logits'] = text.logits.numpy()
    out[f'{name}_loss'] = text.loss.numpy()
    # The last one is behind the final norm.
    out[f'{name}_states'] = torch.stack(text.hidden_states).numpy()
    out[f'{name}_mixed'] = mixed.logits.numpy()
    out[f'{name}_greedy'] = greedy[:, 7:].numpy()
  np.savez_compressed(pathlib.Path(__file__).parent / 'llama.npz', **out)


if __name__ == '__main__':
  main()
