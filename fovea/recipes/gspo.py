"""GSPO: one length-normalised importance ratio per sequence."""

from fovea.methods.gspo import GSPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="gspo", method=GSPO(), updates_per_rollout=2)
real = grpo.real.replace(name="gspo-real", method=GSPO(), updates_per_rollout=4)
