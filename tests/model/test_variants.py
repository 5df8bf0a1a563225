"""Variants of an encoder stay within what their kind may lose, and pruned ones learn again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import backbone
from adapters.backbone import Backbone
from export import parity, prune, to_onnx, variants
from export.encoder import EncoderFiles, OnnxEncoder
from export.errors import BundleRefused, EncoderError
from export.parity import FP32
from export.prune import Recovery, Shape
from export.variants import VARIANTS, Workshop
from tests.model.small_bert import TEXTS, small_bert

NOUNS = ("spaceship", "wedding", "heist", "ghost", "river", "doctor", "winter", "violin", "dog")


@pytest.fixture(scope="module")
def small() -> Backbone:
    """Four layers with random weights."""
    return small_bert(layers=4, hidden=32)


@pytest.fixture(scope="module")
def files(small: Backbone, tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    """The small BERT, exported."""
    return to_onnx.cached(small, tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def shop(small: Backbone, files: EncoderFiles, tmp_path: Path) -> Workshop:
    """Makes variants of the small BERT."""
    return Workshop(small, files, TEXTS, tmp_path, Recovery(epochs=1, batch=16))


def encode(files: EncoderFiles, *, size: int = 32) -> np.ndarray:
    """Vectors of the test's texts, on the CPU."""
    return OnnxEncoder(files, device="cpu", threads=1).encode(TEXTS, batch_size=size)


@pytest.mark.parametrize("name", variants.QUICK)
def test_a_variant_keeps_the_limits_of_its_kind(shop: Workshop, small: Backbone, name: str) -> None:
    """Each variant of the small BERT gives vectors that its kind's limits allow."""
    made = shop.make(VARIANTS[name])
    figures = parity.compare(backbone.encode(small, TEXTS).numpy(), encode(made.files))
    parity.require(figures, made.variant.kind)


def test_the_real_encoder_keeps_its_neighbours_in_eight_bits(tmp_path: Path) -> None:
    """MiniLM with a scale a token: nine of the ten nearest stay, in a third of the file."""
    bert = backbone.load()
    real = to_onnx.cached(bert)
    titles = [f"{a} {b} {c}" for a in ("The", "A") for b in NOUNS for c in NOUNS]
    made = Workshop(bert, real, titles[::2], tmp_path).make(VARIANTS["int8-tokens"])
    judged = titles[1::2]
    found = OnnxEncoder(made.files, device="cpu", threads=1).encode(judged)
    figures = parity.compare(backbone.encode(bert, judged).numpy(), found)
    assert figures.agreement > 0.9
    assert figures.min_cosine is not None
    assert figures.min_cosine > 0.99
    assert made.files.model.stat().st_size < real.model.stat().st_size / 3


def test_only_a_scale_a_token_leaves_texts_to_themselves(shop: Workshop) -> None:
    """One range a batch makes a vector depend on the texts beside it; one a token does not."""
    apart = {}
    for name in ("int8-channels", "int8-tokens"):
        own = shop.make(VARIANTS[name]).files
        apart[name] = float(np.abs(encode(own) - encode(own, size=1)).max())
    assert apart["int8-tokens"] < 1e-5
    assert apart["int8-channels"] > 100 * apart["int8-tokens"]


def test_fewer_bits_are_fewer_bytes_and_another_encoder(
    shop: Workshop, files: EncoderFiles
) -> None:
    """8 bits take less than a third of the file, and vectors of the two are never mixed up."""
    made = shop.make(VARIANTS["int8-tokens"])
    assert made.files.model.stat().st_size < files.model.stat().st_size / 3
    assert made.files.sha != files.sha
    assert shop.make(VARIANTS["int8-tokens"]).files.sha == made.files.sha
    assert shop.make(VARIANTS[FP32]).files == files


def test_eight_bits_are_for_the_cpu(shop: Workshop) -> None:
    """An 8-bit encoder that is sent to a GPU is refused, where it would fall back in silence."""
    made = shop.make(VARIANTS["int8-tokens"])
    assert OnnxEncoder(made.files, threads=1).provider == "CPUExecutionProvider"
    with pytest.raises(EncoderError, match="no kernels for the GPU"):
        OnnxEncoder(made.files, device="cuda", threads=1)


def test_the_least_useful_layer_goes_first(small: Backbone) -> None:
    """A layer that changes nothing is the one that is dropped, and nothing else changes."""
    idle = replace(small, module=small_bert(layers=4, hidden=32).module)
    layer = idle.module.layers[2]
    for part in (layer.attention.out, layer.down):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    left = prune.shrink(idle, Shape(layers=3), TEXTS)
    assert [len(each.module.layers) for each in (left, idle)] == [3, 4]
    expected, found = (backbone.encode(each, TEXTS).numpy() for each in (idle, left))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_silent_head_is_dropped_without_loss(small: Backbone) -> None:
    """Heads and inner units that add nothing to the stream are the ones that go."""
    module = small_bert(layers=1, hidden=32).module
    layer = module.layers[0]
    with torch.no_grad():
        layer.attention.out.weight[:, :16] = 0  # the first of two heads
        layer.down.weight[:, ::2] = 0
    half = replace(small, module=module)
    left = prune.shrink(half, Shape(heads=1), TEXTS)
    kept = left.module.layers[0]
    assert (kept.attention.heads, tuple(kept.attention.joint.weight.shape)) == (1, (48, 32))
    assert kept.up.weight.shape[0] == 32
    expected, found = (backbone.encode(each, TEXTS).numpy() for each in (half, left))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_pruned_encoder_learns_what_it_forgot(small: Backbone) -> None:
    """Recovery brings vectors of held-out texts closer and leaves its input as it was."""
    texts = [f"{word} {n} of {m}" for word in ("film", "book") for n in range(12) for m in range(9)]
    pruned = prune.shrink(small, Shape(layers=2), texts[:32])
    before = backbone.encode(pruned, texts)
    taught = prune.recover(
        pruned, texts, prune.vectors_of(small, texts), Recovery(epochs=4, learning_rate=2e-3)
    )
    assert taught.after > taught.before + 0.02
    assert 1 <= taught.epochs <= 4
    assert torch.equal(backbone.encode(pruned, texts), before)


def test_recovery_stops_when_nothing_gets_better(small: Backbone) -> None:
    """The whole encoder has nothing to learn: it comes back as it was, before its time is up."""
    wanted = prune.vectors_of(small, TEXTS)
    taught = prune.recover(small, TEXTS, wanted, Recovery(epochs=50, patience=1))
    assert taught.epochs < 50
    np.testing.assert_allclose(prune.vectors_of(taught.bert, TEXTS), wanted, atol=1e-3)


def test_recovery_keeps_to_its_time(small: Backbone) -> None:
    """Without any time the pruned encoder is what it was."""
    pruned = prune.shrink(small, Shape(layers=2), TEXTS)
    taught = prune.recover(pruned, TEXTS, prune.vectors_of(small, TEXTS), Recovery(budget_s=0.0))
    assert (taught.epochs, taught.after) == (0, taught.before)


def test_a_pruned_variant_is_what_was_taught(shop: Workshop) -> None:
    """The file of a pruned variant gives the taught encoder's vectors; in 8 bits nearly so."""
    made = shop.make(VARIANTS["layers-3"])
    assert made.recovered is not None
    taught = prune.vectors_of(made.recovered.bert, TEXTS)
    parity.require(parity.compare(taught, encode(made.files)))
    eight = shop.make(VARIANTS["layers-3-int8"])
    assert eight.recovered is made.recovered
    parity.require(parity.compare(taught, encode(eight.files)), "int8")


def test_an_encoder_too_small_to_prune_is_refused(shop: Workshop) -> None:
    """More heads or layers than there are cannot be kept, and the remedy says what to leave out."""
    with pytest.raises(BundleRefused, match="6 heads of 2") as caught:
        shop.make(VARIANTS["heads-6"])
    assert "--variants" in caught.value.remedy
