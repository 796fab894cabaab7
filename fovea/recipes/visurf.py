"""ViSurf — Visual Supervised-and-Reinforcement Fine-tuning: the gold answer joins its group, and leaves it where the policy succeeds.

Shapes that may not be there. The base finds shapes more or less, thinks now and then, and never says "none", so no drawn answer about an
absent shape is ever right and reinforcement alone has nothing to go by. Counting is an old task that training does not touch: what is
forgotten shows there.
"""

from fovea.ledger import Claim, Lowest
from fovea.methods.grpo import GRPO
from fovea.methods.sft import SFT
from fovea.methods.visurf import ViSurf
from fovea.recipe import Recipe
from fovea.recipes import grpo
from fovea.rollout.sampling import Sampling
from fovea.verifiers import weighted

THINKING = 0.8  # less than the label earns, so that a thoughtful failure does not switch it off
REWARD = weighted(
    {"correct": (1.0, "task"), "thinking": (THINKING, "format", {"tags": ("think", "answer"), "strict": True})}, correct_from="correct"
)

tiny = Recipe(
    name="visurf",
    data="absent",
    reward=REWARD,
    method=ViSurf(thinking=("thinking", THINKING), beta=0.0),
    sampling=Sampling(max_new_tokens=56),
    tasks_per_step=16,
    group_size=7,
    micro_batch=128,
    steps=100,
    learning_rate=1e-4,
)

ALONE = {"method": GRPO(beta=0.0), "group_size": 8}
GIVEN = {"method": SFT(), "group_size": 1}

sft = tiny.replace(name="visurf-sft", steps=50, eval_tasks=0, **GIVEN)

real = grpo.real.replace(
    name="visurf-real",
    model="Qwen2.5-VL-7B-Instruct",
    reward=weighted(
        {"correct": (1.0, "task"), "thinking": (1.0, "format", {"tags": ("think", "answer"), "strict": True})}, correct_from="correct"
    ),
    method=ViSurf(),
    sampling=Sampling(max_new_tokens=1024),
    tasks_per_step=16,
    group_size=8,
)

CLAIM = Claim(
    says="Where no drawn answer is ever right, ViSurf learns what GRPO never starts to learn and keeps what GRPO keeps: the worst of its "
    "three kinds of tasks (shapes that are there, shapes that are not, counts that are not trained) is far above GRPO's.",
    arms={
        "visurf": {},
        "grpo": {**ALONE},
        "sft": {**GIVEN},
        "sft_grpo": {**ALONE, "model": "visurf:sft", "steps": 50},
        "unsmoothed": {"method__smoothing": False},
        "label_thinks": {"method__label_thinks": True},
        "mislabelled": {"data": "absent:mislabelled"},
        "start": {"steps": 0},
    },
    method="visurf",
    baseline="grpo",
    control="mislabelled",
    metric=Lowest(),
    margin=0.30,
    curve="reward/thinking",
    minutes=6.0,
    tuning="a thought was paid 0.2, 0.5 and 0.8 in 20, 21 and 40 steps of `visurf`, seeds 100 to 102, no other arm: the less it "
    "was paid, the sooner thoughts and boxes went while absence was learned; the step size is that of the default recipe",
)
