"""VL-DAC over more turns: four cards that make 24, at least eight symbols, where LOOP has one return for all of them.

The paper (arXiv 2508.04280) finds that LOOP stops improving on long episodes. EZPoints, half as long, is the claim of `vl-dac`.
"""

from dataclasses import replace

from fovea.ledger import Accuracy
from fovea.recipes import vl_dac
from fovea.rollout.sampling import Sampling

GAME = "cards:points24-solvable"
LONGER = Sampling(max_new_tokens=28)

warm = vl_dac.warm.replace(
    name="vl_dac_horizon-warm", data=GAME, environment="cards:points24,slips=0.1", sampling=LONGER, tasks_per_step=16, steps=160
)

tiny = vl_dac.tiny.replace(
    name="vl_dac_horizon",
    model="vl_dac_horizon:warm",
    data=GAME,
    environment="cards:points24",
    sampling=LONGER,
    tasks_per_step=16,
)

CLAIM = replace(
    vl_dac.CLAIM,
    says="Over eight turns and more, a critic that gives each turn its own advantage learns what one return for all turns does not.",
    arms={
        "vl_dac": {},
        "loop": {**vl_dac.LOOP, "tasks_per_step": 2},
        "rl4vlm_02": vl_dac.by_turn(0.2),
        "rl4vlm_1": vl_dac.by_turn(1.0),
        "random": {"reward": "random", "method__reward": "score"},
        "start": {"steps": 0},
    },
    baseline="loop",
    margin=0.10,
    condition=(Accuracy(), "start", 0.05),
    tuning="none: no arm was run before; the settings are those of vl-dac",
)
