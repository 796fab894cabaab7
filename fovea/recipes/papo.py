"""PAPO: keep the answer dependent on the picture where the text offers a shortcut.

Questions come with a hint that is right in 7 of 10 training tasks; the policy begins by repeating it half of the time. Held out, the hint
is another question's answer.
"""

from fovea.methods.papo import PAPO
from fovea.methods.sft import SFT
from fovea.recipes import grpo
from fovea.rollout.sampling import Sampling
from fovea.verifiers import weighted

FAMILIES = "count,colour,two_step,chart"

warm = grpo.tiny.replace(
    name="papo-warm",
    data=f"hints:noisy:{FAMILIES}",
    method=SFT(),
    tasks_per_step=32,
    group_size=1,
    steps=150,
    learning_rate=3e-4,
    eval_tasks=0,
)

tiny = grpo.tiny.replace(
    name="papo",
    model="papo:warm",
    data=f"hints:{FAMILIES}",
    method=PAPO(gamma=0.1, beta=0.0),
    tasks_per_step=16,
    group_size=5,
    steps=40,
    learning_rate=5e-5,
)

real = grpo.real.replace(
    name="papo-real",
    freeze=(),
    method=PAPO(gamma=0.02, beta=0.01),
    sampling=Sampling(max_new_tokens=2048, top_p=0.99),
    reward=weighted({"accuracy": (0.9, "math"), "format": (0.1, "format")}),
    tasks_per_step=384,
    updates_per_rollout=3,
    group_size=5,
)
