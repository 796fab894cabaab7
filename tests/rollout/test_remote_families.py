"""Every family through a server: prompts, pictures and tokens are those of the local engine."""

import pytest
import torch

from fovea.policies.hf_vlm import HFVLM
from fovea.policies.lora import LoRA
from fovea.rollout.engine import Engine
from fovea.rollout.remote import Remote, RemoteEngine
from fovea.rollout.sampling import Sampling
from fovea.types import Observation, Task, user
from tests.policies.tiny_checkpoints import FAMILIES, build, picture
from tests.rollout.served import serving


async def look_twice(task, policy, env):
    """Pictures, then text after them, then another picture."""
    action = await policy.act(Observation(messages=task.prompt, images=task.images))
    await policy.act(Observation(messages=user(f"and {len(action.token_ids)} more", 0), append=True))
    await policy.act(Observation(messages=user("this?", 1), images=(picture(7),), append=True))


def same(trainers, servers, tasks):
    sampling = Sampling(max_new_tokens=5, temperature=0.8)
    local = Engine(trainers, program=look_twice).rollout(tasks, 2, sampling)
    with serving(servers) as (url, _):
        remote = RemoteEngine(trainers, Remote(url), program=look_twice).rollout(tasks, 2, sampling)
    for a, b in zip((e for g in remote for e in g.episodes), (e for g in local for e in g.episodes), strict=True):
        assert not a.error and not b.error, (a.error, b.error)
        for mine, theirs in zip(a.segments, b.segments, strict=True):
            assert mine.actions.tolist() == theirs.actions.tolist()
            assert torch.allclose(mine.logp_behaviour, theirs.logp_behaviour, atol=1e-4)


def tasks(*counts):
    pictures = [tuple(picture(i, 84, 56 + 28 * i) for i in range(n)) for n in counts]
    return [Task(id=f"t{n}", source="toy", prompt=user("How many?", n), images=p) for n, p in zip(counts, pictures, strict=True)]


@pytest.mark.support("remote")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_family_says_what_the_local_engine_says(family, tmp_path):
    trainers = HFVLM.load(build(tmp_path / family, family, scale=3.0))
    same(trainers, HFVLM.load(build(tmp_path / "other", family, scale=3.0, seed=1)), tasks(0, 1, 2))


def test_a_server_gets_the_adapters_folded_in(tmp_path):
    folder = build(tmp_path / "base", "qwen2_5_vl", scale=3.0)
    trainers = HFVLM.load(folder, lora=LoRA(rank=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in trainers.parameters():
            p.add_(0.05 * torch.randn_like(p))
    same(trainers, HFVLM.load(folder), tasks(1))
