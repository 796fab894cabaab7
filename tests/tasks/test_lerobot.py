"""Sets of robot episodes: what is written is read back, from the middle, after kills, and bad files are named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fovea.tasks.lerobot import LeRobot, Writer
from fovea.tasks.lerobot.files import VIDEO, filled, path_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("av")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
FEATURES = {
    "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "observation.state": {"dtype": "float64", "shape": [2, 3]},
    "next.done": {"dtype": "bool", "shape": [1]},
    "note": {"dtype": "string", "shape": [1]},
    TOP: {"dtype": "video", "shape": [32, 48, 3]},
    WRIST: {"dtype": "image", "shape": [5, 7, 3]},
}


def made(number: int, T: int) -> dict:
    """Frame t of the video is grey, 40 for each episode and 4 for each frame."""
    rng = np.random.default_rng(number)
    grey = (40 * number + 4 * np.arange(T)).astype(np.uint8)
    return {
        "action": rng.normal(size=(T, 2)).astype(np.float32),
        "observation.state": rng.normal(size=(T, 2, 3)),
        "next.done": np.arange(T) == T - 1,
        "note": np.array([f"{number}.{t}" for t in range(T)], dtype=object),
        TOP: np.broadcast_to(grey[:, None, None, None], (T, 32, 48, 3)).copy(),
        WRIST: rng.integers(0, 256, (T, 5, 7, 3), dtype=np.uint8),
    }


LENGTHS = (4, 1, 7)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    writer = Writer(folder, FEATURES, fps=10, robot="arm")
    for i, T in enumerate(LENGTHS):
        assert writer.add(f"task {i % 2}", made(i, T)) == i
    return folder


@pytest.fixture
def copied(kept, tmp_path):
    import shutil

    return Path(shutil.copytree(kept, tmp_path / "set"))


def test_what_was_written_is_read(kept):
    found = LeRobot(kept)
    assert (len(found), found.frames, found.fps, found.cameras) == (3, 12, 10.0, (TOP, WRIST))
    assert found.tasks == ["task 0", "task 1"]
    for i, T in enumerate(LENGTHS):
        got, given = found.episode(i), made(i, T)
        assert (got.task, got.episode, len(got)) == (f"task {i % 2}", i, T)
        for name in ("action", "observation.state", WRIST):
            assert got.fields[name].dtype == given[name].dtype
            np.testing.assert_array_equal(got.fields[name], given[name])
        assert got.fields["note"].tolist() == given["note"].tolist()
        assert got.fields["next.done"][:, 0].tolist() == given["next.done"].tolist()
        assert np.abs(got.fields[TOP].astype(int) - given[TOP]).max() <= 3, "H.264 is lossy, but not by a frame"


def test_a_window_is_found_in_the_middle_of_its_files(kept):
    got = LeRobot(kept).episode(2, 3, 5, names=["action", TOP])
    np.testing.assert_array_equal(got.fields["action"], made(2, 7)["action"][3:5])
    assert [float(x.mean()) for x in got.fields[TOP]] == pytest.approx([92, 96], abs=1.5)
    assert set(got.fields) == {"action", TOP} and got.start == 3
    assert [LeRobot(kept).locate(i) for i in (0, 3, 4, 5, 11)] == [(0, 0), (0, 3), (1, 0), (2, 0), (2, 6)]


def test_the_layout_is_the_published_one(kept):
    info = json.loads((kept / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:3"}
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["features"]["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    rows = pq.read_table(kept / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    ends = [f"videos/{TOP}/{k}_timestamp" for k in ("from", "to")]
    spans = [tuple(r[k] for k in ("dataset_from_index", "dataset_to_index", *ends)) for r in rows]
    assert spans == [(0, 4, 0.0, 0.4), (4, 5, 0.4, 0.5), (5, 12, 0.5, 1.2)]
    data = pq.read_table(kept / "data/chunk-000/file-000.parquet")
    assert data.column("timestamp").to_pylist()[:5] == pytest.approx([0, 0.1, 0.2, 0.3, 0])
    assert data.column("index").to_pylist() == list(range(12)) and data.column("task_index").to_pylist() == [0] * 4 + [1] + [0] * 7
    assert pq.ParquetFile(kept / "data/chunk-000/file-000.parquet").metadata.num_row_groups == 3, "an episode can be read alone"
    pandas = pytest.importorskip("pandas")
    assert pandas.read_parquet(kept / "meta/tasks.parquet").loc["task 1"].task_index == 1


def test_statistics_of_the_set_are_those_of_all_its_frames(kept):
    every = np.concatenate([made(i, T)["action"] for i, T in enumerate(LENGTHS)])
    stats = LeRobot(kept).stats["action"]
    assert stats["mean"] == pytest.approx(every.mean(0), rel=1e-5) and stats["std"] == pytest.approx(every.std(0), rel=1e-5)
    assert stats["min"] == pytest.approx(every.min(0)) and stats["count"] == [12]
    assert np.shape(LeRobot(kept).stats[TOP]["mean"]) == (3, 1, 1)


def test_a_set_goes_on_in_new_files_and_files_end_when_they_are_full(copied):
    writer = Writer(copied, FEATURES, fps=10, data_mb=1e-6, video_mb=1e-6)
    assert [writer.add("another", made(i, 3)) for i in (3, 4)] == [3, 4]
    found = LeRobot(copied)
    assert [r["data/file_index"] for r in found.rows] == [0, 0, 0, 1, 2]
    assert [r[f"videos/{TOP}/file_index"] for r in found.rows] == [0, 0, 0, 1, 2]
    assert found.tasks[2] == "another" and found.info["robot_type"] == "arm"
    np.testing.assert_array_equal(found.episode(4).fields["action"], made(4, 3)["action"])
    assert np.abs(found.episode(4).fields[TOP].astype(int) - made(4, 3)[TOP]).max() <= 3


def test_an_episode_that_was_not_finished_is_not_there(copied, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        Writer(copied, FEATURES, fps=10).add("lost", made(7, 5))
    monkeypatch.undo()
    assert len(LeRobot(copied)) == 3
    assert Writer(copied, FEATURES, fps=10).add("kept", made(5, 2)) == 3
    again = LeRobot(copied)
    assert again.tasks == ["task 0", "task 1", "kept"]
    np.testing.assert_array_equal(again.episode(3).fields["action"], made(5, 2)["action"])


@pytest.mark.parametrize("killed", [True, False])
def test_a_set_goes_on_behind_an_unfinished_episode_of_an_open_file(tmp_path, monkeypatch, killed):
    """Rows of the third episode already stood in the files that hold the first two."""
    features = {"a": {"dtype": "float32", "shape": [1]}}

    def episode(value, T):
        return {"a": np.full(T, value)}

    writer = Writer(tmp_path, features, 10)
    writer.add("t", episode(0, 3))
    writer.add("t", episode(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_commit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            writer.add("t", episode(99, 5))
    again = Writer(tmp_path, features, 10) if killed else writer
    again.add("t", episode(2, 2))
    again.add("t", episode(3, 4))
    assert [(e.fields["a"][0, 0], len(e)) for e in LeRobot(tmp_path)] == [(0, 3), (1, 3), (2, 2), (3, 4)]
    files = sorted((tmp_path / "data").rglob("*.parquet"))
    assert [i for f in files for i in pq.read_table(f).column("index").to_pylist()] == list(range(12)), (
        "a reader that counts rows finds its frames"
    )
    assert pq.ParquetFile(tmp_path / "data/chunk-000/file-000.parquet").metadata.num_row_groups == 2


def test_files_may_be_links(kept, tmp_path):
    """The cache of the Hugging Face Hub keeps them elsewhere."""
    for file in (f for f in kept.rglob("*") if f.is_file()):
        link = tmp_path / file.relative_to(kept)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    got = LeRobot(tmp_path).episode(2)
    np.testing.assert_array_equal(got.fields["action"], made(2, 7)["action"])
    assert got.fields[TOP].shape == (7, 32, 48, 3)


KILLED = """
import sys
import numpy as np
from fovea.tasks.lerobot import Writer
w = Writer(sys.argv[1], {"a": {"dtype": "float32", "shape": [1]}, "c": {"dtype": "video", "shape": [16, 16, 3]}}, 10)
for i in range(10**6):
    w.add("t", {"a": np.full(3, len(w.rows)), "c": np.full((3, 16, 16, 3), len(w.rows), np.uint8)})
    print(i, flush=True)
"""


def test_a_kill_leaves_whole_episodes(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        time.sleep(0.01 * (os.getpid() % 7))
        process.send_signal(signal.SIGKILL)
    found = LeRobot(tmp_path)
    assert len(found) >= len(said)
    writer = Writer(tmp_path, {"a": {"dtype": "float32", "shape": [1]}, "c": {"dtype": "video", "shape": [16, 16, 3]}}, 10)
    assert writer.add("t", {"a": np.full(3, len(found)), "c": np.full((3, 16, 16, 3), len(found), np.uint8)}) == len(found)
    for i, episode in enumerate(LeRobot(tmp_path)):
        assert (episode.fields["a"] == i).all() and np.abs(episode.fields["c"].astype(int) - i).max() <= 2


def test_wrong_fields_are_named_and_nothing_is_written(copied):
    writer, given = Writer(copied, FEATURES, fps=10), made(3, 3)
    for change, says in (
        ({"action": np.zeros((3, 5))}, r"episode 3, field 'action': found an array \(3, 5\), expected \(T, 2\)"),
        ({"action": np.full((3, 2), np.nan)}, "field 'action', frame 0: found a number that is not finite"),
        ({"action": np.zeros((2, 2))}, "expected the same number of frames in every field"),
        ({TOP: given[TOP].astype(float)}, "found pictures of float64, expected uint8"),
        ({"extra": np.zeros(3)}, "'extra' differs"),
    ):
        with pytest.raises(ValueError, match=says):
            writer.add("t", given | change)
    assert len(LeRobot(copied)) == 3
    with pytest.raises(ValueError, match="the same features"):
        Writer(copied, FEATURES, fps=20)


def changed(folder, **fields):
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_bad_files_are_named(copied):
    for fields, says in (
        ({"codebase_version": "v2.1"}, r"info.json, field 'codebase_version': found 'v2.1', expected 'v3.0'"),
        ({"fps": "ten"}, "field 'fps': found 'ten', expected int or float"),
        ({"total_episodes": 9}, "'total_episodes': found 9, expected 3"),
        ({"features": {"a": {"dtype": "float32", "shape": [1 << 40]}}}, "feature 'a'"),
        ({"features": {"a": {"dtype": "image", "shape": [8, 8]}}}, "expected three numbers"),
        ({"features": {"../a": {"dtype": "float32", "shape": [1]}}}, "no slashes"),
    ):
        before = (copied / "meta/info.json").read_text()
        changed(copied, **fields)
        with pytest.raises(ValueError, match=says):
            LeRobot(copied)
        (copied / "meta/info.json").write_text(before)
    changed(copied, data_path="../../{chunk_index}/{file_index}.parquet")
    with pytest.raises(ValueError, match="expected one inside the folder"):
        LeRobot(copied).episode(0)
    with pytest.raises(FileNotFoundError, match=r"meta/info\.json"):
        LeRobot(copied / "nowhere")


def test_damage_is_named(copied):
    film = copied / f"videos/{TOP}/chunk-000/file-000.mp4"
    film.write_bytes(film.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"file-000\.mp4"):
        LeRobot(copied).episode(0, names=[TOP])
    data = copied / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    column = table.column("frame_index").to_pylist()
    column[6] = 99
    pq.write_table(table.set_column(table.column_names.index("frame_index"), "frame_index", pa.array(column)), data)
    with pytest.raises(ValueError, match=r"file-000.parquet, row 6: frame_index is 99, expected 1"):
        LeRobot(copied).episode(2)
    pq.write_table(table.slice(0, 8), data)
    with pytest.raises(ValueError, match="found 8 rows, expected at least 12"):
        LeRobot(copied).episode(2)
    pq.write_table(table.drop_columns(["action"]), data)
    with pytest.raises(ValueError, match="found no column 'action'"):
        LeRobot(copied).episode(0)
    rows = copied / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(rows)
    name = f"videos/{TOP}/from_timestamp"
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array([0.0, 0.4, float("nan")])), rows)
    with pytest.raises(ValueError, match=r"file-000.parquet, row 2, field 'videos/.*/from_timestamp': found 'nan', expected a number"):
        LeRobot(copied)
    pq.write_table(table, rows)
    data.write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="is damaged"):
        LeRobot(copied).episode(0)


def test_a_film_that_is_too_short_is_named(copied):
    from fovea.video import write_clip

    write_clip(copied / f"videos/{TOP}/chunk-000/file-000.mp4", made(0, 6)[TOP], 10)
    with pytest.raises(ValueError, match=r"no frame at 0\.600 s, found 1 of 7 from 0\.500 s on"):
        LeRobot(copied).episode(2)


def test_paths_are_filled_and_nothing_else():
    assert filled(VIDEO, 2003, "cam") == "videos/cam/chunk-002/file-003.mp4"
    assert path_of("{chunk_index.__class__}/{x}", 0, 0) == "{chunk_index.__class__}/{x}"
