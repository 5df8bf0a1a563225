"""What a canary did to users: hit rates of those it served against those of the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters.gate import spread
from adapters.report import compare_apart
from stream.errors import DataError
from stream.succession import Standing, required_challenger, required_champion

LEAST_USERS = 30
"""Users on either side below whom no interval is worth anything."""

Rates = Mapping[str, NDArray[np.float64]]
"""Model version to the hit rate, 0 to 1, of each user whose lists it made."""


def read_rates(path: Path) -> Rates:
    """Rates from JSON, `{"VERSION": [0.1, 0.0, ...], ...}`. Raises `DataError`."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", remedy="Check the path.") from None
    except ValueError:
        raise DataError(f"{path} is not JSON", remedy=_FORM) from None
    if not isinstance(read, dict):
        raise DataError(f"{path} is no object", remedy=_FORM)
    return {str(version): _rates(path, version, values) for version, values in read.items()}


def compared(rates: Rates, roles: Standing) -> str:
    """One line: the challenger's hit rate relative to the champion's, with its 95% interval.

    The users are others, so nothing is paired: both sides are drawn apart. Raises `ReleaseError`
    where there is no challenger, `DataError` where one of both served too few users to say.
    """
    own, other = required_challenger(roles).version, required_champion(roles).version
    mine, theirs = (rates.get(version, np.zeros(0)) for version in (own, other))
    if min(len(mine), len(theirs)) < LEAST_USERS:
        raise DataError(
            f"hit rates of {len(mine)} users of the challenger {own} and of {len(theirs)} "
            f"of the champion {other} are too few to compare",
            remedy=f"Wait until each has served {LEAST_USERS} users.",
        )
    figure = compare_apart(mine, theirs)
    sure = "ahead of" if figure.low > 0 else "behind" if figure.high < 0 else "level with"
    return (
        f"online: the challenger is {sure} the champion, hit rate {mine.mean():.4f} of "
        f"{len(mine):,} users against {theirs.mean():.4f} of {len(theirs):,}, "
        f"{spread(figure)}"
    )


_FORM = 'Write {"VERSION": [hit rate of each user, ...], ...}.'


def _rates(path: Path, version: str, values: object) -> NDArray[np.float64]:
    try:
        rates = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        rates = np.full((1, 1), np.nan)
    if rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise DataError(f"{path}: {version} has no list of numbers from 0 to 1", remedy=_FORM)
    return rates
