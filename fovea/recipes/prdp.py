"""PRDP — Proximal Reward Difference Prediction: a denoiser is finetuned by a black-box reward, as a regression of pairs.

Points under 400 numbered prompts. A prompt is seen about four times in a run, and the rewards of different prompts differ far more in level
than within a prompt: nothing that the regression sees, and what upsets a policy gradient that has to do without statistics of the prompt.
"""

from fovea.ledger import Claim, Part
from fovea.methods.ddpo import DDPO
from fovea.methods.prdp import PRDP
from fovea.methods.sft import SFT
from fovea.recipe import Recipe

warm = Recipe(
    name="prdp-warm",
    model="denoiser",
    data="spots:400",
    method=SFT(),
    tasks_per_step=64,
    group_size=1,
    steps=1200,
    learning_rate=3e-3,
    schedule="linear",
    eval_tasks=0,
    checkpoint_every=200,
)

tiny = Recipe(
    name="prdp",
    model="prdp:warm",
    data="spots:400",
    method=PRDP(beta=0.05, eps=1e-2),
    tasks_per_step=16,
    group_size=8,
    epochs_per_rollout=10,
    micro_batch=128,
    steps=100,
    learning_rate=1e-3,
    weight_decay=1e-4,
    betas=(0.9, 0.999),
    eval_temperature=1.0,
)

real = Recipe(
    name="prdp-real",
    model="diffusers:CompVis/stable-diffusion-v1-4",
    device="cuda",
    gradient_checkpointing=True,
    data="prompts.jsonl",
    reward="compressibility",
    method=PRDP(beta=3e-6, eps=1e-4),
    tasks_per_step=64,
    group_size=8,
    micro_batch=8,
    max_rows=16,
    steps=1000,
    learning_rate=7e-6,
    weight_decay=1e-4,
    betas=(0.9, 0.999),
    eval_tasks=64,
    eval_temperature=1.0,
    checkpoint_every=50,
)

POLICY_GRADIENT = {"method": DDPO()}
CLAIM = Claim(
    says="With 400 prompts and the same samples and updates, PRDP ends nearer to what is rewarded than DDPO, which has too few samples of "
    "a prompt for its statistics.",
    arms={
        "prdp": {},
        "ddpo": {**POLICY_GRADIENT},
        "ddpo_own": {**POLICY_GRADIENT, "method__min_count": 2},
        "unclipped": {"method__eps": 0.0},
        "tied": {"method__beta": 1.0},
        "offline": {"steps": 1, "tasks_per_step": 1600, "updates_per_rollout": 100, "method__eps": 0.0},
        "random": {"reward": "random"},
        "start": {"steps": 0},
    },
    method="prdp",
    baseline="ddpo",
    control="random",
    control_against="start",
    metric=Part("nearness"),
    margin=0.1,
    temperature=1.0,
    tasks=800,
    curve="reward/nearness",
    tuning="none here: step size, β, ε and the ten updates on a rollout are those of a sketch outside this library, the same for every arm",
)
