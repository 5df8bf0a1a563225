"""Models on a worker's disk, and which one it begins with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from export import bundle as bundles
from export.bundle import Bundle
from stream.config import Settings
from stream.errors import BundleError, BundleUnreachable
from stream.first_model import first
from stream.item_encoder import ItemEncoder
from stream.model_cache import ModelCache
from stream.preparing import OpenModel
from stream.releases import ModelRef, Release
from stream.terms import Terms
from stream.testing_worker import LetterEncoder
from tests.unit.test_bundle import made

__all__ = ["made"]


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """An empty cache."""
    return ModelCache(tmp_path / "state", "these topics")


def save(made: Bundle, folder: Path, created: str = "2026-11-03T12:00:00+00:00") -> ModelRef:
    """A bundle of its own version at an address."""
    manifest = msgspec.structs.replace(made.manifest, created=created)
    saved = bundles.save(replace(made, manifest=manifest), str(folder))
    return ModelRef(version=saved.manifest.version, bundle=str(folder))


def work(bundle: Bundle) -> OpenModel:
    """A bundle at work, without its encoder."""
    version, encoder = bundle.manifest.version, ItemEncoder(LetterEncoder())
    return OpenModel(version=version, meta=bundle.meta, items=bundle.items, encoder=encoder)


def terms(made: Bundle, **changes: object) -> Terms:
    """Those of a bundle."""
    return msgspec.structs.replace(work(made).terms, **changes)


def champion(ref: ModelRef) -> Release:
    """A record of `models`."""
    return Release(
        role="champion", version=ref.version, bundle=ref.bundle, reason="gate", published_at=1
    )


# -- copies -------------------------------------------------------------------------------------


def test_a_bundle_is_fetched_once(made: Bundle, cache: ModelCache, tmp_path: Path) -> None:
    """The copy serves when the address is gone; another version is asked for and missed."""
    ref = save(made, tmp_path / "out")
    assert cache.fetch(ref).manifest.version == ref.version
    shutil.rmtree(tmp_path / "out")
    assert cache.fetch(ref).manifest.version == ref.version
    with pytest.raises(BundleUnreachable, match="no bundle"):
        cache.fetch(ModelRef(version="another", bundle=ref.bundle))


def test_a_damaged_copy_is_fetched_again(made: Bundle, cache: ModelCache, tmp_path: Path) -> None:
    """What a crash or the disk did to the copy does not matter while the address answers."""
    ref = save(made, tmp_path / "out")
    copy = Path(cache.fetch(ref).encoder.model)
    copy.write_bytes(b"cut")
    assert cache.fetch(ref).encoder.model.read_bytes() == b"graph" * 999


def test_another_version_than_the_release_names_is_refused(
    made: Bundle, cache: ModelCache, tmp_path: Path
) -> None:
    """An address that was written over does not serve under an older name."""
    ref = save(made, tmp_path / "out")
    with pytest.raises(BundleError, match=f"is version {ref.version}, not 2025"):
        cache.fetch(ModelRef(version="2025", bundle=ref.bundle))


def test_the_last_two_good_models_are_kept(made: Bundle, cache: ModelCache, tmp_path: Path) -> None:
    """Older ones go, and so does what a crash left half-copied; notes survive a restart."""
    days = [f"2026-11-0{day}T12:00:00+00:00" for day in (1, 2, 3)]
    refs = [save(made, tmp_path / str(n), day) for n, day in enumerate(days)]
    for ref in refs:
        cache.fetch(ref)
        cache.served(ref.version, terms(made))
    (tmp_path / "state" / "models" / ".download-x").mkdir()
    cache.tidy([refs[2].version])
    again = ModelCache(tmp_path / "state", "these topics")
    assert again.good() == [refs[2].version, refs[1].version]
    assert again.terms == terms(made)
    left = {path.name for path in (tmp_path / "state" / "models").iterdir()}
    assert left == {refs[1].version, refs[2].version, "served.json"}


def test_models_of_other_topics_are_not_taken(made: Bundle, tmp_path: Path) -> None:
    """A cluster that was made anew begins without what the old one served."""
    ModelCache(tmp_path / "state", "old").served("v", terms(made))
    cache = ModelCache(tmp_path / "state", "new")
    assert cache.terms is None
    assert cache.good() == []


def test_a_note_that_was_cut_short_is_left_out(cache: ModelCache, tmp_path: Path) -> None:
    """A crash of the machine costs the note, not the start."""
    (tmp_path / "state" / "models" / "served.json").write_bytes(b'{"topics": "th')
    assert ModelCache(tmp_path / "state", "these topics").good() == []


# -- terms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"half_lives": (1.0,)}, "half_lives"),
        ({"bucket": 60.0}, "bucket"),
        ({"neighbours": 7}, "neighbours"),
        ({"since": 5.0}, "count twice or never"),
        ({"actions": ("rating", "click")}, "its actions are rating, click"),
    ],
)
def test_terms_that_differ_are_named(made: Bundle, changes: dict[str, object], why: str) -> None:
    """One line says which."""
    with pytest.raises(BundleError, match=why):
        terms(made).require(terms(made, **changes))


def test_actions_may_be_added_at_the_end_and_rolled_back(made: Bundle) -> None:
    """Records name actions by their place, which stays."""
    more = terms(made, actions=("click", "rating", "hover"))
    terms(made).require(more)
    more.require(terms(made))


# -- the first model ----------------------------------------------------------------------------


def configured(ref: ModelRef | None) -> Settings:
    """Settings with `model.bundle`."""
    return Settings(model={"bundle": None if ref is None else ref.bundle})  # type: ignore[arg-type]


def test_the_champion_comes_before_the_configured_model(
    made: Bundle, cache: ModelCache, tmp_path: Path
) -> None:
    """And where `models` has none, the configured one serves."""
    one = save(made, tmp_path / "one")
    two = save(made, tmp_path / "two", "2026-11-04T12:00:00+00:00")
    assert first(configured(one), champion(two), cache, work)[0].version == two.version
    model, refusal = first(configured(one), None, cache, work)
    assert (model.version, refusal) == (one.version, None)


def test_a_champion_out_of_reach_leaves_the_last_good_model(
    made: Bundle, cache: ModelCache, tmp_path: Path
) -> None:
    """The worker begins with its copy and tries the champion again."""
    good = save(made, tmp_path / "good")
    cache.fetch(good)
    cache.served(good.version, terms(made))
    gone = champion(ModelRef(version="gone", bundle=str(tmp_path / "gone")))
    model, refusal = first(configured(None), gone, cache, work)
    assert model.version == good.version
    assert refusal is not None
    assert refusal.due is not None


def test_a_champion_of_other_terms_is_refused_after_a_restart_too(
    made: Bundle, cache: ModelCache, tmp_path: Path
) -> None:
    """What served last says what the signals mean."""
    configured_one = save(made, tmp_path / "one")
    cache.served("before", terms(made, since=5.0))
    ref = save(made, tmp_path / "two", "2026-11-04T12:00:00+00:00")
    model, refusal = first(configured(configured_one), champion(ref), cache, work)
    assert model.version == configured_one.version
    assert refusal is not None
    assert "count twice or never" in refusal.reason
    assert refusal.due is None


def test_without_any_model_the_worker_says_what_to_do(cache: ModelCache, tmp_path: Path) -> None:
    """Neither a champion nor a setting, or a champion that is gone: one line each."""
    with pytest.raises(BundleError, match="`models` has no champion"):
        first(configured(None), None, cache, work)
    gone = champion(ModelRef(version="gone", bundle=str(tmp_path / "gone")))
    with pytest.raises(BundleUnreachable, match="no bundle"):
        first(configured(None), gone, cache, work)
