"""A whole worker in memory: log, stores, an untrained model and a catalogue of made-up items.

    world = MemoryWorld([item("a", "Alien"), item("b", "Brazil")], partitions=2)
    world.click("ada", "a")
    world.run()
    assert world.lists()["ada"]["items"]

Everything but the broker, RocksDB and BERT is the real thing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from adapters import adapter, experts, interplay, profiles, rerank, towers
from adapters.experts import Prior
from adapters.types import Meta, ModelConfig
from export.bundle_tensors import Items
from stream.config import Settings
from stream.item_encoder import ItemEncoder, Progress, TextEncoder
from stream.message_encoding import encode
from stream.message_types import Event, Field, Forget, Interaction, Item
from stream.messages import Deletion, decode_items
from stream.metrics import Metrics
from stream.models import Models
from stream.pipeline import Pipeline
from stream.ports import PartitionStore
from stream.preparing import OpenModel, Preparer
from stream.releases import ModelRef, Release, Role, encode_release
from stream.roles import Roles, ServedModel
from stream.serving import Serving
from stream.testing import MemoryConsumer, MemoryProducer, MemoryReader, MemoryTail
from stream.testing_log import MemoryLog
from stream.testing_store import MemoryStore
from stream.worker import Ports, Worker

NOW = 1_700_000_000.0
"""The wall clock and the event time at which a world begins, unix seconds."""

_WIDTH = 32

T = TypeVar("T")


class LetterEncoder:
    """Stands in for BERT: counts pairs of letters, so that like texts get like vectors."""

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors [N, 32]."""
        vectors = np.full((len(texts), _WIDTH), 0.1, np.float32)
        for row, text in enumerate(texts):
            pairs = [(ord(a) * 31 + ord(b)) % _WIDTH for a, b in itertools.pairwise(text.lower())]
            vectors[row] += np.bincount(pairs, minlength=_WIDTH)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def item(name: str, title: str, *, category: Sequence[str] = (), at: float = NOW) -> Item:
    """An item message; `at` is event time in seconds."""
    fields = [Field(name="title", value=title), Field(name="category", value=list(category))]
    return Item(id=f"i-{name}-{at}", timestamp=int(at * 1000), item=name, fields=fields)


def click(user: str, name: str, at: float, *, action: str = "click") -> Interaction:
    """An interaction; `at` is event time in seconds."""
    return Interaction(
        id=f"{user}-{name}-{at}-{action}",
        timestamp=int(at * 1000),
        user=user,
        item=name,
        type=action,
    )


def untrained_model(
    items: Sequence[Item],
    settings: Settings,
    *,
    seed: int = 0,
    encoder: TextEncoder | None = None,
    **changes: Any,
) -> tuple[Meta, Items]:
    """A model with random weights, and the items of its bundle, as `encoder` reads them.

    `changes` are those of its configuration.
    """
    actions = tuple(settings.messages.actions)
    small = ModelConfig(dim=16, text_dim=8, heads=2, key_dim=4, value_dim=4, actions=actions)
    config = replace(small, **changes)
    rows = ItemEncoder(encoder or LetterEncoder()).rows(items)
    generator = torch.Generator().manual_seed(seed)
    read = rows.features(np.arange(len(rows)))
    tensors = {
        **towers.new_tensors(config, read, generator),
        **towers.fit_text_reduction(read.text, config.text_dim),
        **adapter.new_tensors(config, generator),
        **profiles.new_tensors(read, None),
        **experts.default_tensors(config),
        **rerank.default_tensors(config),
        **interplay.new_tensors(len(rerank.names(config)), rerank.HEARD, generator),
    }
    half_lives, width = len(config.half_lives), config.neighbours
    prior = Prior(
        NOW - 86_400.0,
        np.ones((len(rows), half_lives), np.float32),
        np.full((len(rows), width), -1),
        np.zeros((len(rows), width), np.float32),
    )
    bundled = Items(
        ids=tuple(rows.ids),
        content=rows.content,
        text=rows.text,
        attributes=rows.attributes,
        id_rows=np.arange(len(rows)),
        prior=prior,
    )
    return Meta(config, tensors), bundled


class HeldExecutor(Executor):
    """Runs at once what is submitted, unless it is held: then `let_go` does."""

    def __init__(self) -> None:
        self.held = False
        self._waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future that is done already, unless this is held."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self._waiting.append(run)
        if not self.held:
            self.let_go()
        return future

    def let_go(self) -> None:
        """Run what waits."""
        while self._waiting:
            self._waiting.pop(0)()


class MemoryWorld:
    """Topics, stores and workers in memory; the wall clock stands still unless it is moved."""

    def __init__(
        self,
        items: Sequence[Item],
        *,
        partitions: int = 2,
        settings: Settings | None = None,
        model: tuple[Meta, Items] | None = None,
        largest_list: int = 1_048_588,
    ) -> None:
        """`largest_list` is the limit of `recommendations` in bytes."""
        self.settings = settings or Settings()
        self.clock = NOW
        self.log = MemoryLog(lambda: self.clock)
        self.partitions = partitions
        self.metrics = Metrics()
        self.stores: dict[int, MemoryStore] = {}
        self.executor = HeldExecutor()
        self.models: dict[str, tuple[Meta, Items] | Exception] = {}
        """What bundles hold by version, or what reading them raises."""
        self.offer("test-1", model or untrained_model(items, self.settings))
        kafka = self.settings.kafka
        for role in ("events", "state", "signals"):
            self.log.create(kafka.topic(role), partitions)
        self.log.create(kafka.topic("recommendations"), partitions, max_bytes=largest_list)
        for role in ("items", "models", "dead_letters"):
            self.log.create(kafka.topic(role))
        for one in items:
            self.send_item(one)
        self.worker = self.start()

    # -- what platforms do --------------------------------------------------------------------

    def send(self, event: Event) -> None:
        """Produce an event to its user's partition."""
        self.send_raw(event.user.encode(), encode(event))

    def send_raw(self, key: bytes | None, value: bytes | None) -> None:
        """Produce any bytes to the partition of the key."""
        self.log.append(self.settings.kafka.topic("events"), key, value)

    def send_item(self, one: Item) -> None:
        """Produce an item."""
        self._send_item(one.item.encode(), encode(one))

    def delete_item(self, name: str) -> None:
        """Produce a null for an item."""
        self._send_item(name.encode(), None)

    def click(self, user: str, name: str, *, action: str = "click", after: float = 1.0) -> None:
        """Move the clock on and let a user act."""
        self.clock += after
        self.send(click(user, name, self.clock, action=action))

    def forget(self, user: str) -> None:
        """Ask to erase a user."""
        self.send(Forget(id=f"forget-{user}", timestamp=int(self.clock * 1000), user=user))

    # -- models -------------------------------------------------------------------------------

    def offer(self, version: str, model: tuple[Meta, Items] | Exception) -> None:
        """A bundle of this version is there; an exception is what reading it raises."""
        self.models[version] = model

    def release(self, version: str, *, role: Role = "champion", share: float = 1.0) -> None:
        """Name a version on `models`."""
        made = Release(
            role=role,
            version=version,
            bundle=f"memory://{version}",
            share=share,
            reason="gate" if role == "champion" else "canary",
            published_at=int(self.clock * 1000),
        )
        self.log.append(self.settings.kafka.topic("models"), *encode_release(made))

    def withdraw(self) -> None:
        """Take the challenger away."""
        self.log.append(self.settings.kafka.topic("models"), b"challenger", None)

    def open_model(self, ref: ModelRef) -> OpenModel:
        """What a bundle holds."""
        found = self.models[ref.version]
        if isinstance(found, Exception):
            raise found
        encoder = ItemEncoder(LetterEncoder())
        return OpenModel(version=ref.version, meta=found[0], items=found[1], encoder=encoder)

    # -- the worker ---------------------------------------------------------------------------

    def start(self, version: str = "test-1") -> Worker:
        """A new worker over the same topics and stores; it takes over from the one before."""
        first = self.open_model(ModelRef(version=version, bundle=""))
        self.serving = Serving(first.meta, version, first.table(), first.items.prior)
        roles = Roles(ServedModel(self.settings, self.serving, lambda: self.clock))
        self.pipeline = Pipeline(
            self.settings,
            roles,
            self.metrics,
            partitions=self.partitions,
            dead_letter_partitions=1,
            clock=lambda: self.clock,
        )
        kafka = self.settings.kafka
        follower = Models(
            self.settings,
            roles,
            tail=MemoryTail(self.log, kafka.topic("models")),
            preparer=Preparer(self.open_model, self._items),
            executor=self.executor,
            metrics=self.metrics,
            clock=lambda: self.clock,
        )
        ports = Ports(
            consumer=MemoryConsumer(self.log, auto_offset_reset="error"),
            producer=MemoryProducer(self.log),
            reader=MemoryReader(self.log),
            items=MemoryTail(self.log, kafka.topic("items")),
            signals=MemoryTail(self.log, kafka.topic("signals")),
            open_store=self._open,
        )
        self.worker = Worker(self.settings, ports, self.pipeline, self.metrics, follower)
        self.worker.start()
        return self.worker

    def run(self, turns: int = 8) -> None:
        """Let the worker turn until it has read everything; `turns` at least."""
        for _ in range(turns):
            self.worker.patient_turn()

    def wipe(self) -> None:
        """Lose the disk."""
        self.stores.clear()

    # -- what readers see ---------------------------------------------------------------------

    def records(self, role: str) -> list[Any]:
        """Committed records of a topic, in the order of partitions and offsets."""
        return self.log.records(self.settings.kafka.topic(role))

    def lists(self) -> dict[str, Any]:
        """The newest list of every key, as read with read_committed; None = forgotten."""
        return {
            r.key.decode(): None if r.value is None else orjson.loads(r.value)
            for r in self.records("recommendations")
        }

    def ranked(self, user: str) -> list[str]:
        """The item ids of a user's newest list, best first."""
        return [entry["item"] for entry in self.lists()[user]["items"]]

    def _items(self) -> list[Item | Deletion]:
        return decode_items(self.records("items"), self.settings.messages).accepted

    def _open(self, partition: int) -> PartitionStore:
        return self.stores.setdefault(partition, MemoryStore())

    def _send_item(self, key: bytes, value: bytes | None) -> None:
        self.log.append(self.settings.kafka.topic("items"), key, value)
