"""A policy as the teacher of a tree search (`fovea.tasks.search`), on any tasks: the first data of grounded thoughts, of a user's own.

    policy = build_policy(recipe)                                 # fovea.api; the engine may also be a RemoteEngine
    for task in taught(Engine(policy), source, tool="search_coordinate"):
        task.meta["turns"], task.meta["response"]                 # one chain: in turns for a crop tool, and as one reply

Columns "turns" or "response" of a file are read back as they are, so a start is SFT on it, with the environment "look" where it has turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.tasks.search import Search, chains, in_turns, tree
from fovea.types import Context, Episode, Group, Task, Turn
from fovea.verifiers import resolve

HINT = (
    "Think inside <think></think>, one step per line, each about a place in the picture that it cites as (x, y) in pixels. Take at least "
    "{thoughts} steps, check them, and go back where one was wrong. Then give the answer inside <answer></answer>."
)
THOUGHTS = (3, 7)
"""Steps that are asked for at least: a random number of these, both included."""


@dataclass
class Teacher:
    """The next steps of a policy: each a line of its thought, or its answer.

    Attributes:
      engine: what draws them. task: what is asked; its prompt is told the form of the steps.
      sampling: temperature 1 and at most 512 tokens for each, as in the paper.
      thoughts: how many steps the prompt asks for at least.
      asked: calls so far, so that the same place is asked for other continuations.
    """

    engine: Engine
    task: Task
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=512))
    thoughts: int = THOUGHTS[0]
    asked: int = 0

    def __call__(self, steps: tuple[str, ...], n: int, final: bool) -> Sequence[str]:
        if final:
            return self._draw(steps, n, "</think><answer>", ("</answer>",))
        said = self._draw(steps, n, "", ("\n", "</think>", "</answer>"))
        return [self._answered(steps, s) if "</think>" in s and "<answer>" not in s else s for s in said]

    def _answered(self, steps: tuple[str, ...], said: str) -> str:
        """A last thought with the answer behind it."""
        thought = said[: said.find("</think>")]
        return thought + self._draw((*steps, thought), 1, "</think><answer>", ("</answer>",))[0]

    def _draw(self, steps: tuple[str, ...], n: int, closing: str, stop: tuple[str, ...]) -> list[str]:
        opened = "<think>" + "".join(f"{s.strip()}\n" for s in steps)
        told = {"role": "system", "content": [{"type": "text", "text": HINT.format(thoughts=self.thoughts)}]}
        begun = {"role": "assistant", "content": [{"type": "text", "text": opened + closing}]}
        asked = replace(self.task, prompt=(told, *self.task.prompt, begun))
        self.asked += 1
        (group,) = self.engine.rollout([asked], n, replace(self.sampling, stop=stop), attempt=self.asked)
        if failed := [e.error for e in group.episodes if e.error]:
            raise RuntimeError(f"task {self.task.id!r}: the teacher could not go on: {failed[0]}")
        return [e.text[len(opened) :].strip().removeprefix("</think>") for e in group.episodes]


def taught(
    engine: Engine,
    tasks: Iterable[Task],
    search: Search = Search(),  # noqa: B008 - frozen
    tool: str = "",
    looks: int = 4,
    moved: float = 0.5,
    seed: int = 0,
) -> Iterator[Task]:
    """One chain of every task in which the search finds any, every other one of them corrected where there are such.

    The task's own verifier says what is right. tool, looks, moved: of `fovea.tasks.search.in_turns`.
    """
    for i, task in enumerate(tasks):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, i])))

        def right(answer: str, task: Task = task) -> float:
            said = Episode(f"{task.id}/teacher", task, turns=[Turn(f"<answer>{answer}</answer>")])
            (score,) = resolve(task).score(Group(task, [said]), Context())
            if not score.ok:
                raise ValueError(f"task {task.id!r}: its verifier cannot judge an answer: {score.reason}")
            return float(score.value >= 1 if score.correct is None else score.correct)

        found = chains(tree(Teacher(engine, task, thoughts=int(rng.integers(THOUGHTS[0], THOUGHTS[1] + 1))), right, search))
        wanted = [c for c in found if c.corrected == bool(rng.random() < 0.5)] or found
        if wanted:
            chain = wanted[int(rng.integers(len(wanted)))]
            yield replace(task, meta={**task.meta, "response": chain.text, "turns": in_turns(chain, tool, looks, moved=moved, rng=rng)})
