"""The record of a user: bytes to arrays and back, and the folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import StateError
from stream.seen_ring import older_seen, seen_hashes
from stream.user_layout import HEADER
from stream.user_state import (
    MAX_BYTES,
    Events,
    Layout,
    copied,
    duplicate_mask,
    fold_events,
    fold_impressions,
    fold_profiles,
    hash_id,
    low_half,
    needs_rebuild,
    picked,
    profile_buckets,
    put,
    resolve_impressions,
    shown_hashes,
    stamp,
    support_events,
)
from tests.unit.records import LAYOUT, SMALL, S, block, fresh, many, random_state


def test_record_of_the_default_model_fits_the_limit() -> None:
    """A record has at most 6,000 bytes with the default model and holds 400 seen items."""
    assert LAYOUT.dtype.itemsize <= MAX_BYTES
    assert LAYOUT.seen + S >= 400


def test_a_few_shot_user_takes_less_than_half_of_a_full_record() -> None:
    """Trailing zeros are not stored, so that three clicks take less than 3,000 bytes."""
    records = LAYOUT.set_adapter(many(1, 3), random_state(1))
    assert len(LAYOUT.encode(records)[0]) < 3_000


def test_unseen_user_decodes_to_a_start() -> None:
    """A user nobody has seen has no shots, no adapter and nothing to rebuild."""
    records = fresh(2)
    assert not records["shots"].any()
    assert not needs_rebuild(records).any()
    assert seen_hashes(records).shape == (2, 0)
    assert shown_hashes(records).shape == (2, 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**64 - 1),
            st.integers(0, 255),
            st.floats(-10, 10, width=32),
            st.integers(-(2**62), 2**62),
        ),
        max_size=80,
    )
)
def test_records_survive_the_round_trip(events: list[tuple[int, int, float, int]]) -> None:
    """Whatever was folded decodes to the same record, and encodes to the same bytes again."""
    records = fresh()
    for item, action, value, time in events:
        records = fold_events(
            records,
            Events(
                items=np.array([[item]], np.uint64),
                actions=np.array([[action]], np.uint8),
                values=np.array([[value]], np.float32),
                times=np.array([[time]], np.int64),
                ids=np.array([[item]], np.uint64),
                mask=np.ones((1, 1), bool),
            ),
        )
    data = LAYOUT.encode(records)
    again = LAYOUT.decode(data)
    assert again.tobytes() == records.tobytes()
    assert LAYOUT.encode(again) == data
    assert again["shots"][0] == len(events)
    newest = [item for item, *_ in events[::-1][:S]]
    assert again["support"]["item"][0, : len(newest)].tolist() == newest


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    """Foreign bytes raise a `StateError`; they are never read as a user."""
    with pytest.raises(StateError):
        LAYOUT.decode([b"\x00" + data])


def test_newer_format_names_the_remedy() -> None:
    """A record of a later version says which Innerloop reads it."""
    data = bytearray(LAYOUT.encode(many(1, 1))[0])
    data[1] = 99
    with pytest.raises(StateError, match="format 99"):
        LAYOUT.decode([bytes(data)])


def test_adapters_are_rounded_to_half_precision() -> None:
    """Stored adapters come back as float32 tensors, equal up to fp16, with exact count and time."""
    state = random_state(3)
    records = LAYOUT.set_adapter(fresh(3), state)
    back = LAYOUT.adapter_state(LAYOUT.decode(LAYOUT.encode(records)))
    assert torch.equal(back["weight"], state["weight"].half().float())
    assert torch.equal(back["count"], state["count"])
    assert back["count"].dtype == torch.int64
    assert torch.equal(back["time"], state["time"])


@pytest.mark.parametrize(("old", "new"), [(LAYOUT, SMALL), (SMALL, LAYOUT)])
def test_other_dimensions_keep_everything_but_the_adapter(old: Layout, new: Layout) -> None:
    """A record of other dimensions keeps support, seen items and counts, and is rebuilt."""
    records = old.decode([None])
    for at in range(1, 121, 40):
        records = fold_events(records, block([list(range(at, at + 40))]))
    records = stamp(fold_impressions(records, *shown([7, 8])), np.array([41]), 5)
    records = old.set_adapter(records, old.adapter_state(records))
    assert not needs_rebuild(records).any()
    adopted = new.decode(old.encode(records))
    assert needs_rebuild(adopted).all()
    assert adopted["support"].tobytes() == records["support"].tobytes()
    assert adopted["impressions"].tobytes() == records["impressions"].tobytes()
    assert set(seen_hashes(adopted)[0]) == set(seen_hashes(records)[0])
    there = min(old.seen, new.seen, 120 - S)
    assert older_seen(adopted)[0, :there].tolist() == older_seen(records)[0, :there].tolist()
    for name in ("shots", "state_version", "first_time", "last_time", "model"):
        assert adopted[name] == records[name]


def test_records_from_before_profiles_are_read() -> None:
    """Everything but the profile comes from a record of the format before."""
    told = fold_profiles(many(1, 3), np.full((1, 16), 7), np.array([9]))
    value = LAYOUT.encode(LAYOUT.set_adapter(told, random_state(1)))[0]
    at = HEADER.itemsize + 4 * LAYOUT.experts
    old = bytes([value[0], 1]) + value[2:at] + value[at + 32 :]
    found = LAYOUT.decode([old])
    assert profile_buckets(found).max() == -1
    assert seen_hashes(found).tolist() == seen_hashes(told).tolist()
    assert (
        found["adapter"].tobytes() == LAYOUT.set_adapter(told, random_state(1))["adapter"].tobytes()
    )
    assert not needs_rebuild(found).any()


def test_the_latest_profile_counts_as_a_whole() -> None:
    """A profile replaces the one before; the time of users who have acted does not move."""
    buckets = np.full((2, 16), -1)
    buckets[:, :2] = [[0, 4_095], [5, 6]]
    records = fold_profiles(fresh(2), buckets[::-1], np.array([4_000, 4_000]))
    records = fold_profiles(records, buckets, np.array([9_000, 9_000]))
    assert profile_buckets(records).tolist() == buckets.tolist()
    assert records["last_time"].tolist() == [9_000, 9_000]
    busy = fold_profiles(many(1, 2), buckets[:1], np.array([99_000]))
    assert busy["last_time"].tolist() == [2_000]
    assert busy["shots"].tolist() == [2]


def test_another_model_version_asks_for_a_rebuild() -> None:
    """A record written under another model version is to be rebuilt, one of this version is not."""
    records = LAYOUT.set_adapter(stamp(many(1, 2), np.array([1]), 5), random_state(1))
    assert needs_rebuild(records, 6).tolist() == [True]
    assert needs_rebuild(records, 5).tolist() == [False]


def test_events_enter_newest_first() -> None:
    """The last event of the block stands in the first place of the support set."""
    records = fold_events(fold_events(fresh(), block([[1, 2]])), block([[3, 4]]))
    assert records["support"]["item"][0, :5].tolist() == [4, 3, 2, 1, 0]
    assert records["shots"][0] == 4
    assert (records["first_time"][0], records["last_time"][0]) == (1000, 2000)


def test_masked_events_change_nothing() -> None:
    """A user whose places are all masked keeps his record to the last bit; others are folded."""
    start = fold_events(fresh(2), block([[1], [2]]))
    mask = [[False, False, False], [True, False, True]]
    after = fold_events(start, block([[3, 4, 5], [6, 7, 8]], mask=mask))
    assert after[0].tobytes() == start[0].tobytes()
    assert after["support"]["item"][1, :4].tolist() == [8, 6, 2, 0]
    assert after["shots"].tolist() == [1, 3]


def test_folds_leave_their_input_alone() -> None:
    """A fold returns new records; the old ones stay as they were."""
    start = many(1, 70)
    before = start.tobytes()
    fold_events(start, block([[500]]))
    resolve_impressions(start, np.array([9]), 1.0, *acted([1]))
    fold_impressions(start, *shown([7]))
    LAYOUT.set_adapter(start, random_state(1))
    stamp(start, np.array([3]), 1)
    assert start.tobytes() == before


def test_late_event_takes_the_newest_place() -> None:
    """An event older than the newest is folded as it arrives; the last time does not go back."""
    records = fold_events(many(1, 3), block([[9]], times=[[500]]))
    assert records["support"]["item"][0, 0] == 9
    assert records["first_time"][0] == 500
    assert records["last_time"][0] == 3000


def test_duplicates_are_found_in_support_and_block() -> None:
    """An event id counts once: known from the support set, or from earlier in the same block."""
    records = fold_events(fresh(2), block([[1, 2], [3, 4]]))
    ids = np.array([[2, 5, 5, 6], [2, 0, 7, 3]], np.uint64)
    mask = np.array([[True] * 4, [True, False, True, True]])
    found = duplicate_mask(records, ids, mask)
    assert found.tolist() == [[True, False, True, False], [False, False, False, True]]


def test_versions_never_go_back() -> None:
    """The state version is the larger of its successor and the event's offset plus one."""
    records = stamp(fresh(2), np.array([10, 3]), 7)
    again = stamp(records, np.array([2, 40]), 7)
    assert again["state_version"].tolist() == [12, 41]


def test_support_comes_back_as_events_oldest_first() -> None:
    """The support set is what an adapter is rebuilt from: oldest first, padded right."""
    records = fold_events(fresh(2), block([[1, 2], [3, 4]], mask=[[True, True], [False, True]]))
    events = support_events(records)
    assert events.items.tolist()[0] == [1, 2]
    assert events.mask.tolist() == [[True, True], [True, False]]
    assert events.items[1, 0] == 4
    assert events.times.tolist()[0] == [1000, 2000]


def shown(items: list[int], second: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One list shown to one user."""
    held = np.array([items], np.uint64)
    return held, np.full(held.shape, second * 1000, np.int64), np.ones(held.shape, bool)


def acted(items: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """What one user acted on."""
    held = np.array([items], np.uint64)
    return held, np.ones(held.shape, bool)


def test_shown_items_count_as_ignored_after_the_window_only() -> None:
    """Impressions wait for the feedback window and settle at the user's next event after it."""
    records = fold_impressions(fresh(), *shown([1, 2, 3]))
    early = resolve_impressions(records, np.array([130_000]), 60.0, *acted([2]))
    assert shown_hashes(early).shape == (1, 0)
    late = resolve_impressions(early, np.array([161_000]), 60.0, *acted([9]))
    assert sorted(shown_hashes(late)[0].tolist()) == [1, 3]


def test_acting_later_clears_what_was_ignored() -> None:
    """An item that is acted on after all is no longer held against the user."""
    records = fold_impressions(fresh(), *shown([1, 2]))
    ignored = resolve_impressions(records, np.array([999_000]), 60.0, *acted([9]))
    cleared = resolve_impressions(ignored, np.array([999_500]), 60.0, *acted([1]))
    assert shown_hashes(cleared)[0].tolist() == [2]


def test_impressions_are_no_shots() -> None:
    """Shown items fill no place in the support set, count as no shot and are not seen."""
    records = fold_impressions(many(1, 2), *shown([7, 8]))
    assert records["shots"][0] == 2
    assert set(seen_hashes(records)[0].tolist()) == {1, 2}


def test_impressions_keep_the_newest_list() -> None:
    """The ring keeps the first items of the newest list and then those of older ones."""
    records = fold_impressions(fresh(), *shown(list(range(1, 21))))
    records = fold_impressions(records, *shown(list(range(101, 141)), second=200))
    assert records["impressions"]["item"][0].tolist() == list(range(101, 133))


def test_low_halves_are_never_empty() -> None:
    """A hash whose low half is zero is stored as one, since zero means empty."""
    found = low_half(np.array([0, 1 << 40, (5 << 32) | 7], np.uint64))
    assert found.tolist() == [0, 1, 7]
    assert hash_id("Amélie") == hash_id("Amélie".encode())


def test_an_empty_batch_is_fine() -> None:
    """No users in, no users out."""
    records = fresh(0)
    nothing = Events(
        items=np.zeros((0, 1), np.uint64),
        actions=np.zeros((0, 1), np.uint8),
        values=np.zeros((0, 1), np.float32),
        times=np.zeros((0, 1), np.int64),
        ids=np.zeros((0, 1), np.uint64),
        mask=np.zeros((0, 1), bool),
    )
    assert not duplicate_mask(records, nothing.ids, nothing.mask).size
    assert LAYOUT.encode(fold_events(records, nothing)) == []
    assert seen_hashes(records).shape[0] == 0
    assert support_events(records).mask.shape == (0, 0)


def test_records_are_picked_and_put_as_bytes() -> None:
    """Some users' records can be taken out, changed and put back; the others stay."""
    records = copied(fold_events(fresh(3), block([[1], [2], [3]])))
    users = np.array([2, 0])
    some = picked(records, users)
    assert some["support"]["item"][:, 0].tolist() == [3, 1]
    put(records, users, fold_events(some, block([[8], [9]])))
    assert records["support"]["item"][:, 0].tolist() == [9, 2, 8]
