"""REINFORCE++: rewards-to-go, whitened over the whole batch."""

from fovea.methods.reinforce_pp import ReinforcePP
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="reinforce_pp", method=ReinforcePP())
real = grpo.real.replace(name="reinforce_pp-real", method=ReinforcePP())
