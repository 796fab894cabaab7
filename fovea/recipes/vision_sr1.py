"""Vision-SR1 — self-rewarding by decomposed reasoning: describe, answer, and answer once more from the description alone.

Bars with a hint in the question. The start describes the bars with every second height wrong, and need not describe them well to answer
well: it may look, or take the hint. An answer is a shortcut where it is right and its description does not say so.
"""

from fovea.ledger import Claim, Part
from fovea.methods.grpo import GRPO
from fovea.methods.sft import SFT
from fovea.methods.vision_sr1 import VisionSR1
from fovea.recipe import Recipe
from fovea.recipes import grpo
from fovea.rollout.programs import Described
from fovea.rollout.sampling import Sampling
from fovea.tasks.bars import as_practised, facts
from fovea.types import Context, Episode, Group, Task
from fovea.verifiers import resolve, weighted
from fovea.verifiers.parse import description

FORM = ("format", {"tags": ("think", "answer"), "strict": True})
REWARD = weighted({"answer": (0.9, "task"), "format": (0.1, *FORM), "visual": (1.0, "readers")}, correct_from="answer")
ANSWER_ONLY = weighted({"answer": (0.9, "task"), "format": (0.1, *FORM)}, correct_from="answer")
BLIND = weighted({"answer": (0.9, "task"), "format": (0.1, *FORM), "visual": (1.0, "random")}, correct_from="answer")


def as_published(description: str, question: str) -> str:
    """What the full-size reader is told."""
    return (
        f"Text description: {description}\nQuestion: {question}\nDetermine the answer from the description alone. Reason inside "
        "<think></think>, then give a single word or phrase in \\boxed{}."
    )


def described(answer: str, task: Task, episode: Episode) -> dict[str, float]:
    """The share of the heights that the description says rightly, and whether it says the one that is asked for."""
    said, true = facts(description(episode.text, "think")), facts(task.meta["caption"])
    return {
        "score": float(said.get(task.meta["asked"]) == task.answer),
        "facts": sum(said.get(c) == h for c, h in true.items()) / len(true),
    }


def shortcut(answer: str, task: Task, episode: Episode) -> float:
    """1 for a right answer that does not follow from the description."""
    (verdict,) = resolve(task).score(Group(task, [episode]), Context())
    return float(bool(verdict.correct) and not described(answer, task, episode)["score"])


MEASURED = weighted({"answer": (1.0, "task"), "shortcut": (0.0, shortcut), "described": (0.0, described)}, correct_from="answer")

warm = Recipe(
    name="vision-sr1-warm",
    freeze=("tower", "projector"),
    data="bars:warm",
    method=SFT(),
    tasks_per_step=36,
    group_size=1,
    steps=80,
    learning_rate=1.5e-4,
    warmup_steps=10,
    schedule="cosine",
    eval_tasks=0,
)

tiny = Recipe(
    name="vision-sr1",
    model="vision-sr1:warm",
    data="bars",
    reward=REWARD,
    program=Described(tag="think", ask=as_practised),
    method=VisionSR1(beta=0.0),
    sampling=Sampling(max_new_tokens=24),
    tasks_per_step=16,
    group_size=8,
    micro_batch=128,
    steps=40,
    learning_rate=1e-4,
)

real = grpo.real.replace(
    name="vision-sr1-real",
    model="Qwen2.5-VL-7B-Instruct",
    freeze=(),
    program=Described(ask=as_published),
    reward=weighted(
        {
            "answer": (0.9, "task"),
            "format": (0.1, "format", {"tags": ("description", "think"), "box": True}),
            "visual": (1.0, "readers"),
        },
        correct_from="answer",
    ),
    method=VisionSR1(),
    sampling=Sampling(max_new_tokens=2048, top_p=0.99),
    tasks_per_step=512,
    updates_per_rollout=4,
    steps=200,
)

CLAIM = Claim(
    says="A policy that is paid for descriptions from which it can answer itself takes fewer language shortcuts: fewer of its answers are "
    "right without following from what it described.",
    arms={
        "split": {},
        "additive": {"method__mode": "additive"},
        "multi": {"method__mode": "multi"},
        "two_questions": {"program": Described(tag="think", ask=as_practised, probes=True)},
        "answer_only": {"method": GRPO(beta=0.0), "reward": ANSWER_ONLY, "program": None},
        "random_reader": {"reward": BLIND},
        "start": {"steps": 0},
    },
    method="split",
    baseline="answer_only",
    control="random_reader",
    metric=Part("shortcut", sources=("hinted",)),  # held-out tasks whose hints are as good as in training
    direction="less",
    margin=0.15,
    temperature=1.0,
    measured={"reward": MEASURED},
    curve="reward/answer",
    minutes=4.0,
    tuning="the start: step size, share of wrong heights and the form of the reader's prompt, until its reader was right in nine of ten "
    "tasks; nine steps of `split` with seed 100 were watched",
    notes=(
        "The asked height is in .94 of the descriptions that are paid for and in .47 of GRPO's, whose answers are right where the hint is. "
        "Where every hint is wrong, the additive form answers .70 right, `multi` .68, the decoupled form .34, GRPO .01: descriptions and "
        "answers that share an advantage learn to go together.",
        "Two questions to the reader make the fullest descriptions (.95 of all heights), and answers that follow the hint nevertheless.",
    ),
)
