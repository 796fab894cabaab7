"""DPO on pairs of answers: rows need `chosen` and `rejected` texts."""

from fovea.methods.dpo import DPO
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="dpo", method=DPO(), data="pairs.jsonl", tasks_per_step=32, group_size=2, learning_rate=5e-5)
real = grpo.real.replace(name="dpo-real", method=DPO(), data="pairs.jsonl", tasks_per_step=64, group_size=2, learning_rate=5e-7)
