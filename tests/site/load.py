"""The scripts of docs/ as modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> ModuleType:
    """docs/NAME.py, which imports its neighbours by their bare names."""
    folder = str(ROOT / "docs")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
