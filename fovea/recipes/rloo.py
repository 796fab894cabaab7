"""RLOO: the baseline of an answer is the mean of the other ones."""

from fovea.methods.rloo import RLOO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="rloo", method=RLOO())
real = grpo.real.replace(name="rloo-real", method=RLOO())
