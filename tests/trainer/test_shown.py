"""Demonstrations and corrections: where they are kept, what of a batch they are, and that they survive."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import fovea
from fovea import api
from fovea.envs.watched import Astray, ByTurns, never
from fovea.policies.control import Network
from fovea.tasks.gym import Gym
from fovea.trainer.off_policy import part, runs, stream_metrics, taken_over
from fovea.trainer.replay import Replay, ReplayBuffer
from fovea.types import Episode, Group, Segment, Task
from tests.trainer.test_resume import ROOT, outcome

TASK = Task(id="t", source="s", prompt=())
SCENE = Gym("fovea/Insertion-v0", {"see": "numbers", "limit": 40}, around=(ByTurns(),))
SMALL = dict(
    data=SCENE,
    network=Network(width=8),
    max_rows=2,
    horizon=8,
    steps=6,
    replay=Replay(size=200, start=10, batch=8, demonstrations=3, share=0.5),
    updates_per_rollout=2,
    checkpoint_every=3,
    eval_tasks=2,
    threads=1,
    seed=3,
)
KILL = """
import os, signal, sys
import fovea
from fovea.trainer.replay import ReplayBuffer
from tests.trainer.test_shown import SMALL

out, calls, writes = sys.argv[1], [], []
add = ReplayBuffer.add

def dying(self, groups):
    if self.folder.name == "shown":
        calls.append(0)
        if len(calls) == 6:
            write, self._write = self._write, lambda: os.kill(os.getpid(), signal.SIGKILL) if writes else (writes.append(0), write())
    add(self, groups)

ReplayBuffer.add = dying
fovea.train("hil-serl", out=out, quiet=True, **SMALL)
"""


def played(taken, T=10, stop="terminated"):
    """Frame n shows n; the policy would do n, whoever took over did 100 + n."""
    n = torch.arange(T + 1, dtype=torch.float32)
    flags = torch.tensor([t in taken for t in range(T)])
    s = Segment(
        prefix=None,
        actions=torch.where(flags, 100 + n[:-1], n[:-1])[:, None],
        mask=~flags,
        logp_old=torch.zeros(T),
        turn=torch.arange(T),
        version=torch.zeros(T, dtype=torch.long),
        reward=tuple(n[:-1].tolist()),
        bootstrap=stop != "terminated",
        extras={"obs": n[:-1, None], "next_obs": n[-1:, None], "intervened": flags},
    )
    return Group(TASK, [Episode("e", TASK, segments=[s], stop=stop)])


def rows(buffer):
    w = buffer.windows(*buffer.starts())
    return list(zip(w.obs[..., 0].int().tolist(), w.actions[:, 0, 0].int().tolist(), w.reward_BL[:, 0].int().tolist()))


def test_every_transition_is_kept_and_what_was_taken_over_twice(tmp_path):
    group = played({3, 4, 5})
    replay, shown = ReplayBuffer(tmp_path / "replay", 100), ReplayBuffer(tmp_path / "shown", 100)
    replay.add([group])
    shown.add(taken_over([group]))
    assert len(rows(replay)) == 10 and rows(shown) == [([3, 4], 103, 3), ([4, 5], 104, 4), ([5, 6], 105, 5)]
    assert rows(replay)[3] == ([3, 4], 103, 3), "what was done is what is recorded"
    assert len(runs(group.episodes[0].segments[0].extras["intervened"].tolist())) == 1
    assert not shown.windows(*shown.starts()).ended_BL.any() and replay.windows(*replay.starts()).ended_BL[-1]
    assert stream_metrics([group])["policy/intervened"] == pytest.approx(0.3) and stream_metrics([group])["length/tokens"] == 10


def test_where_nobody_has_taken_over_yet_there_is_nothing_to_keep(tmp_path):
    shown = ReplayBuffer(tmp_path / "shown", 100)
    shown.add(taken_over([played(set())]))
    shown.sync()
    assert len(shown) == 0 and not (tmp_path / "shown").exists()
    shown.add(taken_over([played({3})]))
    assert rows(shown) == [([3, 4], 103, 3)]


@pytest.mark.parametrize(("stop", "ended"), [("terminated", True), ("cut", False), ("paused", False)])
def test_a_correction_ends_as_its_episode_does(stop, ended, tmp_path):
    shown = ReplayBuffer(tmp_path, 100)
    shown.add(taken_over([played({0, 8, 9}, stop=stop)]))
    w = shown.windows(*shown.starts())
    assert w.obs[:, :, 0].tolist() == [[0, 1], [8, 9], [9, 10]] and w.ended_BL[:, 0].tolist() == [False, False, ended]
    assert part(played({1}).episodes[0].segments[0], 2, 4).extras["next_obs"].tolist() == [[4.0]]
    assert runs([]) == [] and runs([True, False, True, True]) == [(0, 1), (2, 4)]


def collector(tmp_path, **changes):
    recipe = api.resolve("hil-serl", **{**SMALL, **changes})
    source, _ = api.build_sources(recipe)
    policy = api.build_network(recipe, None, source)
    engine = api.build_engine(recipe, policy, source)
    return api.build_collector(recipe, policy, source, engine, None, path=tmp_path)


def test_half_of_a_batch_is_shown_even_where_there_is_next_to_nothing_to_show(tmp_path):
    loop = collector(tmp_path, replay=Replay(size=200, start=10, batch=8, share=0.5))
    loop.replay.add([played(set(), stop="terminated")])
    assert set(loop.sample(0, 0).actions.flatten().tolist()) <= set(range(10)), "nothing has been shown yet"
    loop.shown.add(taken_over([played({4})]))
    for i in range(5):
        w = loop.sample(0, i)
        assert w.actions.shape == (8, 1, 1) and (w.actions[4:] == 104).all() and (w.actions[:4] < 10).all()
        assert w.extras["intervened"][4:].all() and not w.extras["intervened"][:4].any()


def test_demonstrations_are_whole_successful_episodes_of_the_person(tmp_path):
    loop = collector(tmp_path)
    groups = loop.demonstrate(3)
    (segments,) = zip(*[g.episodes[0].segments for g in groups])
    assert len(groups) == 3 and all(s.extras["intervened"].all() and s.reward[-1] == 1 and not s.bootstrap for s in segments)
    assert not any(s.mask.any() for s in segments), "none of it is the policy's choice"
    with pytest.raises(ValueError, match=r"3 demonstrations of .*: nobody is there to show anything; expected a Gym whose `around`"):
        collector(tmp_path / "b", data=Gym("fovea/Insertion-v0", {"see": "numbers"})).demonstrate(3)
    with pytest.raises(ValueError, match="0 of 20 demonstrations succeeded, expected 2"):
        collector(tmp_path / "c", data=Gym("fovea/Insertion-v0", {"see": "numbers", "limit": 3}, around=(never(),))).demonstrate(2)


def test_a_run_with_corrections_goes_on_with_the_same_numbers(tmp_path):
    run = fovea.train("hil-serl", out=tmp_path / "whole", quiet=True, **SMALL)
    rows = [m for m in run.metrics if "replay/shown" in m]
    assert 0 < rows[-1]["policy/intervened"] < 1 and rows[-1]["replay/shown"] > rows[0]["replay/shown"]
    for stop in (1, 4, 6):
        fovea.train("hil-serl", out=tmp_path / "parts", quiet=True, on_step=lambda step, _, stop=stop: step == stop, **SMALL)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_run_killed_while_it_keeps_a_correction_ends_with_the_same_numbers(tmp_path):
    fovea.train("hil-serl", out=tmp_path / "whole", quiet=True, **SMALL)
    command = [sys.executable, "-c", KILL, str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    fovea.train("hil-serl", out=tmp_path / "killed", quiet=True, **SMALL)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_rlif_keeps_demonstrations_with_the_rest_and_imitation_learns_from_what_was_shown_alone(tmp_path):
    replay = Replay(size=200, start=10, batch=8, length=2, demonstrations=3)
    loop = collector(tmp_path, method="rlif", replay=replay)
    assert loop.shown is None
    run = fovea.train("rlif", out=tmp_path / "rlif", quiet=True, **{**SMALL, "replay": replay, "steps": 2, "data": SCENE})
    first, last = run.metrics[1], run.metrics[-1]
    assert first["replay/frames"] > 40 and "replay/shown" not in first and -1 <= last["value/reward"] <= 0
    only = collector(tmp_path / "b", method="hg-dagger", replay=Replay(size=200, start=10, batch=8, share=1.0))
    only.replay.add([played(set())])
    only.shown.add(taken_over([played({4, 5})]))
    assert set(only.sample(0, 0).actions.flatten().tolist()) <= {104.0, 105.0}


def test_held_out_episodes_are_the_policys_own():
    scene = Gym("fovea/Insertion-v0", {"see": "numbers"}, around=(Astray(),))
    assert scene.heldout().around == () and scene.heldout().kwargs == scene.kwargs
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Replay(share=1.5)
