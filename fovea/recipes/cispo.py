"""CISPO: the importance weight is clipped, the gradient never zeroed."""

from fovea.methods.cispo import CISPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="cispo", method=CISPO(), updates_per_rollout=2)
real = grpo.real.replace(name="cispo-real", method=CISPO(), updates_per_rollout=4)
