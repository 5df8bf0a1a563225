"""The trained backbone back from its export, so that a bundle alone is enough to prune it."""

from __future__ import annotations

from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor

from adapters import tokens
from adapters.backbone import Backbone, BertShape, SentenceEncoder
from export import graph
from export.encoder import EncoderFiles
from export.errors import BundleRefused
from export.graph import Sizes


def load(files: EncoderFiles) -> Backbone:
    """The backbone in inference mode on the CPU, from an fp32 export of all its layers.

    Raises `BundleRefused` for a file that is not what `export.to_onnx` writes.
    """
    model = graph.load(files.model)
    sizes = graph.read_sizes(model, files.model)
    try:
        module = _module(model, sizes)
    except (KeyError, RuntimeError, StopIteration, ValueError):
        raise BundleRefused(
            f"{files.model} is not the whole encoder in fp32",
            remedy="Export from the bundle that training wrote; its version is this one's parent.",
        ) from None
    return Backbone(
        module=module.eval(),
        tokenizer=tokens.load_tokenizer(files.tokenizer, files.max_length),
        tokenizer_file=files.tokenizer,
        max_length=files.max_length,
        dim=files.dim,
        sha=files.sha,
    )


def _module(model: Any, sizes: Sizes) -> SentenceEncoder:
    weights = _weights(model)
    vocabulary, hidden = weights["words.weight"].shape
    shape = BertShape(
        vocabulary=vocabulary,
        positions=len(weights["positions.weight"]),
        token_types=1,
        layers=len(sizes.heads),
        hidden=hidden,
        heads=sizes.heads[0],
        inner=weights["layers.0.up.bias"].shape[0],
        epsilon=sizes.epsilon,
    )
    module = SentenceEncoder(shape, pooling=sizes.pooling, normalise=sizes.normalise)
    module.load_state_dict(weights)
    return module


def _weights(model: Any) -> dict[str, Tensor]:
    """The parameters by their trained names; the text's own token type is the only one left."""
    constants = graph.constants_of(model)
    arrays = {
        f"{name}.weight": numpy_helper.to_array(constants[f"{name}.weight"])
        for name in ("words", "positions")
    }
    arrays["types.weight"] = numpy_helper.to_array(constants[_token_type(model, constants)])[None]
    for linear in graph.linears(model):
        arrays |= {f"{linear.name}.weight": linear.weight.T, f"{linear.name}.bias": linear.bias}
    for name, (weight, bias) in graph.norms(model).items():
        arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _token_type(model: Any, constants: dict[str, Any]) -> str:
    """The vector that is added before the first norm."""
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    add = next(n for n in model.graph.node if norm.input[0] in n.output)
    return str(next(name for name in add.input if name in constants))
