"""The named points of the commit protocol, in their order; see docs/architecture.md.

A worker tells its `Ports.checkpoint` that it has come to a point. Nobody listens in production;
the tests that kill, stop and slow down workers do it there.
"""

from __future__ import annotations

from collections.abc import Callable

Checkpoint = Callable[[str], None]
"""Told the point that was reached; a sweep's begin with `sweep_`."""

ASSIGNED = "assigned"  # step 2: partitions came, their stores are not open yet
RESTORING = "restoring"  # step 3: before the next batch of a changelog is applied
RESTORED = "restored"  # step 3: a store has everything, its partition is not served yet
CONSUMED = "consumed"  # step 4: records are in hand
COMPUTED = "computed"  # step 5: the overlay is there, nothing is written
BEGUN = "begun"  # step 6: the transaction is open and empty
PRODUCED = "produced"  # step 6: changelog, lists and dead letters are queued
OFFSETS_SENT = "offsets_sent"  # step 7: the transaction has the offsets
COMMITTING = "committing"  # step 8: the next call commits
COMMITTED = "committed"  # step 8: committed, no store has it
APPLYING = "applying"  # step 9: some stores have it, others do not
APPLIED = "applied"  # step 9: all stores have it
PREPARING = "preparing"  # a model: its bundle is about to be read, in another thread
COPIED = "copied"  # a model: its bundle is on the disk of the worker
SWAPPED = "swapped"  # between two batches: another model serves
REVOKED = "revoked"  # step 10: a store was closed

OF_MODELS = (PREPARING, COPIED, SWAPPED)
OF_PARTITIONS = (ASSIGNED, RESTORING, RESTORED, REVOKED)
OF_TRANSACTIONS = (
    COMPUTED,
    BEGUN,
    PRODUCED,
    OFFSETS_SENT,
    COMMITTING,
    COMMITTED,
    APPLYING,
    APPLIED,
)
OF_BATCHES = (CONSUMED, *OF_TRANSACTIONS)

SWEEP = "sweep_"
"""Before the names of the points of a transaction that read no records."""


def ignore(point: str) -> None:
    """What production does at a checkpoint."""
