"""DAPO: clip-higher, token-mean, dynamic sampling, soft punishment of overlong answers."""

from fovea.methods.dapo import DAPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="dapo", method=DAPO(), dynamic_sampling=True, updates_per_rollout=2)
real = grpo.real.replace(name="dapo-real", method=DAPO(), dynamic_sampling=True, tasks_per_step=384, updates_per_rollout=3)
