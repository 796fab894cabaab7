"""π_RL on three tasks of Meta-World at once, from pictures, proprioception and instructions (extra `sim`).

A hand presses a button from above, the button of a coffee machine from the front, and a handle down; which of these it is, an episode says
in words. Things stand elsewhere every time, which only the picture tells: 48 x 48 pixels from above. Ten actions are a chunk, an episode
has nine at most, and 1 is paid where the package says that the task is done. The start has learned from five demonstrations of each task.

The full size is π0 in its published form, with larger pictures, five actions in a chunk and longer episodes.
"""

from fovea.ledger import Claim
from fovea.ledger.measures import Return
from fovea.recipes import pi_rl

TASKS = ("button-press-topdown-v3", "coffee-button-v3", "handle-press-v3")
NAMES = f"metaworld:{'+'.join(TASKS)}"
SMALL = f"{NAMES},size=48,camera=topview,chunk=10,limit=90"

warm = pi_rl.warm.replace(name="pi-rl-metaworld-warm", data=f"demos:{SMALL},count=15,noise=0.2", steps=1500)

tiny = pi_rl.tiny.replace(
    name="pi-rl-metaworld",
    model="pi_rl_metaworld:warm",
    data=f"robot:{SMALL}",
    tasks_per_step=36,
    max_rows=12,
    steps=40,
    eval_tasks=60,
)

real = pi_rl.real.replace(name="pi-rl-metaworld-real", data=f"robot:{NAMES},size=224,chunk=5")

CLAIM = Claim(
    says="From a policy that five demonstrations of each task made, Flow-SDE with PPO does three tasks of Meta-World more often, from "
    "pixels, without noise and from unseen starts.",
    arms={
        "pi_rl": {},
        "learned": {"network__noise": "learned", "method__entropy_coef": 0.005},
        "longer": {"recipe": "pi_rl_metaworld:warm", "model": "pi_rl_metaworld:warm", "steps": 100_000, "seconds_of": "pi_rl"},
        "random": {"reward": "random", "method__reward": "score"},
        "start": {"steps": 0},
    },
    method="pi_rl",
    baseline="start",
    control="random",
    control_against="start",
    metric=Return(),
    margin=0.1,
    tasks=180,
    curve="reward/mean",
    minutes=6.0,
    tuning="seed 100, the start alone: with a faucet in place of the handle, 600 steps on demonstrations with noise 0.3 and episodes of 80 "
    "actions it did 5 of 45, none of them with button or faucet; as it is now, coffee 5, handle 12, button 3 of 15 each. Settings of the "
    "reinforcement are those of pi-rl",
)
