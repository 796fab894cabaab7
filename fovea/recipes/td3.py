"""TD3 with twin critics and a delayed policy, on a simulator: Pendulum from its three numbers."""

from fovea.ledger import Claim
from fovea.ledger.measures import Return
from fovea.methods.td3 import TD3
from fovea.recipes import sac

tiny = sac.tiny.replace(name="td3", method=TD3())

CLAIM = Claim(
    says="TD3 swings Pendulum up: near the −150 that is published for it, from about −1,200; looking one step ahead does not.",
    arms={
        "td3": {},
        "myopic": {"method__gamma": 0.0},
        "start": {"steps": 0},
    },
    method="td3",
    baseline="start",
    control="myopic",
    margin=900.0,
    control_margin=450.0,
    metric=Return(),
    tasks=100,
    tuning="TD3T",
    curve="reward/mean",
)
