"""Whether a bonus for distinct crops makes a policy look at more places: the arms of `vigorl`, by their crops instead of their answers.

The paper (arXiv 2505.23678) finds 3 points less on V*Bench without the bonus, and fewer regions looked at.
"""

import dataclasses

from fovea.ledger import Part
from fovea.recipes import vigorl

tiny = vigorl.tiny.replace(name="vigorl_diversity")

CLAIM = dataclasses.replace(
    vigorl.CLAIM,
    says="A bonus for distinct crops makes a policy look at more places of a picture than the same rewards without it.",
    arms={a: vigorl.CLAIM.arms[a] for a in ("multi", "no_diversity", "random", "start")},
    baseline="no_diversity",
    metric=Part("distinct"),
    margin=0.3,
    control_margin=0.3,
    curve="reward/distinct",
)
