"""ReMax: the baseline is the score of the greedy answer."""

from fovea.methods.remax import ReMax
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="remax", method=ReMax())
real = grpo.real.replace(name="remax-real", method=ReMax())
