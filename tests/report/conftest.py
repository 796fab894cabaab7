import pytest

from tests.report import fake_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run with its page; tests must not change it."""
    return fake_run.write(tmp_path_factory.mktemp("run"), steps=8, eval_every=4, rollout_every=4, tasks=10, group_size=3)


@pytest.fixture
def tab(chromium):
    """An empty tab; errors of the page fail the test."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # a busy machine is no failure
    faults = []
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.faults = faults
    yield page
    page.close()
    assert not faults
