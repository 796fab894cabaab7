"""TD3 with twin critics and a delayed policy, on a simulator: Pendulum from its three numbers."""

from fovea.methods.td3 import TD3
from fovea.recipes import sac

tiny = sac.tiny.replace(name="td3", method=TD3(), steps=300)
