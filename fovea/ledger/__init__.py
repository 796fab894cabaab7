"""Evidence beside code: what a system claims, how the claim is run, and the row that says what came out.

claim.py      `Claim`, written beside a recipe before the first counted run, and its hash
measures.py   numbers of a finished run
stats.py      paired differences, bootstrap intervals, the verdict: pure functions
runs.py       one arm with one seed, resumable, in a process of its own
reproduce.py  all of them, the table, the row
rows.py       reading rows; light
plot.py       the picture of a row
"""

from fovea.ledger.claim import Claim
from fovea.ledger.measures import Accuracy, Area, Last, Length, Lowest, Part

__all__ = ["Accuracy", "Area", "Claim", "Last", "Length", "Lowest", "Part"]
