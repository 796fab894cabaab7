"""Alignment: RePo's point mass is suddenly shown in complementary colours, and the encoder alone is trained, without rewards.

The policy is that of `repo-mbrl`, trained first; `--model runs/repo-mbrl-0` takes a run of your own, with the pictures that it recorded. A
tenth of the target episodes has a twin in the old look, 400 pairs of pictures (tiny); `Gym(..., around=())` has none. What is asked is how
well frozen dynamics foresee rewards from what the encoder now sees. The return says less: in its few updates the source policy of `tiny`
settles on one move. Pairs weigh a hundred times more than at full size, where there are ten times as many updates.
"""

from fovea.envs.twin import Twin
from fovea.ledger import Claim
from fovea.ledger.measures import Found
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
    replay=Replay(size=4_000, start=1_200, batch=64),
    updates_per_rollout=60,
    steps=10,
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
    says="In a world whose colours are inverted frozen dynamics foresee rewards again once the encoder has been aligned without any; pairs "
    "that show two different states do not bring that.",
    arms={
        "support": {},
        "as_it_is": {"learning_rate": 0.0},
        "distribution": {"method__match": "distribution"},
        "pairs_alone": {"method__weight": 0.0},
        "unpaired": {"data": Gym(POINT_MASS, LOOK)},
        "strangers": {"data": Gym(POINT_MASS, LOOK, around=(Twin(BEFORE, apart=1),))},
    },
    method="support",
    baseline="as_it_is",
    control="strangers",
    metric=Found("reward_error"),
    direction="less",
    margin=0.5,
    examine=Memory(elsewhere={"before": BEFORE}),
    tasks=50,
    curve="loss/calibration",
    tuning="seed 100, on a source of 800 updates: 10 and 100 as the weight of pairs, the same for every arm; with 10 the judge led the "
    "encoder astray (1.05, as it is 1.20), with 100 it came to .02, with pairs alone too",
)
