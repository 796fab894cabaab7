"""Alignment: the world of RePo's point mass is suddenly shown in complementary colours; its encoder alone is trained, without rewards.

The policy is that of `repo-mbrl`, trained first; `--model runs/repo-mbrl-0` takes a run of your own, with the pictures that it recorded. A
tenth of the target episodes has a twin in the old look, 600 pairs of pictures (tiny); `Gym(..., around=())` has none.
"""

from fovea.envs.twin import Twin
from fovea.ledger import Claim
from fovea.ledger.measures import Return
from fovea.ledger.probes import Memory
from fovea.methods.repo_align import Align
from fovea.recipes import repo_mbrl
from fovea.recipes.repo_mbrl import POINT_MASS
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay

LOOK, BEFORE = {"inverted": True}, {"inverted": False}
tiny = repo_mbrl.tiny.replace(
    name="repo-align",
    model="repo-mbrl:tiny",
    data=Gym(POINT_MASS, LOOK, around=(Twin(BEFORE),)),
    method=Align(width=64, code=16, calibration=100.0),
    replay=Replay(size=6_000, start=1_200, batch=64),
    updates_per_rollout=60,
    steps=15,
    max_grad_norm=0.0,
)

OTHER_SKY = {"textures": 1, "loud": 0.6}
real = repo_mbrl.real.replace(
    name="repo-align-real",
    model="repo-mbrl:real",
    data=Gym("dmc/walker-walk-v0", OTHER_SKY, around=(Twin({"textures": 0, "loud": 0.3}),)),
    method=Align(),
    replay=Replay(size=50_000, start=5_000, batch=50, length=49),
    steps=100,
    max_grad_norm=0.0,
)

CLAIM = Claim(
    says="In a world whose colours are inverted an encoder that is aligned without rewards gives a frozen policy most of its return back; "
    "pairs that show two different states do not.",
    arms={
        "support": {},
        "as_it_is": {"learning_rate": 0.0},
        "distribution": {"method__match": "distribution"},
        "unpaired": {"data": Gym(POINT_MASS, LOOK)},
        "pairs_alone": {"method__weight": 0.0},
        "strangers": {"data": Gym(POINT_MASS, LOOK, around=(Twin(BEFORE, apart=1),))},
    },
    method="support",
    baseline="as_it_is",
    control="strangers",
    metric=Return(),
    margin=20.0,
    examine=Memory(elsewhere={"before": BEFORE}),
    tasks=50,
    curve="reward/mean",
    tuning="none yet",
)
