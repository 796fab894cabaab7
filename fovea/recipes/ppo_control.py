"""PPO with a value head on the steps of a simulator: CartPole from its four numbers."""

from fovea.methods.ppo import PPO
from fovea.policies.control import Network
from fovea.recipe import Recipe

tiny = Recipe(
    name="ppo_control",
    model="network",
    network=Network(width=64, normalise=True),
    data="gym:CartPole-v1",
    method=PPO(gamma=0.99, reward="steps", dual_clip=0.0, value_clip=0.0),
    max_rows=16,
    horizon=64,
    updates_per_rollout=4,
    epochs_per_rollout=6,
    steps=50,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    max_grad_norm=0.5,
    eval_tasks=50,
)
