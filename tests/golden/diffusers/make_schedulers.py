"""Writes schedulers.npz: what diffusers 0.42.1 (on PyTorch 2.13) computes for single steps.

    python make_schedulers.py     # with diffusers and torch installed

Its timesteps are one lower than ours: 0 is the least noisy, where ours is 1 and 0 is clean.
"""

import pathlib
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

STEPS = 20
SHAPE = (STEPS, 2, 5)
COSINE = dict(beta_schedule='squaredcos_cap_v2', prediction_type='epsilon')


def main():
  draw = np.random.default_rng(0)
  x, noise_estimate, fresh = (draw.standard_normal(SHAPE).astype(np.float32) for _ in range(3))
  out = {'x': x, 'output': noise_estimate, 'fresh': fresh}
  x, noise_estimate, fresh = (torch.from_numpy(a) for a in (x, noise_estimate, fresh))

  plain = DDPMScheduler(**COSINE)
  out['alpha_bar'] = plain.alphas_cumprod.numpy()
  plain.set_timesteps(timesteps=[999, 500, 0])
  at = torch.linspace(0, 999, STEPS).round().long()
  out['noised'] = plain.add_noise(x, noise_estimate, at).numpy()
  out['noised_at'] = at.numpy()
  out['linspace'] = spaced('linspace')

  for variance in ('small', 'large'):
    for clip in (False, True):
      scheduler = DDPMScheduler(
        **COSINE, variance_type=f'fixed_{variance}', clip_sample=clip, clip_sample_range=1.5
      )
      # Given as a list, a timestep's predecessor is the next of the list; by number it would be
      # t - 1000 // steps, whatever the spacing.
      scheduler.set_timesteps(timesteps=out['linspace'].tolist())
      steps = []
      for i, t in enumerate(scheduler.timesteps):
        target = 'diffusers.schedulers.scheduling_ddpm.randn_tensor'
        with mock.patch(target, lambda *a, i=i, **k: fresh[i]):
          steps.append(scheduler.step(noise_estimate[i], t, x[i]).prev_sample.numpy())
      out[f'ancestral_{variance}_{"clip" if clip else "free"}'] = np.stack(steps)

  for to_one in (True, False):
    for eta in (0.0, 0.5):
      scheduler = DDIMScheduler(
        **COSINE, clip_sample=True, clip_sample_range=1.5, set_alpha_to_one=to_one
      )
      scheduler.set_timesteps(STEPS)
      out['leading'] = scheduler.timesteps.numpy()
      steps = [
        scheduler.step(
          noise_estimate[i],
          t,
          x[i],
          eta=eta,
          use_clipped_model_output=True,
          variance_noise=fresh[i],
        ).prev_sample.numpy()
        for i, t in enumerate(scheduler.timesteps)
      ]
      out[f'ddim_{eta}_{"one" if to_one else "first"}'] = np.stack(steps)

  flow = FlowMatchEulerDiscreteScheduler()
  flow.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
  out['flow_sigmas'] = flow.sigmas.numpy()
  steps = [
    flow.step(noise_estimate[i], t, x[i]).prev_sample.numpy() for i, t in enumerate(flow.timesteps)
  ]
  out['flow'] = np.stack(steps)
  np.savez_compressed(pathlib.Path(__file__).parent / 'schedulers.npz', **out)


def spaced(spacing):
  scheduler = DDPMScheduler(**COSINE, timestep_spacing=spacing)
  scheduler.set_timesteps(STEPS)
  return scheduler.timesteps.numpy()


if __name__ == '__main__':
  main()
