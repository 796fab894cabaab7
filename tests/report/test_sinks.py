import contextlib
import json
import sqlite3
import struct
import sys
import types

import pytest

import fovea
from fovea.cli import main
from fovea.recipe import Recipe
from fovea.report import sinks
from fovea.report.events import Events, crc32c
from fovea.report.run import RunFolder
from tests.runs import SHORT


def test_the_checksum_of_the_standard():
    # RFC 3720, B.4: the check value, and 32 bytes of zeros
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = Events(tmp_path, 0)
    events.log(0, {"a/b": 1.5, "nan": float("nan"), "großes": 1e300})
    events.log(300, {"a/b": -2.0, "long" * 100: 3.0})
    events.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("a/b")] == [(0, 1.5), (300, -2.0)]
    assert set(found.Tags()["scalars"]) == {"a/b", "long" * 100}


def test_events_are_written_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with RunFolder(tmp_path) as run:
        run.log(1, {"reward/mean": 0.5})
    (file,) = tmp_path.glob("events.out.tfevents.*")
    data, records = file.read_bytes(), 0
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        data, records = data[16 + length :], records + 1
    assert records == 3


kept_ones = []


class Kept:
    """A sink that keeps what it got, or fails when told to."""

    def __init__(self, folder, config):
        self.folder, self.config, self.rows, self.closed = folder, config, [], False
        kept_ones.append(self)

    def log(self, step, metrics):
        if "boom" in metrics:
            raise ConnectionError("no network")
        self.rows.append((step, dict(metrics)))

    def close(self):
        self.closed = True


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(sinks, "SINKS", {"wandb": ("json", Kept), "mlflow": ("no_such_package", Kept)})
    kept_ones.clear()
    return kept_ones


def test_a_sink_gets_the_numbers_and_the_settings(tmp_path, kept):
    with RunFolder(tmp_path, tensorboard=False, sinks=["wandb"]) as run:
        run.describe({"seed": 3}, ["fovea"])
        run.log(1, {"a": 1.0, "b": float("nan")})
        run.log(1, {"c": 2.0})
    (sink,) = kept
    assert sink.rows == [(1, {"a": 1.0}), (1, {"c": 2.0})] and sink.config == {"seed": 3} and sink.closed


def test_a_sink_that_fails_is_left_behind(tmp_path, kept, capsys):
    with RunFolder(tmp_path, tensorboard=False, sinks=["wandb"]) as run:
        run.describe({}, ["fovea"])
        for step, name in enumerate(("a", "boom", "c")):
            run.log(step, {name: 1.0})
    assert kept[0].rows == [(0, {"a": 1.0})] and len(kept) == 1
    assert capsys.readouterr().err.count("wandb failed and gets no more numbers of this run (ConnectionError: no network)") == 1
    assert [r["step"] for r in run.read_metrics()] == [0, 1, 2]


def test_what_is_missing_is_said_before_anything_runs(tmp_path, kept):
    with pytest.raises(ImportError, match=r'mlflow is not installed: pip install "fovea-rl\[mlflow\]"'):
        RunFolder(tmp_path, sinks=["mlflow"])
    with pytest.raises(ValueError, match="found 'wandv', expected any of wandb"):
        sinks.check(["wandv"])


def test_the_field_of_the_recipe(capsys):
    with pytest.raises(ValueError, match=r"sinks = \('x',\), expected any of \('wandb', 'trackio', 'mlflow'\)"):
        Recipe(sinks=("x",))
    assert Recipe(sinks=("wandb",)).fingerprint() == Recipe().fingerprint()
    assert main(["train", "--sinks", "wandb,x", "--dry-run"]) == 1 and "expected any of" in capsys.readouterr().err


def test_wandb_stays_offline_without_a_key(tmp_path, monkeypatch):
    asked = []
    run = types.SimpleNamespace(log=lambda metrics, step: asked.append((step, metrics)), finish=lambda: asked.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: asked.append(options) or run))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    sink = sinks.Wandb(tmp_path, {"seed": 1})
    sink.log(2, {"a": 1.0})
    sink.close()
    first = asked[0]
    assert first["mode"] == "offline" and first["dir"] == str(tmp_path) and first["resume"] == "allow" and first["config"] == {"seed": 1}
    assert asked[1:] == [(2, {"a": 1.0}), "finished"]
    monkeypatch.setenv("WANDB_API_KEY", "k")
    sinks.Wandb(tmp_path, {})
    assert "mode" not in asked[-1] and asked[-1]["id"] == first["id"]


def test_mlflow_in_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (1, 2):
        sink = sinks.MLflow(tmp_path, {"seed": 1, "method": {"type": "GRPO"}})
        sink.log(step, {"reward/mean": 0.5, "accuracy/ünï": 0.25})
        sink.close()
    (run,) = sink.client.search_runs([sink.client.get_experiment_by_name("fovea").experiment_id])
    assert run.data.params == {"seed": "1", "method.type": "GRPO"} and run.data.metrics["reward/mean"] == 0.5
    assert [m.step for m in sink.client.get_metric_history(run.info.run_id, "reward/mean")] == [1, 2]
    assert json.dumps(run.data.metrics).count("accuracy") == 1


def in_wandb(folder):
    """step -> its numbers, from the log of an offline run: blocks of 32 KiB with pieces of records, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as proto

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole of a record, or its last piece
            record = proto.Record.FromString(whole)
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                found[row["_step"]] = row
            whole = b""
    return found


def test_a_run_leaves_its_numbers_in_wandb_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    run = fovea.train("grpo", out=tmp_path, steps=2, sinks=("wandb",), **SHORT)
    found = in_wandb(tmp_path)
    assert len(run.metrics) == 2
    for row in run.metrics:
        for metric in ("reward/mean", "optim/grad_norm", "length/tokens", "time/step_s"):
            assert found[row["step"]][metric] == pytest.approx(row[metric])


def test_a_run_leaves_its_numbers_in_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    run = fovea.train("grpo", out=tmp_path, steps=2, sinks=("mlflow",), **SHORT)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("fovea").experiment_id])
    assert kept.info.status == "FINISHED" and kept.data.params["method.beta"] == "0.0"
    for metric in ("reward/mean", "optim/grad_norm"):
        assert [m.value for m in client.get_metric_history(kept.info.run_id, metric)] == pytest.approx([r[metric] for r in run.metrics])


def test_a_run_leaves_its_numbers_in_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    run = fovea.train("grpo", out=tmp_path / "run", steps=2, sinks=("trackio",), **SHORT)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "fovea.db")) as kept:
        found = {step: json.loads(metrics) for step, metrics in kept.execute("SELECT step, metrics FROM metrics ORDER BY step, id")}
    for row in run.metrics:
        assert found[row["step"]]["optim/grad_norm"] == pytest.approx(row["optim/grad_norm"])
