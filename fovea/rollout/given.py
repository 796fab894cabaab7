"""Answers that are given instead of drawn: a task's gold answer as text, as tokens, as an episode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fovea.rollout.sampling import address
from fovea.types import Context, Episode, Prefix, Segment, Task, Turn


def gold_text(task: Task) -> str:
    """The gold response: `meta["response"]`, else the answer inside answer tags, in the style of `answer_text`.

    Raises:
      ValueError: the task has neither.
    """
    if "response" in task.meta:
        return str(task.meta["response"])
    if task.answer is None:
        raise ValueError(f"task {task.id}: no answer and no meta['response']; training on given answers needs one of them")
    return f"<answer>{answer_text(task.answer)}</answer>"


def answer_text(answer: Any) -> str:
    """An answer as policies write it: JSON (also where it comes as text) with a space after commas and colons, a flat list as words.

    A label in another style than the policy's own is less likely than its content deserves (ViSurf calls this aligning).
    """
    if isinstance(answer, str) and answer.lstrip()[:1] in ("[", "{"):
        try:
            return json.dumps(json.loads(answer), ensure_ascii=False)
        except (ValueError, RecursionError):
            return answer
    nested = isinstance(answer, list | tuple) and (not answer or any(isinstance(x, list | tuple | dict) for x in answer))
    if nested or isinstance(answer, dict):
        return json.dumps(answer, ensure_ascii=False)
    return " ".join(map(str, answer)) if isinstance(answer, list | tuple) else str(answer)


def check_members(members: Sequence[str], makes: tuple[str, ...]) -> None:
    """
    Raises:
      ValueError: members of a group that an engine does not make.
    """
    if unknown := sorted(set(members) - set(makes)):
        raise ValueError(f"members = {tuple(members)!r}; this engine makes {', '.join(map(repr, makes))}, not {unknown}")


def given_ids(policy: Any, text: str) -> list[int]:
    """`text` as tokens, ended as the chat template ends an answer."""
    closing = next((i for i in policy.encode_append(())[:1] if i in policy.eos_ids), policy.eos_ids[0])
    return [*policy.encode_text(text), closing]


def chain_segment(prefix: Prefix, units: Mapping[str, Any], version: int) -> Segment:
    """The row of a denoising chain, from what a denoiser says of it: "actions", "logp", "mask", and what each step saw."""
    rest = dict(units)
    actions, logp, mask = rest.pop("actions"), rest.pop("logp").float(), rest.pop("mask")
    turn = torch.zeros(len(actions), dtype=torch.long)
    return Segment(prefix, actions, mask, logp, turn, version=torch.full_like(turn, version), extras=rest)


def given_episode(policy: Any, task: Task, prefix: Any, text: str, role: str, context: Context) -> Episode:
    """An episode whose answer was not sampled, with log-probabilities left at zero: `text` and the end-of-sequence token.

    To a denoiser `text` says the numbers of a sample, and the episode is a chain that ends there.
    """
    if hasattr(policy, "noised"):
        chain = policy.noised(text, address(context.step, task.id, role))
        return Episode(f"{task.id}/{role}", task, role, [chain_segment(prefix, chain, context.policy_version)], [Turn(text)])
    ids = torch.tensor(given_ids(policy, text))
    n = len(ids)
    segment = Segment(
        prefix=prefix,
        actions=ids,
        mask=torch.ones(n, dtype=torch.bool),
        logp_old=torch.zeros(n),
        turn=torch.zeros(n, dtype=torch.long),
        version=torch.full((n,), context.policy_version),
    )
    return Episode(id=f"{task.id}/{role}", task=task, role=role, segments=[segment], turns=[Turn(text)])
