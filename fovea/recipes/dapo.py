"""DAPO: clip-higher, token-mean, dynamic sampling, soft punishment of overlong answers."""

from fovea.ledger import Area, Claim
from fovea.methods.dapo import DAPO
from fovea.methods.grpo import GRPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="dapo", method=DAPO(), dynamic_sampling=True, updates_per_rollout=2)
real = grpo.real.replace(name="dapo-real", method=DAPO(), dynamic_sampling=True, tasks_per_step=384, updates_per_rollout=3)

# two answers per task: most groups agree, all right or all wrong, and teach nothing
FEW = {"group_size": 2, "tasks_per_step": 24, "updates_per_rollout": 1, "steps": 16, "method": GRPO(beta=0.0)}

CLAIM = Claim(
    says="Where more than half of the groups teach nothing, drawing tasks until every group teaches gives higher held-out accuracy after "
    "the same number of updates.",
    arms={
        "dapo": {**FEW, "method": DAPO(), "dynamic_sampling": True},
        "dynamic": {**FEW, "dynamic_sampling": True},
        "grpo": {**FEW, "dynamic_sampling": False},
        "random": {**FEW, "dynamic_sampling": True, "reward": "random"},
        "start": {"steps": 0, "dynamic_sampling": False},
    },
    method="dynamic",
    baseline="grpo",
    control="random",
    control_against="start",
    margin=0.05,
    condition=(Area("group/degenerate_frac"), "grpo", 0.5),
    tuning="none",
    notes=(
        "Four fifths of GRPO's groups teach nothing, as the claim asks, and drawing until every group teaches is ahead with four seeds of "
        "five; but after 16 updates GRPO stands at .87 to .94 of a ceiling of .95, so there was no room for the margin. The rest of DAPO "
        "beside it adds .01. The control fails by its spread, as that of `grpo` does.",
    ),
)
