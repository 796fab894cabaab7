"""First data of grounded thoughts: a tree search over a teacher's steps, its chains in one turn or in several (ViGoRL, arXiv 2505.23678).

    root = tree(continue_, judge)            8 simulations of select, expand, roll out, back up
    for chain in chains(root):               right ones, and wrong ones that go on to a right one
        chain.text                           "<think>…</think><answer>…</answer>"
        in_turns(chain, tool="crop")         a reply for every look, each with a call of the crop tool, and the answer

The teacher is any function `continue_(steps, n, final)`: `n` next steps after `steps`, each a thought that cites a place as "(x, y)", or an
answer in ``<answer>`` tags; where `final`, nothing but answers. The judge says from 0 to 1 how right an answer is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fovea.envs.zoom import LAST, point_call
from fovea.verifiers.grounded import CALLED, unlabelled
from fovea.verifiers.parse import cited_points, tagged

AGAIN = "Something does not fit here, so I look at another place."
"""Said between a chain that went wrong and the one that is right."""
MOST = 10_000
"""Chains of one question."""
_INNER = re.compile(r"</?(?:think|answer|tool_call|observation)>")
_END = re.compile(r"[.!?](?=\s|$)|\n|$")


class Continue(Protocol):
    """A teacher; see the file's head."""

    def __call__(self, steps: tuple[str, ...], n: int, final: bool) -> Sequence[str]: ...


Judge = Callable[[str], float]


@dataclass(frozen=True)
class Search:
    """Size of a search; the numbers of the paper, and of its code where the paper has none.

    Attributes:
      simulations: of one question.
      children: continuations drawn for a node. rollouts: finished from each of them.
      c_puct: weight of what has been visited little.
      max_depth: steps of a path, the answer included. rollout_steps: of a rollout beyond its node.
    """

    simulations: int = 8
    children: int = 3
    rollouts: int = 2
    c_puct: float = 2.0
    max_depth: int = 10
    rollout_steps: int = 5

    def __post_init__(self) -> None:
        counts = {n: v for n, v in vars(self).items() if n != "c_puct"}
        if low := [f"{n} = {v}" for n, v in counts.items() if v < 1]:
            raise ValueError(f"search: {', '.join(low)}; expected at least 1")


@dataclass(frozen=True)
class Rollout:
    """All steps from the root on, the answer, and how right that was. `answer` is "" where none was given."""

    steps: tuple[str, ...]
    answer: str
    reward: float


@dataclass
class Node:
    """One step, or an answer, behind all steps before it.

    Attributes:
      steps: from the root. terminal: an answer.
      visits, value: how often, and the mean reward, of what was backed up here.
      rollouts: those that were finished from here.
    """

    steps: tuple[str, ...] = ()
    terminal: bool = False
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0
    rollouts: list[Rollout] = field(default_factory=list)

    def back_up(self, reward: float) -> None:
        """N ← N + 1, Q ← Q + (r − Q) / N."""
        self.visits += 1
        self.value += (reward - self.value) / self.visits

    def all(self) -> Iterator[Node]:
        """This node and all below it, a parent before its children."""
        yield self
        for child in self.children:
            yield from child.all()


def ucb(value: float, parent_visits: int, visits: int, c: float) -> float:
    """Q + c √(ln(N_parent + 1) / (N + 1)): as in the released code; the textbook's has no + 1."""
    return value + c * math.sqrt(math.log(parent_visits + 1) / (visits + 1))


def tree(continue_: Continue, judge: Judge, search: Search = Search()) -> Node:
    """The root of a searched tree. All children of a node are rolled out as soon as they are drawn."""
    root = Node()
    for _ in range(search.simulations):
        path = [root]
        while path[-1].children:
            above = path[-1]
            path.append(max(above.children, key=lambda c: ucb(c.value, above.visits, c.visits, search.c_puct)))
        if path[-1].terminal:
            _back_up(path, [path[-1].value])
            continue
        for child in _expand(path[-1], continue_, search):
            path[-1].children.append(child)
            done = [_finish(child, continue_, judge, search) for _ in range(1 if child.terminal else search.rollouts)]
            child.rollouts += done
            _back_up([*path, child], [r.reward for r in done])
    return root


def _back_up(path: Sequence[Node], rewards: Sequence[float]) -> None:
    for reward in rewards:
        for node in path:
            node.back_up(reward)


def _expand(node: Node, continue_: Continue, search: Search) -> list[Node]:
    """Its children; those that cite a place of their path again are left out."""
    final = len(node.steps) + 1 >= search.max_depth
    before = {point for _, point in cited_points("\n".join(node.steps))}
    drawn = [Node((*node.steps, said), "<answer>" in said) for said in continue_(node.steps, search.children, final)]
    return [n for n in drawn if n.terminal or not before & {point for _, point in cited_points(n.steps[-1])}]


def _finish(node: Node, continue_: Continue, judge: Judge, search: Search) -> Rollout:
    """Steps from the node on, until an answer; the last that is allowed must be one."""
    steps, final = node.steps, len(node.steps) >= search.max_depth
    for k in range(search.rollout_steps):
        if final or "<answer>" in steps[-1]:
            break
        final = k + 1 == search.rollout_steps or len(steps) + 1 >= search.max_depth
        steps = (*steps, *continue_(steps, 1, final))
    said = steps[-1]
    if "<answer>" not in said:
        return Rollout(steps, "", 0.0)
    answer, thought = unlabelled(tagged(said, "answer") or ""), said[: said.rfind("<answer>")]
    return Rollout((*steps[:-1], *([thought] if thought.strip() else [])), answer, float(judge(answer)))


# -- chains ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """Thoughts in a line, with the right answer behind them. `corrected`: they go wrong first."""

    thought: str
    answer: str
    corrected: bool = False

    @property
    def text(self) -> str:
        """As one reply."""
        return f"<think>{self.thought}</think><answer>{self.answer}</answer>"


def chains(root: Node, again: str = AGAIN, most: int = MOST) -> list[Chain]:
    """The right rollouts of every node, and its wrong ones, each followed by `again` and a right one of the same node; each chain once."""
    found: dict[Chain, None] = {}
    for node in root.all():
        right = [r for r in node.rollouts if r.reward == 1]
        wrong = [r for r in node.rollouts if r.reward < 1 and r.answer]
        for r in right:
            found[Chain(_line(r.steps), r.answer)] = None
        for w in wrong:
            for r in right:
                found[Chain(f"{_line(w.steps)}\n{again} {_line(r.steps)}", r.answer, corrected=True)] = None
        if len(found) >= most:
            break
    return list(found)[:most]


def _line(steps: Sequence[str]) -> str:
    return "\n".join(_INNER.sub("", s).strip() for s in steps)


def in_turns(
    chain: Chain,
    tool: str = "",
    limit: int = 5,
    last: str = LAST,
    moved: float = 0.0,
    rng: np.random.Generator | None = None,
    call: str = CALLED,
) -> tuple[str, ...]:
    """The replies of an episode with a crop tool (`fovea.envs.zoom.Look`), as `meta["turns"]`.

    The text up to the end of the sentence that cites a place is a thought, followed by a look at that place; a place that was looked at is
    no look again, and its sentence belongs to the next thought. At most `limit` looks, then `last` and the answer.

    Args:
      tool: name in the calls; "" calls by the point alone. call: the tag around them.
      moved: probability, drawn from `rng`, that the first of several looks comes later; the paper has one half.
    """
    looks, seen, start = [], set(), 0
    for at, point in cited_points(chain.thought):
        if point in seen or at.start() < start or len(looks) == limit:
            continue
        ended = _END.search(chain.thought, at.end())
        end = ended.end() if ended else len(chain.thought)
        looks.append(f"<think>{chain.thought[start:end].strip()}</think>{point_call(point, tool, call)}")
        seen.add(point)
        start = end
    if rng is not None and len(looks) > 1 and rng.random() < moved:
        looks.insert(int(rng.integers(1, len(looks))), looks.pop(0))
    return (*looks, f"<think>{last}</think><answer>{chain.answer}</answer>")
