"""PAPO: keep the answer dependent on the picture where the text offers a shortcut.

Questions come with a hint that is right in 17 of 20 training tasks. The policy looks before it answers, but half of the time it begins by
imagining another picture for which the hint would be right. Held out, the hint is the answer of another picture.
"""

from fovea.ledger import Claim
from fovea.methods.papo import PAPO
from fovea.methods.sft import SFT
from fovea.recipes import grpo
from fovea.rollout.sampling import Sampling
from fovea.verifiers import weighted

FAMILIES = "count,colour,chart"

warm = grpo.tiny.replace(
    name="papo-warm",
    data=f"hints:noisy:{FAMILIES}",
    method=SFT(),
    tasks_per_step=32,
    group_size=1,
    steps=150,
    learning_rate=3e-4,
    eval_tasks=0,
)

tiny = grpo.tiny.replace(
    name="papo",
    model="papo:warm",
    data=f"hints:{FAMILIES}",
    method=PAPO(gamma=0.5, beta=0.0),
    tasks_per_step=16,
    group_size=5,
    steps=40,
    learning_rate=5e-5,
)

real = grpo.real.replace(
    name="papo-real",
    freeze=(),
    method=PAPO(gamma=0.02, beta=0.01),
    sampling=Sampling(max_new_tokens=2048, top_p=0.99),
    reward=weighted({"accuracy": (0.9, "math"), "format": (0.1, "format")}),
    tasks_per_step=384,
    updates_per_rollout=3,
    group_size=5,
)

SHORT = {"steps": 30}
DAPO_LIKE = {**SHORT, "method__eps_hi": 0.28, "dynamic_sampling": True}

CLAIM = Claim(
    says="Where a hint in the text holds in training and breaks when it counts, PAPO keeps looking where GRPO still trusts the hint.",
    arms={
        "papo": {**SHORT},
        "grpo": {**SHORT, "method__gamma": 0.0},
        "papo_low": {**SHORT, "method__gamma": 0.1},
        "papo_d": {**DAPO_LIKE, "method__gamma": 0.25, "method__eta": 0.03, "method__eta_masked": 0.03},
        "dapo": {**DAPO_LIKE, "method__gamma": 0.0},
        "overdriven": {**SHORT, "method__gamma": 5.0},
        "overdriven_held": {**SHORT, "method__gamma": 5.0, "method__eta": 0.5, "method__eta_masked": 0.5, "method__masked_gradient": True},
        "sees_all": {**SHORT, "method__mask_probability": 0.0},
        "start": {"steps": 0},
    },
    method="papo",
    baseline="grpo",
    control="sees_all",  # a mask that covers nothing: both readings are the same
    margin=0.03,
    curve="perception/kl",
    tasks=600,
    tuning="the task: where answers repeated the hint at once, neither method learned to look in 8 steps. Then, seed 100, 30 steps, one run"
    " each: GRPO right in .51 of the held-out tasks, gamma 0.1 in .51, gamma 0.5 in .68, the start in .62; the step size was not varied",
    notes=(
        "Both readings differ by .6 nats at the end of PAPO and by .3 at the end of GRPO, which falls below its start with every seed. A "
        "fifth of the weight, and the form with DAPO's sampling, keep less of it, too little to tell from GRPO.",
        "The collapse that the paper sees at a large weight does not come here in 30 steps: ten times the weight does best, with and "
        "without the entropy terms.",
    ),
)
