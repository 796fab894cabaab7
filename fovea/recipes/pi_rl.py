"""π_RL — online reinforcement learning of flow-based vision-language-action models (2025, arXiv 2510.25889).

A flow policy draws a chunk of actions by K steps from noise, which has no likelihood that could be computed. Some noise in a step makes the
step a Gaussian, so the chain that led to a chunk has one, and any policy gradient can follow:
    Flow-SDE     one step of the K, at random, keeps the marginals of the flow and draws; the others go straight
    Flow-Noise   every step draws, with a standard deviation from a head; log π = mean of the start's and the K steps'
PPO with a critic, or GRPO, then learn as always; the unit is the chunk, its reward what the environment pays for its actions. The policy
acts without noise in evaluation. It starts from flow matching on 20 demonstrations.

Departures from the paper: the random step is drawn for every chunk, not for all environments at once; the critic reads what the encoder
makes of an observation also where the paper's π0 variant averages the action expert's features over the chain (its π0.5 variant), so its
value before and after an update is of the same thing; actor and critic have one learning rate; an episode ends when the task is done;
noise and action horizon: as many actions are predicted as are executed.
"""

from fovea.ledger import Claim
from fovea.ledger.measures import Return
from fovea.methods.grpo import GRPO
from fovea.methods.ppo import PPO
from fovea.methods.sft import SFT
from fovea.policies.control import Flow
from fovea.recipe import Recipe

warm = Recipe(
    name="pi-rl-warm",
    model="network",
    network=Flow(width=128),
    data="demos:scene:reach,count=20,noise=0.5",
    method=SFT(),
    tasks_per_step=64,
    group_size=1,
    max_rows=1,
    steps=300,
    learning_rate=1e-3,
    schedule="linear",
    eval_tasks=0,
    checkpoint_every=100,
)

tiny = Recipe(
    name="pi-rl",
    model="pi-rl:warm",
    network=Flow(width=128),
    data="robot:scene:reach",
    method=PPO(gamma=0.99, lam=0.95, reward="steps", value_huber=10.0, value_coef=1.0),
    tasks_per_step=64,
    group_size=1,
    max_rows=32,
    updates_per_rollout=2,
    epochs_per_rollout=4,
    micro_batch=64,
    steps=60,
    learning_rate=3e-4,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    eval_tasks=100,
    checkpoint_every=20,
)

real = tiny.replace(
    name="pi-rl-real",
    model="pi0:lerobot/pi0_base",
    device="cuda",
    dtype="bfloat16",
    network=Flow(frozen=True),
    data="robot:metaworld:button-press-v3,size=224,chunk=5",
    tasks_per_step=512,
    max_rows=64,
    updates_per_rollout=10,
    steps=400,
    learning_rate=5e-6,
)

GROUPS = {"method": GRPO(), "tasks_per_step": 8, "group_size": 8}
CLAIM = Claim(
    says="From a policy that 20 noisy demonstrations made, Flow-SDE with PPO reaches the pad that the instruction names more often without "
    "noise, from unseen starts; with hardly any noise it learns less.",
    arms={
        "pi_rl": {},
        "learned": {"network__noise": "learned", "method__entropy_coef": 0.005},
        "grpo": {**GROUPS},
        "quiet": {"network__level": 0.1},
        "every": {"network__every": True},
        "random": {"reward": "random", "method__reward": "score"},
        "start": {"steps": 0},
    },
    method="pi_rl",
    baseline="start",
    control="random",
    control_against="start",
    metric=Return(),
    margin=0.1,
    tasks=200,
    curve="reward/mean",
    tuning="none: what the paper says stands, the rest is a first guess, the same for every arm",
)
