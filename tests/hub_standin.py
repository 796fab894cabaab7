"""A hub of our own for one test: the few addresses of Hugging Face's HTTP interface that an upload uses, files kept in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was received: `files[repo][name]` bytes, `private[repo]`, `requests` as (method, path); `token` is the one that may write."""

    def __init__(self, token="hf_goodtoken123"):
        self.token, self.files, self.private, self.requests, self.large = token, {}, {}, [], {}
        self.refuse_commit = False
        self.endpoint = ""


@contextmanager
def hub():
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": state}))
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST

    def answer(self, body):
        status, content = self.route(self.path.partition("?")[0], body)
        self.hub.requests.append((self.command, self.path))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def route(self, path, body):
        hub = self.hub
        if m := re.fullmatch(r"/large/(\w{64})", path):
            assert hashlib.sha256(body).hexdigest() == m[1]
            hub.large[m[1]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return 401, {"error": f"Invalid token: {self.headers.get('Authorization')}"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if m := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/.*)?", path):
            return self.model(m[1], m[2] or "", body)
        if re.fullmatch(r"/[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", path):
            objects = json.loads(body)["objects"]
            for o in objects:
                o["actions"] = {"upload": {"href": f"{hub.endpoint}/large/{o['oid']}", "header": {}}}
            return 200, {"transfer": "basic", "objects": objects}
        return 404, {"error": f"nothing at {path}"}

    def create(self, asked):
        hub, repo = self.hub, f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            return 403, {"error": "You don't have the rights to create a model under the namespace others"}
        content = {"url": f"{hub.endpoint}/{repo}", "name": repo, "id": repo}
        if repo in hub.files:
            return 409, {**content, "error": "You already created this model repo"}
        hub.files[repo], hub.private[repo] = {}, asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, content

    def model(self, repo, action, body):
        hub = self.hub
        if repo not in hub.files:
            return 404, {"error": "Repository not found"}
        if action == "/preupload/main":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                for f in asked
            ]
            return 200, {"files": modes}
        if action == "/commit/main":
            if hub.refuse_commit:
                return 500, {"error": "out of order"}
            self.commit(repo, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{hub.endpoint}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40}
        return 200, {"id": repo, "private": hub.private[repo], "sha": "a" * 40, "tags": [], "siblings": []}

    def commit(self, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.large[value["oid"]]
