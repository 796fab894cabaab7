"""VL-DAC: PPO by token with a critic by turn, in card games that are seen and played over several turns.

EZPoints: two cards in a picture that must make 12, one symbol per turn. The start has learned from demonstrations that misread the picture
in one turn of five, so it knows how to play and often thinks of the wrong cards. RL4VLM must be told how much a thought counts (λ), LOOP
has one return for all turns of an episode.

Departures from the paper: Qwen2.5-VL for Qwen2-VL; adapters without dropout; the learning rate falls to 0, not to 1e-7; replies are drawn
from the whole distribution, where the released code draws almost greedily.
"""

from fovea.ledger import Accuracy, Claim
from fovea.methods.rl4vlm import RL4VLM
from fovea.methods.rloo import RLOO
from fovea.methods.sft import SFT
from fovea.methods.vl_dac import VLDAC
from fovea.policies.lora import LoRA
from fovea.recipe import Recipe
from fovea.rollout.programs import ActionMarked
from fovea.rollout.sampling import Sampling

METHOD = VLDAC(gamma=1.0, lam=1.0)  # the paper's on EZPoints

tiny = Recipe(
    name="vl-dac",
    model="vl-dac:warm",
    data="cards:ezpoints",
    environment="cards:ezpoints",
    method=VLDAC(gamma=1.0, lam=1.0, critic=(256,)),
    sampling=Sampling(max_new_tokens=20),
    tasks_per_step=32,
    group_size=1,
    updates_per_rollout=2,
    epochs_per_rollout=2,
    micro_batch=128,
    steps=60,
    learning_rate=1e-4,
)

warm = tiny.replace(
    name="vl-dac-warm",
    model="tiny",
    environment="cards:ezpoints,slips=0.2",
    method=SFT(),
    updates_per_rollout=1,
    epochs_per_rollout=1,
    steps=80,
    learning_rate=3e-4,
    eval_tasks=0,
)

real = tiny.replace(
    name="vl-dac-real",
    model="Qwen2.5-VL-7B-Instruct",
    lora=LoRA(rank=16, alpha=32.0),
    dtype="bfloat16",
    gradient_checkpointing=True,
    device="cuda",
    data="cards:ezpoints,side=300,reply=json",
    environment="cards:ezpoints,side=300,reply=json",
    method=METHOD,
    sampling=Sampling(max_new_tokens=128, temperature=0.2),
    tasks_per_step=64,
    micro_batch=8,
    steps=180,
    learning_rate=5e-5,
    warmup_steps=0,
    schedule="cosine",
)

LOOP = {
    "method": RLOO(clip=True, eps_lo=0.1, eps_hi=0.1, aggregation="token-mean", beta=0.05, kl="k3", kl_in="loss"),
    "group_size": 8,
    "tasks_per_step": 4,
}
"""No critic: eight episodes from one start, and the return of each, less the others' mean, on all of its tokens."""


def by_turn(thought_weight: float, **changes: object) -> dict[str, object]:
    """An arm: ratios of turns with this λ, all else as in `tiny`."""
    shared = {"gamma": 1.0, "lam": 1.0, "critic": (256,), "value_coef": 0.15, "value_clip": 0.0}
    stable = {"value_warmup": 2, "stop_gradient": True, "beta": 0.05}
    method = RL4VLM(**{"thought_weight": thought_weight, **shared, **stable, **changes})  # type: ignore[arg-type]
    return {"method": method, "program": ActionMarked()}


CLAIM = Claim(
    says="Without a weight for thoughts to tune, VL-DAC plays better than RL4VLM with a badly chosen one.",
    arms={
        "vl_dac": {},
        "rl4vlm_0": by_turn(0.0),
        "rl4vlm_02": by_turn(0.2),
        "rl4vlm_05": by_turn(0.5),
        "rl4vlm_1": by_turn(1.0),
        "loop": LOOP,
        "step_ppo": by_turn(1.0, value_warmup=0, stop_gradient=False, beta=0.0),
        "no_warm_up": {"method__value_warmup": 0},
        "no_stop_gradient": {"method__stop_gradient": False},
        "no_kl": {"method__beta": 0.0},
        "random": {"reward": "random", "method__reward": "score"},
        "start": {"steps": 0},
    },
    method="vl_dac",
    baseline="rl4vlm_0",
    control="random",
    control_against="start",
    margin=0.15,
    control_margin=0.05,
    condition=(Accuracy(), "start", 0.1),
    tasks=300,
    temperature=1.0,
    curve="reward/success",
    minutes=6.0,
    tuning="none: no arm was run before; clip interval, KL, value coefficient and warm-up are the paper's, the same for every arm",
)
