"""The support table, written by the tests that ran.

``@pytest.mark.support(FEATURE, ...)`` says that passing this test shows these features of `fovea.support.FEATURES`. The family is the
parameter (of the test or of its fixtures) that names one of `fovea.support.FAMILIES`, whole or before a "+", or ``family=NAME``. The
weights are small and random unless ``trained=True`` says otherwise.

    rm benchmarks/support.json; pytest -m support --support benchmarks/support.json

A file that is there is added to, so that tests can run in several places: what passes raises a cell, what fails makes it untested.
"""

import json
import signal
from pathlib import Path

import pytest

from fovea import doctor
from fovea.support import FAMILIES, FEATURES, LEVELS, known, read, table
from tests.browser import Browser

# a shell that starts the tests in the background has SIGINT ignored, which the runs under test would take over
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--support", metavar="FILE", help="write the support table of the marked tests that ran to FILE")


@pytest.fixture
def one_thread():
    """torch on one thread, as small models are fastest."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def browser(tmp_path_factory):
    """A headless browser (tests/browser.py)."""
    program = doctor.browser()
    if not program:
        pytest.skip("no Chromium; `make system` installs it")
    return Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def chromium():
    """Chromium, driven by Playwright: for what must be clicked, waited for, or measured. While it is open no other event loop can run."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright; the extra test brings it")
    program = doctor.browser()
    if not program:
        pytest.skip("no Chromium; `make system` installs it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def pytest_configure(config):
    config.addinivalue_line("markers", "support(*features, family=None, trained=False): passing shows these cells of the support table")
    file = config.getoption("--support")
    if file and not hasattr(config, "workerinput"):  # under xdist the workers' reports come to the one process that has no workerinput
        config.pluginmanager.register(Ledger(Path(file)), "support-ledger")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("support"):
            try:
                item.user_properties += [("support", cell) for cell in cells(mark, getattr(item, "callspec", None))]
            except ValueError as e:
                raise pytest.UsageError(f"{item.nodeid}: {e}") from None


def cells(mark, callspec):
    """[family, feature, level] for every feature that the mark names."""
    if not mark.args or set(mark.kwargs) - {"family", "trained"}:
        raise ValueError(f"support{mark.args}, {mark.kwargs}: expected at least one feature, and family= or trained= at most")
    family = mark.kwargs.get("family") or next(
        (f for p in (callspec.params.values() if callspec else ()) if isinstance(p, str) and (f := p.partition("+")[0]) in FAMILIES), None
    )
    if family is None:
        raise ValueError("the mark names no family= and no parameter is one of " + ", ".join(FAMILIES))
    level = LEVELS[2 if mark.kwargs.get("trained") else 1]
    return [[known(family, FAMILIES, "family"), known(feature, FEATURES, "feature"), level] for feature in mark.args]


class Ledger:
    """Collects what passed and failed, and writes the file when the session was complete."""

    def __init__(self, file):
        self.file, self.passed, self.failed = file, {}, set()

    def pytest_runtest_logreport(self, report):
        for family, feature, level in (value for name, value in report.user_properties if name == "support"):
            at = family, feature
            if report.failed:
                self.failed.add(at)
            elif report.when == "call" and report.passed:
                self.passed[at] = max(level, self.passed.get(at, level), key=LEVELS.index)

    def now(self):
        before = {(family, feature): level for family, row in read([self.file]).items() for feature, level in row.items()}
        raised = {at: max(level, self.passed.get(at, level), key=LEVELS.index) for at, level in before.items() if level in LEVELS}
        return table(raised, self.failed)

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self.file.write_text(json.dumps(self.now(), indent=2) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter, exitstatus):
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            terminalreporter.write_line(f"{self.file} is not written: the session was not complete")
            return
        there = [level for row in table({}).values() for level in row.values() if level in LEVELS]
        shown = sum(at not in self.failed for at in self.passed)
        broken = "; failed: " + ", ".join(sorted(map(" ".join, self.failed))) if self.failed else ""
        terminalreporter.write_line(f"{self.file}: {shown} of {len(there)} cells shown by tests{broken}")
