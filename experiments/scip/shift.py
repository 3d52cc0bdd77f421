"""Where damaged files land among the clusters of the originals: SCIP's finding, with any encoder.

    jaxmm curate corrupt --input SOURCES --suffix .py --output damaged.parquet
    jaxmm curate embed --input SOURCES --suffix .py --encoder minilm --output vectors
    jaxmm curate embed --input damaged.parquet --id-field id --encoder minilm \\
        --output damaged-vectors
    python experiments/scip/shift.py damaged.parquet vectors damaged-vectors

Clusters are those of the originals. A line a kind of damage: how far the size of the cluster and
the distance to its centroid change (mean, 95 % interval of paired differences), and the share of
files that are in another cluster.
"""

from __future__ import annotations

import argparse

import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxmm.curation import embeddings, kmeans, scip, vectors
from jaxmm.curation.kmeans import KMeansConfig


def text(change: scip.Change) -> str:
  return f'{change.before:.4g} to {change.after:.4g} ({change.low:+.4g} to {change.high:+.4g})'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('damaged', help='what `jaxmm curate corrupt` wrote')
  parser.add_argument('vectors', help='of the originals')
  parser.add_argument('damaged_vectors', help='of the damaged')
  parser.add_argument('--clusters', type=int, default=0, help='default: the root of the files')
  options = parser.parse_args()
  of = vectors.of_embeddings(embeddings.read(options.vectors))
  found = kmeans.fit(of.x_UD, KMeansConfig(options.clusters))
  row = {name: n for n, name in enumerate(of.ids.take(of.usable_U).to_pylist())}
  after = vectors.of_embeddings(embeddings.read(options.damaged_vectors))
  place = {name: n for n, name in enumerate(after.ids.to_pylist()) if not after.reason_N[n]}
  table = pq.read_table(options.damaged, columns=['id', 'of', 'kind', 'reason'])
  table = table.filter(pc.equal(table['reason'], ''))
  print('kind, files, size of cluster, distance to centroid, moved')
  for kind in sorted(set(table['kind'].to_pylist())):
    of_kind = table.filter(pc.equal(table['kind'], kind)).to_pylist()
    pairs = [(row[r['of']], place[r['id']]) for r in of_kind if r['of'] in row and r['id'] in place]
    before, damaged = zip(*pairs)
    moved = scip.shift_of_embeddings(
      of.x_UD[list(before)], after.x_ND[list(damaged)], found.centroid_KD, size_K=found.size_K
    )
    print(
      f'{kind}, {len(pairs)}, {text(moved.cluster_size)}, {text(moved.distance)}, {moved.moved:.1%}'
    )


if __name__ == '__main__':
  main()
