"""The exported encoder says what the trained one says, and a broken one is found out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import backbone
from adapters.backbone import Backbone
from export import from_onnx, parity, to_onnx
from export.encoder import EncoderFiles, OnnxEncoder
from export.errors import BundleRefused, EncoderError
from export.parity import Probe
from tests.model.small_bert import TEXTS, small_bert


@pytest.fixture(scope="module")
def small() -> Backbone:
    """A small BERT with random weights and the real tokenizer."""
    return small_bert()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of exported encoders that starts empty."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def files(small: Backbone, cache: Path) -> EncoderFiles:
    """The small BERT, exported."""
    return to_onnx.cached(small, cache)


def test_the_export_agrees_with_torch(small: Backbone, files: EncoderFiles) -> None:
    """Any batch size and any length give the trained encoder's vectors."""
    expected = backbone.encode(small, TEXTS).numpy()
    encoder = OnnxEncoder(files, device="cpu", threads=1)
    for size in (1, 7, 64):
        figures = parity.compare(expected, encoder.encode(TEXTS, batch_size=size))
        parity.require(figures)
        assert figures.max_difference < 1e-5
        assert figures.agreement == 1.0
        assert figures.probes == len(TEXTS)


def test_the_provider_is_the_one_that_runs(files: EncoderFiles) -> None:
    """The encoder reports where it runs, and refuses a device that is not there."""
    encoder = OnnxEncoder(files, device="cpu", threads=1)
    assert (encoder.device, encoder.provider) == ("cpu", "CPUExecutionProvider")
    if not torch.cuda.is_available():
        assert OnnxEncoder(files, threads=1).device == "cpu"
        with pytest.raises(EncoderError, match="not on CUDAExecutionProvider"):
            OnnxEncoder(files, device="cuda", threads=1)


def test_progress_counts_every_text(files: EncoderFiles) -> None:
    """The callback is told of all texts, and no texts are no work."""
    done: list[int] = []
    encoder = OnnxEncoder(files, device="cpu", threads=1)
    encoder.encode(TEXTS, batch_size=16, progress=done.append)
    assert sum(done) == len(TEXTS)
    assert encoder.encode([]).shape == (0, 16)


def test_the_exporter_says_nothing(
    small: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does to the graph step by step is no line of a command's output."""
    with caplog.at_level(logging.INFO):
        to_onnx.export(small, tmp_path / "model.onnx")
    assert caplog.messages == []


def test_a_second_export_is_not_made(
    small: Backbone, files: EncoderFiles, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same backbone comes from the cache; a damaged entry is made again."""
    made: list[Path] = []

    def copy(_: Backbone, path: Path) -> None:
        made.append(path)
        path.write_bytes(whole)

    whole = files.model.read_bytes()
    monkeypatch.setattr(to_onnx, "export", copy)
    assert to_onnx.cached(small, cache) == files
    assert made == []
    files.model.write_bytes(whole[:-1])
    assert to_onnx.cached(small, cache) == files
    assert len(made) == 1
    assert files.model.read_bytes() == whole
    assert [p.name for p in cache.iterdir()] == [files.model.parent.name]


def test_a_damaged_graph_is_one_clear_error(files: EncoderFiles, tmp_path: Path) -> None:
    """A file that is no ONNX graph is named."""
    bad = tmp_path / "encoder.onnx"
    bad.write_bytes(b"not a graph")
    broken = EncoderFiles(
        model=bad, tokenizer=files.tokenizer, max_length=64, dim=16, sha=files.sha
    )
    with pytest.raises(EncoderError, match=r"encoder\.onnx cannot be loaded"):
        OnnxEncoder(broken, device="cpu")


def test_small_differences_pass_and_large_ones_do_not() -> None:
    """Rounding passes; noise, swapped rows and NaN are refused with the figures."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16)).astype(np.float32)
    parity.require(parity.compare(vectors, vectors + np.float32(1e-6)))
    spoiled = [vectors + rng.normal(size=vectors.shape).astype("f") * 0.1, np.roll(vectors, 1, 0)]
    spoiled.append(np.full_like(vectors, np.nan))
    for other in spoiled:
        with pytest.raises(BundleRefused, match="differs"):
            parity.require(parity.compare(vectors, other))


def test_the_trained_backbone_comes_back_from_its_export(
    small: Backbone, files: EncoderFiles
) -> None:
    """From the file alone the backbone gives the same vectors as before."""
    again = from_onnx.load(files)
    assert again.module.layers[1].attention.heads == 2
    assert torch.equal(backbone.encode(again, TEXTS), backbone.encode(small, TEXTS))


def test_a_foreign_graph_is_no_trained_backbone(files: EncoderFiles, tmp_path: Path) -> None:
    """A file that says nothing of its encoder, and one that is no graph, are refused."""
    import onnx

    model = onnx.load(files.model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "silent.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"\xff junk")
    for name, words in (("silent.onnx", "does not say"), ("junk.onnx", "no ONNX model")):
        with pytest.raises(BundleRefused, match=words):
            from_onnx.load(replace(files, model=tmp_path / name))


def test_limits_depend_on_the_kind() -> None:
    """What is allowed to an 8-bit encoder is too much for fp32; an unknown kind has no limits."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16)).astype(np.float32)
    close = vectors + rng.normal(size=vectors.shape).astype("f") * 0.05
    figures = parity.compare(vectors, close)
    parity.require(figures, "int8")
    with pytest.raises(BundleRefused, match="largest difference"):
        parity.require(figures)
    with pytest.raises(BundleRefused, match="unknown kind 'int3'") as caught:
        parity.require(figures, "int3")
    assert "newer release" in caught.value.remedy


def test_here_means_the_vectors_of_the_export() -> None:
    """On another machine the bundle's own encoder counts, not the trained one."""
    rng = np.random.default_rng(0)
    trained, own = rng.normal(size=(2, 40, 16)).astype(np.float32)
    probe = Probe(texts=tuple("a" * n for n in range(40)), vectors=trained, own=own)
    parity.require_here(probe, own + np.float32(1e-5), "int8")
    for kind in ("fp32", "int8"):
        with pytest.raises(BundleRefused, match="on this machine"):
            parity.require_here(probe, trained, kind)


def test_agreement_counts_shared_neighbours() -> None:
    """With one of four texts moved, the share of nearest neighbours both name is what it is."""
    one = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    other = one.copy()
    other[1] = [0.25, 1]
    figures = parity.compare(one, other, k=1)
    assert figures.k == 1
    assert figures.agreement == 0.75


def test_probe_texts_are_few_distinct_and_of_all_lengths() -> None:
    """Probes repeat nothing, hold the shortest and the longest text, and are the same each time."""
    texts = ["a" * (i % 50 + 1) + str(i % 400) for i in range(1_000)] + ["", "x"]
    probes = parity.probe_texts(texts, 32)
    assert len(set(probes)) == 32
    assert "x" in probes
    assert max(texts, key=lambda t: (len(t), t)) in probes
    assert probes == parity.probe_texts(texts[::-1], 32)
    assert parity.probe_texts(["b", "b", "a"]) == ("a", "b")
