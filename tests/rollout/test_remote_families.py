"""Every family through a server: prompts, pictures and tokens are those of the local engine."""

import pytest
import torch

from fovea.policies.hf_vlm import HFVLM
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


@pytest.mark.support("remote")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_family_says_what_the_local_engine_says(family, tmp_path):
    folder = build(tmp_path / family, family, scale=3.0)
    trainers, servers = HFVLM.load(folder), HFVLM.load(build(tmp_path / "other", family, scale=3.0, seed=1))
    tasks = [
        Task(id=f"t{n}", source="toy", prompt=user("How many?", n), images=tuple(picture(i, 84, 56 + 28 * i) for i in range(n)))
        for n in (0, 1, 2)
    ]
    sampling = Sampling(max_new_tokens=5, temperature=0.8)
    local = Engine(trainers, program=look_twice).rollout(tasks, 2, sampling)
    with serving(servers) as (url, _):
        remote = RemoteEngine(trainers, Remote(url), program=look_twice).rollout(tasks, 2, sampling)
    for a, b in zip((e for g in remote for e in g.episodes), (e for g in local for e in g.episodes), strict=True):
        assert not a.error and not b.error, (a.error, b.error)
        for mine, theirs in zip(a.segments, b.segments, strict=True):
            assert mine.actions.tolist() == theirs.actions.tolist()
            assert torch.allclose(mine.logp_behaviour, theirs.logp_behaviour, atol=1e-4)
