import pytest
import torch

from fovea.bench import measure, workload


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The benchmark's random checkpoint."""
    with measure.quiet():
        return workload.build_checkpoint(tmp_path_factory.mktemp("bench") / "model")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
