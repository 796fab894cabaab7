"""SAC on pictures, ours over Stable-Baselines3's: gradient steps per second and environment steps per second, in one process.

    python benchmarks/speed/off_policy.py                measures and writes benchmarks/speed/off_policy.json

The same simulator, networks, batch and number of environments, and the same sharing: the policy has one encoder, both critics have another
between them. The two take turns, one thread on one core, so that a busy machine slows both. "step" is an environment step with its gradient
step, SAC's usual ratio. Beside it: what a frame takes in the replay. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.vec_env import DummyVecEnv  # pyright: ignore[reportMissingImports]

from fovea.api import build_collector, build_engine, build_policy, build_sources
from fovea.bench import measure
from fovea.methods.sac import SAC
from fovea.policies.control import Network
from fovea.recipe import Recipe
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay
from fovea.types import Context

SIDE, WIDTH, ENVS, HORIZON, BATCH, RATE = 84, 256, 8, 32, 128, 3e-4
MOST_BYTES = 1.1
FRAME = SIDE * SIDE * 3


class Reach(gymnasium.Env[Any, Any]):
    """A square that is pushed towards another one, from pictures; drawing costs next to nothing."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.goal, self.t = self.np_random.uniform(0, 1, 2), self.np_random.uniform(0, 1, 2), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at, self.t = np.clip(self.at + 0.1 * np.asarray(action), 0, 1), self.t + 1
        return self.seen(), -float(np.abs(self.at - self.goal).sum()), False, self.t >= 50, {}

    def seen(self) -> Any:
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for channel, place in ((0, self.at), (1, self.goal)):
            y, x = (place * (SIDE - 8)).astype(int)
            picture[y : y + 8, x : x + 8, channel] = 255
        return picture


class Ours:
    def __init__(self, folder: Path, size: int, updates: int):
        recipe = Recipe(
            name="off-policy-speed",
            model="network",
            network=Network(width=WIDTH),
            data=Gym(Reach),
            method=SAC(),
            max_rows=ENVS,
            horizon=HORIZON,
            replay=Replay(size=size, start=0, batch=BATCH),
            updates_per_rollout=updates,
            learning_rate=RATE,
            betas=(0.9, 0.999),
            max_grad_norm=0.0,
            eval_tasks=0,
        )
        source, _ = build_sources(recipe)
        policy = build_policy(recipe, None, None, source)
        self.loop: Any = build_collector(recipe, policy, source, build_engine(recipe, policy, source), None, path=folder)
        self.step = 0

    def collect(self) -> None:
        self.loop.collect(Context(self.step, 1_000_000), None)
        self.step += 1

    def learn(self) -> None:
        self.loop.learn(Context(self.step, 1_000_000), RATE, lambda done, total: None)


class Theirs:
    def __init__(self, size: int, updates: int):
        network: dict[str, Any] = {"net_arch": {"pi": [], "qf": [WIDTH, WIDTH]}, "features_extractor_kwargs": {"features_dim": WIDTH}}
        settings: dict[str, Any] = {"buffer_size": size, "learning_starts": 0, "train_freq": HORIZON, "gradient_steps": updates, "seed": 0}
        envs = DummyVecEnv([Reach] * ENVS)
        self.model: Any = stable_baselines3.SAC(
            "CnnPolicy", envs, learning_rate=RATE, batch_size=BATCH, gamma=0.99, policy_kwargs=network, **settings
        )
        _, self.callback = self.model._setup_learn(1_000_000)
        self.updates = updates

    def collect(self) -> None:
        model = self.model
        model.collect_rollouts(model.env, self.callback, model.train_freq, model.replay_buffer, learning_starts=0)

    def learn(self) -> None:
        self.model.train(self.updates, BATCH)


def sizes(loop: Any, model: Any) -> tuple[int, int]:
    """Trained numbers of (ours, theirs), which must be the same for the comparison to be one."""
    ours = sum(p.numel() for name in ("policy", "critics") for p in loop.state.modules[name].parameters())
    theirs = sum(p.numel() for part in (model.actor, model.critic) for p in part.parameters())
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each, after one that is not")
    parser.add_argument("--updates", type=int, default=8, help="gradient steps in a round")
    parser.add_argument("--frames", type=int, default=20_000, help="frames that the replays keep")
    parser.add_argument("--core", type=int)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    options = parser.parse_args()
    took: dict[str, dict[str, list[float]]] = {part: {"fovea": [], "stable-baselines3": []} for part in ("gradient", "environment")}
    with measure.single_thread(options.core), tempfile.TemporaryDirectory() as made:
        ours, theirs = Ours(Path(made), options.frames, options.updates), Theirs(options.frames, options.updates)
        found, expected = sizes(ours.loop, theirs.model)
        assert found == expected, f"{found} trained numbers here, {expected} there"
        for at in range(options.rounds + 1):
            pair = [("fovea", ours), ("stable-baselines3", theirs)]
            for name, side in pair if at % 2 else pair[::-1]:
                collected, learned = measure.timed(side.collect).cpu_s, measure.timed(side.learn).cpu_s
                if at:
                    took["environment"][name].append(collected / (HORIZON * ENVS))
                    took["gradient"][name].append(learned / options.updates)
        replay = ours.loop.replay
        per_frame = replay.bytes / (len(replay.lanes) * replay.ring)
        words = measure.provenance(["python", "benchmarks/speed/off_policy.py", *sys.argv[1:]])
    took["step"] = {name: [sum(pair) for pair in zip(took["environment"][name], took["gradient"][name])] for name in took["gradient"]}
    speeds = {}
    for part, of in took.items():
        ratios = [t / o for o, t in zip(of["fovea"], of["stable-baselines3"], strict=True)]
        speeds[part] = {
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            **{f"{name}_per_s": round(1 / statistics.median(xs), 1) for name, xs in of.items()},
            "least": 1.3,
        }
    result = {
        "what": "steps per second of SAC on pictures, fovea's over Stable-Baselines3's, by CPU time",
        "peer": f"stable-baselines3 {stable_baselines3.__version__}",
        "picture": [SIDE, SIDE, 3],
        "environments": ENVS,
        "batch": BATCH,
        "width": WIDTH,
        "trained_numbers": found,
        "rounds": options.rounds,
        "steps": speeds,
        "replay": {"bytes_per_transition": per_frame, "over_the_frame": round(per_frame / FRAME, 4), "most": MOST_BYTES},
        **words,
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"steps": speeds, "replay": result["replay"]}, indent=1))


if __name__ == "__main__":
    main()
