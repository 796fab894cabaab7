"""VLM-R1: box rewards for naming and listing, and a length-aware average precision that stops redundant boxes (arXiv 2504.07615).

GRPO on two sources at once, each judged by its own tasks' verifier, plus a reward of the format: one named shape earns the IoU of its box;
a list of shapes earns average precision, times #gold / #boxes where there are more boxes than gold (`detection`). Average precision alone
charges nothing for boxes behind the last hit, so a policy learns to spam. The released run's optional rewards are `cosine_length` and
`repetition`.

Departures: an answer counts from its last <answer> block and may be a plain list; where nothing is there, that must be said (in the
released code any text that cannot be read earns it); the label term of `weighted_sum`, which weighs 0, is left out; a missing label is
wrong. In `tiny` answers have no thinking block.
"""

from __future__ import annotations

from fovea.ledger import Claim, Part
from fovea.ledger.measures import Finished
from fovea.methods.grpo import GRPO
from fovea.methods.sft import SFT
from fovea.recipe import Recipe
from fovea.rollout.sampling import Sampling
from fovea.verifiers import Weighted, weighted

BOX = r"\{[^{}]{0,400}\[\s?\d{1,5}(?:,\s?\d{1,5}){3}\]"
"""An object in braces that holds a list of four whole numbers: what the answer to a naming task must have."""

warm = Recipe(
    name="vlm-r1-warm",
    data="detect:ovd_noisy,rec_noisy",
    method=SFT(),
    sampling=Sampling(max_new_tokens=88),
    tasks_per_step=32,
    group_size=1,
    steps=250,
    learning_rate=1.2e-3,
    schedule="cosine",
    warmup_steps=10,
    eval_tasks=0,
)

tiny = Recipe(
    name="vlm-r1",
    model="vlm-r1:warm",
    data="detect:ovd,rec",
    reward=weighted({"accuracy": (1.0, "task"), "format": (1.0, "format", {"tags": ("answer",)})}),
    method=GRPO(beta=0.0, std_eps=1e-4),
    sampling=Sampling(max_new_tokens=88),
    tasks_per_step=8,
    group_size=8,
    micro_batch=128,
    steps=50,
    learning_rate=2e-4,
)

real = Recipe(
    name="vlm-r1-real",
    model="Qwen2.5-VL-3B-Instruct",
    dtype="bfloat16",
    gradient_checkpointing=True,
    device="cuda",
    data="train.jsonl",
    reward={
        "rec": weighted({"accuracy": (1.0, "task"), "format": (1.0, "format", {"holds": BOX})}),
        "ovd": weighted({"accuracy": (1.0, "task"), "format": (1.0, "format", {"strict": True})}),
    },
    method=GRPO(beta=0.04, std_eps=1e-4),
    sampling=Sampling(max_new_tokens=2048, top_k=50),
    tasks_per_step=16,
    group_size=8,
    micro_batch=8,
    steps=500,
    learning_rate=1e-6,
    warmup_steps=0,
    eval_every=50,
)
"""Rows of source "rec": verifier "box_iou", params {"graded": true, "least": 1}; of source "ovd": "detection" with a gold list of boxes."""


def listing(reward: str) -> Weighted:
    """`tiny`'s reward with another detection reward."""
    return weighted({"accuracy": (1.0, "detection", {"reward": reward}), "format": (1.0, "format", {"tags": ("answer",)})})


def boxes_per_gold(run: Finished) -> dict[str, float]:
    """Boxes in an answer over gold boxes, of every held-out task where something is to be found."""
    parts = {a["task"]: a["parts"] for a in run.answers}
    return {t: p["accuracy/boxes"] / p["accuracy/gold"] for t, p in parts.items() if p["accuracy/gold"]}


LISTS = {"data": "detect:ovd"}

CLAIM = Claim(
    says="Rewarded with average precision a policy spams boxes; the length-aware form keeps its precision.",
    arms={
        "od_length": {**LISTS, "reward": listing("od_length")},
        "map": {**LISTS, "reward": listing("map")},
        "ap50": {**LISTS, "reward": listing("ap50")},
        "weighted_sum": {**LISTS, "reward": listing("weighted_sum")},
        "sft": {**LISTS, "method": SFT(), "group_size": 1, "tasks_per_step": 32, "steps": 100_000, "seconds_of": "od_length"},
        "random": {**LISTS, "reward": "random"},
        "start": {**LISTS, "steps": 0},
    },
    method="od_length",
    baseline="map",
    control="random",
    control_against="start",
    metric=Part("accuracy/precision"),
    margin=0.10,
    control_margin=0.05,
    condition=(boxes_per_gold, "map", 1.5),
    measured={"data": "detect:ovd", "heldout": "detect:ovd,ovd_new"},
    temperature=1.0,
    tasks=400,
    curve="reward/mean",
    tuning="two starts and two step sizes, seed 100, arms od_length and map, 30 steps: from a start that finds a quarter of the boxes "
    "both rewards lengthened lists; hence few places in a picture and a longer warm start. From it, both arms once, 50 steps: .40 and .24",
    notes=(
        "Where two boxes are right, the start gives 1.8, average precision 4.6 and the length-aware form 2.3; recall goes from .33 to "
        ".56 and to .49. Supervision for the same seconds reaches more precision (.46) and about as much recall (.48) here.",
    ),
)
