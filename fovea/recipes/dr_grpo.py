"""Dr. GRPO: no division by the standard deviation, constant length normalisation."""

from fovea.methods.dr_grpo import DrGRPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="dr_grpo", method=DrGRPO())
real = grpo.real.replace(name="dr_grpo-real", method=DrGRPO())
