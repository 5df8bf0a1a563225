"""The catalogue follows the items topic: rows, look-ups, deletions, what is not encoded again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import towers
from adapters.experts import Prior
from adapters.types import Meta, ModelConfig
from export.bundle_tensors import Items
from stream.catalogue import CatalogueTable
from stream.hash_index import HashIndex, item_hashes
from stream.item_encoder import (
    DenseField,
    ItemEncoder,
    ItemRows,
    Progress,
    common_dense_field,
    features,
)
from stream.messages import Deletion, Field, Item
from stream.places import Places
from stream.user_state import low_half

WIDTH = 8
CONFIG = ModelConfig(dim=4, text_dim=3, neighbours=2)


class LetterEncoder:
    """Encodes a text as counts of its letters: quick, and different for different texts."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> np.ndarray:
        """Unit vectors [N, 8]."""
        self.encoded += texts
        counts = [np.bincount([ord(c) % WIDTH for c in t], minlength=WIDTH) + 0.1 for t in texts]
        vectors = np.array(counts, np.float32).reshape(-1, WIDTH)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class DictCache:
    """Vectors in a dict."""

    def __init__(self) -> None:
        self.stored: dict[int, np.ndarray] = {}

    def get_many(self, hashes: np.ndarray) -> list[np.ndarray | None]:
        """What is there."""
        return [self.stored.get(h) for h in hashes.tolist()]

    def put_many(self, hashes: np.ndarray, vectors: np.ndarray) -> None:
        """Remember."""
        self.stored |= dict(zip(hashes.tolist(), vectors, strict=True))


def film(name: str, title: str, at: float = 1.0, **fields: object) -> Item:
    """An item message; `at` in seconds."""
    extra = [Field(name=k, value=v) for k, v in fields.items()]  # type: ignore[arg-type]
    return Item(
        id=name,
        timestamp=int(at * 1e3),
        item=name,
        fields=[Field(name="title", value=title), *extra],
    )


KNOWN = [film("a", "Alien", category=["Horror"]), film("b", "Brazil"), film("c", "Casino")]


def bundle_items(rows: ItemRows) -> Items:
    """What a bundle would hold of `rows`."""
    n = len(rows)
    return Items(
        ids=tuple(rows.ids),
        content=rows.content,
        text=rows.text,
        attributes=rows.attributes,
        id_rows=np.arange(n),
        prior=Prior(
            0.0,
            np.zeros((n, 3), np.float32),
            np.tile(np.array([1, -1]), (n, 1)),
            np.ones((n, 2), np.float32),
            np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        ),
    )


@pytest.fixture
def encoder() -> LetterEncoder:
    """A quick encoder that remembers what it was asked."""
    return LetterEncoder()


@pytest.fixture
def table(encoder: LetterEncoder) -> CatalogueTable:
    """A table over a bundle of three films, with nothing read from the topic yet."""
    rows = ItemEncoder(LetterEncoder()).rows(KNOWN)
    read = rows.features(np.arange(3))
    generator = torch.Generator().manual_seed(0)
    tensors = towers.new_tensors(CONFIG, read, generator)
    tensors |= towers.fit_text_reduction(read.text, CONFIG.text_dim)
    return CatalogueTable(Meta(CONFIG, tensors), bundle_items(rows), ItemEncoder(encoder))


def test_bundle_items_are_evidence_before_they_are_ranked(table: CatalogueTable) -> None:
    """The bundle's items have vectors and priors at once, but are alive only once announced."""
    catalogue = table.catalogue()
    assert table.size == 3
    assert table.alive() == 0
    assert catalogue.vectors.abs().sum(1).gt(0).all()
    assert catalogue.prior_items.tolist() == [[1, -1]] * 3
    assert catalogue.returns.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_an_announced_bundle_item_is_not_encoded(
    table: CatalogueTable, encoder: LetterEncoder
) -> None:
    """A message with the content the bundle knows makes the item alive and costs no encoding."""
    before = table.catalogue().vectors.clone()
    table.upsert(KNOWN)
    assert encoder.encoded == []
    assert table.alive() == 3
    assert torch.equal(table.catalogue().vectors, before)
    assert table.catalogue().created.tolist() == [1.0, 1.0, 1.0]
    assert table.titles == ["Alien", "Brazil", "Casino"]


def test_a_new_item_gets_a_row_and_a_vector_of_its_text(
    table: CatalogueTable, encoder: LetterEncoder
) -> None:
    """An item that training never saw is encoded and has no id embedding and no prior."""
    table.upsert([film("d", "Delicatessen", 7.5)])
    row = table.row("d")
    assert row == 3
    assert encoder.encoded == ["Delicatessen"]
    catalogue = table.catalogue()
    assert catalogue.alive.tolist() == [False, False, False, True]
    assert catalogue.created[3] == 7.5
    assert catalogue.prior_items[3].tolist() == [-1, -1]
    assert torch.linalg.norm(catalogue.text[3]).item() == pytest.approx(1.0, abs=1e-5)


def test_vectors_are_those_of_the_item_tower(table: CatalogueTable) -> None:
    """A row of the matrix equals the tower on the same features, as training computes it."""
    table.upsert([film("d", "Delicatessen", category=["Comedy"])])
    rows = ItemEncoder(LetterEncoder()).rows([film("d", "Delicatessen", category=["Comedy"])])
    expected = towers.item_vectors(table._meta, rows.features(np.array([-1])))
    torch.testing.assert_close(table.catalogue().vectors[3:], expected)


def test_a_changed_item_keeps_its_row(table: CatalogueTable, encoder: LetterEncoder) -> None:
    """New content is encoded into the same row; the same content again costs nothing."""
    table.upsert([film("d", "Delicatessen")])
    before, version = table.catalogue().vectors[3].clone(), table.version
    table.upsert([film("d", "Delicatessen")])
    assert table.version == version
    table.upsert([film("d", "Zardoz")])
    assert table.version == version + 1
    assert table.size == 4
    assert encoder.encoded == ["Delicatessen", "Zardoz"]
    assert not torch.equal(table.catalogue().vectors[3], before)


def test_a_deleted_item_is_evidence_and_can_come_back(
    table: CatalogueTable, encoder: LetterEncoder
) -> None:
    """Deletion keeps row and vector; the same message makes the item alive without encoding."""
    table.upsert(KNOWN)
    vector = table.catalogue().vectors[1].clone()
    table.upsert([Deletion("b"), Deletion("never heard of")])
    assert table.catalogue().alive.tolist() == [True, False, True]
    assert torch.equal(table.catalogue().vectors[1], vector)
    table.upsert([KNOWN[1]])
    assert table.alive() == 3
    assert encoder.encoded == []


def test_the_last_message_of_an_item_counts(table: CatalogueTable, encoder: LetterEncoder) -> None:
    """Of several messages about an item in one batch only the last has an effect."""
    table.upsert([film("d", "One"), film("d", "Two"), film("e", "Three"), Deletion("e")])
    assert encoder.encoded == ["Two"]
    assert table.row("e") == -1
    table.upsert([Deletion("d"), film("d", "Two")])
    assert bool(table.catalogue().alive[table.row("d")])


def test_changes_wait_for_apply(table: CatalogueTable, encoder: LetterEncoder) -> None:
    """Staging and encoding change nothing that can be seen; applying changes all at once."""
    table.upsert(KNOWN)
    version = table.version
    plan = table.stage([film("d", "Delicatessen"), Deletion("a")])
    rows = ItemEncoder(encoder).rows(plan.fresh)
    assert (table.version, table.size, table.alive()) == (version, 3, 3)
    table.apply(plan, rows)
    assert (table.version, table.size, table.alive()) == (version + 1, 4, 3)


def test_rows_survive_growth(table: CatalogueTable) -> None:
    """Ids, hashes, rows and vectors stay together when the matrix grows several times."""
    early = table.catalogue().vectors.clone()
    for start in range(0, 5_000, 1_250):
        table.upsert([film(f"n{i}", f"Film {i}") for i in range(start, start + 1_250)])
    hashes = item_hashes(table.ids)
    assert np.array_equal(table.rows_of(hashes), np.arange(5_003))
    assert np.array_equal(table.places.hashes_of(np.arange(5_003)), hashes)
    assert torch.equal(table.catalogue().vectors[:3], early)
    low = (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    assert (table.rows_of_low(low) == np.arange(5_003)).mean() > 0.999


def test_vectors_are_cached_by_content() -> None:
    """What one process encoded, the next one finds, equal to the last bit."""
    cache, first, second = DictCache(), LetterEncoder(), LetterEncoder()
    one = ItemEncoder(first, cache).rows(KNOWN)
    two = ItemEncoder(second, cache).rows([*KNOWN, film("d", "Dune")])
    assert second.encoded == ["Dune"]
    assert np.array_equal(one.text, two.text[:3])


def test_a_vector_field_reaches_the_tower() -> None:
    """The vector field of most items is read; one without it, or with another size, has 0."""
    items = [
        film("a", "A", image_embedding=[3.0, 4.0]),
        film("b", "B", image_embedding=[1.0, 0.0]),
        film("c", "C", image_embedding=[1.0, 2.0, 3.0]),
    ]
    assert common_dense_field(items) == DenseField(name="image_embedding", size=2)
    assert common_dense_field(KNOWN) is None
    rows = ItemEncoder(LetterEncoder(), dense=DenseField(name="image_embedding", size=2)).rows(
        items
    )
    assert rows.dense is not None
    np.testing.assert_allclose(rows.dense, [[0.6, 0.8], [1, 0], [0, 0]], atol=1e-3)
    read = features(rows.text, rows.attributes, rows.dense, np.full(3, -1))
    assert read.dense is not None
    assert read.dense.shape == (3, 2)


def test_a_table_moves_to_the_rows_of_the_worker(table: CatalogueTable) -> None:
    """Vectors, priors and what is alive follow their items; others of the rows are unknown."""
    table.upsert([*KNOWN[:2], film("new", "Dune")])
    ids, before = list(table.ids), table.catalogue()
    places = Places()
    places.take(["other", ids[2]], item_hashes(["other", ids[2]]))
    rows = places.take(ids, item_hashes(ids))
    table.align(rows, places.size)
    places.take(["later"], item_hashes(["later"]))
    table.join(places)
    after = table.catalogue()
    assert rows.tolist() == [2, 3, 1, 4]
    assert len(after.alive) == table.size == 6
    assert torch.equal(after.vectors[torch.from_numpy(rows)], before.vectors)
    assert torch.equal(after.alive[torch.from_numpy(rows)], before.alive)
    assert after.prior_items[rows[0]].tolist() == [int(rows[1]), -1]
    assert after.returns[torch.from_numpy(rows)].tolist() == before.returns.tolist()
    assert after.returns[0].tolist() == [0, 0]
    assert [table.row(name) for name in ("other", "later")] == [-1, -1]
    assert [table.row(name) for name in ids] == rows.tolist()
    assert table.rows_of_low(low_half(item_hashes(["other"]))).tolist() == [-1]


def test_an_item_that_a_model_meets_later_keeps_its_row(table: CatalogueTable) -> None:
    """A row that another model took is known here from its message on, without a new row."""
    table.places.take(["other"], item_hashes(["other"]))
    assert (table.size, table.row("other")) == (4, -1)
    state = table.state
    table.upsert([film("other", "Eraserhead")])
    assert (table.size, table.row("other")) == (4, 3)
    assert table.state != state
    assert bool(table.catalogue().alive[3])


def test_a_table_cannot_move_to_another_number_of_rows(table: CatalogueTable) -> None:
    """Rows that do not fit are refused before anything moves."""
    with pytest.raises(ValueError, match="3 rows cannot move to 2"):
        table.align(np.arange(2), 5)


def test_an_empty_bundle_is_a_start(table: CatalogueTable) -> None:
    """A table without items finds nothing, and takes its first item."""
    rows = ItemEncoder(LetterEncoder()).rows([])
    prior = Prior(0.0, np.zeros((0, 3), np.float32), np.zeros((0, 2), int), np.zeros((0, 2), "f"))
    empty = CatalogueTable(
        table._meta, replace(bundle_items(rows), prior=prior), ItemEncoder(LetterEncoder())
    )
    assert empty.rows_of(item_hashes(["a"])).tolist() == [-1]
    empty.upsert([film("a", "Alien")])
    assert empty.row("a") == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_the_index_is_a_dict(there: list[int], asked: list[int]) -> None:
    """Whatever the keys, even ones that fall on the same slot, the index answers like a dict."""
    index, model = HashIndex(np.uint64, 1), {}
    for start in range(0, len(there), 3):
        keys = there[start : start + 3]
        rows = list(range(start, start + len(keys)))
        index.add(np.array(keys, np.uint64), np.array(rows, np.int64))
        for key, row in zip(keys, rows, strict=True):
            model.setdefault(key, row)
    keys = [*there, *asked, *(k << 8 & (2**64 - 1) for k in there)]
    found = index.find(np.array(keys, np.uint64)).tolist()
    assert found == [model.get(k, -1) for k in keys]
    assert len(index) == len(model)


def test_keys_on_one_slot_are_all_found() -> None:
    """Keys that share every low bit are found one behind the other."""
    keys = np.arange(200, dtype=np.uint64) << np.uint64(32)
    index = HashIndex(np.uint64, 1)
    index.add(keys, np.arange(200))
    assert np.array_equal(index.find(keys), np.arange(200))


def test_look_ups_are_quick() -> None:
    """100,000 look-ups among 10,000 items take at most 50 ns each on one core."""
    hashes = item_hashes(f"item-{i}" for i in range(10_000))
    index = HashIndex(np.uint64, len(hashes))
    index.add(hashes, np.arange(len(hashes)))
    asked = np.random.default_rng(0).choice(hashes, 100_000)
    best = np.inf
    for _ in range(10):
        started = time.perf_counter()
        index.find(asked)
        best = min(best, time.perf_counter() - started)
    assert best / len(asked) < 50e-9
