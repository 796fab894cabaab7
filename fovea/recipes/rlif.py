"""RLIF: that somebody takes over is the only reward, so a person who plays badly but knows when it goes wrong is enough.

The person makes the same wrong move in a tenth of all places, and slips now and then; when to take over they judge well, by what the
policy's last action has led to. The peg's place is given in numbers.
"""

from fovea.envs.watched import ByTurns, ByValue, by_chance
from fovea.ledger import Claim
from fovea.ledger.measures import Part
from fovea.methods.rlif import RLIF
from fovea.policies.control import Network
from fovea.recipes import hil_serl
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay

PERSON = {"see": "numbers", "wrong": 0.1, "slips": 0.1}


def watched_by(*who) -> Gym:
    """The scene with this person, who takes over by a rule."""
    return Gym("fovea/Insertion-v0", PERSON, around=who)


tiny = hil_serl.tiny.replace(
    name="rlif",
    network=Network(width=128),
    data=watched_by(ByValue()),
    method=RLIF(gamma=0.97, temperature=0.1, critics=5, actor_every=2),
    horizon=32,
    replay=Replay(size=40_000, start=256, batch=128, length=2, demonstrations=10),
    updates_per_rollout=96,
    steps=80,
    checkpoint_every=40,
)

real = tiny.replace(
    data=Gym("fovea/Insertion-v0", {**PERSON, "see": "picture", "side": 128, "limit": 200}, around=(ByValue("proposal", 0.97),)),
    network=Network(width=256),
    method=RLIF(),
    max_rows=1,
    horizon=100,
    replay=Replay(size=1_000_000, start=1_000, batch=256, length=2, demonstrations=50),
    updates_per_rollout=500,
    steps=10_000,
    learning_rate=3e-4,
)

IMITATED = {"method": "hg-dagger", "replay__share": 1.0, "replay__length": 1}

CLAIM = Claim(
    says="Paid by the events of intervention alone, a policy outdoes the imitation of the same weak person's corrections; where that "
    "person takes over at random, the events say nothing.",
    arms={
        "rlif": {},
        "hg_dagger": IMITATED,
        "dagger": {**IMITATED, "data": watched_by(ByTurns())},
        "random": {"data": watched_by(by_chance(0.3))},
        "literal": {"data": watched_by(ByValue("proposal"))},
    },
    method="rlif",
    baseline="hg_dagger",
    control="random",
    metric=Part("success"),
    margin=0.3,
    tasks=200,
    minutes=5.0,
    tuning="seed 100, method alone: before ends were learned from, .75 of 40 starts after 20 steps and 0 after 40; with them 1.00 after "
    "45. The other arms were not tried",
    curve="reward/success",
)
