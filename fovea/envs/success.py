"""A reward that is learned: a classifier of pictures, trained on a few hundred of success and a thousand of anything else.

As HIL-SERL has it (arXiv 2410.21845): balanced batches of randomly shifted pictures, binary cross-entropy, 150 steps; an episode ends where
the classifier says so. It can be wrong, and a policy finds out where. So the share of its verdicts that are right is measured while
training ("precision", among the parts of the score), by what the environment itself knows of success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fovea.envs.parts import Part
from fovea.math.augment import moved
from fovea.policies.parts import senses_of, trunk_of


class Classifier(nn.Module):
    """Logit of success of pictures or vectors (N, ...); of the pictures alone, where an observation is a row of `parts`."""

    def __init__(self, obs_shape: tuple[int, ...], width: int = 64, parts: Sequence[Part] = ()):
        super().__init__()
        self.senses = senses_of(obs_shape, parts)
        self.trunk = trunk_of(obs_shape, width, parts, pictures_only=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, 1))

    def forward(self, obs_N: Tensor) -> Tensor:
        return self.head(self.trunk(self.senses(obs_N)))[:, 0]


@dataclass(frozen=True)
class Verdicts:
    """How a classifier did on frames that it was not trained on."""

    accuracy: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Learned:
    """Pays 1 and ends the episode where a classifier sees success; a wrapper for `Gym.around`.

    Every copy with the same settings has the same classifier, which is trained once in a process, from frames of the environment itself:
    its own `demonstrate()` with random moves in between, judged by its measure "success".

    Attributes:
      positives, negatives: frames to train on; about 200 and 1,000 in the paper. As many negatives are from shortly before success as not.
      threshold: probability above which it is success, 0.7 to 0.85 in the paper.
      steps, batch, learning_rate: of training; `batch` frames of either kind in each step, 150, 128 and 1e-4 in the paper.
      shift: pixels by which pictures are moved at most.
      seed: of frames and weights.
    """

    positives: int = 200
    negatives: int = 1000
    threshold: float = 0.85
    steps: int = 150
    batch: int = 32
    learning_rate: float = 1e-3
    shift: int = 2
    seed: int = 0

    def __call__(self, env: gym.Env) -> gym.Wrapper:
        key = (self, repr(env.spec) if env.spec else repr(type(env.unwrapped)))
        if key not in TRAINED:
            TRAINED[key] = train(self, env)
        return Judged(env, TRAINED[key][0], self.threshold)


TRAINED: dict[Any, tuple[Classifier, Verdicts]] = {}
"""The classifiers of this process, with how they did on frames of other episodes."""


class Judged(gym.Wrapper):
    """An environment that is paid by a classifier. Where the environment ends and the classifier sees no success, the episode is cut."""

    def __init__(self, env: gym.Env, classifier: Classifier, threshold: float):
        super().__init__(env)
        self.classifier, self.threshold = classifier.eval(), threshold

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        seen = self.sees_success(obs)
        measures = dict(info.get("measures", {}))
        if seen and "success" in measures:
            measures["precision"] = float(measures["success"] > 0)
        return obs, float(seen), seen, not seen and bool(terminated or truncated), {**info, "measures": measures}

    @torch.no_grad()
    def sees_success(self, obs: Any) -> bool:
        return bool(self.classifier(torch.from_numpy(np.array(obs))[None]).sigmoid() > self.threshold)


def train(settings: Learned, env: gym.Env) -> tuple[Classifier, Verdicts]:
    """A classifier, and how it does on frames of other episodes.

    Raises:
      ValueError: the environment cannot demonstrate, or success is not among its measures.
    """
    good, bad = frames(settings, env, settings.seed)
    obs_shape, parts = env.observation_space.shape or (), tuple(getattr(env.unwrapped, "parts", ()))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(settings.seed)
        classifier = Classifier(obs_shape, parts=parts).train()
        adam = torch.optim.Adam(classifier.parameters(), settings.learning_rate)
        for _ in range(settings.steps):
            batch = torch.cat([x[torch.randint(len(x), (settings.batch,))] for x in (good, bad)])
            if batch.ndim == 4 or parts:
                batch = moved(batch, settings.shift, parts)
            loss = binary_cross_entropy_with_logits(classifier(batch), torch.arange(2).flip(0).repeat_interleave(settings.batch).float())
            adam.zero_grad()
            loss.backward()
            adam.step()
    return classifier.eval(), judge(settings, classifier, *frames(settings, env, settings.seed + 1))


@torch.no_grad()
def judge(settings: Learned, classifier: Classifier, good: Tensor, bad: Tensor) -> Verdicts:
    """Precision and recall at the threshold; the share of both kinds is that of the frames."""
    hits, alarms = (float((classifier(x).sigmoid() > settings.threshold).sum()) for x in (good, bad))
    right = hits + len(bad) - alarms
    return Verdicts(right / (len(good) + len(bad)), hits / max(1.0, hits + alarms), hits / len(good))


def frames(settings: Learned, env: gym.Env, seed: int) -> tuple[Tensor, Tensor]:
    """(positives, ...) and (negatives, ...) observations of episodes that are demonstrated, with random moves in between."""
    scene: Any = env.unwrapped
    if not hasattr(scene, "demonstrate"):
        raise ValueError(f"{scene}: cannot demonstrate; expected an environment with demonstrate() to take frames of success from")
    rng = np.random.Generator(np.random.Philox(seed))
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    near: list[np.ndarray] = []
    episode = 0
    while len(found[True]) < settings.positives or len(found[False]) + len(near) < settings.negatives:
        obs, _ = scene.reset(seed=int(rng.integers(1 << 30)))
        trail, episode = [obs], episode + 1
        if episode > 20 * (settings.positives + settings.negatives):
            raise ValueError(f"{scene}: {len(found[True])} frames of success in {episode - 1} episodes, expected {settings.positives}")
        lost = rng.random() < 0.5  # half of the episodes wander, so that there is more to tell apart than the way itself
        for _ in range(200):
            wanders = rng.random() < (0.4 if lost else 0.0)
            obs, _, terminated, truncated, info = scene.step(_move(scene, rng, wanders))
            if "success" not in info.get("measures", {}):
                raise ValueError(f"{scene}: no measure 'success'; expected info['measures']['success'] after every step")
            if info["measures"]["success"] > 0:
                found[True].append(obs)
                break
            trail.append(obs)
            if terminated or truncated:
                break
        near += trail[-3:]
        found[False] += [trail[i] for i in rng.integers(len(trail), size=3)]
    half = settings.negatives // 2
    good, hard, easy = found[True][: settings.positives], near[:half], found[False][: settings.negatives - min(half, len(near))]
    return torch.from_numpy(np.stack(good)), torch.from_numpy(np.stack(hard + easy))


def _move(scene: Any, rng: np.random.Generator, wanders: bool) -> np.ndarray:
    space = scene.action_space
    return rng.uniform(space.low, space.high).astype(space.dtype) if wanders else scene.demonstrate()
