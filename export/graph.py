"""The exported encoder as a graph: its linear maps, its attention, and what its file says of it.

The parts of a layer are known by their order, which is that of execution. Names would not do:
parameters with equal values are stored once, under the name of the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from adapters.backbone import SentenceEncoder
from export.errors import BundleRefused

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_SIZES = "innerloop.sizes"
_LINEARS = ("attention.joint", "attention.out", "up", "down")  # of a layer, in order
_NORMS = ("attention.norm", "norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the graph of an encoder does not show."""

    heads: tuple[int, ...]  # of each layer
    epsilon: float  # of the layer norms
    pooling: str
    normalise: bool

    @classmethod
    def of(cls, module: SentenceEncoder) -> Sizes:
        """Those of a module."""
        return cls(
            heads=tuple(layer.attention.heads for layer in module.layers),  # type: ignore[union-attr, misc]
            epsilon=module.norm.eps,
            pooling=module.pooling,
            normalise=module.normalise,
        )


class Linear(NamedTuple):
    """A linear map in a graph: x @ weight + bias."""

    name: str  # of the trained layer, such as layers.0.up
    product: Any  # the MatMul node
    sum: Any  # the Add node
    weight: NDArray[np.float32]  # [inputs, outputs]
    bias: NDArray[np.float32]  # [outputs]

    @property
    def source(self) -> str:
        """The name of x."""
        return str(self.product.input[0])

    @property
    def result(self) -> str:
        """The name of what comes out."""
        return str(self.sum.output[0])


def note_sizes(model: Any, sizes: Sizes) -> None:
    """Write them into the metadata of a model."""
    helper.set_model_props(model, {_SIZES: json.dumps(asdict(sizes))})


def read_sizes(model: Any, where: Path) -> Sizes:
    """The inverse of `note_sizes`. Raises `BundleRefused` for a file that says nothing."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    try:
        values = json.loads(said[_SIZES])
        return Sizes(**{**values, "heads": tuple(values["heads"])})
    except (KeyError, TypeError, ValueError):
        raise BundleRefused(
            f"{where} does not say how its encoder was made",
            remedy="Train the bundle anew with this release, then export it.",
        ) from None


def load(path: Path) -> Any:
    """The model in a file. Raises `BundleRefused` where it is none."""
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own, which onnx does not name
        raise BundleRefused(f"{path} is no ONNX model: {error}") from None


def linears(model: Any) -> list[Linear]:
    """All linear maps, in the order of the graph."""
    constants, users = constants_of(model), _users(model)
    found: list[Linear] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        (add,) = users[node.output[0]]
        bias = next(name for name in add.input if name != node.output[0])
        weight = numpy_helper.to_array(constants[node.input[1]])
        value = numpy_helper.to_array(constants[bias])
        found.append(Linear(_name(len(found), _LINEARS), node, add, weight, value))
    return found


def norms(model: Any) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weight and bias of each layer norm, by the name of the trained layer."""
    constants = constants_of(model)
    nodes = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    names = ["norm", *(_name(place, _NORMS) for place in range(len(nodes) - 1))]
    pairs = [[numpy_helper.to_array(constants[x]) for x in n.input[1:3]] for n in nodes]
    return {name: (w, b) for name, (w, b) in zip(names, pairs, strict=True)}


def _name(place: int, parts: Sequence[str]) -> str:
    return f"layers.{place // len(parts)}.{parts[place % len(parts)]}"


def constants_of(model: Any) -> dict[str, Any]:
    """The initialisers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def constant(model: Any, name: str, value: Any, dtype: Any = np.float32) -> str:
    """Add an initialiser; returns its name."""
    array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
    model.graph.initializer.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
    return name


def node(kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **more: Any) -> Any:
    """A node that is named after its output."""
    return helper.make_node(kind, inputs, [output], name=f"{output}_node", domain=domain, **more)


def replace_nodes(model: Any, new: Mapping[str, Sequence[Any]]) -> None:
    """Put other nodes in the place of named ones; what nothing reads any more goes away."""
    nodes = [made for old in model.graph.node for made in new.get(old.name, [old])]
    needed = {output.name for output in model.graph.output}
    kept = []
    for one in reversed(nodes):
        if needed.intersection(one.output):
            kept.append(one)
            needed.update(one.input)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(constants)


def fuse_attention(model: Any, heads: Sequence[int]) -> None:
    """Softmax, masks and products of each layer become one operator of ONNX Runtime."""
    maps = {each.name: each for each in linears(model)}
    makers = {output: n.name for n in model.graph.node for output in n.output}
    mask = node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    first = model.graph.node[0]
    new: dict[str, Sequence[Any]] = {first.name: [mask, first]}
    for layer, count in enumerate(heads):
        joint = maps[f"layers.{layer}.attention.joint"]
        mixed = maps[f"layers.{layer}.attention.out"].source
        new[makers[mixed]] = list(_attention(joint, mixed, count))
    replace_nodes(model, new)
    use_contrib(model)


def _attention(joint: Linear, mixed: str, heads: int) -> Iterator[Any]:
    parts = [f"{joint.name}.{part}" for part in ("query", "key", "value")]
    yield helper.make_node(
        "Split", [joint.result], parts, name=f"{joint.name}.split", axis=2, num_outputs=3
    )
    inputs = [*parts, "", "mask"]
    yield node("MultiHeadAttention", inputs, mixed, domain=CONTRIB, num_heads=heads)


def use_contrib(model: Any) -> None:
    """Declare the domain of ONNX Runtime's own operators."""
    if all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _users(model: Any) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = {}
    for one in model.graph.node:
        for name in one.input:
            users.setdefault(name, []).append(one)
    return users
