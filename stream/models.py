"""Follows `models`: prepares what is named there beside the traffic, and swaps between two batches.

    listen    which versions are wanted; the newest record of a role counts
    make      verify the bundle, encode what it does not know: in another thread
    place     give its items rows of the worker
    move      bring its matrices to those rows: in another thread
    join      take in what came on `items` meanwhile
    swap      replace the roles; signals, queues and stores stay as they are

Only `listen`, `place`, `join` and `swap` take time of the loop, milliseconds each. A bundle that is
refused changes nothing: the models that serve go on. It is tried again when its record changes,
and in growing intervals where it could not be read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from stream import log
from stream.config import Settings
from stream.errors import BrokerUnavailable, BundleUnreachable, InnerloopError, StateError
from stream.messages import Deletion, Item
from stream.metrics import Metrics
from stream.model_cache import ModelCache
from stream.places import Rows
from stream.ports import Record, Tail
from stream.preparing import Made, Preparer, Unwanted
from stream.releases import ROLES, ModelRef, Release, ReleaseRefused, Role, read_release
from stream.roles import Roles, ServedModel
from stream.serving import Serving
from stream.terms import Terms

_log = log.get("model")

ITEMS_A_TURN = 64
"""Items that came meanwhile, taken in between two batches."""

RETRY_S = (10.0, 600.0)
"""Seconds before the first further attempt to read a bundle, which double up to the last."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A release that does not serve, and when it is tried again; None = when it changes."""

    release: Release
    reason: str
    wait_s: float = 0.0
    due: float | None = None


@dataclass
class _Job:
    """A model on its way."""

    release: Release
    future: Future[Any] | None = None  # what another thread does for it now
    made: Made | None = None
    rows: Rows | None = None  # of the worker, for its items
    serving: Serving | None = None  # it has joined
    missed: list[Item | Deletion] = field(default_factory=list)
    dropped: bool = False


class Models:
    """What serves, what is wanted, and what is on its way from one to the other."""

    def __init__(
        self,
        settings: Settings,
        roles: Roles,
        *,
        tail: Tail,
        preparer: Preparer,
        executor: Executor,
        metrics: Metrics,
        cache: ModelCache | None = None,
        tidy: Callable[[set[str]], object] = lambda versions: None,
        refused: Refusal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`roles` serve until the end of `models` is read; `refused` is a champion that did not.

        `tidy` is told in another thread which versions are wanted, to let go of others.
        """
        self._settings = settings
        self._tail = tail
        self._preparer = preparer
        self._executor = executor
        self._metrics = metrics
        self._cache = cache
        self._tidy = tidy
        self._clock = clock
        self._roles = roles
        self._signals = roles.champion.serving.signals
        self._ready = {model.version: model for model in roles.models()}
        self._wanted: dict[Role, Release] = {}
        self._refused: dict[Role, Refusal] = {} if refused is None else {"champion": refused}
        metrics.models_refused.inc(len(self._refused))
        self._job: _Job | None = None
        self._held = 0.0  # seconds that the loop has waited for the model on its way
        self._closing = threading.Event()
        tell(metrics, roles)

    # -- a turn -------------------------------------------------------------------------------

    def step(self, items: Sequence[Item | Deletion] = ()) -> Roles | None:
        """Between two batches: the roles, where they changed. `items` is what just came in.

        Raises `BrokerUnavailable`, or `StateError` when the disk is full.
        """
        if self._job is not None:
            self._job.missed += items
        self._listen()
        if not self._tail.caught_up():
            return None
        self._forgive()
        self._go_on()
        self._begin()
        return self._swap()

    def settled(self) -> bool:
        """Whether what serves is what is wanted: else users would be moved back and forth."""
        wanted, shares = self._wanted, self._roles.shares()
        served = all(release.version in shares for release in wanted.values())
        champion = wanted.get("champion")
        right = champion is None or champion.version == self._roles.champion.version
        return self._tail.caught_up() and served and right

    def close(self) -> None:
        """Give up what is under way and wait until nothing of it runs."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._tail.close()

    def status(self) -> dict[str, object]:
        """What serves, is prepared and was refused; for any thread."""
        roles, job = self._roles, self._job
        return {
            "champion": roles.champion.version,
            "challenger": None if roles.challenger is None else roles.challenger.version,
            "share": roles.share,
            "preparing": None if job is None or job.dropped else job.release.version,
            "refused": {r.release.version: r.reason for r in dict(self._refused).values()},
        }

    # -- what is wanted -----------------------------------------------------------------------

    def _listen(self) -> None:
        """Take note of new records."""
        for record in self._tail.poll():
            found = readable(record)
            if found is None:
                self._metrics.models_refused.inc()
                continue
            role, release = found
            if release is None:
                self._wanted.pop(role, None)
            else:
                self._wanted[role] = release

    def _forgive(self) -> None:
        """A refusal holds until its record changes."""
        for role, refusal in list(self._refused.items()):
            if self._wanted.get(role) != refusal.release:
                del self._refused[role]

    def _begin(self) -> None:
        """Prepare the next model that is wanted and neither there nor refused."""
        for role in ROLES if self._job is None else ():
            release = self._wanted.get(role)
            if release is not None and release.version not in self._ready and self._due(role):
                _log.info("model preparing", role=role, version=release.version)
                self._make(_Job(release))
                return

    def _due(self, role: Role) -> bool:
        refusal = self._refused.get(role)
        return refusal is None or (refusal.due is not None and refusal.due <= self._clock())

    def _make(self, job: _Job) -> None:
        champion = self._roles.champion.serving.meta.config
        job.future = self._executor.submit(
            self._preparer.make,
            ModelRef(version=job.release.version, bundle=job.release.bundle),
            Terms.of(champion, self._signals.since),
            lambda: job.dropped or self._closing.is_set(),
        )
        self._job, self._held = job, 0.0

    # -- on its way ---------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take the model that is on its way a step further, if the other thread is done with it."""
        job = self._job
        if job is None:
            return
        job.dropped = job.release.version not in {r.version for r in self._wanted.values()}
        if job.future is not None and not job.future.done():
            return
        began = time.perf_counter()
        try:
            self._advance(job)
        except Exception as error:  # whatever a bundle does must not stop those who serve
            self._job = None
            self._refuse(job.release, error)
        self._held += time.perf_counter() - began

    def _advance(self, job: _Job) -> None:
        """Place, move or join."""
        result = None if job.future is None else job.future.result()
        job.future = None
        if job.dropped:
            self._job = None
        elif job.made is None:
            job.made = made = cast(Made, result)
            job.rows = made.places(self._signals.places)
            job.future = self._executor.submit(made.move, job.rows, self._signals.places.size)
        else:
            self._join(job, job.made)

    def _join(self, job: _Job, made: Made) -> None:
        """Beside the others, with what came meanwhile, in several turns where that is much."""
        if job.serving is None and job.rows is not None:
            job.serving = made.join(job.rows, self._signals)
        now, job.missed = job.missed[:ITEMS_A_TURN], job.missed[ITEMS_A_TURN:]
        made.table.upsert(now)
        if job.serving is None or job.missed:
            return
        with torch.inference_mode():
            job.serving.prepared()  # or else the next batch would wait for it
        self._ready[job.serving.version] = ServedModel(self._settings, job.serving, self._clock)
        self._job = None
        phases = {f"{name}_s": round(s, 3) for name, s in made.seconds.items()}
        _log.info("model prepared", version=job.serving.version, **phases)
        made.model.say()

    def _refuse(self, release: Release, error: Exception) -> None:
        """Go on with what serves; say why once for each record and reason."""
        if isinstance(error, Unwanted):
            return
        before = self._refused.get(release.role)
        refusal = refusal_of(release, error, self._clock(), before)
        self._refused[release.role] = refusal
        self._metrics.models_refused.inc()
        if before is None or before.reason != refusal.reason:
            _log.warning("model refused", version=release.version, why=refusal.reason)

    # -- the swap -----------------------------------------------------------------------------

    def _swap(self) -> Roles | None:
        """The roles as they are wanted, as far as the models are there; None = as before."""
        began, before, roles = time.perf_counter(), self._roles, self._reachable()
        self._ready = {model.version: model for model in roles.models()}
        if roles == before:
            return None
        self._roles = roles
        if roles.champion is not before.champion:
            self._remember(roles.champion)
        tell(self._metrics, roles, before)
        self._held += time.perf_counter() - began
        self._metrics.swaps.inc()
        self._metrics.swap_pause.observe(self._held)
        pause = round(1000 * self._held, 1)
        _log.info("model swapped", was=before.shares(), now=roles.shares(), pause_ms=pause)
        self._held = 0.0
        return roles

    def _reachable(self) -> Roles:
        wanted, tried = self._wanted.get("champion"), self._wanted.get("challenger")
        champion = self._roles.champion
        if wanted is not None:
            champion = self._ready.get(wanted.version, champion)
        challenger = None if tried is None else self._ready.get(tried.version)
        if tried is None or challenger is None or challenger is champion:
            return Roles(champion)
        return Roles(champion, challenger, tried.share)

    def _remember(self, champion: ServedModel) -> None:
        """Keep a copy of what serves for a start without its address; others go."""
        if self._cache is None:
            return
        config = champion.serving.meta.config
        self._cache.served(champion.version, Terms.of(config, self._signals.since))
        in_use = {*self._ready, *(release.version for release in self._wanted.values())}
        self._executor.submit(self._tidy, in_use)


def readable(record: Record) -> tuple[Role, Release | None] | None:
    """What a record says; None, with a log line, for one that nobody can follow."""
    try:
        return read_release(record)
    except ReleaseRefused as error:
        _log.warning("release left out", offset=record.offset, why=str(error))
        return None


def refusal_of(release: Release, error: Exception, now: float, before: Refusal | None) -> Refusal:
    """Why a release does not serve; where it may be read later, when to try (unix seconds)."""
    reason = error.detail if isinstance(error, InnerloopError) else repr(error)
    if not isinstance(error, BundleUnreachable | BrokerUnavailable | StateError):
        return Refusal(release=release, reason=reason)
    least, most = RETRY_S
    wait = least if before is None or not before.wait_s else min(2 * before.wait_s, most)
    return Refusal(release=release, reason=reason, wait_s=wait, due=now + wait)


def tell(metrics: Metrics, roles: Roles, before: Roles | None = None) -> None:
    """Say in `innerloop_model` which version serves what share of the users."""
    for version in () if before is None else before.shares():
        metrics.model.remove(version)
    for version, share in roles.shares().items():
        metrics.model.labels(version).set(share)
