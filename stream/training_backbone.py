"""The backbone of a training: as it comes, trained further on the items' texts, or tuned.

A backbone with weights of its own is saved in the folder of the run, `pretrained` or `tuned`, in
the form that `--backbone` reads. From there it is exported and proved like any other, so that
nothing behind it knows how it came to its weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import torch
from torch import Tensor

from adapters import arrivals, backbone, episodes, meta_train, pretrain, text_retrieval, tuning
from adapters import validation as held_out
from adapters.backbone import BackboneError
from adapters.episodes import Log
from adapters.meta_train import Trained
from adapters.outer_loop import Progress
from adapters.pretrain import ItemTexts
from adapters.text_retrieval import Compared
from adapters.tuning import TunedTexts
from stream import recipes
from stream.errors import BundleError, DataError
from stream.item_encoder import ItemRows
from stream.messages import Item, item_text
from stream.progress import Advance, Reporter
from stream.run_folder import RunFolder
from stream.threads import threads
from stream.training_text import Text, load_backbone, read_text

if TYPE_CHECKING:
    from stream.training import Cuts, Request

PRETRAINED, TUNED = "pretrained", "tuned"
FIGURES_FILE = "pretrained.json"


def read(
    request: Request,
    items: Sequence[Item],
    cuts: Cuts,
    reporter: Reporter,
    folder: RunFolder | None,
) -> tuple[Text, dict[str, Any]]:
    """The items as the backbone reads them, and what is to be said of further pretraining.

    Where it is asked for, the backbone is trained further on the items of the first part, and kept
    if its vectors alone find what held-out users took next better than those of the backbone as
    it came. A run that goes on takes what it found before. Raises `DataError` for a backbone that
    cannot be read, or items without texts.
    """
    text = read_text(request, items, reporter)
    if recipes.pretraining(request.settings.learning) is None:
        return text, {}
    place = _place(request, folder)
    if not (place / FIGURES_FILE).is_file():
        text, figures = _further(request, items, cuts, text, place, reporter)
        _note(place, figures)
        return text, {PRETRAINED: figures}
    figures = json.loads((place / FIGURES_FILE).read_text(encoding="utf-8"))
    if figures["kept"]:
        text = _read_own(request, items, place, PRETRAINED, reporter)
    return text, {PRETRAINED: figures}


def to_tune(
    request: Request, text: Text, items: Sequence[Item], reporter: Reporter
) -> TunedTexts | None:
    """What the outer loop tunes of the backbone; None = nothing. Raises `DataError`."""
    how = recipes.tuning(request.settings.learning)
    if how is None:
        return None
    bert, texts = load_backbone(text.backbone), [item_text(item.fields) for item in items]
    try:
        with reporter.phase("read texts for tuning"), threads(request.settings.model.threads):
            top = tuning.prepare(bert, texts, how.layers)
    except ValueError as error:
        raise DataError(str(error), remedy="Lower learning.tune_layers.") from None
    return TunedTexts(top, how, _vectors(text.rows))


def with_tuned(
    request: Request,
    trained: Trained,
    text: Text,
    items: Sequence[Item],
    cuts: Cuts,
    reporter: Reporter,
    folder: RunFolder | None,
) -> tuple[Trained, Text]:
    """Model and texts over the backbone that was tuned with the model; as they are without one."""
    if trained.backbone is None:
        return trained, text
    place = _place(request, folder)
    _save(load_backbone(text.backbone), trained.backbone, place / TUNED)
    own = _read_own(request, items, place, TUNED, reporter)
    first, _ = episodes.split_time(cuts.log, cuts.fit)
    return meta_train.read_anew(trained, first, _vectors(own.rows)), own


# -- pretraining --------------------------------------------------------------------------------


def _further(
    request: Request,
    items: Sequence[Item],
    cuts: Cuts,
    text: Text,
    place: Path,
    reporter: Reporter,
) -> tuple[Text, dict[str, Any]]:
    """The texts by a backbone trained further where that is better, and figures."""
    first, _ = episodes.split_time(cuts.log, cuts.fit)
    there, _ = arrivals.there(first, torch.from_numpy(text.rows.created), len(items))
    recipe = recipes.pretraining(request.settings.learning)
    if recipe is None:
        raise ValueError("pretraining was not asked for")
    bert = load_backbone(text.backbone)
    count = request.settings.model.threads
    with reporter.phase("pretrain the backbone") as advance, threads(count):
        try:
            found = pretrain.pretrain(
                bert,
                item_texts([items[row] for row in there.tolist()]),
                recipe,
                seed=request.seed,
                progress=_following(advance),
                device=_device(request),
            )
        except (ValueError, BackboneError) as error:
            raise DataError(
                f"the backbone cannot be pretrained: {error}",
                remedy="Bring items with texts, or leave out --pretrain.",
            ) from None
        _save(bert, found.weights, place / PRETRAINED)
    own, check = _judge(request, items, first, cuts, text, place, there, reporter)
    if own is None:
        shutil.rmtree(place / PRETRAINED)
    return own or text, {"kept": own is not None, "check": check, **found.metrics}


def _judge(
    request: Request,
    items: Sequence[Item],
    first: Log,
    cuts: Cuts,
    text: Text,
    place: Path,
    there: Tensor,
    reporter: Reporter,
) -> tuple[Text | None, dict[str, object]]:
    """The texts as the pretrained backbone reads them, None if that is no better, and figures."""
    try:
        own = _read_own(request, items, place, PRETRAINED, reporter)
    except BundleError as error:  # such as one whose vectors have become alike
        reporter.say(f"pretrained backbone: {error.detail}; the backbone stays as it was")
        return None, {"better": False, "refused": error.detail}
    compared = _compare(request, first, cuts, text, own, there)
    reporter.say(_verdict(compared))
    return own if compared.better else None, compared.to_dict()


def _compare(
    request: Request, first: Log, cuts: Cuts, before: Text, after: Text, there: Tensor
) -> Compared:
    """Both on the positions that the outer loop is checked at."""
    draw = recipes.recipe(request.settings).draw
    log = episodes.shuffle_ties(first, request.seed)
    batches = held_out.draw(log, cuts.held_out, draw, request.seed)
    return text_retrieval.compare(_vectors(before.rows), _vectors(after.rows), batches, there)


def _verdict(found: Compared) -> str:
    kept = "it is kept" if found.better else "not clearly better, so the backbone stays as it was"
    if not found.positions:
        return "pretrained backbone: too few held-out events to judge it by; " + kept
    return (
        f"pretrained backbone: texts alone find the next item {found.ahead.mean:+.1%} better "
        f"({found.ahead.low:+.1%} to {found.ahead.high:+.1%}, {found.positions:,} positions of "
        f"{found.users:,} held-out users); {kept}"
    )


def item_texts(items: Sequence[Item]) -> ItemTexts:
    """What pretraining reads of items: all text, the title, and the text without the title."""
    return ItemTexts(
        whole=[item_text(item.fields) for item in items],
        titles=[item_text([f for f in item.fields if f.name == "title"]) for item in items],
        rests=[item_text([f for f in item.fields if f.name != "title"]) for item in items],
    )


def _following(advance: Advance) -> Callable[[Progress], None]:
    """Shows both losses, and the last check."""
    checked = ""

    def progress(now: Progress) -> None:
        nonlocal checked
        if now.validation is not None:
            checked = f", held-out items {now.validation:.3f}"
        losses = f"hidden tokens {now.losses['meta']:.3f}, contrast {now.losses['few']:.3f}"
        advance(now.fraction, f"{losses}{checked}, at most {now.seconds_left:.0f} s left")

    return progress


def _device(request: Request) -> str:
    return "cuda" if request.settings.model.device != "cpu" and torch.cuda.is_available() else "cpu"


# -- folders ------------------------------------------------------------------------------------


def _place(request: Request, folder: RunFolder | None) -> Path:
    """Where backbones of this run go: its folder, without one a new folder of the cache."""
    if folder is not None:
        return folder.path
    cache = (request.cache or platformdirs.user_cache_path("innerloop")) / "backbones"
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=cache))


def _save(bert: backbone.Backbone, weights: dict[str, Tensor], target: Path) -> None:
    """The whole folder or none; what a run that was broken off has left there goes."""
    draft = target.with_name(f"{target.name}.new")
    for old in (draft, target):
        shutil.rmtree(old, ignore_errors=True)
    backbone.save(bert, weights, draft)
    draft.replace(target)


def _read_own(
    request: Request, items: Sequence[Item], place: Path, name: str, reporter: Reporter
) -> Text:
    """The items by a backbone of this run; its export and vectors stay in the run's folder."""
    own = replace(request, backbone=place / name, cache=place / "cache")
    return read_text(own, items, reporter, f", {name}")


def _note(place: Path, figures: dict[str, Any]) -> None:
    draft = place / f"{FIGURES_FILE}.new"
    draft.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    draft.replace(place / FIGURES_FILE)


def _vectors(rows: ItemRows) -> Tensor:
    return torch.from_numpy(rows.text).float()
