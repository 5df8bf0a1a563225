"""Items, users, events and an untrained model: all made up, all from a seed.

Speed does not depend on training, so the model's weights are random, none of an expert's is zero,
and vectors of texts are sums of random vectors of their words. Shapes are the defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from adapters import adapter, experts, interplay, rerank, towers
from adapters.experts import Prior
from adapters.types import Meta, ModelConfig
from export.bundle_tensors import Items
from stream.item_encoder import ItemEncoder, Progress
from stream.message_types import Event, Field, Interaction, Item, Ranking

START = 1_700_000_000 // 3_600 * 3_600
"""Event time at which histories begin, unix seconds, on the hour."""

DAY = 86_400
TEXT_WIDTH = 384
ITEM_EXPONENT = 0.8
USER_EXPONENT = 1.0
SHOWN = 10

_KINDS = ("Drama", "Comedy", "Horror", "Western", "Crime", "Romance", "Science", "Music", "War")
_ADJECTIVES = ("Silent", "Golden", "Last", "Broken", "Hidden", "Endless", "Crimson", "Lonely")
_NOUNS = ("River", "Empire", "Garden", "Stranger", "Harbour", "Winter", "Machine", "Promise")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the made-up world is."""

    items: int = 10_000
    users: int = 8_000
    history: int = 10  # events of every user before anything is measured
    seed: int = 7


class WordEncoder:
    """Stands in for BERT: the sum of random vectors of the words."""

    def __init__(self) -> None:
        self._words: dict[str, NDArray[np.float32]] = {}

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors [N, 384]."""
        sums = np.stack([sum(map(self._vector, text.split()), self._vector("")) for text in texts])
        return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))

    def _vector(self, word: str) -> NDArray[np.float32]:
        if word not in self._words:
            generator = np.random.default_rng(xxhash.xxh3_64_intdigest(word.encode()))
            self._words[word] = generator.standard_normal(TEXT_WIDTH, np.float32)
        return self._words[word]


def items(size: Size) -> list[Item]:
    """The catalogue, as it stands in the topic `items`."""
    names = itertools.cycle(itertools.product(_ADJECTIVES, _NOUNS, _KINDS))
    return [
        Item(
            id=f"item-message-{i}",
            timestamp=(START - DAY) * 1000,
            item=item_id(i),
            fields=[
                Field(name="title", value=f"The {adjective} {noun} {i}"),
                Field(name="category", value=[kind]),
            ],
        )
        for i, (adjective, noun, kind) in zip(range(size.items), names, strict=False)
    ]


def item_id(row: int) -> str:
    """The id of an item."""
    return f"film-{row:06d}"


def user_id(place: int) -> str:
    """The id of a user."""
    return f"user-{place:07d}"


def model(known: Sequence[Item], config: ModelConfig, seed: int) -> tuple[Meta, Items]:
    """Random weights for `config`, and `known` as the items of a bundle with priors."""
    rows = ItemEncoder(WordEncoder()).rows(known)
    generator = torch.Generator().manual_seed(seed)
    read = rows.features(np.arange(len(rows)))
    tensors = {
        **towers.new_tensors(config, read, generator),
        **towers.fit_text_reduction(read.text, config.text_dim),
        **adapter.new_tensors(config, generator),
        **experts.default_tensors(config),
        **rerank.default_tensors(config),
        **interplay.new_tensors(len(rerank.names(config)), rerank.HEARD, generator),
    }
    weight = tensors["expert_weight"]
    tensors["expert_weight"] = weight + 0.02 * torch.randn(weight.shape, generator=generator)
    bundled = Items(
        ids=tuple(rows.ids),
        content=rows.content,
        text=rows.text,
        attributes=rows.attributes,
        id_rows=np.arange(len(rows)),
        prior=_prior(config, len(rows), seed),
    )
    return Meta(config, tensors), bundled


def _prior(config: ModelConfig, size: int, seed: int) -> Prior:
    """Popularity by rank, and as many neighbours of every item as there is room for."""
    generator = np.random.default_rng(seed)
    popularity = 1_000 * _shares(size, ITEM_EXPONENT)[:, None] * np.ones(len(config.half_lives))
    shape = (size, config.neighbours)
    return Prior(
        START - 1.0,
        popularity.astype(np.float32),
        generator.integers(0, size, shape),
        (generator.random(shape) / 10).astype(np.float32),
    )


def _shares(size: int, exponent: float) -> NDArray[np.float64]:
    mass = np.arange(1, size + 1) ** -exponent
    return np.asarray(mass / mass.sum())


class Traffic:
    """Events of users; every event has an id of its own, and event time moves on."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self._generator = np.random.default_rng(size.seed)
        self._item_shares = _shares(size.items, ITEM_EXPONENT)
        self._user_shares = _shares(size.users, USER_EXPONENT)
        self._count = 0

    def history(self) -> Iterator[Event]:
        """Earlier events of every user, over some hours, and a list each was shown and passed by.

        A user's events follow each other, so that they share a batch.
        """
        for user in range(self._size.users):
            at = START + 2 * user
            yield self._shown(user, at)
            for place, row in enumerate(self._items(self._size.history)):
                yield self._click(user, row, 1000 * (at + 60 * place))

    def distinct(self, count: int) -> list[Event]:
        """Events of `count` different users, at most as many as there are."""
        return self._clicks(self._generator.permutation(self._size.users)[:count])

    def zipf(self, count: int) -> list[Event]:
        """Events of users drawn by Zipf's law."""
        return self._clicks(self._generator.choice(self._size.users, count, p=self._user_shares))

    def _clicks(self, users: NDArray[np.int64]) -> list[Event]:
        rows = self._items(len(users))
        # All in one hour of the day after: no bucket of shared signals closes meanwhile.
        first = 1000 * (START + DAY) + self._count
        return [
            self._click(user, row, first + i)
            for i, (user, row) in enumerate(zip(users.tolist(), rows, strict=True))
        ]

    def _items(self, count: int) -> list[int]:
        chosen: list[int] = self._generator.choice(
            self._size.items, count, p=self._item_shares
        ).tolist()
        return chosen

    def _click(self, user: int, row: int, at: int) -> Interaction:
        return Interaction(
            id=self._id(), timestamp=at, user=user_id(user), item=item_id(row), type="click"
        )

    def _shown(self, user: int, at: int) -> Ranking:
        rows = self._items(SHOWN)
        return Ranking(
            id=self._id(),
            timestamp=1000 * at,
            user=user_id(user),
            items=list(dict.fromkeys(map(item_id, rows))),
        )

    def _id(self) -> str:
        self._count += 1
        return f"{xxhash.xxh3_64_hexdigest(str(self._count).encode())}-{self._count:012d}"
