"""Pages as a browser shows them: headless Chromium, which `make system` installs.

Tests take the fixture `browser` (tests/conftest.py); without Chromium they are skipped, and counted.
"""

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPTIONS = (
    "--headless --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-default-apps "
    "--disable-sync --disable-dev-shm-usage --enable-logging=stderr"
).split()


@dataclass(frozen=True)
class Seen:
    """A page after its scripts ran.

    Attributes:
      dom: the document as HTML.
      console: what was written to the console, errors of scripts and refusals of the content policy among it.
      requests: addresses that the page itself asked for; files, data and what Chromium wants for itself are left out.
    """

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


@dataclass(frozen=True)
class Browser:
    """A Chromium program with a folder for its profiles and logs."""

    program: str
    folder: Path

    def look(self, address: str, wait_ms: int = 2000, picture: Path | None = None) -> Seen:
        """Open an address and let its scripts run for `wait_ms` of the page's time. `picture` gets a screenshot in place of `dom`.

        Names are looked up nowhere: only this machine's own 127.0.0.1 can be reached.
        """
        log = self.folder / "net.json"
        command = [
            self.program,
            *OPTIONS,
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--user-data-dir={self.folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            f"--log-net-log={log}",
            f"--virtual-time-budget={wait_ms}",
            *(["--dump-dom"] if picture is None else [f"--screenshot={picture}"]),
            address,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            out, errors = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the program of a distribution is often a script around the real one
        console = re.findall(r":CONSOLE[:(].*?\] (.*)", errors.decode(errors="replace"))
        return Seen(out.decode(errors="replace"), tuple(console), tuple(asked(json.loads(log.read_text()))))

    def look_at(self, file: Path, script: str = "", **options) -> Seen:
        """The page in `file`; `script` runs at its end, in a copy."""
        if script:
            text = file.read_text(encoding="utf-8")
            file = self.folder / "page.html"
            file.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        return self.look(file.resolve().as_uri(), **options)


def asked(log: dict) -> list[str]:
    """Addresses in a net log that a page asked for; what no page started has the initiator "not an origin"."""
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [e["params"] for e in log["events"] if e["type"] == started and "url" in e.get("params", {})]
    mine = [p["url"] for p in found if p.get("initiator") != "not an origin"]
    return [url for url in mine if not url.startswith(("file:", "data:", "blob:", "chrome"))]
