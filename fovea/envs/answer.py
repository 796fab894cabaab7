"""A question with one answer: the environment of one step."""

from __future__ import annotations

from typing import Any

from fovea.types import Action, Observation, Task


class Answer:
    """Shows the task's prompt and images; the first action ends the episode. Its reward is 0: the verifier judges the answer."""

    def reset(self, task: Task, seed: int) -> Observation:
        return Observation(messages=task.prompt, images=task.images)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return Observation(), 0.0, True, False, {}
