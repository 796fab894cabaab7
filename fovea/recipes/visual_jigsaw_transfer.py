"""What a jigsaw leaves behind: the policies of `visual-jigsaw`, asked where one shape is relative to another.

The paper (arXiv 2509.25190, tables 1 and 4) finds that reward on jigsaws helps other perception, that supervision on the same data helps
less or hurts, and that four tiles help less than nine. Nothing here is trained on the question that is measured.
"""

from fovea.ledger import Claim
from fovea.recipes import visual_jigsaw
from fovea.rollout.sampling import Sampling

tiny = visual_jigsaw.tiny.replace(name="visual_jigsaw_transfer")

CLAIM = Claim(
    says="After nine tiles learned by reward, another perception task is answered better than after the same tiles learned from answers.",
    arms={
        "reward": visual_jigsaw.SHORT,
        "four_tiles": {**visual_jigsaw.SHORT, "data": "jigsaw:2x2-places"},
        "sft": {**visual_jigsaw.CLAIM.arms["sft"], "seconds_of": "reward"},
        "random": {**visual_jigsaw.SHORT, "reward": "random"},
        "start": {"steps": 0},
        "base": {"model": "tiny", "steps": 0},
    },
    method="reward",
    baseline="sft",
    control="random",
    control_against="start",
    margin=0.05,
    control_margin=0.05,
    measured={"data": "worlds:relation", "sampling": Sampling(max_new_tokens=64)},
    tasks=400,
    tuning="none: the settings are those of visual-jigsaw; no arm was run before",
)
