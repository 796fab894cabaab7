"""Small problems of three kinds, each learned with the trainer's own functions and the method files as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from fovea.envs.gym import vector
from fovea.envs.pixels import Reach
from fovea.policies.flow import FlowPolicy
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.pixel import PixelPolicy
from fovea.rollout.denoise import DenoiseEngine
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.rollout.vector import VectorEngine
from fovea.trainer.update import minibatches, optimizer_step, prepare
from fovea.types import Context, Group, Score, Task, user

Collect = Callable[[Context], list[Group]]


def shuffled(groups: list[Group], context: Context) -> list[Group]:
    """The control: every episode gets the verdict (and, step for step, the rewards) of some other episode."""
    episodes = [e for g in groups for e in g.episodes]
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(context.step)).tolist()
    scores, rewards = [e.score for e in episodes], [e.segments[-1].reward for e in episodes]
    for episode, other in zip(episodes, order, strict=True):
        episode.score = scores[other]
        (segment,) = episode.segments
        if segment.reward:
            segment.reward = (0.0,) * (len(segment) - 1) + (sum(rewards[other]),)
    return groups


def train(
    policy: Any, method: Any, collect: Collect, steps: int, lr: float, control: bool = False, parts: int = 1, epochs: int = 1
) -> None:
    """Collect, credit, update; `control` shuffles the rewards first."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    if getattr(method, "beta", 0.0):
        policy.set_reference()
    for step in range(steps):
        context = Context(step, steps, policy.version)
        groups = collect(context)
        batch = prepare(policy, method, shuffled(groups, context) if control else groups, context, micro_batch=64)
        for part in minibatches(batch, parts, epochs, seed=0, step=step):
            optimizer_step(policy, method, part, optimizer, lr=lr, micro_batch=64, max_grad_norm=1.0, max_tokens=16)
            policy.version += 1


# -- a vision-language model: two tokens whose ids are even for a dark picture and odd for a bright one ------------------------------


def parity_task(i: int) -> Task:
    bright = int.from_bytes(hashlib.blake2b(str(i).encode(), digest_size=1).digest(), "little") % 2
    level = 200 + i % 50 if bright else i % 50
    return Task(id=f"parity-{i}", source="parity", prompt=user("x"), images=(Image.new("RGB", (56, 56), (level,) * 3),), answer=bright)


def parity_score(groups: Sequence[Group]) -> list[Group]:
    """The share of tokens with the right parity."""
    for group in groups:
        for e in group.episodes:
            e.score = Score(float((e.segments[0].actions % 2 == group.task.answer).float().mean()))
    return list(groups)


TWO = Sampling(max_new_tokens=2, min_new_tokens=2)


def parity_collect(policy: HFVLM, members: tuple[str, ...] = ()) -> Collect:
    engine = Engine(policy)
    return lambda context: parity_score(
        engine.rollout([parity_task(8 * context.step + i) for i in range(8)], 8, TWO, context, members=members)
    )


def parity_level(policy: HFVLM) -> float:
    """Mean score of sampled answers to new pictures; 0.5 by chance."""
    groups = parity_score(Engine(policy, seed=99).rollout([parity_task(10_000 + i) for i in range(64)], 2, TWO))
    return sum(e.score.value for g in groups for e in g.episodes if e.score) / 128


# -- pixels: reach the green square --------------------------------------------------------------------------------------------------

WORLD: dict[str, Any] = {"size": 12, "square": 4, "limit": 8}
SMALL_WORLD: dict[str, Any] = {"size": 8, "square": 4, "limit": 4}


def reach_policy(kind: str, world: dict[str, Any]) -> PixelPolicy:
    torch.manual_seed(0)
    return PixelPolicy((world["size"], world["size"], 3), 4 if kind == "categorical" else 2, kind, width=4 * world["size"])


def reach_tasks(first: int, count: int) -> list[Task]:
    return [Task(id=f"reach-{i}", source="reach", prompt=(), meta={"seed": i}) for i in range(first, first + count)]


def reach_collect(policy: Any, world: dict[str, Any], tasks: int, group_size: int, members: tuple[str, ...] = ()) -> Collect:
    engine = VectorEngine(policy, vector(Reach, 32, continuous=policy.kind == "gaussian", **world))
    return lambda context: engine.rollout(reach_tasks(tasks * context.step, tasks), group_size, context=context, members=members)


def reach_level(policy: Any, world: dict[str, Any]) -> float:
    """How often the square is reached from new starts, sampling."""
    engine = VectorEngine(policy, vector(Reach, 32, continuous=policy.kind == "gaussian", **world), seed=99)
    groups = engine.rollout(reach_tasks(100_000, 128), 1)
    return sum(e.stop == "terminated" for g in groups for e in g.episodes) / 128


# -- a denoiser: samples are drawn to a target that depends on the condition -----------------------------------------------------------


def point_task(i: int) -> Task:
    generator = torch.Generator().manual_seed(i)
    return Task(id=f"point-{i}", source="points", prompt=(), answer=(torch.rand(2, generator=generator) * 4 - 2).tolist())


def point_score(groups: Sequence[Group]) -> list[Group]:
    """Minus the distance of the sample from the target."""
    for group in groups:
        for e in group.episodes:
            e.score = Score(-float((e.segments[-1].actions[-1] - torch.tensor(group.task.answer)).norm()))
    return list(groups)


def point_collect(policy: FlowPolicy, members: tuple[str, ...] = ()) -> Collect:
    engine = DenoiseEngine(policy, lambda task: torch.tensor(task.answer))
    return lambda context: point_score(
        engine.rollout([point_task(16 * context.step + i) for i in range(16)], 8, context=context, members=members)
    )


def point_level(policy: FlowPolicy) -> float:
    """Mean distance of samples for new conditions."""
    engine = DenoiseEngine(policy, lambda task: torch.tensor(task.answer), seed=99)
    groups = point_score(engine.rollout([point_task(100_000 + i) for i in range(128)], 1))
    return -sum(e.score.value for g in groups for e in g.episodes if e.score) / 128
