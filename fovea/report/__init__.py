"""What a run shows of itself: the run folder, its numbers, the live console, the run page, learning-curve figures."""

from fovea.report.console import Console, arithmetic
from fovea.report.metrics import GLOSSARY, explain, interval
from fovea.report.run import RunFolder

__all__ = ["GLOSSARY", "Console", "RunFolder", "arithmetic", "explain", "interval"]
