"""VPPO: policy gradient only where the picture decides, on answers that are mostly words.

Four shapes in a grid; the row of one and the column of another are to be added. Of nineteen words two depend on the picture.
"""

from fovea.ledger import Claim
from fovea.methods.dapo import DAPO
from fovea.methods.sft import SFT
from fovea.methods.vppo import VPPO
from fovea.recipes import dapo, grpo
from fovea.rollout.sampling import Sampling

warm = grpo.tiny.replace(
    name="vppo-warm",
    data="sums:noisy",
    method=SFT(),
    tasks_per_step=64,
    group_size=1,
    steps=250,
    learning_rate=5e-4,
    eval_tasks=0,
)

tiny = grpo.tiny.replace(
    name="vppo",
    model="vppo:warm",
    data="sums:",
    method=VPPO(),
    sampling=Sampling(max_new_tokens=24),
    dynamic_sampling=True,
    tasks_per_step=12,
    group_size=8,
    steps=200,
    learning_rate=1e-4,
)

real = dapo.real.replace(
    name="vppo-real",
    freeze=(),
    method=VPPO(),
    sampling=Sampling(max_new_tokens=2048, top_p=0.99),
    reward="math",
    updates_per_rollout=3,
)

CLAIM = Claim(
    says="At equal rollouts, the policy gradient of the tokens that depend on the picture alone learns no less than that of all tokens.",
    arms={
        "vppo": {},
        "dapo": {"method": DAPO(dual_clip=3.0)},
        "filter_only": {"method__alpha_min": 1.0},
        "shape_only": {"method__share": 1.0},
        "random_tokens": {"method__keep": "random"},
        "bottom": {"method__keep": "bottom"},
        "start": {"steps": 0, "dynamic_sampling": False},
    },
    method="vppo",
    baseline="dapo",
    control="bottom",  # the gradient of the words that are always the same
    control_against="start",
    test="as good as",
    margin=0.03,
    control_margin=0.03,
    minutes=10.0,
    tasks=600,
    tuning="with digits to be read in place of places the start guessed (.16), and neither `vppo` nor `dapo` moved in 30 steps, seed 100; "
    "with places no arm was run before",
)
