"""Off-policy learning end to end: a replay of pixels, windows of it, soft actor-critic."""

import fovea
from fovea.policies.control import Network
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay
from tests.learns.problems import WORLD


def test_soft_actor_critic_learns_to_reach_from_a_replay_of_pixels(tmp_path):
    run = fovea.train(
        "sac",
        out=tmp_path,
        data=Gym("fovea/Reach-v0", {**WORLD, "continuous": True}),
        network=Network(width=48),
        method__gamma=0.9,
        method__tau=0.02,
        method__temperature=0.05,
        max_rows=16,
        horizon=4,
        replay=Replay(size=4000, start=64, batch=64),
        updates_per_rollout=8,
        steps=45,
        warmup_steps=0,
        learning_rate=2e-3,
        eval_tasks=64,
        eval_every=0,
        checkpoint_every=45,
        threads=1,
        seed=0,
        quiet=True,
    )
    assert run.after > 0.7 > 0.3 > run.before, (run.before, run.after)
