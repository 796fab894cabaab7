"""DQN with the double estimate, on a simulator: CartPole from its four numbers."""

from fovea.methods.dqn import DQN
from fovea.policies.control import Network
from fovea.recipe import Recipe
from fovea.trainer.replay import Replay

tiny = Recipe(
    name="dqn",
    model="network",
    network=Network(width=128),
    data="gym:CartPole-v1",
    method=DQN(every=200, last_epsilon=0.05, decay=0.2),
    max_rows=4,
    horizon=32,
    replay=Replay(size=20_000, start=1_000, batch=128),
    updates_per_rollout=64,
    steps=250,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    max_grad_norm=10.0,
    eval_tasks=50,
    checkpoint_every=50,
)
