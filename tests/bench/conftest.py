import pytest

from fovea.bench import measure, workload


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The benchmark's random checkpoint."""
    with measure.quiet():
        return workload.build_checkpoint(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture(autouse=True)
def alone(one_thread):
    pass
