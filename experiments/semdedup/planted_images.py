"""SemDeDup on pictures with planted near-copies: recall, precision and kept share at every eps.

    python experiments/semdedup/planted_images.py write cifar10.zip --output planted.zip
    jaxmm curate semdedup --input planted.zip --encoder image --image-size 64 --clusters 20 \
        --prefer hard --eps 0.15 --output keep.parquet
    python experiments/semdedup/planted_images.py measure keep.parquet
    jaxmm curate report keep.parquet --input planted.zip

`write` takes a folder or zip of pictures (train/CLASS/*), or a name of TFDS (cifar10).

Axes: N examples, P planted pairs.
"""

import argparse
import pathlib

import numpy as np

from jaxmm.curation import embeddings, keep_list, vectors
from jaxmm.data.pipeline import DataConfig, open_source
from jaxmm.studies import planted_images
from jaxmm.studies.planted_images import KINDS, PlantedConfig
from jaxmm.studies.stages import text_table

EPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)


def write(options: argparse.Namespace) -> None:
  """The zip: as many pictures of every class, and one copy each of some of them."""
  is_path = pathlib.Path(options.data).exists()
  name, path = ('images', options.data) if is_path else (options.data, '')
  source = open_source(DataConfig(name=name, path=path))
  config = PlantedConfig(options.images // source.num_classes, copied=options.copied, seed=1)
  print(planted_images.write(source, config, options.output))


def measure(options: argparse.Namespace) -> None:
  """The table, from a keep-list and the vectors that it was made of."""
  keep = keep_list.read(options.keep)
  of = vectors.of_embeddings(embeddings.read(options.vectors or f'{options.keep}.work/vectors'))
  head, rows = table(keep, of)
  print(text_table(head, rows))


def table(keep: keep_list.KeepList, of: vectors.Vectors) -> tuple[list[str], list[list]]:
  """A row an eps: what is kept, planted pairs that are found (of each kind), precision.

  A pair is found if both are in one cluster and more similar than 1 - eps. A drop is right if the
  earlier example that it is most similar to is of the same original.
  """
  ids = keep.table['id'].to_pylist()
  origins = [planted_images.origin(name) for name in ids]
  place = {(o.label, o.number): n for n, o in enumerate(origins) if not o.kind}
  copy_P = np.array([n for n, o in enumerate(origins) if o.kind])
  original_P = np.array([place[origins[n].label, origins[n].number] for n in copy_P])
  kind_P = np.array([origins[n].kind for n in copy_P])
  cluster_N = keep.table['cluster'].to_numpy()
  is_near_P = cluster_N[copy_P] == cluster_N[original_P]
  similarity_P = np.einsum('pd,pd->p', of.x_ND[copy_P], of.x_ND[original_P])
  score_N = keep.table['score'].to_numpy(zero_copy_only=False).astype(float)  # null is nan
  row_of = {name: n for n, name in enumerate(ids)}
  nearest = keep.table['nearest'].to_pylist()
  is_right_N = np.array([
    name is not None and origins[row_of[name]].number == o.number
    for name, o in zip(nearest, origins)
  ])  # fmt: skip
  rows = []
  for eps in EPS:
    is_dropped_N = score_N > 1 - eps
    is_found_P = is_near_P & (similarity_P > 1 - eps)
    number = int(is_dropped_N.sum())
    right = int((is_dropped_N & is_right_N).sum())
    of_kinds = [f'{is_found_P[kind_P == kind].mean():.3f}' for kind in KINDS]
    shares = [1 - number / len(ids), is_found_P.mean(), right / max(number, 1)]
    rows.append([f'{eps}', *(f'{share:.3f}' for share in shares), *of_kinds])
  same = [f'{is_near_P[kind_P == kind].mean():.3f}' for kind in KINDS]
  rows.append(['in one cluster', '', f'{is_near_P.mean():.3f}', '', *same])
  return ['eps', 'kept', 'pairs found', 'drops that are right', *KINDS], rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  verbs = parser.add_subparsers(required=True)
  p = verbs.add_parser('write', help='pictures with planted copies, as a zip')
  p.add_argument('data', help='folder or zip of pictures, or a name of TFDS')
  p.add_argument('--output', required=True, metavar='FILE.zip')
  p.add_argument('--images', type=int, default=2000, help='originals; default: %(default)s')
  p.add_argument('--copied', type=int, default=500, help='of them; default: %(default)s')
  p.set_defaults(run=write)
  p = verbs.add_parser('measure', help='the table of a keep-list of that zip')
  p.add_argument('keep', metavar='KEEP.parquet', help='of `jaxmm curate semdedup`')
  p.add_argument('--vectors', metavar='DIR', help='default: KEEP.parquet.work/vectors')
  p.set_defaults(run=measure)
  options = parser.parse_args()
  options.run(options)


if __name__ == '__main__':
  main()
