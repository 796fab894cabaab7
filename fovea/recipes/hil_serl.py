"""HIL-SERL: demonstrations and corrections in half of every batch, a learned reward, on a peg, a shelf and a slot in pictures.

The person who shows and corrects is a script with habits: slow, and sure that the slot is one and a half units further to the right, until
the peg has touched its rim. In `live` it is you: open the address that `fovea train hil-serl:live` prints. In `real` the scene is drawn as
large as a camera's picture; a robot's Gymnasium environment takes its place (`data=Gym("module:id", around=(Learned(), ...))`, with a
wrapper that notes what a person does), which shows two cameras side by side in the last axis.
"""

from fovea.envs.success import Learned
from fovea.envs.watched import Astray, never
from fovea.ledger import Claim
from fovea.ledger.measures import Part
from fovea.methods.hil_serl import HILSERL
from fovea.policies.control import Network
from fovea.recipe import Recipe
from fovea.tasks.gym import Gym
from fovea.trainer.replay import Replay

PERSON = {"speed": 0.7, "bias": 1.5, "noise": 0.2}
SCENE = Gym("fovea/Insertion-v0", PERSON, around=(Learned(), Astray()))
LEFT_ALONE = Gym("fovea/Insertion-v0", PERSON, around=(Learned(), never()))

tiny = Recipe(
    name="hil-serl",
    model="network",
    network=Network(width=64),
    data=SCENE,
    method=HILSERL(shift=2),
    max_rows=4,
    horizon=25,
    replay=Replay(size=20_000, start=100, batch=64, demonstrations=20, share=0.5),
    updates_per_rollout=40,
    steps=150,
    warmup_steps=0,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    max_grad_norm=0.0,
    eval_tasks=100,
    checkpoint_every=50,
)

live = tiny.replace(data=Gym("fovea/Insertion-v0", PERSON, around=(Learned(), "page:8765")))

real = tiny.replace(
    data=Gym(
        "fovea/Insertion-v0", {**PERSON, "side": 128, "limit": 100}, around=(Learned(batch=128, learning_rate=1e-4, shift=4), Astray())
    ),
    network=Network(width=256),
    method=HILSERL(),
    max_rows=1,
    horizon=50,
    replay=Replay(size=200_000, start=100, batch=256, demonstrations=25, share=0.5),
    updates_per_rollout=100,
    steps=1_000,
    learning_rate=3e-4,
)

CLAIM = Claim(
    says="With demonstrations and corrections in half of every batch a policy inserts the peg almost always, and more often than one that "
    "imitates the same person; without both it learns nothing.",
    arms={
        "hil_serl": {},
        "hg_dagger": {"method": "hg-dagger", "method__shift": 2, "replay__share": 1.0},
        "no_corrections": {"data": LEFT_ALONE},
        "alone": {"data": LEFT_ALONE, "replay__demonstrations": 0, "replay__share": 0.0},
    },
    method="hil_serl",
    baseline="hg_dagger",
    control="alone",
    metric=Part("success"),
    margin=0.15,
    tasks=200,
    minutes=8.0,
    tuning="none: the settings of the paper, with smaller batches and networks; no arm was run to its end",
    curve="reward/success",
)
