"""A planted log in which interests interleave and one returns after 30 events.

`python -m benchmarks.learning.interleaving`: hit rates of every kind of adapter, by seed.

Every user has six of eight cues, and an item of its own that follows each: nobody else's history
tells which. Pairs of cue and item come in random order. At the end a cue returns whose pair was
began 30 events ago, with 14 pairs of other cues in between. To name its item is associative
recall (Arora et al., "Zoology", 2023): a memory that writes by content can do it, a popularity, a
co-visitation or a running mean cannot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters import adapter, episodes, meta_train, towers
from adapters.episodes import Draw, Log
from adapters.meta_train import Recipe, Trained
from adapters.types import Block, Meta, ModelConfig

CUES, ITEMS, OWN = 8, 32, 6
"""Cues, items that may follow one, and cues of a user. Chance is 1 / ITEMS."""

GAP = 30
"""Events from a cue to its return."""

CONFIG = ModelConfig(
    dim=32, text_dim=8, heads=2, key_dim=16, value_dim=16, actions=("click",), half_lives=(100.0,)
)
RECIPE = Recipe(
    steps=200,
    learning_rate=1e-2,
    vector_dropout=0.0,
    id_dropout=0.0,
    popularity=False,
    draw=Draw(batch=32, windows=(50, 50), long_share=0, places=20, repeat=True),
)

Ints = NDArray[np.int64]


def training_log(seed: int, users: int = 400, pairs: int = 25) -> Log:
    """Users whose pairs of cue and item come in random order, a minute apart."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([_pairs(*_user(rng), rng.integers(0, OWN, pairs)) for _ in range(users)])
    user = np.repeat(np.arange(users), 2 * pairs)
    minute = np.tile(np.arange(2 * pairs), users)
    return episodes.make_log(user, items, 0 * user, 0 * user + 1, 60.0 * minute)


def returns(seed: int, users: int = 400) -> tuple[Block, Tensor]:
    """New users whose last event is a cue that returns, and the items [users] that follow it."""
    rng = np.random.default_rng(seed)
    rows, wanted = [], []
    for _ in range(users):
        cues, bound = _user(rng)
        others = rng.integers(1, OWN, GAP // 2 + 1)
        order = np.concatenate([others[:2], [0], others[2:]])
        rows.append(np.append(_pairs(cues, bound, order), cues[0]))
        wanted.append(bound[0])
    items = torch.from_numpy(np.stack(rows))
    return _block(items), torch.from_numpy(np.stack(wanted))


def train(kind: str, seed: int, recipe: Recipe = RECIPE, config: ModelConfig = CONFIG) -> Trained:
    """An adapter of this kind with a vector an item; texts say nothing."""
    text = torch.randn(CUES + ITEMS, 12, generator=torch.Generator().manual_seed(0))
    none = torch.full((len(text), 1), -1)
    features = towers.ItemFeatures(torch.nn.functional.normalize(text, dim=-1), none, none[:, 0])
    log = training_log(seed)
    return meta_train.train(log, features, replace(config, kind=kind), recipe=recipe, seed=seed)


def hit(trained: Trained, meta: Meta, k: int = 1, seed: int = 999) -> float:
    """Share of returning cues whose item is among the k best of all."""
    vectors = towers.item_vectors(meta, trained.features)
    block, wanted = returns(seed)
    state = adapter.advance(meta, adapter.init(meta, len(wanted)), block, vectors)
    best = (adapter.read(meta, state)[:, 0] @ vectors.T).topk(k).indices
    return float((best == wanted[:, None]).any(1).float().mean())


def _user(rng: np.random.Generator) -> tuple[Ints, Ints]:
    """A user's cues and the items that follow them, both [OWN]."""
    return rng.permutation(CUES)[:OWN], CUES + rng.integers(0, ITEMS, OWN)


def _pairs(cues: Ints, bound: Ints, order: Ints) -> Ints:
    return np.stack([cues[order], bound[order]], 1).ravel()


def _block(items: Tensor) -> Block:
    minutes = torch.arange(items.shape[1], dtype=torch.float64).expand(items.shape)
    there = torch.ones_like(items, dtype=torch.bool)
    return Block(items, torch.zeros_like(items), torch.ones(items.shape), 60 * minutes, there)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge; prints a line a run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.interleaving",
        description="Hit rates on a planted log in which interests interleave.",
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every kind (3)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="outer steps (200)")
    parser.add_argument("--dim", type=int, default=CONFIG.dim, help="dimensions (32)")
    parser.add_argument("--kinds", nargs="+", choices=sorted(adapter.KINDS), help="these alone")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    recipe, config = replace(RECIPE, steps=asked.steps), replace(CONFIG, dim=asked.dim)
    sys.stdout.write(f"chance {1 / ITEMS:.3f} of the items, {1 / OWN:.3f} of a user's own\n")
    for kind in asked.kinds or sorted(adapter.KINDS):
        for seed in range(asked.seeds):
            found = train(kind, seed, recipe, config)
            off = hit(found, adapter.steps_off(found.meta))
            best = " ".join(f"hit@{k} {hit(found, found.meta, k):.3f}" for k in (1, 6))
            spent = f"{found.metrics['seconds']:.0f} s"
            sys.stdout.write(f"{kind}, seed {seed}: {best}, steps off {off:.3f}, {spent}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
