"""Further pretraining of the backbone on the texts of the items: domain-adaptive, without labels.

Two losses on the same weights ("Don't Stop Pretraining", Gururangan et al., 2020, for the first):

- masked language model: tokens of an item's whole text are hidden and guessed (Devlin et al.,
  "BERT", 2019: 15%, of which 80% are masked, 10% another token, 10% left as they are);
- contrast: the title of an item finds the rest of its text, such as its categories, among those
  of the batch, and the other way round (InfoNCE; Gao et al., "SimCSE", 2021).

The tables of words and places stay as they are: a small catalogue would move a few words away from
the rest. Warm-up, averaged weights and early stopping are those of `outer_loop`; the checks are on
items that are held out. A run by steps is the same for the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from adapters import outer_loop, tokens
from adapters.backbone import Backbone, BackboneError, SentenceEncoder
from adapters.meta_train import Recipe
from adapters.outer_loop import Check, Clock, Loss, Progress, Task
from adapters.signals import Bools, Ints
from adapters.tokens import TokenBatch
from adapters.types import Meta, ModelConfig

LEAST = 32
"""Items with a text below which there is nothing to adapt to."""

_CHECKED = 256  # held-out items at most
_ALIKE = 8  # batches are drawn from so many times as many items of about equal length
_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
_STEPS = 1_000_000  # where time alone ends the run
_FROZEN = ("encoder.words.weight", "encoder.positions.weight", "encoder.types.weight")
_HEAD = ("transform.weight", "transform.bias", "norm.weight", "norm.bias", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTexts:
    """Three readings of each item, aligned; "" = it has none."""

    whole: Sequence[str]  # all of its text
    titles: Sequence[str]
    rests: Sequence[str]  # what is not the title


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRecipe:
    """How the pretraining runs: until checks bring nothing better, at most so long."""

    steps: int | None = None
    budget_s: float | None = None  # of wall time
    learning_rate: float = 5e-5  # at its peak
    head_scale: float = 20.0  # rate of the head that guesses tokens: it begins from nothing
    warm_up: float = 0.06  # of the run
    weight_decay: float = 0.01
    batch: int = 64  # items
    contrast: float = 1.0  # weight of the contrastive loss
    temperature: float = 0.05
    masked: float = 0.15  # share of the tokens
    held_out: float = 0.1  # share of the items
    check_every: int = 20  # steps
    patience: int = 4  # checks
    half: bool | None = None  # products in bfloat16; None = on a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """Weights of `SentenceEncoder` at the best check, on the CPU, and figures of the run."""

    weights: dict[str, Tensor]
    metrics: dict[str, float]


def pretrain(
    backbone: Backbone,
    texts: ItemTexts,
    recipe: PretrainRecipe,
    *,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
) -> Pretrained:
    """Go on training `backbone`, whose weights stay as they are; it is moved to `device`.

    Raises `ValueError` where fewer than `LEAST` items have a text or the losses are not finite,
    `BackboneError` where the tokenizer has no [MASK].
    """
    corpus = _Corpus.of(backbone.tokenizer, texts)
    rng = np.random.default_rng(seed)
    held, learned = _split(corpus, recipe, rng)
    objective = _Objective(backbone.module)
    where, half = torch.device(device), recipe.half
    run = _Run(objective.to(where), corpus, recipe, where.type == "cuda" if half is None else half)
    start = {name: value.detach().clone() for name, value in objective.state_dict().items()}
    check = run.check([run.draw(rows, rng) for rows in _parts(held, recipe.batch)])
    meta, figures = outer_loop.run(
        Task(
            start=Meta(ModelConfig(), start),
            frozen=_FROZEN,
            scales=dict.fromkeys(_HEAD, recipe.head_scale),
            loss=run.loss(learned),
            check=check,
        ),
        _outer(recipe),
        Clock(_STEPS if recipe.steps is None else recipe.steps, recipe.budget_s),
        torch.Generator().manual_seed(seed),
        rng,
        progress=progress,
    )
    if "validation_loss" not in figures:  # no check was below infinity
        raise ValueError("its losses are not finite; lower the learning rate")
    return Pretrained(
        weights=_encoder_weights(meta),
        metrics=_named(figures)
        | {
            "items": float(len(learned)),
            "held_out": float(len(held)),
            "loss_before": check(Meta(ModelConfig(), start)),
        },
    )


def _outer(recipe: PretrainRecipe) -> Recipe:
    return Recipe(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warm_up=recipe.warm_up,
        check_every=recipe.check_every,
        patience=recipe.patience,
        few_weight=recipe.contrast,
    )


def _named(figures: dict[str, float]) -> dict[str, float]:
    """The figures of the loop under the names of the two losses."""
    names = {"loss_meta": "loss_masked", "loss_few": "loss_contrast"}
    return {names.get(name, name): value for name, value in figures.items()}


def _encoder_weights(meta: Meta) -> dict[str, Tensor]:
    own = "encoder."
    return {
        name.removeprefix(own): value.detach().float().cpu()
        for name, value in meta.tensors.items()
        if name.startswith(own)
    }


# -- texts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Corpus:
    """The token ids of N items' texts."""

    whole: list[list[int]]
    titles: list[list[int]]
    rests: list[list[int]]
    same_title: Ints  # [N] equal titles have equal numbers
    same_rest: Ints  # [N]
    filled: Bools  # [N] has a text
    paired: Bools  # [N] has a title and a rest
    mask: int  # id of [MASK]
    special: Ints  # ids that are never hidden
    vocabulary: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: ItemTexts) -> _Corpus:
        mask = tokenizer.token_to_id("[MASK]")
        if mask is None:
            raise BackboneError("tokenizer.json has no [MASK], which pretraining needs")
        known = [tokenizer.token_to_id(name) for name in _SPECIAL]
        titles, rests = (np.array(list(t), dtype=object) for t in (texts.titles, texts.rests))
        return cls(
            whole=tokens.read(tokenizer, texts.whole),
            titles=tokens.read(tokenizer, texts.titles),
            rests=tokens.read(tokenizer, texts.rests),
            same_title=np.unique(titles.astype(str), return_inverse=True)[1],
            same_rest=np.unique(rests.astype(str), return_inverse=True)[1],
            filled=np.array([bool(text) for text in texts.whole], dtype=bool),
            paired=(titles != "") & (rests != ""),
            mask=mask,
            special=np.array([i for i in known if i is not None], dtype=np.int64),
            vocabulary=tokenizer.get_vocab_size(),
        )


def _split(corpus: _Corpus, recipe: PretrainRecipe, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Items that are held out, and those that are learned from."""
    rows = rng.permutation(np.flatnonzero(corpus.filled))
    if len(rows) < LEAST:
        raise ValueError(f"only {len(rows)} items have a text, {LEAST} are needed")
    size = min(max(int(len(rows) * recipe.held_out), 8), _CHECKED)
    return rows[:size], rows[size:]


def _parts(rows: Ints, size: int) -> list[Ints]:
    """Batches of `rows`; a last one too small to hold a contrast joins the one before."""
    return [part for part in np.array_split(rows, max(len(rows) // size, 1)) if len(part)]


class _Batch(NamedTuple):
    """Some items, with hidden tokens chosen."""

    whole: TokenBatch  # ids with the hidden ones replaced
    hidden: Bools  # [b, l] places whose token is to be guessed
    answers: Ints  # [h] what stood there
    titles: TokenBatch | None  # of the items that have both; None = fewer than two have
    rests: TokenBatch | None
    alike: Bools  # [p, p] pairs of different items that are no contrast: an equal title or rest


def _hide(
    corpus: _Corpus, batch: TokenBatch, share: float, rng: np.random.Generator
) -> tuple[TokenBatch, Bools, Ints]:
    """Hide a share of the tokens, at least one a text, as BERT does."""
    open_ = (batch.mask == 1) & ~np.isin(batch.ids, corpus.special)
    chance = np.where(open_, rng.random(batch.ids.shape), 2.0)
    hidden = (chance < share) | ((chance == chance.min(1, keepdims=True)) & open_)
    how, other = rng.random(batch.ids.shape), rng.integers(0, corpus.vocabulary, batch.ids.shape)
    shown = np.where(how < 0.8, corpus.mask, np.where(how < 0.9, other, batch.ids))
    return batch._replace(ids=np.where(hidden, shown, batch.ids)), hidden, batch.ids[hidden]


# -- losses -------------------------------------------------------------------------------------


class _Objective(nn.Module):
    """The encoder, and a head that guesses tokens by the table of words it reads them from."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        words, size = encoder.words.weight.shape
        self.transform = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.eye_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)

    def forward(self, batch: _Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """The contrastive loss of a batch, and that of the hidden tokens."""
        ids, mask = self._tensors(batch.whole)
        states = self.encoder.through(self.encoder.embed(ids), mask)
        chosen = states[torch.from_numpy(batch.hidden).to(ids.device)]  # [h, D]
        guess = self.norm(functional.gelu(self.transform(chosen)))
        logits = (guess @ self.encoder.words.weight.T).float() + self.bias
        answers = torch.from_numpy(batch.answers).to(ids.device)
        guessed = functional.cross_entropy(logits, answers, reduction="sum") / max(len(answers), 1)
        if batch.titles is None or batch.rests is None:
            return logits.new_zeros(()), guessed
        one, other = (self._vectors(side) for side in (batch.titles, batch.rests))
        alike = torch.from_numpy(batch.alike).to(ids.device)
        return contrast(one, other, alike, temperature), guessed

    def _vectors(self, batch: TokenBatch) -> Tensor:
        return functional.normalize(self.encoder(*self._tensors(batch)).float(), dim=-1)

    def _tensors(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        device = self.encoder.words.weight.device
        return torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.mask).to(
            device, torch.float32
        )


def contrast(one: Tensor, other: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """InfoNCE of unit vectors [p, D] with those of the same row, both ways.

    Rows that are `alike` [p, p] bool are left out: films share their genres, and a film's own
    genres under another title are no mistake.
    """
    scores = (one @ other.T / temperature).masked_fill(alike, -math.inf)
    rows = torch.arange(len(one), device=one.device)
    return (functional.cross_entropy(scores, rows) + functional.cross_entropy(scores.T, rows)) / 2


class _Run:
    """What the losses are computed of."""

    def __init__(
        self, objective: _Objective, corpus: _Corpus, recipe: PretrainRecipe, half: bool
    ) -> None:
        self._objective = objective
        self._corpus = corpus
        self._recipe = recipe
        self._half = half

    def draw(self, rows: Ints, rng: np.random.Generator) -> _Batch:
        """A batch of these items with tokens hidden at random."""
        corpus = self._corpus
        plain = tokens.pad(corpus.whole, rows)
        whole, hidden, answers = _hide(corpus, plain, self._recipe.masked, rng)
        pairs = rows[corpus.paired[rows]]
        title, rest = corpus.same_title[pairs], corpus.same_rest[pairs]
        alike = (title[:, None] == title) | (rest[:, None] == rest)
        np.fill_diagonal(alike, False)
        titles = rests = None
        if len(pairs) > 1:
            titles, rests = tokens.pad(corpus.titles, pairs), tokens.pad(corpus.rests, pairs)
        return _Batch(whole, hidden, answers, titles, rests, alike)

    def loss(self, rows: Ints) -> Loss:
        """Both losses of random batches of `rows`, of about equal length: else half is padding."""
        size = min(self._recipe.batch, len(rows))
        length = np.array([len(self._corpus.whole[row]) for row in rows])
        ordered = rows[np.argsort(length, kind="stable")]

        def loss(
            model: Meta, generator: torch.Generator, rng: np.random.Generator
        ) -> tuple[Tensor, Tensor]:
            at = int(rng.integers(size - _ALIKE * size, len(rows) - size + 1))
            near = ordered[max(at, 0) : at + _ALIKE * size]
            return self._both(model, self.draw(rng.choice(near, size, replace=False), rng))

        return loss

    def check(self, batches: list[_Batch]) -> Check:
        """The loss on batches that were drawn once."""

        @torch.no_grad()
        def check(model: Meta) -> float:
            found = np.array([[loss.item() for loss in self._both(model, b)] for b in batches])
            apart, masked = found.mean(0)
            return float(masked + self._recipe.contrast * apart)

        return check

    def _both(self, model: Meta, batch: _Batch) -> tuple[Tensor, Tensor]:
        device = self._objective.bias.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._half):
            args = (batch, self._recipe.temperature)
            found: tuple[Tensor, Tensor] = functional_call(self._objective, model.tensors, args)
        return found
