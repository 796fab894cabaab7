"""DART: an agent at a desktop whose environments, answers, data and training do not wait for each other.

FakeDesk has twelve kinds of jobs, from one click to two windows that are written in. The start has seen demonstrations of nine of them with
slips and has never met the other three. The policies that play hold their weights in eight bits and are a version or two behind.

Departures from the paper: Qwen2.5-VL for UI-TARS-1.5 (which is one), FakeDesk for OSWorld, one picture per step instead of five; successes
are counted by kind of job, because there are so few jobs of each; the length cap has a margin of a half, so that it cannot lock in too
short a limit; the pool holds the environment's demonstrations, as the paper does not say where its trajectories come from.
"""

from fovea.ledger import Accuracy, Claim
from fovea.methods.dart import DART, SCRIPT
from fovea.methods.sft import SFT
from fovea.recipe import Recipe
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Services
from fovea.tasks.curation import Curation

CURATION = Curation(rollouts=True, turns=True, margin=1.5, pool="demonstrations", mixed=True, by="source")
SEEN = "mark,close,open,bin,menu,write,row,copy,send"
"""The jobs that the start has seen; "set", "chain" and "both" it has not."""

tiny = Recipe(
    name="dart",
    model="dart:warm",
    data="desk",
    environment="desk",
    method=DART(),
    sampling=Sampling(max_new_tokens=24),
    tasks_per_step=4,
    group_size=8,
    micro_batch=128,
    max_rows=32,
    services=Services(workers=1, rounding="int8"),
    curation=CURATION,
    steps=24,
    learning_rate=1e-4,
)

warm = Recipe(
    name="dart-warm",
    data=f"desk:{SEEN}",
    environment="desk:slips=0.15",
    method=SFT(),
    sampling=Sampling(max_new_tokens=24),
    tasks_per_step=8,
    group_size=1,
    micro_batch=128,
    steps=160,
    learning_rate=5e-4,
    eval_tasks=0,
)

real = tiny.replace(
    name="dart-real",
    model="Qwen2.5-VL-7B-Instruct",
    dtype="bfloat16",
    gradient_checkpointing=True,
    device="cuda",
    sampling=Sampling(max_new_tokens=500),
    tasks_per_step=8,
    micro_batch=8,
    max_rows=180,
    services=Services(workers=4),
    steps=200,
    learning_rate=1e-6,
    max_grad_norm=2.0,
)

script = real.replace(
    name="dart-script", method=DART(**SCRIPT), sampling=Sampling(max_new_tokens=500, top_k=200), learning_rate=1e-7, weight_decay=0.1
)
"""What the released training script sets otherwise than the paper."""

PLAIN = {"method": DART(quantile=0.0, behaviour="none"), "services__correct": "none"}
"""Neither uncertain steps alone nor weights against the mismatch."""

CLAIM = Claim(
    says="With all curation an agent does more jobs than with uniform GRPO after as many updates, and some that it had never met.",
    arms={
        "dart": {},
        "uniform": {**PLAIN, "curation": Curation()},
        "rollouts": {**PLAIN, "curation": Curation(rollouts=True, mixed=True, by="source")},
        "turns": {**PLAIN, "curation": Curation(rollouts=True, turns=True, margin=1.5, mixed=True, by="source")},
        "steps": {
            "method": DART(behaviour="none"),
            "services__correct": "none",
            "curation": Curation(rollouts=True, turns=True, margin=1.5, mixed=True, by="source"),
        },
        "no_pool": {"curation": Curation(rollouts=True, turns=True, margin=1.5, mixed=True, by="source")},
        "no_weights": {"method__behaviour": "none", "services__correct": "none"},
        "random": {"reward": "random", "curation__pool": ""},
        "start": {"steps": 0},
    },
    method="dart",
    baseline="uniform",
    control="random",
    control_against="start",
    margin=0.05,
    control_margin=0.05,
    condition=(Accuracy(), "start", 0.1),
    tasks=192,
    temperature=1.0,
    curve="reward/success",
    minutes=5.0,
    tuning="none: no arm was run before; the method's numbers are the paper's, and the same for every arm",
)
