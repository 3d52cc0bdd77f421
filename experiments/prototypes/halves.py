"""What SSL Prototypes keep and drop of pictures in class folders: how hard each part is, and its
classes.

    jaxmm curate embed --input pictures.zip --encoder image --image-size 64 --output vectors
    jaxmm curate prototypes --vectors vectors --clusters 10 --prefer hard --keep 0.5 \
        --output keep.parquet
    python experiments/prototypes/halves.py keep.parquet vectors

Hard is what a classifier gets wrong: the share of pictures whose nearest other picture (by cosine,
among all) is of another class. The class is the folder above the picture.

Axes: N pictures.
"""

import argparse

import numpy as np

from jaxmm.curation import embeddings, keep_list, vectors
from jaxmm.studies.stages import text_table


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('keep', help='a list of `jaxmm curate prototypes`')
  parser.add_argument('vectors', help='the directory that it was made of')
  options = parser.parse_args()
  keep = keep_list.read(options.keep)
  of = vectors.of_embeddings(embeddings.read(options.vectors))
  keep_N = keep.table['keep'].to_numpy()
  class_N = np.array([name.split('/')[-2] for name in keep.table['id'].to_pylist()])
  wrong_N = class_N[nearest_other(np.asarray(of.x_ND))] != class_N
  distance_N = keep.table['distance'].to_numpy()
  rows = []
  for name, part_N in (('kept', keep_N), ('dropped', ~keep_N)):
    classes, counts = np.unique(class_N[part_N], return_counts=True)
    order = np.argsort(counts)
    rows.append([
      name, str(part_N.sum()), f'{distance_N[part_N].mean():.3f}', f'{wrong_N[part_N].mean():.3f}',
      f'{classes[order[0]]} {counts[order[0]]}', f'{classes[order[-1]]} {counts[order[-1]]}',
    ])  # fmt: skip
  head = ['', 'pictures', 'distance', 'neighbour is of another class', 'fewest', 'most']
  print(text_table(head, rows))


def nearest_other(x_ND: np.ndarray) -> np.ndarray:
  """Of each row the number of the most similar other one, int [N]."""
  similarity_NN = x_ND @ x_ND.T
  np.fill_diagonal(similarity_NN, -np.inf)
  return similarity_NN.argmax(1)


if __name__ == '__main__':
  main()
