"""PPO with a value head: GAE over tokens, dual clip."""

from fovea.methods.ppo import PPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="ppo", method=PPO(), epochs_per_rollout=2)
real = grpo.real.replace(name="ppo-real", method=PPO(), updates_per_rollout=4)
