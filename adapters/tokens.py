"""Texts to padded token batches: the one way into the backbone, for training and for serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ints = NDArray[np.int64]


class TokenBatch(NamedTuple):
    """Texts of similar length: their places in the input, token ids and mask, padded right."""

    places: Ints  # [b]
    ids: Ints  # [b, l]
    mask: Ints  # [b, l] 1 = token, 0 = padding


def load_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, cutting texts at `max_length` tokens, not padding."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def batches(tokenizer: Tokenizer, texts: Sequence[str], size: int) -> Iterator[TokenBatch]:
    """At most `size` texts a batch, shortest texts first, so that little is padded."""
    tokens = read(tokenizer, texts)
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield pad(tokens, order[start : start + size])


def read(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def pad(every: Sequence[Sequence[int]], places: Ints) -> TokenBatch:
    """The texts at `places` [b] of a list of token ids as one batch."""
    tokens = [every[i] for i in places]
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    mask = np.arange(max(int(lengths.max()), 1))[None] < lengths[:, None]  # [b, l]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(t, dtype=np.int64) for t in tokens])
    return TokenBatch(places, ids, mask.astype(np.int64))
