"""A log, items and a BERT that are small enough to train on in a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

from adapters import backbone
from stream.errors import InnerloopError
from tests import exports

THEMES = ("space", "wedding", "heist", "ghost")
DAY = 86_400_000


@contextmanager
def home_of(
    folder: Path, *, processes: bool = False, users: int = 100, layers: int = 1
) -> Iterator[Path]:
    """Data, a small BERT, and caches of their own, which other `processes` find as well."""
    write_data(folder, users)
    small_bert(folder / "bert", layers)
    exports.share(folder / "cache" / "innerloop" if processes else folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        if processes:
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            patch.setenv("OMP_NUM_THREADS", "1")
        else:
            patch.setattr(platformdirs, "user_cache_path", lambda *_: folder / "cache")
            patch.setattr(platformdirs, "user_data_path", lambda *_: folder / "data")
        yield folder


def small_bert(folder: Path, layers: int = 1) -> None:
    """A BERT with random weights under the names that BERTs are saved with."""
    sizes = {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes))
    shutil.copyfile(backbone.default_folder() / "tokenizer.json", folder / "tokenizer.json")
    torch.manual_seed(0)
    names = [f"encoder.layer.{i}" for i in range(layers)]
    linear = {
        f"{layer}.{name}": shape
        for layer in names
        for name, shape in {
            "attention.self.query": (32, 32),
            "attention.self.key": (32, 32),
            "attention.self.value": (32, 32),
            "attention.output.dense": (32, 32),
            "intermediate.dense": (16, 32),
            "output.dense": (32, 16),
        }.items()
    }
    norms = ["embeddings"]
    for layer in names:
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    tables = {"word": 30522, "position": 64, "token_type": 2}
    weights = {f"{n}.weight": torch.randn(*shape) * 0.2 for n, shape in linear.items()}
    weights |= {f"{n}.bias": torch.zeros(shape[0]) for n, shape in linear.items()}
    weights |= {f"{n}.LayerNorm.weight": torch.ones(32) for n in norms}
    weights |= {f"{n}.LayerNorm.bias": torch.zeros(32) for n in norms}
    weights |= {f"embeddings.{n}_embeddings.weight": torch.randn(k, 32) for n, k in tables.items()}
    save_file(weights, folder / "model.safetensors")


def write_data(folder: Path, users: int = 100, items: int = 80) -> None:
    """A log in which every user keeps to one theme, over ten days."""
    rng = np.random.default_rng(0)
    films = [
        {
            "event": "item",
            "id": f"i{i}",
            "timestamp": 0,
            "item": f"film-{i}",
            "fields": [
                {"name": "title", "value": f"The {THEMES[i % 4]} film {i}"},
                {"name": "category", "value": [THEMES[i % 4]]},
            ],
        }
        for i in range(items)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, films)))
    events = []
    for user in range(users):
        own = rng.permutation(np.arange(user % 4, items, 4))[:12]
        began = rng.integers(0, 9 * DAY)
        for place, item in enumerate(own.tolist()):
            events.append(
                {
                    "event": "interaction",
                    "id": f"e{user}-{place}",
                    "timestamp": int(1.4e12 + began + place * DAY // 12),
                    "user": f"user-{user}",
                    "item": f"film-{item}",
                    "type": "click",
                }
            )
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)))


def invoke(app: object, *arguments: object) -> Result:
    """Run a command as the shell would, standard error apart."""
    return CliRunner().invoke(app, [str(a) for a in arguments])  # type: ignore[arg-type]


def said(result: Result) -> InnerloopError:
    """The mistake that a command ended with."""
    assert isinstance(result.exception, InnerloopError), result.output
    return result.exception
