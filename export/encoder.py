"""The backbone in the worker: ONNX Runtime over the exported graph, with its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters import tokens
from export.errors import EncoderError

Vectors = NDArray[np.float32]
Progress = Callable[[int], None]

MODEL_FILE = "encoder.onnx"
TOKENIZER_FILE = "tokenizer.json"
CPU_KINDS = frozenset({"int8", "pruned-int8"})
"""Kinds of encoders whose kernels exist for the CPU alone; elsewhere they would fall back to it."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFiles:
    """An exported encoder; `sha` names the backbone and everything else its vectors depend on."""

    model: Path
    tokenizer: Path
    max_length: int
    dim: int
    sha: str
    kind: str = "fp32"  # see `parity.EXPORTED`


class OnnxEncoder:
    """Texts to vectors. Safe to call from several threads; calls share the session's threads."""

    def __init__(self, files: EncoderFiles, *, device: str = "auto", threads: int = 0) -> None:
        """`device` auto, cpu or cuda; `threads` 0 = all cores. Raises `EncoderError`."""
        self.files = files
        self.device = _choose(device, files.kind)
        self._tokenizer = tokens.load_tokenizer(files.tokenizer, files.max_length)
        self.threads = threads or len(os.sched_getaffinity(0))
        self._session = _session(files.model, self.device, self.threads)
        self.provider = str(self._session.get_providers()[0])
        if self.provider != _PROVIDERS[self.device]:
            raise EncoderError(
                f"ONNX Runtime runs on {self.provider}, not on {_PROVIDERS[self.device]}",
                remedy="Install the CUDA libraries ONNX Runtime asks for, or set model.device=cpu.",
            )

    @property
    def dim(self) -> int:
        """Dimensions D of a vector."""
        return self.files.dim

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Vectors:
        """Vectors [N, D] of `texts` in their order; `progress` is told how many more are done."""
        result = np.empty((len(texts), self.dim), np.float32)
        for batch in tokens.batches(self._tokenizer, texts, batch_size):
            feed = {"input_ids": batch.ids, "attention_mask": batch.mask}
            result[batch.places] = self._session.run(None, feed)[0]
            if progress is not None:
                progress(len(batch.places))
        return result


def _choose(device: str, kind: str) -> str:
    """`auto` is the GPU where torch finds one: asking ONNX Runtime for it elsewhere only warns."""
    if kind in CPU_KINDS and device == "cuda":
        raise EncoderError(
            f"an encoder of kind {kind} has no kernels for the GPU",
            remedy="Set model.device to auto or cpu, or export the fp16 variant.",
        )
    if kind in CPU_KINDS:
        return "cpu"
    if device != "auto":
        return device
    import onnxruntime
    import torch

    there = _PROVIDERS["cuda"] in onnxruntime.get_available_providers()
    return "cuda" if there and torch.cuda.is_available() else "cpu"


def _session(model: Path, device: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            str(model), options, providers=[_PROVIDERS[device], _PROVIDERS["cpu"]][: _count(device)]
        )
    except Exception as error:  # ONNX Runtime has no public base class for its errors
        line = str(error).splitlines()[0]
        raise EncoderError(f"{model} cannot be loaded: {line}") from None


def _count(device: str) -> int:
    return 1 if device == "cpu" else 2
