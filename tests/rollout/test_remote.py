"""The remote engine against servers in this process: same tokens, right weights, and what goes wrong in every way."""

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fovea import api
from fovea.batch import collate
from fovea.methods.grpo import GRPO
from fovea.report.metrics import batch_metrics
from fovea.rollout.engine import Engine
from fovea.rollout.http import Refused
from fovea.rollout.remote import Remote, RemoteEngine, RemoteError
from fovea.rollout.sampling import Sampling
from fovea.rollout.wire import BadAnswer, Peer, Question, openai
from fovea.trainer.update import prepare
from fovea.types import Context, Observation, Score, Task, user
from tests.rollout.fake_policy import EOS, IMAGE
from tests.rollout.served import SavedPolicy, answering, serving

QUICK = {"timeout_s": 20.0, "patience_s": 20.0}


def ask(name, images=0):
    pictures = tuple(Image.new("RGB", (4, 4), (i, 7, 0)) for i in range(images))
    return Task(id=name, source="toy", prompt=user(name, images), images=pictures)


TASKS = [ask("a"), ask("bb", 1), ask("cc", 2), ask("a")]


async def chat(task, policy, env):
    action = await policy.act(Observation(messages=task.prompt, images=task.images))
    await policy.act(Observation(messages=user(f"{len(action.token_ids)}", 0), append=True))
    await policy.act(Observation(messages=user("new", 1), images=(Image.new("RGB", (2, 2)),)), max_new_tokens=3)


def books(groups):
    """Everything of the segments but the log-probs."""
    for e in (e for g in groups for e in g.episodes):
        assert not e.error, e.error
    return [
        [(s.prefix.key, s.actions.tolist(), s.mask.tolist(), s.turn.tolist(), s.version.tolist(), e.stop) for s in e.segments]
        for g in groups
        for e in g.episodes
    ]


def behaviour(groups):
    return torch.cat([s.logp_behaviour for g in groups for e in g.episodes for s in e.segments])


def lost_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("protocol", ["openai", "sglang"])
@pytest.mark.parametrize("program", [None, chat])
def test_same_seeds_same_tokens_as_the_local_engine(protocol, program):
    kind = {"seed": 5} | ({} if program is None else {"program": program})
    sampling = Sampling(max_new_tokens=9, top_p=0.9, temperature=0.8, stop=(*"abcdefghijklmnop", "☃"), min_new_tokens=2)
    mine = SavedPolicy(3)
    mine.version = 4
    local = Engine(mine, **kind).rollout(TASKS, 3, sampling, Context(step=2), members=("greedy",), attempt=1)
    with serving(SavedPolicy(0)) as (url, app):
        engine = RemoteEngine(mine, Remote(url, protocol, **QUICK), max_rows=5, **kind)
        remote = engine.rollout(TASKS, 3, sampling, Context(step=2), members=("greedy",), attempt=1)
        assert books(remote) == books(local)
        assert app.policy.weight == 3
        assert app.generator.version == engine.version
    assert torch.allclose(behaviour(remote), behaviour(local), atol=1e-5)
    assert all(s.remote for g in remote for e in g.episodes for s in e.segments)
    assert engine.counts["updates"] == 1 and engine.counts["resent"] == 0
    assert len({stop for e in books(remote) for *_, stop in e} & {"eos", "stop", "length"}) >= 2


def test_no_server_is_asked_for_what_is_given():
    mine, told = SavedPolicy(3), [replace(ask("a"), answer="7"), replace(ask("b", 1), answer="17")]
    local = Engine(mine).rollout(told, 2, Sampling(max_new_tokens=25), members=("gold",))
    with serving(SavedPolicy(0)) as (url, _):
        engine = RemoteEngine(mine, Remote(url, **QUICK))
        remote = engine.rollout(told, 2, Sampling(max_new_tokens=25), members=("gold",))
    assert books(remote) == books(local) and all(g.episodes[-1].segments[0].remote for g in remote)
    assert engine.counts["tokens"] == sum(e.length for g in remote for e in g.episodes if e.role == "sample")


def test_members_of_a_group_are_asked_for_at_once():
    with serving(SavedPolicy()) as (url, _):
        engine = RemoteEngine(SavedPolicy(), Remote(url, **QUICK))
        engine.rollout([ask("a"), ask("b", 1)], 6, Sampling(max_new_tokens=4), members=("greedy",))
    assert engine.counts["requests"] == 4  # two prompts, sampled and greedy
    assert engine.counts["episodes"] == 14


def test_transparency_is_laid_on_white_as_in_the_local_engine():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    seen = []
    with serving(SavedPolicy()) as (url, app):
        encode = app.policy.encode
        app.policy.encode = lambda messages, images: seen.extend(images) or encode(messages, images)
        task = Task(id="a", source="toy", prompt=user("a", 1), images=(clear,))
        RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([task], 1, Sampling(max_new_tokens=2))
    assert seen[0].mode == "RGB" and seen[0].getpixel((0, 0)) == (255, 255, 255)


def test_new_weights_are_sent_once_per_version_and_old_folders_go(tmp_path):
    policy = SavedPolicy(1)
    with serving(SavedPolicy()) as (one, first), serving(SavedPolicy()) as (two, second):
        engine = RemoteEngine(policy, Remote(f"{one}, {two}/", weights=str(tmp_path), **QUICK), max_rows=4)
        for version in range(4):
            policy.version, policy.weight = version, 10 + version
            for _ in range(2):
                groups = engine.rollout([ask("a"), ask("b"), ask("c")], 2, Sampling(max_new_tokens=4))
                assert set(torch.cat([s.version for g in groups for e in g.episodes for s in e.segments]).tolist()) == {version}
            assert {first.policy.weight, second.policy.weight} == {10 + version}
        assert engine.counts["updates"] == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{engine.run}-2", f"{engine.run}-3"]


def test_weights_changed_behind_our_back_are_noticed_and_corrected():
    policy = SavedPolicy(1)
    expected = Engine(policy).rollout([ask("a")], 4, Sampling(max_new_tokens=6))
    with serving(SavedPolicy()) as (url, app):
        engine = RemoteEngine(policy, Remote(url, **QUICK))
        engine.rollout([ask("z")], 2, Sampling(max_new_tokens=2))
        answer = app.completions

        async def changed(request):
            app.policy.weight, app.generator.version = 99, "somebody-else"
            app.routes["POST", "/v1/completions"] = answer
            return await answer(request)

        app.routes["POST", "/v1/completions"] = changed
        groups = engine.rollout([ask("a")], 4, Sampling(max_new_tokens=6))
        assert books(groups) == books(expected)
        assert engine.counts["stale"] == 4 and engine.counts["updates"] == 2


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("protocol", ["openai", "sglang"])
def test_a_silent_server_that_was_started_again_between_rollouts_gets_the_weights(protocol, tells):
    """A server whose answers name no version: what it holds is asked once per rollout, or, where it cannot say, sent again."""
    held, log = {}, []

    async def remember(request):
        log.append(request.path)
        body = request.json() if request.body else {}
        if request.path in ("/weight_info", "/get_model_info"):
            if not tells:
                raise Refused(404, "no such route")
            return {"weight_version": held.get("version", "default")}
        held["version"] = body.get("new_version") or body.get("weight_version") or held.get("version")
        return {"success": True}

    own = ("/weight_info", "/get_model_info", "/update_weight_version", "/update_weights_from_disk")
    with fake_server(owner="vllm" if protocol == "openai" else "sglang", instead=dict.fromkeys(own, remember)) as url:
        engine = RemoteEngine(SavedPolicy(), Remote(url, protocol, **QUICK))
        for _ in range(2):
            engine.rollout([ask("a"), ask("b")], 2, Sampling(max_new_tokens=5))
        assert engine.counts["updates"] == (1 if tells else 2)
        held.clear()  # started again
        engine.rollout([ask("a"), ask("b")], 2, Sampling(max_new_tokens=5))
        assert engine.counts["updates"] == (2 if tells else 3)
    assert held["version"] == engine.version
    assert sum("info" in path for path in log) == 2


def test_a_server_that_never_takes_the_weights_is_refused():
    with serving(SavedPolicy()) as (url, app):
        app.policy.load_weights = lambda folder: None
        taken, app.generator.version = app.update_weights, "old"

        async def forgetful(request):
            reply = await taken(request)
            app.generator.version = "old"
            return reply

        app.routes["POST", "/update_weights_from_disk"] = forgetful
        with pytest.raises(RemoteError, match=r"answers with weights {'old'}, expected '.*-0' after they were sent 3 times"):
            RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([ask("a")], 2)


def test_a_server_that_cannot_load_the_weights_says_why():
    with serving(SavedPolicy()) as (url, app):

        def wrong(folder):
            raise ValueError(f"{folder}: tensor 'x' is (2,); expected (3,)")

        app.policy.load_weights = wrong
        with pytest.raises(RemoteError, match=r"weights were not loaded: ValueError: .*tensor 'x'"):
            RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([ask("a")], 2)


# -- servers that come and go -------------------------------------------------------------------------------------------------


def test_an_episode_in_flight_on_a_dead_server_goes_to_another():
    policy = SavedPolicy(2)
    tasks = [ask(f"t{i}") for i in range(6)]
    expected = Engine(policy).rollout(tasks, 2, Sampling(max_new_tokens=6))
    with serving(SavedPolicy()) as (good, _):
        dead = f"http://127.0.0.1:{lost_port()}"
        engine = RemoteEngine(policy, Remote(f"{dead},{good}", **QUICK), max_rows=4)
        groups = engine.rollout(tasks, 2, Sampling(max_new_tokens=6))
    assert books(groups) == books(expected)
    assert engine.counts["resent"] >= 2 and engine.counts["errors"] == 0


def test_a_server_that_comes_late_is_waited_for():
    port, policy, found = lost_port(), SavedPolicy(2), []
    engine = RemoteEngine(policy, Remote(f"http://127.0.0.1:{port}", **QUICK))
    thread = threading.Thread(target=lambda: found.append(engine.rollout([ask("a")], 4, Sampling(max_new_tokens=6))))
    thread.start()
    time.sleep(0.3)
    with serving(SavedPolicy(), port):
        thread.join(20)
    assert books(found[0]) == books(Engine(policy).rollout([ask("a")], 4, Sampling(max_new_tokens=6)))
    assert engine.counts["resent"] >= 4 and engine.counts["updates"] == 1 and engine.waits.seconds > 0.1


def test_patience_ends_with_the_reason():
    url = f"http://127.0.0.1:{lost_port()}"
    engine = RemoteEngine(SavedPolicy(), Remote(url, patience_s=0.3))
    with pytest.raises(RemoteError, match=f"no server has answered task 'a' for 0.3 s: {url}/v1/models: ConnectionRefusedError"):
        engine.rollout([ask("a")], 2)


def test_a_server_that_hangs_is_given_up_after_the_time_out():
    policy, calls = SavedPolicy(), []
    with serving(SavedPolicy()) as (url, app):
        original = app.completions

        async def slow_once(request):
            calls.append(1)
            if len(calls) == 1:
                await asyncio.sleep(30)
            return await original(request)

        app.routes["POST", "/v1/completions"] = slow_once
        engine = RemoteEngine(policy, Remote(url, timeout_s=0.5))
        groups = engine.rollout([ask("a")], 3, Sampling(max_new_tokens=4))
    assert books(groups) == books(Engine(policy).rollout([ask("a")], 3, Sampling(max_new_tokens=4)))
    assert engine.counts["resent"] == 3 and len(calls) == 2


def test_an_error_inside_the_server_is_tried_three_times_and_told():
    with serving(SavedPolicy()) as (url, app):

        async def broken(request):
            raise RuntimeError("out of memory")

        app.routes["POST", "/v1/completions"] = broken
        with pytest.raises(RemoteError, match=r"status 500: RuntimeError: out of memory \(3 times, task 'a'\)"):
            RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([ask("a")], 2)


def test_the_token_is_asked_for(monkeypatch):
    with serving(SavedPolicy(), token="right") as (url, _):
        monkeypatch.setenv("FOVEA_TOKEN", "wrong")
        with pytest.raises(RemoteError, match=r"status 401: .*expected the server's token in the environment variable FOVEA_TOKEN"):
            RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([ask("a")], 2)
        monkeypatch.setenv("FOVEA_TOKEN", "right")
        RemoteEngine(SavedPolicy(), Remote(url, **QUICK)).rollout([ask("a")], 2, Sampling(max_new_tokens=2))


def test_servers_sleep_between_rollouts():
    for protocol in ("openai", "sglang"):
        with serving(SavedPolicy()) as (url, app):
            engine = RemoteEngine(SavedPolicy(), Remote(url, protocol, sleep=True, **QUICK))
            for _ in range(2):
                engine.rollout([ask("a")], 2, Sampling(max_new_tokens=2))
                assert app.asleep
            assert app.policy.counts["forgotten"] == 2


def test_a_server_that_goes_before_it_sleeps_costs_no_answer():
    with serving(SavedPolicy()) as (url, app):

        async def busy(_):
            raise Refused(503, "going down")

        app.routes["POST", "/sleep"] = busy
        groups = RemoteEngine(SavedPolicy(), Remote(url, sleep=True, **QUICK)).rollout([ask("a")], 2, Sampling(max_new_tokens=2))
    assert books(groups)


def reply_to(url, head, body=b""):
    """Status and JSON of the answer to raw bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as s:
        s.sendall(head.replace("\n", "\r\n").encode() + body)
        answer = b"".join(iter(lambda: s.recv(4096), b""))
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def sent(url, head, body=b""):
    """Status and message of the refusal of raw bytes."""
    status, reply = reply_to(url, head, body)
    return status, reply["error"]["message"]


def test_a_body_is_read_only_after_the_token():
    with serving(SavedPolicy(), token="right") as (url, _):
        for route, status in (("/generate", 401), ("/nothing", 404)):
            assert sent(url, f"POST {route} HTTP/1.1\nContent-Length: 1000000\n\n")[0] == status  # not one byte of it was sent
        head = "POST /generate HTTP/1.1\nAuthorization: Bearer right\n"
        assert sent(url, f"{head}Content-Length: {1 << 40}\n\n")[0] == 413
        assert sent(url, f"{head}Transfer-Encoding: chunked\n\n")[0] == 411


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": [3, 4], "max_tokens": 63}, "2 tokens of prompt and 63 to come; the context holds 64"),
        ({"prompt": [3, 4], "prompt_length": 3}, "prompt_length = 3 of 2 tokens"),
        ({"prompt": [3, 4], "prompt_length": -1}, "prompt_length = -1 of 2 tokens"),
    ],
)
def test_what_the_context_does_not_hold_is_refused_before_it_is_generated(body, message):
    raw = json.dumps(body).encode()
    with serving(SavedPolicy(), max_context=64) as (url, _):
        status, found = sent(url, f"POST /v1/completions HTTP/1.1\nContent-Length: {len(raw)}\n\n", raw)
    assert status == 400 and message in found


def test_log_probs_come_as_objects_or_as_a_plain_list_of_the_same_numbers():
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "seed": 7, "temperature": 1.0, "logprobs": True}
    with serving(SavedPolicy()) as (url, _):
        forms = []
        for more in ({}, {"flat_logprobs": True}):
            raw = json.dumps(body | more).encode()
            status, reply = reply_to(url, f"POST /v1/chat/completions HTTP/1.1\nContent-Length: {len(raw)}\n\n", raw)
            assert status == 200, reply
            forms.append(reply["choices"][0]["logprobs"])
    objects, flat = forms
    assert [x["logprob"] for x in objects["content"]] == flat["token_logprobs"]
    assert flat["token_logprobs"] and set(flat) == {"token_logprobs"}


def test_only_the_request_whose_prompt_fails_fails():
    with serving(SavedPolicy()) as (url, app):
        prefill = app.policy.prefill

        def fragile(prefixes, suffixes, room):
            if any(66 in p.data for p in prefixes):
                raise RuntimeError("out of memory")
            return prefill(prefixes, suffixes, room)

        app.policy.prefill = fragile
        app.generator.pause(True)  # so that all three are admitted at once
        asked = {65: None, 66: None, 67: None}

        def post(token):
            raw = json.dumps({"prompt": [token], "max_tokens": 3, "n": 2}).encode()
            head = f"POST /v1/completions HTTP/1.1\nContent-Length: {len(raw)}\n\n"
            asked[token] = reply_to(url, head, raw)

        threads = [threading.Thread(target=post, args=(token,)) for token in asked]
        for t in threads:
            t.start()
        while len(app.generator.waiting) < 3:
            time.sleep(0.01)
        app.generator.pause(False)
        for t in threads:
            t.join(10)
    assert {token: status for token, (status, _) in asked.items()} == {65: 200, 66: 500, 67: 200}
    assert asked[66][1]["error"]["message"] == "RuntimeError: out of memory"
    assert len(asked[65][1]["choices"]) == 2


@pytest.mark.parametrize("folder", [None, "", 7])
def test_weights_without_a_folder_are_refused(folder):
    raw = json.dumps({"weight_version": "x", **({} if folder is None else {"model_path": folder})}).encode()
    with serving(SavedPolicy()) as (url, app):
        status, found = sent(url, f"POST /update_weights_from_disk HTTP/1.1\nContent-Length: {len(raw)}\n\n", raw)
        assert app.generator.version == "initial"
    assert status == 400 and found == f"model_path is {folder!r}; expected the folder of a checkpoint"


# -- answers that cannot be trained on ----------------------------------------------------------------------------------------


def fake_server(alter=lambda reply, path: reply, owner="vllm", log=None, instead=()):
    """A scripted server: its completions are two tokens and the end of sequence."""

    async def handle(request):
        body = request.json() if request.body else {}
        if log is not None:
            log.append((request.path, request.query, body))
        if request.path in instead:
            return await instead[request.path](request)
        if request.path == "/v1/models":
            return {"data": [{"id": "m", "owned_by": owner}]}
        if request.path in ("/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up"):
            return {}
        if request.path == "/update_weights_from_disk":
            return {"success": True}
        ids, logps = [65, 66, EOS], [-1.0, -2.0, -0.5]
        if request.path == "/v1/completions":
            row = {"token_ids": ids, "logprobs": {"token_logprobs": logps}, "prompt_token_ids": body["prompt"], "finish_reason": "stop"}
            return alter({"choices": [{"index": i, **row} for i in range(body["n"])]}, request.path)
        if request.path == "/generate":
            triples = [[x, i, None] for x, i in zip(logps, ids, strict=True)]
            meta = {"output_token_logprobs": triples, "finish_reason": {"type": "stop"}, "prompt_tokens": len(body["input_ids"])}
            rows = [{"meta_info": dict(meta)} for _ in range(body["sampling_params"]["n"])]
            return alter(rows if len(rows) > 1 else rows[0], request.path)
        raise Refused(404, f"no route {request.path}")

    return answering(handle)


def roll(url, protocol="openai", n=2, sampling=Sampling(max_new_tokens=5)):  # noqa: B008 - frozen
    engine = RemoteEngine(SavedPolicy(), Remote(url, protocol, timeout_s=5, patience_s=0.5))
    return engine, engine.rollout([ask("a")], n, sampling)


def test_vllm_is_spoken_to_in_its_own_fields():
    log = []
    with fake_server(log=log) as url:
        engine, groups = roll(url, sampling=Sampling(max_new_tokens=5, temperature=0.7, top_k=3, stop=("x",)))
    assert [path for path, *_ in log] == [
        "/v1/models",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/v1/completions",
    ]
    rpc, completion = log[1][2], log[4][2]
    assert rpc["method"] == "reload_weights" and rpc["kwargs"]["weights_path"].endswith(engine.version)
    assert log[3][2] == {"new_version": engine.version}
    assert -(2**63) <= completion.pop("seed") <= 2**63 - 3
    assert completion == {
        "model": "m",
        "prompt": [10, 97, 124],
        "n": 2,
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 3,
        "min_tokens": 0,
        "stop": ["x"],
        "stop_token_ids": [EOS],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logit_bias": {str(IMAGE): -100.0},
        "logprobs": 1,
        "return_token_ids": True,
    }
    (segment,) = groups[0].episodes[1].segments
    assert segment.actions.tolist() == [65, 66, EOS] and segment.logp_behaviour.tolist() == [-1.0, -2.0, -0.5]


def test_sglang_is_spoken_to_in_its_own_fields():
    log = []
    with fake_server(log=log, owner="sglang") as url:
        engine, _ = roll(url, "sglang")
    update, asked = log[1], log[2][2]
    assert update[0] == "/update_weights_from_disk" and update[2]["weight_version"] == engine.version
    assert asked["input_ids"] == [10, 97, 124] and asked["return_logprob"] and "image_data" not in asked
    assert "sampling_seed" not in asked["sampling_params"]  # one seed for n samples would make them equal
    assert asked["sampling_params"]["top_k"] == -1 and asked["sampling_params"]["no_stop_trim"]


def wrong(**change):
    def alter(reply, _):
        reply["choices"][0] |= change
        return reply

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda r, p: {"choices": r["choices"][:1]}, "choices is 1 rows; expected 2"),
        (lambda r, p: {}, "choices is NoneType; expected list"),
        (lambda r, p: [r], "choices is NoneType; expected list"),
        (lambda r, p: {"choices": ["a", "b"]}, r"choices\[0\] is str; expected an object"),
        (wrong(index=None), "index is NoneType; expected int"),
        (wrong(prompt_token_ids=3), "prompt_token_ids is int; expected list"),
        (wrong(weight_versions=["a"]), r"weight_versions\[0\] is str; expected an object"),
        (wrong(logprobs={"content": ["a"]}), "logprob is NoneType; expected a number"),
        (wrong(token_ids=None), "token_ids is NoneType; expected list .*docs/remote.md"),
        (wrong(token_ids=[1, 2, 3, 4, 5, EOS]), "token_ids is 6 values; expected 1 to 5 integers"),
        (wrong(token_ids=["a", "b", "c"]), "token_ids is 3 values; expected 1 to 5 integers"),
        (wrong(token_ids=[65, IMAGE, EOS]), "expected no image placeholder .*logit_bias"),
        (wrong(token_ids=[EOS, 65, EOS]), "an end of sequence inside"),
        (wrong(token_ids=[65, 66, 67]), "finish_reason is 'stop'; expected 'length', as no end of sequence came"),
        (wrong(logprobs={"token_logprobs": [-1.0]}), "logprobs is .*expected 3 finite numbers"),
        (wrong(logprobs={"token_logprobs": [-1.0, None, 0.0]}), "logprobs is"),
        (wrong(logprobs={"token_logprobs": [-1.0, 0.5, 0.0]}), "of at most 0"),
        (wrong(logprobs=None), "logprobs is NoneType"),
        (wrong(prompt_token_ids=[10, 98, 124]), "3 tokens; expected 3, first difference at 1 .*another checkpoint"),
    ],
)
def test_a_malformed_answer_is_named(alter, message):
    with fake_server(alter) as url, pytest.raises(BadAnswer, match=f"{url}/v1/completions, task 'a': .*{message}"):
        roll(url)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: None, "the answer is NoneType; expected a list"),
        (lambda rows: [rows[0], 7], r"the answer\[1\] is int; expected an object"),
        (lambda rows: rows[0]["meta_info"].update(output_token_logprobs=[-1.0, -2.0]), "output_token_logprobs is -1.0 among them"),
        (lambda rows: rows[0]["meta_info"].update(output_token_logprobs=[[-1.0]]), r"output_token_logprobs is \[-1.0\] among them"),
        (lambda rows: rows[0]["meta_info"].update(finish_reason="stop"), "finish_reason is str; expected dict"),
    ],
)
def test_a_malformed_answer_is_named_on_sglang(change, message):
    def alter(rows, _):
        found = change(rows)
        return rows if isinstance(rows[0]["meta_info"], dict) and found is None and "NoneType" not in message else found

    with fake_server(alter, "sglang") as url, pytest.raises(BadAnswer, match=f"{url}/generate, task 'a': .*{message}"):
        roll(url, "sglang")


def test_a_prompt_of_another_length_is_named_on_sglang():
    def alter(rows, _):
        rows[1]["meta_info"]["prompt_tokens"] = 99
        return rows

    with fake_server(alter, "sglang") as url, pytest.raises(BadAnswer, match=r"meta_info.prompt_tokens is 99; expected 3"):
        roll(url, "sglang")


def test_an_aborted_request_is_asked_again():
    seen = []

    def alter(reply, path):
        seen.append(path)
        if len(seen) == 1:
            reply["choices"][1]["finish_reason"] = "abort"
        return reply

    with fake_server(alter) as url:
        engine, groups = roll(url)
    assert engine.counts["resent"] == 2 and not any(e.error for e in groups[0].episodes)


def test_something_that_is_no_generation_server_is_named():
    async def handle(request):
        return {"hello": "world"}

    with answering(handle) as url, pytest.raises(RemoteError, match="expected a list of models: is this a generation server"):
        roll(url)


# -- learning from it ---------------------------------------------------------------------------------------------------------


class Trainer:
    """A learner whose log-prob of every unit is −1."""

    def evaluate(self, batch, want, variant="policy"):
        assert want == {"logp"}
        return {"logp": torch.full(batch.mask_BT.shape, -1.0)}


def test_old_and_behaviour_log_probs_are_kept_apart_and_the_mismatch_is_measured():
    with fake_server() as url:
        _, groups = roll(url)
    for i, e in enumerate(groups[0].episodes):
        e.score = Score(float(i))
    batch = prepare(Trainer(), GRPO(beta=0.0, behaviour="token"), groups, Context(), 8)
    assert batch.logp_old_BT.tolist() == [[-1.0] * 3] * 2
    assert batch.logp_behaviour_BT.tolist() == [[-1.0, -2.0, -0.5]] * 2
    metrics = batch_metrics(batch)
    e1, e2 = 2.718281828, 0.606530660  # exp(1), exp(-0.5): trainer over sampler
    assert metrics["mismatch/mean_nats"] == pytest.approx(0.5)
    assert metrics["mismatch/max_nats"] == pytest.approx(1.0)
    assert metrics["mismatch/kl"] == pytest.approx(((e1 - 2) + (e2 - 0.5)) / 3)
    assert metrics["mismatch/ess"] == pytest.approx((1 + e1 + e2) ** 2 / (3 * (1 + e1**2 + e2**2)))
    assert "policy/truncation_nats" not in metrics


def test_local_rollouts_are_left_as_they_are():
    groups = Engine(SavedPolicy()).rollout([ask("a")], 2, Sampling(max_new_tokens=4))
    for e in groups[0].episodes:
        e.score = Score(0.0)
    assert not collate(groups).remote
    assert "policy/truncation_nats" in batch_metrics(collate(groups))


def test_the_recipe_names_the_engine_and_switches_the_correction_on():
    assert api.resolve("grpo").engine == "local"
    recipe = api.resolve("grpo", engine="http://a:1, http://b:2/", method="dapo")
    assert recipe.engine.urls == ("http://a:1", "http://b:2") and recipe.method.behaviour == "token"
    assert api.resolve(recipe, engine__correct="sequence", method__behaviour="none").method.behaviour == "sequence"
    assert api.resolve("grpo", engine=Remote("http://a:1", correct="none")).method.behaviour == "none"
    assert api.resolve("grpo", engine="http://a:1", method__behaviour="sequence-mask").method.behaviour == "sequence-mask"
    moved = api.resolve(recipe, engine=Remote("http://c:3"))
    assert moved.fingerprint() == recipe.fingerprint()  # a run may go on with other servers
    assert json.dumps(recipe.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "here"}, "engine.url = 'here'; expected addresses like"),
        ({"engine": Remote, "url": "http://a", "protocol": "grpc"}, "engine.protocol = 'grpc'; expected one of openai, sglang"),
        ({"engine": Remote, "url": "http://a", "timeout_s": 0}, "engine.timeout_s = 0"),
        ({"engine": Remote, "url": "http://me:secret@a:1"}, "engine.url holds a user or password; expected neither"),
        ({"engine": 7}, 'engine = 7, expected "local", a fovea.rollout.remote.Remote or'),
    ],
)
def test_wrong_settings_are_explained(change, message):
    kind = change.pop("engine")
    with pytest.raises(ValueError, match=message):
        api.resolve("grpo", engine=kind(**change) if kind is Remote else kind)


def test_a_chat_whose_answer_is_begun_is_gone_on_with():
    def asked(*messages):
        q = Question("t", [1], [1], messages, ["data:image/png;base64,AA=="], [], Sampling(), [4], 8, [0], [])
        return openai(q, Peer()).payload

    begun = asked(*user("Where?"), {"role": "assistant", "content": "<think>"})
    assert (begun["add_generation_prompt"], begun["continue_final_message"]) == (False, True)
    assert begun["messages"][-1] == {"role": "assistant", "content": "<think>"}
    assert not {"add_generation_prompt", "continue_final_message"} & set(asked(*user("Where?")))
