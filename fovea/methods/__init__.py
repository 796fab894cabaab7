"""What is learned from the episodes? One file per method; this dictionary is the whole registry."""

from __future__ import annotations

from importlib import import_module

from fovea.math.options import choose

METHODS: dict[str, str] = {
    "grpo": "fovea.methods.grpo:GRPO",
    "dr_grpo": "fovea.methods.dr_grpo:DrGRPO",
    "dapo": "fovea.methods.dapo:DAPO",
    "gspo": "fovea.methods.gspo:GSPO",
    "cispo": "fovea.methods.cispo:CISPO",
    "rloo": "fovea.methods.rloo:RLOO",
    "remax": "fovea.methods.remax:ReMax",
    "reinforce_pp": "fovea.methods.reinforce_pp:ReinforcePP",
    "ppo": "fovea.methods.ppo:PPO",
    "papo": "fovea.methods.papo:PAPO",
    "vppo": "fovea.methods.vppo:VPPO",
    "visurf": "fovea.methods.visurf:ViSurf",
    "vision-sr1": "fovea.methods.vision_sr1:VisionSR1",
    "vl-dac": "fovea.methods.vl_dac:VLDAC",
    "rl4vlm": "fovea.methods.rl4vlm:RL4VLM",
    "dart": "fovea.methods.dart:DART",
    "sac": "fovea.methods.sac:SAC",
    "td3": "fovea.methods.td3:TD3",
    "dqn": "fovea.methods.dqn:DQN",
    "dreamer": "fovea.methods.dreamer:Dreamer",
    "repo-mbrl": "fovea.methods.repo_mbrl:RePo",
    "repo_align": "fovea.methods.repo_align:Align",
    "hil-serl": "fovea.methods.hil_serl:HILSERL",
    "rlif": "fovea.methods.rlif:RLIF",
    "hg-dagger": "fovea.methods.hg_dagger:HGDagger",
    "ddpo": "fovea.methods.ddpo:DDPO",
    "prdp": "fovea.methods.prdp:PRDP",
    "sft": "fovea.methods.sft:SFT",
    "dpo": "fovea.methods.dpo:DPO",
}


def get(name: str) -> type:
    """The method class called `name`; an unknown name lists what exists and the nearest."""
    module, _, attribute = choose("method", name, METHODS).partition(":")
    return getattr(import_module(module), attribute)
