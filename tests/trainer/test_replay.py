import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.batch import Windows
from fovea.trainer import replay
from fovea.trainer.replay import Replay, ReplayBuffer, ReplayError
from fovea.types import Episode, Group, Segment, Task

TASK = Task(id="t", source="s", prompt=())


def piece(name, first, T, cut, follows="", shape=(1,)):
    """Frame n of the episode shows the number `first` + n; action and reward of a unit are that number and ten times it."""
    n = torch.arange(first, first + T + 1, dtype=torch.float32)
    obs = n.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    s = Segment(
        prefix=None,
        actions=n[:-1, None],
        mask=torch.ones(T, dtype=torch.bool),
        logp_old=torch.zeros(T),
        turn=torch.arange(T),
        version=torch.zeros(T, dtype=torch.long),
        reward=tuple((10 * n[:-1]).tolist()),
        bootstrap=cut,
        extras={"obs": obs[:-1], "next_obs": obs[-1:]},
    )
    return Group(TASK, [Episode(name, TASK, segments=[s], follows=follows, stop="paused" if cut else "terminated")])


def numbers(w: Windows):
    return w.obs[..., 0].long().tolist()


def every(buffer, length=1):
    return buffer.windows(*buffer.starts(length), length)


def test_a_window_of_one_unit_is_a_transition(tmp_path):
    buffer = ReplayBuffer(tmp_path, 100)
    buffer.add([piece("a", 10, 2, cut=False), piece("b", 20, 2, cut=True)])
    w = every(buffer)
    assert numbers(w) == [[10, 11], [11, 12], [20, 21], [21, 22]]
    assert w.actions[:, 0, 0].tolist() == [10, 11, 20, 21] and w.reward_BL[:, 0].tolist() == [100, 110, 200, 210]
    assert w.ended_BL[:, 0].tolist() == [False, True, False, False], "what was cut has not ended"
    assert len(buffer) == 6, "two episodes of two units are six frames"
    assert numbers(every(buffer, 2)) == [[10, 11, 12], [20, 21, 22]]


def test_pieces_of_an_episode_are_one_and_share_the_frame_between_them(tmp_path):
    buffer = ReplayBuffer(tmp_path, 100, lanes=2)
    buffer.add([piece("a", 10, 2, cut=True), piece("b", 50, 2, cut=True)])
    buffer.add([piece("a2", 12, 1, cut=False, follows="a"), piece("b2", 52, 2, cut=True, follows="b"), piece("c", 70, 1, cut=True)])
    assert sorted(numbers(every(buffer, 3))) == [[10, 11, 12, 13], [50, 51, 52, 53], [51, 52, 53, 54]]
    assert len(buffer) == 4 + 5 + 2
    assert every(buffer, 3).ended_BL[:, -1].sum() == 1
    with pytest.raises(ReplayError, match="'d' does not begin where 'b2', which it follows, ended"):
        buffer.add([piece("d", 99, 1, cut=True, follows="b2")])
    assert len(buffer) == 11, "nothing is added of what is refused"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.booleans()), min_size=1, max_size=14),
    st.integers(8, 30), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip
def test_windows_are_what_a_plain_list_of_episodes_gives(tmp_path_factory, plan, size, lanes, length, stack):
    buffer = ReplayBuffer(tmp_path_factory.mktemp("r"), size * lanes, lanes, stack=stack)
    at, open_id, seen = 0, "", set()
    for i, (T, cut, goes_on) in enumerate(plan):
        follows, first = (open_id, at) if open_id and goes_on else ("", 1000 * (i + 1))
        buffer.add([piece(f"e{i}", first, T, cut, follows, shape=(stack,))])  # what is stored is the newest of the stack
        at, open_id = first + T, f"e{i}" if cut else ""
        w = every(buffer, length)
        first_frame = w.obs[:, 0, -1]
        assert torch.equal(w.obs[..., -1], first_frame[:, None] + torch.arange(length + 1)), "units of one episode, in order"
        assert torch.equal(w.actions[..., 0], w.obs[:, :-1, -1]) and torch.equal(w.reward_BL, 10 * w.obs[:, :-1, -1])
        assert not w.ended_BL[:, :-1].any()
        begun = 1000 * (first_frame // 1000).long()
        older = [torch.maximum(w.obs[..., -1].long() - k, begun[:, None]) for k in range(stack - 1, 0, -1)]
        stacked = [torch.equal(w.obs[..., k].long(), x) for k, x in enumerate(older)]
        assert all(stacked), "a stack begins with the first frame of its episode repeated"
        seen |= set(first_frame.tolist())
        assert len(buffer) <= sum(min(lane.frames, buffer.kept) for lane in buffer.lanes)
        frames = {int(x) for x in w.obs[..., -1].flatten()}
        newest = range(at - min(at - (1000 * (at // 1000)), length), at + 1) if at % 1000 >= length else ()
        assert frames >= set(newest), "the newest units can be drawn"
    written = sum(lane.frames for lane in buffer.lanes)
    begun = sum(1 for i, (_, _, on) in enumerate(plan) if not (on and i and plan[i - 1][1]))
    assert written == sum(T for T, _, _ in plan) + begun, "each frame is written once, and one more for each episode"


def test_the_oldest_frames_are_overwritten(tmp_path):
    buffer = ReplayBuffer(tmp_path, 6, spare=2)
    for i in range(5):
        buffer.add([piece(f"e{i}", 100 * i, 2, cut=False)])
    assert numbers(every(buffer)) == [[300, 301], [301, 302], [400, 401], [401, 402]]
    with pytest.raises(ReplayError, match=r"'long' has 7 frames, a lane keeps 6; raise --replay.size"):
        buffer.add([piece("long", 0, 6, cut=False)])
    with pytest.raises(ReplayError, match="no window of 5 units in 6 frames"):
        buffer.sample(1, key=0, length=5)


def test_draws_have_addresses_and_are_even(tmp_path):
    buffer = ReplayBuffer(tmp_path, 100)
    buffer.add([piece("a", 0, 10, cut=False)])
    first, again, other = (numbers(buffer.sample(2000, key)) for key in (5, 5, 6))
    assert first == again != other
    counts = np.bincount([x for x, _ in first], minlength=10)
    assert len(counts) == 10 and counts.min() > 140 and counts.max() < 260


def test_half_of_a_batch_can_come_from_demonstrations_however_few(tmp_path):
    own, shown = ReplayBuffer(tmp_path / "own", 100), ReplayBuffer(tmp_path / "shown", 100)
    own.add([piece("a", 0, 20, cut=False)])
    shown.add([piece("d", 500, 1, cut=False)])
    batch = Windows.join([own.sample(8, 1), shown.sample(8, 1)])
    assert [x >= 500 for x, _ in numbers(batch)] == [False] * 8 + [True] * 8


def test_a_state_can_be_gone_back_to_until_it_is_overwritten(tmp_path):
    def made(rounds):
        buffer = ReplayBuffer(tmp_path, 9, spare=6)
        for i in rounds:
            buffer.add([piece(f"e{i}", 100 * i, 2, cut=False)])
        return buffer

    buffer = made(range(5))
    state, before = json.loads(json.dumps(buffer.state_dict())), every(buffer)
    made([5, 6])
    again = ReplayBuffer(tmp_path, 9, spare=6)
    again.load_state_dict(state)
    assert torch.equal(every(again).obs, before.obs) and torch.equal(again.sample(50, 7).obs, buffer.sample(50, 7).obs)
    again.add([piece("other", 900, 2, cut=False)])
    assert numbers(every(again))[-1] == [901, 902]
    made([7, 8])
    with pytest.raises(ReplayError, match="oldest frames that the checkpoint knows of lane 0 have been overwritten"):
        ReplayBuffer(tmp_path, 9, spare=6).load_state_dict(state)
    with pytest.raises(ReplayError, match="found 0 frames in lane 0, expected the 15 that the checkpoint knows"):
        ReplayBuffer(tmp_path / "empty", 9, spare=6).load_state_dict(state)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fovea.trainer import replay
from tests.trainer.test_replay import piece

class Torn(np.memmap):
    def __setitem__(self, index, x):
        if Torn.left is not None:
            Torn.left -= 1
            if Torn.left < 0:
                super().__setitem__((index[0], index[1][:1]), x[:1])
                os.kill(os.getpid(), signal.SIGKILL)
        super().__setitem__(index, x)
Torn.left = None
replay.np.memmap = Torn
buffer = replay.ReplayBuffer(Path(sys.argv[1]), 12, lanes=2, spare=8)
for i in range(6):
    buffer.add([piece(f"e{i}", 100 * i, 2, cut=False)])
print(replay.json.dumps(buffer.state_dict()), flush=True)
Torn.left = int(sys.argv[2])
buffer.add([piece("x", 1000, 2, cut=True), piece("y", 2000, 3, cut=False)])
"""


@pytest.mark.parametrize("after", [3, 7])
def test_a_process_killed_in_the_middle_of_an_append_loses_nothing_before_it(tmp_path, after):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(after)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    buffer = ReplayBuffer(tmp_path, 12, lanes=2, spare=8)
    assert buffer.state_dict() == json.loads(done.stdout)
    expected = [[x, x + 1] for i in range(6) for x in (100 * i, 100 * i + 1)]
    assert sorted(numbers(every(buffer))) == expected[4:], "the last two episodes of each lane"
    buffer.add([piece("x", 1000, 2, cut=True), piece("y", 2000, 3, cut=False)])
    whole = ReplayBuffer(tmp_path.with_name(tmp_path.name + "b"), 12, lanes=2, spare=8)
    for i in range(6):
        whole.add([piece(f"e{i}", 100 * i, 2, cut=False)])
    whole.add([piece("x", 1000, 2, cut=True), piece("y", 2000, 3, cut=False)])
    assert torch.equal(buffer.sample(99, 3).obs, whole.sample(99, 3).obs)


def test_what_is_wrong_with_the_files_is_named(tmp_path, monkeypatch):
    buffer = ReplayBuffer(tmp_path / "r", 12)
    buffer.add([piece("a", 0, 2, cut=False)])
    with pytest.raises(ReplayError, match=r"episode 'b' has obs \('float32', \(3,\)\); expected \('float32', \(1,\)\) as in the first"):
        buffer.add([piece("b", 0, 2, cut=False, shape=(3,))])
    with pytest.raises(ReplayError, match=r"found a buffer of .*'kept': 12.*, expected .*'kept': 99"):
        ReplayBuffer(tmp_path / "r", 99)
    file = tmp_path / "r" / "obs.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(ReplayError, match=r"obs.bin: found 44 bytes, expected 48"):
        ReplayBuffer(tmp_path / "r", 12)
    file.write_bytes(whole)
    head = tmp_path / "r" / "head.json"
    head.write_text(head.read_text().replace('"frames": 3', '"frames": 4'))
    with pytest.raises(ReplayError, match=r"head.json: its content does not have the SHA-256"):
        ReplayBuffer(tmp_path / "r", 12)
    head.write_text("{")
    with pytest.raises(ReplayError, match=r"head.json: found JSONDecodeError"):
        ReplayBuffer(tmp_path / "r", 12)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(replay.os, "posix_fallocate", full)
    with pytest.raises(ReplayError, match=r"12 frames of 21 bytes take 0 MB, which could not be had .*No space left.*--replay.size"):
        ReplayBuffer(tmp_path / "f", 12).add([piece("a", 0, 2, cut=False)])
    assert not (tmp_path / "f").exists()
    with pytest.raises(ReplayError, match=r"episode 'a': found no next_obs"):
        group = piece("a", 0, 2, cut=False)
        del group.episodes[0].segments[0].extras["next_obs"]
        ReplayBuffer(tmp_path / "g", 12).add([group])
    with pytest.raises(ValueError, match="start from 0 to size"):
        Replay(size=10, start=11)


def test_a_transition_of_pictures_takes_hardly_more_than_its_picture(tmp_path):
    buffer = ReplayBuffer(tmp_path, 400, spare=4)
    T = 100
    s = piece("a", 0, T, cut=False).episodes[0].segments[0]
    s.extras = {"obs": torch.zeros(T, 84, 84, 3, dtype=torch.uint8), "next_obs": torch.zeros(1, 84, 84, 3, dtype=torch.uint8)}
    for i in range(5):
        buffer.add([Group(TASK, [Episode(str(i), TASK, segments=[s])])])
    on_disk = sum(f.stat().st_size for f in Path(tmp_path).glob("*.bin"))
    assert on_disk == buffer.bytes
    assert on_disk / len(buffer.starts()[0]) <= 1.1 * 84 * 84 * 3
