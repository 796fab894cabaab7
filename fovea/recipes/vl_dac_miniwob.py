"""VL-DAC on web pages: five click tasks of MiniWoB++ in Chromium, from screenshots alone (extra `browser`).

The tasks were named before anything was trained: click-test-2, click-button, click-dialog, click-tab, click-color. A tiny model sees the
160 x 160 pixels below the question, shrunk to 64 x 64, in which colours and places can be seen and most labels cannot be read; the question
is its prompt. The start has learned from a good player who clicks elsewhere in six turns of ten. Pages are played with two tries: a click
on nothing can be followed by another.

The full size sees the whole page and answers in JSON, as in the paper.
"""

from fovea.ledger import Accuracy, Claim
from fovea.methods.sft import SFT
from fovea.methods.vl_dac import VLDAC
from fovea.recipes import vl_dac
from fovea.rollout.sampling import Sampling

TASKS = ("click-test-2", "click-button", "click-dialog", "click-tab", "click-color")
DATA = f"seeds:{','.join(TASKS)}"
PAGES = "miniwob:click-test-2,max_turns=2"
SMALL = f"{PAGES},view=area,side=64,reply=short"

tiny = vl_dac.tiny.replace(
    name="vl-dac-miniwob",
    model="vl_dac_miniwob:warm",
    data=DATA,
    environment=SMALL,
    sampling=Sampling(max_new_tokens=18),
    tasks_per_step=40,
    steps=60,
)

warm = tiny.replace(
    name="vl-dac-miniwob-warm",
    model="tiny",
    environment=f"{SMALL},slips=0.6",
    method=SFT(),
    updates_per_rollout=4,
    epochs_per_rollout=4,
    micro_batch=64,
    tasks_per_step=160,
    steps=16,
    learning_rate=1e-3,
    schedule="cosine",
    eval_tasks=0,
)

real = vl_dac.real.replace(
    name="vl-dac-miniwob-real",
    data=DATA,
    environment=f"{PAGES},reply=json",
    method=VLDAC(gamma=1.0, lam=1.0),
    tasks_per_step=80,
)

CLAIM = Claim(
    says="From noisy demonstrations, VL-DAC learns to click right on web pages that it sees in screenshots.",
    arms={"vl_dac": {}, "start": {"steps": 0}, "random": {"reward": "random", "method__reward": "score"}},
    method="vl_dac",
    baseline="start",
    control="random",
    control_against="start",
    margin=0.30,
    control_margin=0.05,
    condition=(Accuracy(), "start", 0.1),
    tasks=200 * len(TASKS),
    temperature=1.0,
    curve="reward/success",
    minutes=10.0,
    tuning="none: no arm was run before; the settings are those of vl-dac",
)
