"""Compares jaxmm with a peer in PyTorch on this machine, interleaved, in one run.

    python experiments/performance/compare.py gpt_train --peer-python PEER/bin/python \
        --llamagen LLAMAGEN_CHECKOUT
    python experiments/performance/compare.py megabyte_train --peer-python PEER/bin/python

prints one JSON line: the ratio of the peer's seconds to ours (above 1, jaxmm is faster), medians of
both, and the machine's arithmetic floor measured right before. For the train steps of transformers
the peer runs with its default attention and with a flash kernel; the faster counts. Beside the peer
as shipped it runs once more with freed memory kept, as the command `jaxmm` keeps its own
(`ratio_kept`); `--kept` runs that alone, for machines on which a page of memory is dear.
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
  'megabyte_sample_after': MEGABYTE,
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
  parser.add_argument('--warmup', type=int, default=2, help='repetitions before those that count')
  parser.add_argument('--kept', action='store_true', help='do not run the peer as shipped')
  parser.add_argument(
    '--evaluations', type=int, default=30, help='of the network, for transfusion_sample'
  )
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
  options = f'{args.work} --warmup {args.warmup} --evaluations {args.evaluations}'
  peers = {'peer': f'{args.peer_python} {HERE / theirs} {options}'}
  if args.work in HAS_FLASH:
    peers['peer_flash'] = f'{peers["peer"]} --attention flash'
  kept = {f'{name}_kept': f'{KEPT} {command}' for name, command in peers.items()}
  shipped = {} if args.kept else peers
  ours = {'jaxmm': f'{sys.executable} {HERE / ours} {options}'}
  seconds = harness.interleave(ours | shipped | kept, args.repeat)
  line = {
    'work': args.work,
    **(_ratio('', seconds, shipped) if shipped else {}),
    **_ratio('_kept', seconds, kept),
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


def _ratio(which, seconds, peers):
  """The fastest of these peers' seconds over ours."""
  best = min(peers, key=lambda name: statistics.median(seconds[name]))
  out = harness.ratio(seconds[best], seconds['jaxmm'])
  return {f'{name}{which}': value for name, value in ({'peer': best} | out).items()}


if __name__ == '__main__':
  main()
