"""Rounds of a batch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.rounds import rounds


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 7))
def test_every_event_is_in_one_round_and_keeps_its_order(owner: list[int], width: int) -> None:
    """Each user's events come out complete and in the order in which they came in."""
    owners = np.array(owner, dtype=np.int64)
    taken: dict[int, list[int]] = {}
    for part in rounds(owners, width):
        assert part.events.shape[1] <= width
        assert len(set(part.users.tolist())) == len(part.users)
        for user, events, mask in zip(part.users, part.events, part.mask, strict=True):
            taken.setdefault(int(user), []).extend(events[mask].tolist())
    assert taken == {u: np.flatnonzero(owners == u).tolist() for u in set(owner)}
