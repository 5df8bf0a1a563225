"""Users by how many interactions they have had: the cohorts of every figure, offline and online."""

from __future__ import annotations

COHORTS = (
    ("0", 0, 0),
    ("1", 1, 1),
    ("2-3", 2, 3),
    ("4-7", 4, 7),
    ("8-15", 8, 15),
    ("16-63", 16, 63),
    ("64+", 64, 2**62),
)
"""Name, fewest and most shots."""


def cohort_of(shots: int) -> str:
    """The name of the cohort that so many shots belong to."""
    return next(name for name, _, most in COHORTS if shots <= most)
