"""Supervised finetuning on gold answers: the baseline that reinforcement learning is compared with."""

from fovea.methods.sft import SFT
from fovea.recipes import grpo

tiny = grpo.tiny.replace(name="sft", method=SFT(), tasks_per_step=64, group_size=1, steps=200)
real = grpo.real.replace(name="sft-real", method=SFT(), tasks_per_step=128, group_size=1, learning_rate=1e-5)
