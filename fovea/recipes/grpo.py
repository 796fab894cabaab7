"""GRPO on six families of visual questions: the default run.

The base sees well and answers well after a look, but mostly blurts an answer. The reward is whether the answer is right; nothing says how.
"""

from fovea.ledger import Claim
from fovea.methods.grpo import GRPO
from fovea.recipe import Recipe
from fovea.rollout.sampling import Sampling

tiny = Recipe(
    name="grpo",
    data="worlds:count,colour,chart,find,point,two_step",
    method=GRPO(beta=0.0),
    sampling=Sampling(max_new_tokens=64),
    tasks_per_step=32,
    group_size=8,
    micro_batch=256,
    steps=30,
    learning_rate=1e-4,
)

real = Recipe(
    name="grpo-real",
    model="Qwen2.5-VL-3B-Instruct",
    freeze=("tower",),
    dtype="bfloat16",
    gradient_checkpointing=True,
    device="cuda",
    data="train.jsonl",
    method=GRPO(beta=0.01),
    sampling=Sampling(max_new_tokens=1024),
    tasks_per_step=128,
    group_size=8,
    micro_batch=8,
    steps=300,
    learning_rate=1e-6,
    weight_decay=1e-2,
    eval_every=20,
)

CLAIM = Claim(
    says="GRPO lifts held-out accuracy further than supervised finetuning of as many seconds on the gold answers.",
    arms={
        "grpo": {"steps": 30, "tasks_per_step": 16},
        "sft": {"recipe": "sft", "steps": 100_000, "seconds_of": "grpo"},
        "random": {"steps": 30, "tasks_per_step": 16, "reward": "random"},
        "start": {"steps": 0},
    },
    method="grpo",
    baseline="sft",
    control="random",
    control_against="start",
    margin=0.10,
    control_margin=0.05,
    tuning="none: the step size is that of the default recipe, chosen with seed 100",
    notes=(
        "GRPO ends at .93 to .95 with every seed. The control fails by its spread, not by its mean: thirty steps on a reward drawn by lot "
        "move single runs from .51 to anywhere between .07 and .88 (mean .51), so its interval reaches far above the margin.",
    ),
)
