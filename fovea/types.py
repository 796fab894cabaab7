"""The nouns of Fovea: what is asked, what was done, how good it was, and the batch a method learns from.

Axes in names: ``B`` rows (segments), ``E`` episodes, ``T`` action units (a token, an action chunk, an environment step, a denoising
step), ``K`` turns, ``V`` vocabulary, ``A`` action dimension. This file imports neither torch nor transformers at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from fovea.video import Video

Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant", "content": [{"type": "image" | "video"} | {"type": "text", "text": str}, ...]}``."""


# -- what is asked ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One row of work. It carries its own verifier, so one batch can mix mathematics, boxes, counting and reading.

    Attributes:
      id: unique within its source and stable across runs.
      source: name of the data source; metrics are kept per source.
      prompt: chat messages; the n-th ``{"type": "image"}`` or ``{"type": "video"}`` part stands for ``images[n]``.
      images: decoded RGB pictures and clips, in the order of their placeholders.
      answer: the gold answer in whatever form the verifier reads.
      verifier: name in ``fovea.verifiers.VERIFIERS``, or any object with the ``Verifier`` contract.
      params: keyword parameters of the verifier for this row (tolerance, IoU threshold, weights, ...).
      meta: anything else; never read by the trainer.
    """

    id: str
    source: str
    prompt: tuple[Message, ...]
    images: tuple[Image | Video, ...] = ()
    answer: Any = None
    verifier: str | Verifier = "exact"
    params: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


def user(text: str, images: int = 1, videos: int = 0) -> tuple[Message, ...]:
    """One user message: `images` image placeholders and `videos` of clips, followed by `text`."""
    shown = [{"type": kind} for kind in ["image"] * images + ["video"] * videos]
    return ({"role": "user", "content": [*shown, {"type": "text", "text": text}]},)


def begun(messages: Sequence[Message]) -> str:
    """The answer that the messages already begin: the text of the last one where it is the assistant's, else ""."""
    if not messages or messages[-1]["role"] != "assistant":
        return ""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@dataclass(frozen=True)
class Context:
    """Where training stands; the only clock that verifiers, samplers and methods may read."""

    step: int = 0
    total_steps: int = 1
    policy_version: int = 0

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.total_steps))


# -- what was done ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observation:
    """What the policy is shown. Language policies read `messages` and `images`; others read `array`.

    `append` says that `messages` continue the conversation so far; otherwise they replace it (a trimmed history). Where the last message is
    the assistant's, the policy goes on with that answer: it is part of the turn's text, and was not chosen by the policy.
    """

    messages: tuple[Message, ...] = ()
    images: tuple[Image | Video, ...] = ()
    array: Any = None
    append: bool = False


@dataclass(frozen=True)
class Action:
    """What the policy did: `value` is text (language) or an array; `token_ids` and `logp` are per action unit (nats)."""

    value: Any
    token_ids: tuple[int, ...] = ()
    logp: tuple[float, ...] = ()
    stop: str = "eos"


@dataclass
class Prefix:
    """What a row's actions are conditioned on: prompt tokens with their images, encoded once and shared by every row that uses it.

    Attributes:
      key: content hash of tokens and pixels; equal keys are the same prefix.
      data: what the policy's encoder returned (token ids, pixel tensors, position ids); opaque to trainer and methods.
      length: action-independent context length in tokens (0 for policies that read observations per step).
    """

    key: str
    data: Any = None
    length: int = 0


@dataclass
class Segment:
    """One token or action sequence that the policy really saw: a batch row.

    A turn that appends to the history extends its segment; a trimmed history opens a new one, so an episode may own several.

    Attributes:
      prefix: shared context, or None where observations come per step in `extras["obs"]`.
      actions: (T,) integer ids or (T, A) floats: the policy's own units and, masked out, what the environment inserted between them.
      mask: (T,) bool, True where the policy chose the unit.
      logp_old: (T,) log-probability in nats as the trainer would compute it (temperature applied, banned ids removed, not truncated).
      logp_behaviour: (T,) after top-p/top-k; equal to `logp_old` when nothing was truncated.
      turn: (T,) index of the episode turn that each unit belongs to.
      version: (T,) policy version that produced each unit.
      reward: (K,) environment reward of each turn of this segment, on the step clock; empty for single-turn language episodes.
      bootstrap: True when the trajectory was cut (time limit, buffer end) rather than terminated: its tail needs a value estimate.
      remote: True when another engine sampled it: `logp_behaviour` is that engine's, and the trainer fills `logp_old` in before credit.
      extras: named tensors with leading (T,) that an action carries besides (observation, denoise chain, action chunk, SDE index);
        `extras["next_obs"]` (1, ...) is the observation after a cut.
    """

    prefix: Prefix | None
    actions: Tensor
    mask: Tensor
    logp_old: Tensor
    turn: Tensor
    version: Tensor
    logp_behaviour: Tensor | None = None
    reward: Sequence[float] = ()
    bootstrap: bool = False
    remote: bool = False
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.actions.shape[0])


@dataclass(frozen=True)
class Turn:
    """A human-readable record of one exchange, for verifiers, logs and the run page.

    `measures` are numbers that the environment took after this turn, by name (its ``info["measures"]``): success, length of the path, ...
    `drawn` is the picture that the policy made in this turn.
    """

    text: str
    observation: Observation = field(default_factory=Observation)
    reward: float = 0.0
    stop: str = "eos"
    measures: Mapping[str, float] = field(default_factory=dict)
    drawn: Image | None = None


@dataclass
class Episode:
    """One attempt at a task.

    Attributes:
      role: "sample" for ordinary members of a group; "greedy" for a baseline that is scored but never trained on; "gold" for a given
        answer that joins the group; "chosen" and "rejected" in preference pairs.
      stop: why it ended: eos, stop (a stop string), length, terminated, cut, error; paused where its next piece `follows` it.
      error: the reason when `stop` is "error".
      branches: conversations beside this one, by name, such as that of a reader who does not see the picture; not trained on.
      follows: id of the episode that this one goes on with, where a long one is cut into pieces.
      film: what it looked like (`fovea.envs.films.Film`), of the first held-out ones of a simulator.
      home: of several processes that train together, the one that rolled it out and computes its rows.
    """

    id: str
    task: Task
    role: str = "sample"
    segments: list[Segment] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop: str = "eos"
    error: str = ""
    score: Score | None = None
    home: int = 0
    branches: dict[str, list[Turn]] = field(default_factory=dict)
    follows: str = ""
    film: Any = None

    @property
    def text(self) -> str:
        """What the policy said in its last turn."""
        return self.turns[-1].text if self.turns else ""

    @property
    def drawn(self) -> Image | None:
        """The picture that the policy made in its last turn."""
        return self.turns[-1].drawn if self.turns else None

    @property
    def length(self) -> int:
        """Number of action units the policy chose."""
        return sum(int(s.mask.sum()) for s in self.segments)


@dataclass(frozen=True)
class Places:
    """Boxes [x1, y1, x2, y2) or points [x, y] in one picture, to be drawn on it.

    Attributes:
      at: numbers of each place in pixels of the picture.
      labels: what is said to be there, one for each place, or none.
      hits: whether the verifier counts each place as found, where it judges them one by one.
      image: index in `Task.images`.
    """

    at: Iterable[Iterable[float]]
    labels: Sequence[str] = ()
    hits: Sequence[bool] = ()
    image: int = 0


@dataclass(frozen=True)
class Score:
    """A verifier's verdict. ``ok=False`` means it could not be scored (`reason` says why): a failure, never a silent zero.

    Attributes:
      value: the scalar that is learned from, any scale.
      parts: named parts of the reward, each logged.
      correct: the binary outcome behind accuracy metrics and dynamic sampling; None where the task has no such notion.
      places, expected: where the answer points in a picture, and where it should, of a verifier that looks at places.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    ok: bool = True
    correct: bool | None = None
    reason: str = ""
    places: Places | None = field(default=None, compare=False)
    expected: Places | None = field(default=None, compare=False)

    @classmethod
    def failed(cls, reason: str) -> Score:
        return cls(value=float("nan"), ok=False, reason=reason)


@dataclass
class Group:
    """The G episodes of one task, baselines and given answers included."""

    task: Task
    episodes: list[Episode]

    @property
    def samples(self) -> list[Episode]:
        """The members drawn from the policy that have a valid score."""
        return [e for e in self.episodes if e.role == "sample" and e.score is not None and e.score.ok]


# -- contracts ----------------------------------------------------------------------------------------------------------------


@runtime_checkable
class Verifier(Protocol):
    """How good was it? Scores one group at a time; most verifiers look at each episode alone.

    `scope` is "episode" when episodes are judged independently (then scoring overlaps with generation) and "group" otherwise.
    """

    @property
    def scope(self) -> str: ...

    def score(self, group: Group, context: Context) -> list[Score]: ...


@runtime_checkable
class Environment(Protocol):
    """What happens next? Gymnasium's words; `reset` gets the task and an integer seed.

    ``info["measures"]`` may hold numbers by name, of which "success" (0 or 1) says whether the task is done. An environment that knows
    what a good player would say now has `demonstrate() -> str` besides: that is what the "gold" member of a group says, turn by turn.
    """

    def reset(self, task: Task, seed: int) -> Observation: ...

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]: ...


@runtime_checkable
class Sampler(Protocol):
    """Which task next? Deterministic given its state; `observe` feeds back the finished groups (curricula)."""

    def next(self, context: Context) -> Task: ...

    def observe(self, groups: Sequence[Group]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Gate(Protocol):
    """Which groups train?"""

    def admit(self, group: Group) -> bool: ...
