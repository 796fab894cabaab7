"""A generation server inside the test process, and a fake policy whose weights are one number that can be saved and served."""

import asyncio
import contextlib
import json
import threading
from pathlib import Path

from fovea.rollout.http import listen
from fovea.serve import App
from tests.rollout.fake_policy import IMAGE, FakePolicy, random_logits


class SavedPolicy(FakePolicy):
    """Its logits depend on `weight`, which `save` and `load_weights` pass on."""

    def __init__(self, weight=0):
        super().__init__(lambda sequence: random_logits([self.weight, *sequence]))
        self.weight = weight

    def prompt_ids(self, prefix):
        return list(prefix.data)

    def compact_ids(self, messages):
        return self.flat(messages)

    def encode(self, messages, images):
        whole = [m if isinstance(m["content"], list) else {**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return super().encode(whole, images)

    def encode_ids(self, ids, images):
        prefix = super().encode([], images) if not images else None
        if ids.count(IMAGE) != len(images):
            raise ValueError(f"{ids.count(IMAGE)} placeholders for {len(images)} images")
        key = repr((list(ids), [image.tobytes() for image in images]))
        return type(prefix or super().encode([], ()))(key=key, data=list(ids), length=len(ids))

    def save(self, folder, merged=False):
        assert merged, "servers take whole weights"
        Path(folder).mkdir(parents=True)
        (Path(folder) / "weight.json").write_text(json.dumps(self.weight))

    def load_weights(self, folder):
        self.weight = json.loads((Path(folder) / "weight.json").read_text())

    def forget(self):
        self.counts["forgotten"] += 1


@contextlib.contextmanager
def answering(handler, port=0, admit=None):
    """An HTTP server in a thread; gives its address."""
    loop, up, server = asyncio.new_event_loop(), threading.Event(), []

    async def begin():
        server.append(await listen(handler, "127.0.0.1", port, admit))
        up.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.create_task(begin())
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield f"http://127.0.0.1:{server[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server[0].close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextlib.contextmanager
def serving(policy, port=0, **options):
    """(address, app) of a served policy."""
    app = App(policy, "fake", **options)
    app.generator.thread.start()
    try:
        with answering(app.handle, port, app.admit) as url:
            yield url, app
    finally:
        app.generator.close()
