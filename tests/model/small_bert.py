"""A BERT of two layers with random weights and the real tokenizer, for tests of its exports."""

from __future__ import annotations

import torch

from adapters import backbone
from adapters.backbone import Backbone, BertShape, SentenceEncoder

TEXTS = [f"{'word ' * (i % 17)}film number {i}" for i in range(60)] + ["", "é" * 300]
"""Texts of all lengths, the empty and a very long one among them."""


def small_bert(*, layers: int = 2, hidden: int = 16) -> Backbone:
    """The backbone, in inference mode on the CPU; the same each time."""
    real = backbone.default_folder()
    torch.manual_seed(3)
    shape = BertShape(
        vocabulary=30522,
        positions=64,
        token_types=2,
        layers=layers,
        hidden=hidden,
        heads=2,
        inner=2 * hidden,
        epsilon=1e-12,
    )
    return Backbone(
        module=SentenceEncoder(shape).eval(),
        tokenizer=backbone.tokens.load_tokenizer(real / "tokenizer.json", 64),
        tokenizer_file=real / "tokenizer.json",
        max_length=64,
        dim=hidden,
        sha="5" * 64,
    )
