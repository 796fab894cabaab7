"""The examples in the docstrings of procedural sources give what they say."""

import doctest
from importlib import import_module

import pytest

from fovea.tasks.resolve import SOURCES


@pytest.mark.parametrize("name", [n for n, where in SOURCES.items() if ">>>" in (import_module(where.partition(":")[0]).__doc__ or "")])
def test_examples_of_sources(name):
    found = doctest.testmod(import_module(SOURCES[name].partition(":")[0]))
    assert found.attempted and not found.failed
