"""RePo: a world model without pictures, whose latents must be predictable, against one that draws what it sees.

A point mass before a background that drifts as it likes (tiny), walker-walk of dm_control with its sky replaced by one (real).
"""

from fovea.ledger import Claim
from fovea.ledger.measures import Found
from fovea.ledger.probes import Memory
from fovea.methods.dreamer import Dreamer
from fovea.methods.repo_mbrl import RePo
from fovea.policies.control import Latents
from fovea.recipe import Recipe
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay

POINT_MASS = "fovea/PointMass-v0"
tiny = Recipe(
    name="repo-mbrl",
    model="network",
    network=Latents(width=64, stochastic=8, channels=16),
    data=f"gym:{POINT_MASS}",
    method=RePo(bound=1.0, beta=1e-2, dual_rate=10.0, draw=False),
    max_rows=10,
    horizon=40,
    replay=Replay(size=24_000, start=8_000, batch=16, length=16),
    updates_per_rollout=40,
    steps=60,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    max_grad_norm=100.0,
    eval_tasks=50,
)

real = tiny.replace(
    name="repo-mbrl-real",
    network=Latents(width=200, stochastic=30, channels=32),
    data="gym:dmc/walker-walk-v0",
    method=RePo(),
    max_rows=1,
    horizon=500,
    replay=Replay(size=500_000, start=5_000, batch=50, length=49),
    updates_per_rollout=100,
    steps=1000,
    learning_rate=3e-4,
    eval_tasks=10,
    eval_every=20,
    checkpoint_every=20,
)

CLAIM = Claim(
    says="Before a background that moves unpredictably, the latents of RePo tell where the agent is and nothing of the background; "
    "those of a world model that draws what it sees tell both.",
    arms={
        "repo": {},
        "dreamer": {"method": Dreamer()},
        "unbounded": {"method__beta": 0.0},
        "narrow": {"method__bound": 0.1},
        "unpaid": {"data": Gym(POINT_MASS, {"paid": 0.0})},
    },
    method="repo",
    baseline="dreamer",
    control="unpaid",
    metric=Found("agent", less="background"),
    condition=(Found("agent"), "repo", 0.8),
    margin=0.3,
    examine=Memory(elsewhere={"elsewhere": {"textures": 1}}),
    tasks=50,
    minutes=10.0,
    curve="reward/mean",
    tuning="none here: bound, multiplier, rate and number of updates are those of a sketch outside this library, the same for every arm",
)
