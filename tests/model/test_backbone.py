"""The backbone is the BERT it says it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adapters import backbone, tokens
from adapters.backbone import BackboneError

SIZES = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
TEXTS = ["Alien. Horror, Sci-Fi", "", "Les Misérables", "one two three four five six " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights, saved by the library that BERTs usually come from."""
    from transformers.models.bert import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**{k: v for k, v in SIZES.items() if k != "model_type"})).save_pretrained(
        path
    )
    shutil.copyfile(backbone.default_folder() / "tokenizer.json", path / "tokenizer.json")
    return path


def reference(path: Path, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Token vectors [n, l, D] by the library."""
    from transformers.models.bert import BertModel

    model = BertModel.from_pretrained(path, local_files_only=True).eval()
    with torch.inference_mode():
        out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    return out.last_hidden_state


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_the_reference_model(
    folder: Path, tmp_path: Path, pooling: str
) -> None:
    """Token ids in, the same pooled unit vectors out as by the reference implementation."""
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    modes = {
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_cls_token": pooling == "cls",
    }
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    kinds = ["models.Transformer", "models.Pooling", "models.Normalize"]
    (path / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))
    loaded = backbone.load(path)
    vectors = backbone.encode(loaded, TEXTS, batch_size=3)
    for batch in tokens.batches(loaded.tokenizer, TEXTS, len(TEXTS)):
        hidden = reference(folder, batch.ids, batch.mask)
        mask = torch.from_numpy(batch.mask)[..., None]
        pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        torch.testing.assert_close(
            vectors[torch.from_numpy(batch.places)], expected, atol=1e-5, rtol=0
        )


def test_neighbours_in_a_batch_change_nothing(folder: Path) -> None:
    """A text has the same vector alone and padded beside longer ones, in any order."""
    loaded = backbone.load(folder)
    together = backbone.encode(loaded, TEXTS)
    alone = torch.cat([backbone.encode(loaded, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    turned = backbone.encode(loaded, TEXTS[::-1], batch_size=1)
    torch.testing.assert_close(turned.flip(0), alone, atol=1e-6, rtol=0)


def test_long_texts_are_cut(folder: Path) -> None:
    """No text has more tokens than asked for, nor more than the model has positions."""
    assert backbone.load(folder).max_length == 48
    loaded = backbone.load(folder, max_length=7)
    batch = next(tokens.batches(loaded.tokenizer, TEXTS[-1:], 1))
    assert batch.ids.shape == (1, 7)


def test_batches_go_from_short_to_long_and_cover_everything(folder: Path) -> None:
    """Every text is in one batch; lengths never fall; padding is masked."""
    loaded = backbone.load(folder)
    texts = [f"word {'more ' * (i * 7 % 13)}" for i in range(20)]
    seen = list(tokens.batches(loaded.tokenizer, texts, 6))
    assert sorted(np.concatenate([b.places for b in seen]).tolist()) == list(range(20))
    lengths = np.concatenate([b.mask.sum(1) for b in seen])
    assert (np.diff(lengths) >= 0).all()
    assert all(((b.ids == 0) == (b.mask == 0)).all() for b in seen)


def test_no_texts_no_vectors(folder: Path) -> None:
    """An empty list gives an empty matrix of the right width."""
    assert backbone.encode(backbone.load(folder), []).shape == (0, 24)


def test_the_digest_follows_weights_and_length(folder: Path, tmp_path: Path) -> None:
    """Two loads agree; another length or another weight gives another digest."""
    first = backbone.load(folder).sha
    assert backbone.load(folder).sha == first
    assert backbone.load(folder, max_length=9).sha != first
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    assert backbone.load(other).sha != first


def test_what_is_saved_is_loaded_again(folder: Path, tmp_path: Path) -> None:
    """A saved backbone has the vectors of its weights, and a digest that follows them alone."""
    first = backbone.load(folder)
    backbone.save(first, {}, tmp_path / "same")
    same = backbone.load(tmp_path / "same")
    torch.testing.assert_close(backbone.encode(same, TEXTS), backbone.encode(first, TEXTS))
    up = first.module.state_dict()["layers.1.up.weight"]
    for name in ("one", "two"):
        backbone.save(first, {"layers.1.up.weight": up * 1.5}, tmp_path / name)
    one, two = (backbone.load(tmp_path / name) for name in ("one", "two"))
    assert one.sha == two.sha != same.sha
    assert torch.equal(one.module.state_dict()["layers.1.up.weight"], up * 1.5)
    assert (backbone.encode(one, TEXTS) - backbone.encode(first, TEXTS)).abs().max() > 1e-3
    with pytest.raises(FileExistsError):
        backbone.save(first, {}, tmp_path / "one")


def test_pooling_is_saved_too(folder: Path, tmp_path: Path) -> None:
    """What makes a sentence encoder of a BERT goes along."""
    path = tmp_path / "cls"
    shutil.copytree(folder, path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (path / "modules.json").write_text('[{"type": "models.Transformer"}]')
    loaded = backbone.load(path)
    backbone.save(loaded, {}, tmp_path / "saved")
    saved = backbone.load(tmp_path / "saved").module
    assert (saved.pooling, saved.normalise) == ("cls", False)


def test_the_packaged_backbone_knows_what_is_alike() -> None:
    """The default backbone puts two space films nearer to each other than to a wedding comedy."""
    texts = [
        "Star Wars. Sci-Fi, Adventure",
        "Star Trek. Sci-Fi, Action",
        "My Big Fat Greek Wedding",
    ]
    vectors = backbone.encode(backbone.load(), texts)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] + 0.2
    assert near[0, 1] > near[1, 2] + 0.2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json"),
        ("config.json", b"{", "not JSON"),
        ("config.json", b'{"model_type": "gpt2"}', "not a BERT"),
        ("config.json", b'{"model_type": "bert"}', "lacks 'vocab_size'"),
        ("model.safetensors", None, "is missing"),
        ("model.safetensors", b"no weights", "damaged"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_a_folder_that_is_no_bert_is_refused(
    folder: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """Missing, damaged and foreign files are named."""
    path = tmp_path / "broken"
    shutil.copytree(folder, path)
    (path / name).unlink() if content is None else (path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        backbone.load(path)


def test_missing_and_misshapen_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Weights that do not fit the configuration are an error that says so."""
    path = tmp_path / "broken"
    shutil.copytree(folder, path)
    save_file({"embeddings.word_embeddings.weight": torch.zeros(3, 3)}, path / "model.safetensors")
    with pytest.raises(BackboneError, match="lacks"):
        backbone.load(path)
    shutil.copyfile(folder / "model.safetensors", path / "model.safetensors")
    sizes = {**SIZES, "intermediate_size": 41}
    (path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(BackboneError, match="do not fit"):
        backbone.load(path)
