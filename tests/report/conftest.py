import pytest

from tests.report import fake_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run with its page; tests must not change it."""
    return fake_run.write(tmp_path_factory.mktemp("run"), steps=8, eval_every=4, rollout_every=4, tasks=10, group_size=3)
