"""Clip-higher (from DAPO, arXiv 2503.14476): a higher upper clip bound keeps entropy up when a rollout is used for several updates."""

from fovea.ledger import Area, Claim, Last
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="clip_higher", method__eps_hi=0.28, updates_per_rollout=4)
real = grpo.real.replace(name="clip_higher-real", method__eps_hi=0.28, updates_per_rollout=4)

SHORT = {"steps": 24, "tasks_per_step": 16, "learning_rate": 2e-4}

CLAIM = Claim(
    says="With four updates on every rollout, clip-higher keeps the policy's entropy above that of the symmetric clip.",
    arms={
        "higher": {**SHORT},
        "symmetric": {**SHORT, "method__eps_hi": 0.2},
        "higher_once": {**SHORT, "updates_per_rollout": 1},
        "symmetric_once": {**SHORT, "updates_per_rollout": 1, "method__eps_hi": 0.2},
    },
    method="higher",
    baseline="symmetric",
    control="higher_once",  # with one update every ratio is 1 and no clip acts
    control_against="symmetric_once",
    metric=Last("policy/entropy", steps=5),
    margin=0.02,
    curve="policy/entropy",
    tasks=100,
    condition=(Area("policy/clip_high_frac"), "symmetric", 0.001),  # where the upper clip hardly acts there is nothing to compare
    tuning="none; the step size is twice the default, so that four updates reach the clip",
    notes=(
        "The upper clip acts on 2 units in 1,000, so it has little to hold: in both arms the entropy falls from .3 to .12 nats because "
        "the policy settles on looking first. Four updates keep it .02 above one update, whatever the clip.",
    ),
)
