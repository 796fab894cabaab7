"""The engine with a real (tiny, random) vision-language model."""

from dataclasses import replace

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.envs.zoom import Zoom
from fovea.methods.visurf import ViSurf
from fovea.policies.hf_vlm import HFVLM
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.types import Action, Observation, Score, Task, user
from tests.policies.tiny_checkpoints import build, picture


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return HFVLM.load(build(tmp_path_factory.mktemp("vlm"), "qwen2_5_vl", scale=3.0))


def tasks(n=3):
    return [Task(id=f"t{i}", source="toy", prompt=user("How many?" * (i + 1)), images=(picture(i, 56 + 28 * i),)) for i in range(n)]


async def chat(task, policy, env):
    action = await policy.act(Observation(messages=task.prompt, images=task.images))
    for k in range(2):
        action = await policy.act(Observation(messages=user(f"and {len(action.token_ids)} more {k}", 0), append=True))


class LookOnce(Zoom):
    """A zoom whose first answer is taken as a call whatever it says, so that a random policy zooms."""

    def step(self, action):
        return super().step(Action("<zoom>4,4,40,40</zoom>" if self.left else action.value))


KINDS = {
    "answer": {},
    "chat": {"program": chat},
    "zoom appended": {"environment": lambda: LookOnce("append")},
    "zoom trimmed": {"environment": lambda: LookOnce("trim")},
}


def scored(groups):
    for group in groups:
        for episode in group.episodes:
            assert not episode.error, episode.error
            episode.score = Score(0.0)
    return groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logps_equal_the_trainers(policy, kind, temperature):
    groups = scored(Engine(policy, **KINDS[kind]).rollout(tasks(), 3, Sampling(max_new_tokens=8, temperature=temperature)))
    batch = collate(groups)
    policy.temperature = temperature
    with torch.no_grad():
        logp = policy.evaluate(batch, frozenset({"logp"}))["logp"]
    assert (logp - batch.logp_old_BT * batch.mask_BT).abs().max() < 1e-5
    assert not torch.isin(batch.actions_BT[batch.mask_BT > 0], torch.tensor(policy.banned_ids)).any()
    rows = 18 if "zoom" in kind else 9
    assert rows == batch.B


def test_a_gold_answer_trains_as_if_the_trainer_had_read_off_its_log_probability(tmp_path):
    policy = HFVLM.load(build(tmp_path, "qwen2_5_vl", scale=3.0), dtype="float64")
    asked = [replace(task, answer="7" * (i + 1)) for i, task in enumerate(tasks())]
    groups = scored(Engine(policy).rollout(asked, 2, Sampling(max_new_tokens=30, temperature=0.7), members=("gold",)))
    for group in groups:
        for value, episode in enumerate(group.episodes):
            episode.score = Score(value / 3)
    policy.temperature = 0.7
    batch = collate(groups, dtype=torch.float64)
    with torch.no_grad():
        read_BT = policy.evaluate(batch, frozenset({"logp"}))["logp"]
    assert int(batch.given_B.sum()) == 3 and read_BT[batch.given_B].min() < -3
    assert (batch.logp_old_BT - read_BT)[batch.given_B].abs().max() < 1e-5

    method, gradients = ViSurf(beta=0.0), []
    for logp_old_BT in (batch.logp_old_BT, torch.where(batch.given_B[:, None], read_BT, batch.logp_old_BT)):
        part = replace(batch, logp_old_BT=logp_old_BT)
        part.adv_BT = method.credit(part)
        part.totals = part.count(30)
        loss, _ = method.loss(Streams(policy.evaluate(part, frozenset({"logp"}))), part)
        found = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm() and gradients[1].norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_max_rows_changes_nothing(policy, kind):
    runs = [Engine(policy, max_rows=rows, **KINDS[kind]).rollout(tasks(), 4, Sampling(max_new_tokens=6, top_p=0.9)) for rows in (1, 5, 64)]
    told = [[s.actions.tolist() for g in groups for e in g.episodes for s in e.segments] for groups in runs]
    assert told[0] == told[1] == told[2] and len({tuple(t) for t in told[0]}) > 6


def test_an_image_is_encoded_once_per_rollout_and_a_prompt_prefilled_once(policy):
    policy.model.features.clear()
    before = policy.counts["vision_encodings"]
    engine = Engine(policy)
    engine.rollout(tasks(), 8, Sampling(max_new_tokens=4), members=("greedy",))
    assert policy.counts["vision_encodings"] - before == 3 and engine.counts["prefixes"] == 3


def test_appended_text_starts_by_closing_the_answer(policy):
    # the engine drops this token when the policy has closed its answer itself
    assert policy.encode_append(user("more", 0))[0] in policy.eos_ids
