"""Makes the golden arrays here with the public package pytorch-fid (0.3.0) and PyTorch.

    python -m tests.golden.inception.make_features

The package's own code computes everything; only its download of weights is replaced, by weights
that follow from their names (`tests/references/inception.py`). Real ones cannot be redistributed.
"""

import json
import pathlib
import sys
import tempfile
import types

import numpy as np
import torch
from PIL import Image

if '--without-operators' in sys.argv:  # of a torchvision that was built for another torch
  sys.modules['torchvision._meta_registrations'] = types.ModuleType('none')

from pytorch_fid import fid_score, inception  # noqa: E402

from tests.references import inception as reference  # noqa: E402

NUM, SIDE, LARGE = 12, 40, 310


class _Shapes(Exception):
  pass


def _write_shapes() -> None:
  def stop(self, state_dict):
    found = {k: list(v.shape) for k, v in self.state_dict().items() if 'num_batches' not in k}
    (reference.GOLDEN / 'shapes.json').write_text(json.dumps(found, indent=0) + '\n')
    raise _Shapes

  load, torch.nn.Module.load_state_dict = torch.nn.Module.load_state_dict, stop
  inception.load_state_dict_from_url = lambda *args, **options: {}
  try:
    inception.fid_inception_v3()
  except _Shapes:
    pass
  torch.nn.Module.load_state_dict = load


def _state(*args, **options) -> dict[str, torch.Tensor]:
  return {name: torch.from_numpy(x) for name, x in reference.random_state().items()}


def _features(images: np.ndarray) -> np.ndarray:
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
  with torch.no_grad():
    return inception.InceptionV3().eval()(x)[0][..., 0, 0].numpy()


def _last_layer() -> tuple[np.ndarray, np.ndarray]:
  """Logits of the first picture, and the branch that is TensorFlow's `mixed_6/conv`."""
  network = inception.fid_inception_v3().eval()
  image = torch.from_numpy(reference.pictures(1, 299).transpose(0, 3, 1, 2).astype(np.float32))
  seen = {}
  network.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, out: seen.update(spatial=out))
  with torch.no_grad():
    return network(image / 127.5 - 1).numpy(), seen['spatial'].numpy()


def _distance() -> float:
  with tempfile.TemporaryDirectory() as folder:
    paths = []
    for name, start in (('a', 0), ('b', 100)):
      paths.append(str(pathlib.Path(folder, name)))
      pathlib.Path(paths[-1]).mkdir()
      for i, image in enumerate(reference.pictures(NUM, SIDE, start)):
        Image.fromarray(image).save(pathlib.Path(paths[-1], f'{i:03}.png'))
    options = dict(batch_size=4, device='cpu', dims=2048, num_workers=0)
    return fid_score.calculate_fid_given_paths(paths, **options)


def main() -> None:
  """Writes shapes.json and features.npz."""
  _write_shapes()
  inception.load_state_dict_from_url = _state
  logits, branch = _last_layer()
  np.savez(
    reference.GOLDEN / 'features.npz',
    small=_features(reference.pictures(2, SIDE)),
    large=_features(reference.pictures(1, LARGE)),
    logits=logits,
    branch=branch[:, :8],
    distance=np.float64(_distance()),
  )


if __name__ == '__main__':
  main()
