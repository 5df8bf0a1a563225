"""The model that a worker, or a command, begins with.

The champion on `models` where there is one and `model.follow` is on, else `model.bundle`. A worker
whose champion cannot serve begins with the last good one on its disk and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from export.bundle import Bundle
from stream import bundles, inspection, log
from stream.config import Settings
from stream.errors import BundleError
from stream.model_cache import ModelCache
from stream.models import Refusal, refusal_of
from stream.preparing import OpenModel
from stream.releases import ModelRef, Release
from stream.roles import challenged
from stream.succession import Standing

_log = log.get("model")

Open = Callable[[Bundle], OpenModel]


def followed(settings: Settings) -> Standing:
    """The roles that workers with these settings follow; none with `model.follow` off.

    Raises `TopicError` and `BrokerUnavailable`.
    """
    return inspection.standing(settings) if settings.model.follow else Standing()


def bundle(settings: Settings, user: str | None = None) -> Bundle:
    """What workers with these settings serve a user with, for commands. Raises `BundleError`."""
    now = followed(settings)
    tried = now.challenger
    if tried is not None and user is not None and challenged([user], tried.share)[0]:
        return bundles.load(tried.bundle)
    return _configured(settings) if now.champion is None else bundles.load(now.champion.bundle)


def first(
    settings: Settings, champion: Release | None, cache: ModelCache, work: Open
) -> tuple[OpenModel, Refusal | None]:
    """What a worker serves at first, and why that is not the champion where it is not.

    `work` sets a bundle to work. Raises `BundleError` where there is nothing to serve.
    """
    if champion is None:
        return work(_configured(settings)), None
    try:
        model = work(cache.fetch(ModelRef(version=champion.version, bundle=champion.bundle)))
        if cache.terms is not None:
            cache.terms.require(model.terms)
        return model, None
    except BundleError as error:
        _log.warning("model refused", version=champion.version, why=error.detail)
        refusal = refusal_of(champion, error, time.time(), None)
        return _instead(settings, cache, work, error), refusal


def _instead(settings: Settings, cache: ModelCache, work: Open, error: BundleError) -> OpenModel:
    """The last good model, else the configured one."""
    for version in cache.good():
        try:
            model = work(cache.load(version))
        except BundleError as damaged:
            _log.warning("model refused", version=version, why=damaged.detail)
            continue
        _log.warning("serving the last good model", version=version)
        return model
    if settings.model.bundle is None:
        raise error
    _log.warning("serving the configured model", bundle=settings.model.bundle)
    return work(_configured(settings))


def _configured(settings: Settings) -> Bundle:
    if settings.model.bundle is None:
        raise BundleError(
            "none is named, and `models` has no champion",
            remedy="Train one with `innerloop train` and name it with --bundle FOLDER.",
        )
    return bundles.load(settings.model.bundle)
