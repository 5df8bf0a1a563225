"""Encoders in fewer bits: each function reads one ONNX file and writes another.

`by_token` is Innerloop's own; the others are ONNX Runtime's. Their difference is the scale of what
goes into a matrix product. ONNX Runtime takes one scale for all tokens of a batch: an unusual token
coarsens its neighbours, and a text's vector depends on the texts beside it. `by_token` gives every
token a scale of its own (Yao et al., "ZeroQuant", 2022), after the channels have been evened out
(Xiao et al., "SmoothQuant", 2023): vectors are closer, and depend on their text alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from adapters import tokens
from export import graph
from export.encoder import EncoderFiles
from export.graph import CONTRIB, Linear, constant, node

SMOOTHING = 0.7
"""How much of a channel's range moves from the tokens into the weights: 0 none, 1 all of it."""

GELU_FLOOR = 0.17
"""GELU is nowhere below -0.16998; shifted by this its outputs need no sign bit."""

_LEVELS = 127  # of a signed byte

Feed = Mapping[str, NDArray[np.int64]]
Ranges = Mapping[str, NDArray[np.float32]]


def fused(source: Path, target: Path) -> None:
    """The same numbers in fewer operators: attention is one."""
    model = graph.load(source)
    graph.fuse_attention(model, graph.read_sizes(model, source).heads)
    onnx.save(model, target)


def half(source: Path, target: Path) -> None:
    """Half floats inside, fp32 vectors outside: for GPUs; a CPU computes in fp32 all the same."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        onnx.save(convert_float_to_float16(graph.load(source), keep_io_types=True), target)


def dynamic(
    source: Path, target: Path, *, per_channel: bool = False, reduce_range: bool = False
) -> None:
    """8-bit products with the range of each batch; a scale a matrix, or one an output channel.

    `reduce_range` leaves a bit of the weights empty, for processors that saturate without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=reduce_range,
            extra_options={"MatMulConstBOnly": True},
        )


def static(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """8-bit products with ranges that were met in `feeds`, tokens of calibration texts."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet():
        quantize_static(
            source,
            target,
            _Reader(iter(feeds)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def by_blocks(source: Path, target: Path, *, bits: int = 8, block: int = 128) -> None:
    """Weights in blocks of `block` with a scale each; tokens are quantised on the way."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    config = nbits.DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=True, accuracy_level=4, bits=bits
    )
    with _quiet():
        quantizer = nbits.MatMulNBitsQuantizer(graph.load(source), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


def by_token(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """8-bit products with a scale for every token and every output channel.

    Channels are evened out by the largest values that were met in `feeds`: that moves precision
    around and cuts nothing off, so that texts unlike those of the calibration are safe.
    """
    model = graph.load(source)
    ranges = _largest(model, feeds)
    graph.fuse_attention(model, graph.read_sizes(model, source).heads)
    new: dict[str, Sequence[Any]] = {}
    for linear in graph.linears(model):
        new[linear.product.name] = []
        new[linear.sum.name] = list(_product(model, linear, ranges[linear.source]))
    new |= _words(model)
    graph.replace_nodes(model, new)
    onnx.save(model, target)


def feeds(files: EncoderFiles, texts: Sequence[str], size: int = 32) -> Iterator[Feed]:
    """Texts as the encoder's inputs, `size` at a time."""
    tokenizer = tokens.load_tokenizer(files.tokenizer, files.max_length)
    for batch in tokens.batches(tokenizer, texts, size):
        yield {"input_ids": batch.ids, "attention_mask": batch.mask}


# -- a scale for every token --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What goes into a product, made fit for bytes, and the weights that go with it."""

    nodes: Sequence[Any]
    x: str
    sizes: str  # the largest of these in a token becomes the token's scale
    weight: NDArray[np.float32]  # [inputs, outputs]
    shift: float  # x is the input plus this
    levels: int  # bytes above `zero`
    zero: int  # the byte that means 0


def _product(model: Any, linear: Linear, largest: NDArray[np.float32]) -> Iterator[Any]:
    """Nodes in place of x @ weight + bias: x over its token's scale, in 8 bits, and back."""
    positive = linear.name.endswith(".down")
    entry = _shifted(model, linear) if positive else _evened(model, linear, largest)
    yield from entry.nodes
    yield from _in_bytes(model, linear.name, entry)
    yield from _multiplied(model, linear, entry)


def _shifted(model: Any, linear: Linear) -> _Entry:
    """GELU's outputs, shifted until none is negative."""
    x = f"{linear.name}.shifted"
    shift = constant(model, f"{linear.name}.shift", GELU_FLOOR)
    return _Entry(
        nodes=[node("Add", [linear.source, shift], x)],
        x=x,
        sizes=x,
        weight=linear.weight,
        shift=GELU_FLOOR,
        levels=255,
        zero=0,
    )


def _evened(model: Any, linear: Linear, largest: NDArray[np.float32]) -> _Entry:
    """Inputs with their channels evened out, at the expense of the weights' rows."""
    x, sizes = f"{linear.name}.evened", f"{linear.name}.sizes"
    even = _smoothing(largest, linear.weight)
    by = constant(model, f"{linear.name}.even", 1 / even)
    return _Entry(
        nodes=[node("Mul", [linear.source, by], x), node("Abs", [x], sizes)],
        x=x,
        sizes=sizes,
        weight=linear.weight * even[:, None],
        shift=0.0,
        levels=_LEVELS,
        zero=128,
    )


def _in_bytes(model: Any, name: str, entry: _Entry) -> Iterator[Any]:
    """`NAME.bytes` and `NAME.scale`: a token's bytes, and what they were divided by."""
    axis = constant(model, f"{name}.axis", [-1], np.int64)
    yield node("ReduceMax", [entry.sizes, axis], f"{name}.most")
    yield node("Max", [f"{name}.most", constant(model, f"{name}.least", 1e-12)], f"{name}.scale")
    yield node("Div", [entry.x, f"{name}.scale"], f"{name}.unit")
    step = constant(model, f"{name}.step", 1 / entry.levels)
    zero = constant(model, f"{name}.zero", entry.zero, np.uint8)
    yield node("QuantizeLinear", [f"{name}.unit", step, zero], f"{name}.bytes")


def _multiplied(model: Any, linear: Linear, entry: _Entry) -> Iterator[Any]:
    """The product in integers, scaled back; the bias takes the shift away again."""
    name = linear.name
    scales = np.abs(entry.weight).max(0).clip(1e-12) / _LEVELS  # [outputs]
    rounded = np.rint(entry.weight / scales).astype(np.int8)
    bias = linear.bias - entry.shift * (rounded * scales).sum(0)
    eight = constant(model, f"{name}.eight", rounded, np.int8)
    each = constant(model, f"{name}.scales", scales)
    inputs = [f"{name}.bytes", eight, f"{name}.step", each, f"{name}.zero"]
    yield node("MatMulIntegerToFloat", inputs, f"{name}.product", domain=CONTRIB)
    yield node("Mul", [f"{name}.product", f"{name}.scale"], f"{name}.scaled")
    yield node("Add", [f"{name}.scaled", constant(model, f"{name}.offset", bias)], linear.result)


def _smoothing(largest: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each input channel [inputs] is divided by, and its row of the weight multiplied with."""
    inputs, rows = largest.clip(1e-4), np.abs(weight).max(1).clip(1e-5)
    even = inputs**SMOOTHING / rows ** (1 - SMOOTHING)
    return np.asarray(even / np.exp(np.log(even).mean()), np.float32)


def _words(model: Any) -> dict[str, Sequence[Any]]:
    """The table of words in 8 bits with a scale a word, which is more than half of the file."""
    table = numpy_helper.to_array(graph.constants_of(model)["words.weight"])  # [V, D]
    scales = np.abs(table).max(1, keepdims=True).clip(1e-12) / _LEVELS
    gather = next(n for n in model.graph.node if n.input[:1] == ["words.weight"])
    ids, result = gather.input[1], gather.output[0]
    bytes_ = constant(model, "words.bytes", np.rint(table / scales), np.int8)
    each = constant(model, "words.scales", scales)
    return {
        gather.name: [
            node("Gather", [bytes_, ids], "words.found"),
            node("Cast", ["words.found"], "words.floats", to=TensorProto.FLOAT),
            node("Gather", [each, ids], "words.scale"),
            node("Mul", ["words.floats", "words.scale"], result),
        ]
    }


def _largest(model: Any, feeds: Iterable[Feed]) -> Ranges:
    """The largest size of each channel [inputs] of what enters each linear map."""
    import onnxruntime

    names = sorted({linear.source for linear in graph.linears(model)})
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        shown.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: dict[str, NDArray[np.float32]] = {}
    for feed in feeds:
        real = feed["attention_mask"].astype(bool)
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            most = np.abs(value[real]).max(0)
            found[name] = np.maximum(found.get(name, most), most)
    return found


class _Reader:
    """Calibration texts in the form that ONNX Runtime asks for."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools give advice by way of the root logger; their errors are raised all the same."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
