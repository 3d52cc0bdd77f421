"""Compares jaxmm with a peer in PyTorch on this machine, interleaved, in one run.

    python experiments/performance/compare.py gpt_train --peer-python PEER/bin/python \
        --llamagen LLAMAGEN_CHECKOUT
    python experiments/performance/compare.py megabyte_train --peer-python PEER/bin/python

prints one JSON line: the ratio of the peer's seconds to ours (above 1, jaxmm is faster), medians of
both, and the machine's arithmetic floor measured right before. For the train steps of transformers
the peer runs with its default attention and with a flash kernel; the faster counts. Beside the peer
as shipped it runs once more with freed memory kept, as the command `jaxmm` keeps its own
(`ratio_kept`).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import harness

HERE = pathlib.Path(__file__).parent
# Of one repetition at the default sizes: GFLOP (multiply-adds count two), and the GB that must
# stream from memory because they fit no cache. Sampling reads 97.5M weights and the filled part of
# eight rows' keys and values for each of 256 tokens.
GFLOP = {'vq_train': 585.5, 'gpt_train': 299.6, 'gpt_sample': 409.0}
STREAMED_GB = {'gpt_sample': 119.2}
# (our side, the peer) of each work, and the peers that have a flash kernel to choose.
LLAMAGEN = ('ours.py', 'peer_llamagen.py')
MEGABYTE = ('ours_models.py', 'peer_megabyte.py')
TRANSFUSION = ('ours_models.py', 'peer_transfusion.py')
SIDES = {
  'vq_train': LLAMAGEN,
  'gpt_train': LLAMAGEN,
  'gpt_sample': LLAMAGEN,
  'megabyte_train': MEGABYTE,
  'megabyte_sample': MEGABYTE,
  'megabyte_sample_late': MEGABYTE,
  'transfusion_train': TRANSFUSION,
  'transfusion_sample': TRANSFUSION,
}
HAS_FLASH = ('gpt_train', 'megabyte_train')
# What `jaxmm/train/memory.py` sets, in the words of glibc's environment.
KEPT = 'env MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000'


def main():
  """Runs one comparison and prints its line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('work', choices=sorted(SIDES))
  parser.add_argument('--peer-python', required=True)
  parser.add_argument('--llamagen', help='a checkout of it, for its works')
  parser.add_argument('--repeat', type=int, default=5)
  parser.add_argument('--append', metavar='FILE', help='also append the line to this file')
  args = parser.parse_args()
  if SIDES[args.work] is LLAMAGEN and not args.llamagen:
    parser.error('--llamagen is needed for this work')
  os.environ['LLAMAGEN_DIR'] = args.llamagen or ''
  floor = json.loads(
    subprocess.run(
      [sys.executable, str(HERE / 'floor.py')], check=True, capture_output=True, text=True
    ).stdout
  )
  ours, theirs = SIDES[args.work]
  peer = f'{args.peer_python} {HERE / theirs} {args.work}'
  commands = {'jaxmm': f'{sys.executable} {HERE / ours} {args.work}', 'peer': peer}
  if args.work in HAS_FLASH:
    commands['peer_flash'] = f'{peer} --attention flash'
  commands |= {f'{name}_kept': f'{KEPT} {c}' for name, c in commands.items() if name != 'jaxmm'}
  seconds = harness.interleave(commands, args.repeat)
  fastest = lambda names: min(names, key=lambda n: statistics.median(seconds[n]))
  kept = fastest([n for n in seconds if n.endswith('_kept')])
  best = fastest([n for n in seconds if n.startswith('peer') and not n.endswith('_kept')])
  line = {
    'work': args.work,
    **harness.ratio(seconds[best], seconds['jaxmm']),
    'ratio_kept': harness.ratio(seconds[kept], seconds['jaxmm'])['ratio'],
    'peer': best,
    'seconds': {n: round(statistics.median(s), 4) for n, s in seconds.items()},
    'repeat': args.repeat,
    'threads': harness.THREADS,
    'clock': harness.CLOCK,
    'floor': floor,
  }
  if args.work in GFLOP:
    floor_seconds = max(
      GFLOP[args.work] / floor['matmul_gflops'],
      STREAMED_GB.get(args.work, 0.0) / floor['stream_gb_per_s'],
    )
    line['floor_seconds'] = round(floor_seconds, 3)
    line['of_floor'] = {n: round(floor_seconds / s, 3) for n, s in line['seconds'].items()}
  print(json.dumps(line))
  if args.append:
    with open(args.append, 'a') as out:
      out.write(json.dumps(line) + '\n')


if __name__ == '__main__':
  main()
