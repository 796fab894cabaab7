import asyncio
import contextlib
import http.client
import json
import threading

import pytest

from fovea.cli import main
from fovea.report.records import Reader
from fovea.report.view import App, opened
from fovea.rollout.http import listen, secret
from tests.report import fake_run


@contextlib.contextmanager
def served(folders, token="sesame"):
    """(app, port) of a page server in a thread."""
    app, ready, loop = App([Reader(f) for f in folders], token), threading.Event(), asyncio.new_event_loop()
    port = []

    async def start():
        server = await listen(app.handle, "127.0.0.1", 0, app.admit)
        port.append(server.sockets[0].getsockname()[1])
        app.door.at(f"http://127.0.0.1:{port[0]}")
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()))
    thread.start()
    ready.wait()
    try:
        yield app, port[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def get(port, path, token="sesame", method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture(scope="module")
def port(finished):
    with served([finished.path]) as (_, port):
        yield port


def test_nothing_without_the_token(port):
    for path in ("/", "/news?run=0", "/record?run=0&file=step-000001.jsonl&line=0", "/picture?run=0&name=0.png", "/?token=wrong"):
        assert get(port, path, token="")[0] == 401
    assert get(port, "/", token="other")[0] == 401


def test_the_token_becomes_a_cookie(port):
    status, headers, _ = get(port, "/?token=sesame", token="")
    assert (
        (status, headers["Location"]) == (303, "/") and "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    )
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers={"Cookie": "other=1; " + headers["Set-Cookie"].partition(";")[0]})
    answer = connection.getresponse()
    assert (
        answer.status == 200
        and "script-src 'sha256-" in answer.getheader("Content-Security-Policy")
        and answer.getheader("Cache-Control") == "no-store"
    )


def test_what_is_served(port, finished):
    news = json.loads(get(port, "/news?run=0&total=9&last=8&since=0")[2])
    assert len(news["rows"]) == 1 and set(news["index"]) == {f.name for f in finished.rollout_files()} and news["problems"] == []
    again = json.loads(get(port, f"/news?run=0&total=9&last=8&since={news['revision']}")[2])
    assert again["index"] == {}
    record = json.loads(get(port, "/record?run=0&file=step-000001.jsonl&line=1")[2])
    assert len(record["episodes"]) == 3 and record["split"] == "train"
    status, headers, body = get(port, f"/picture?run=0&name={record['images'][0]['file']}")
    assert status == 200 and headers["Content-Type"] == "image/png" and body.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/record?run=1&file=step-000001.jsonl&line=0",
        "/record?run=0&file=../config.json&line=0",
        "/record?run=0&file=step-000001.jsonl&line=99",
        "/record?run=0&file=step-000001.jsonl&line=x",
        "/picture?run=0&name=../../config.json",
        "/news?run=-1",
        "/config.json",
        "/../config.json",
    ],
)
def test_nothing_else_is_served(port, path):
    status, _, body = get(port, path)
    assert status == 404 and b"GRPO" not in body
    assert get(port, "/", method="POST")[0] == 404


def test_a_damaged_file_is_named(tmp_path):
    run = fake_run.write(tmp_path, steps=2, eval_every=2, rollout_every=1, tasks=4, group_size=2)
    with served([run.path]) as (_, port):
        get(port, "/news?run=0")
        (run.rollouts_path / "step-000001.jsonl").write_bytes(b"{\xff}\n")
        news = json.loads(get(port, "/news?run=0&since=0")[2])
        assert news["index"]["step-000001.jsonl"] == [] and len(news["index"]["step-000002.jsonl"]) == 4
        assert news["problems"] == ["rollouts/step-000001.jsonl, line 1: not UTF-8 text (invalid start byte at byte 1)"]


def test_a_comparison_follows_its_runs(tmp_path):
    a, b = (fake_run.write(tmp_path / n, steps=2, eval_every=2, rollout_every=2, tasks=4, group_size=2) for n in "ab")
    with served([a.path, b.path]) as (_, port):
        b.log(3, {"reward/mean": 1.0})
        news = json.loads(get(port, "/news?run=1&total=3&last=2")[2])
        assert news["compare"]["runs"][1]["steps"] == 3 and json.loads(get(port, "/news?run=1&total=4&last=3")[2])["compare"] is None


def test_other_machines_need_a_token():
    with pytest.raises(ValueError, match=r"--token none with --host 0.0.0.0: other machines could read these runs"):
        secret("none", "0.0.0.0", "read these runs")
    assert secret("none", "127.0.0.1", "") == "" and secret("own", "0.0.0.0", "") == "own" and len(secret("", "127.0.0.1", "")) > 20


def test_what_is_no_run_is_said(tmp_path, capsys, finished):
    with pytest.raises(FileNotFoundError, match="expected a run folder, found nothing there"):
        opened([tmp_path / "gone"])
    (tmp_path / "notes.txt").touch()
    assert main(["view", str(tmp_path)]) == 1 and "found notes.txt" in capsys.readouterr().err
    assert main(["view", str(finished.path), "--host", "0.0.0.0", "--token", "none"]) == 1 and "read these runs" in capsys.readouterr().err


def test_the_page_can_be_saved(finished, tmp_path, capsys):
    assert main(["view", str(finished.path), "--save", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").read_text() == (finished.path / "report.html").read_text()
