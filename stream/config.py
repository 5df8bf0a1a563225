"""Settings: flags over `INNERLOOP_…` variables over a YAML file over the defaults of the sections.

A nested setting is named with a dot on the command line (`--set batch.max_events=500`) and with
two underscores in the environment (`INNERLOOP_BATCH__MAX_EVENTS=500`).
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from stream.config_sections import (
    OWNED,
    Action,
    Batch,
    Http,
    Kafka,
    Learning,
    Log,
    Messages,
    Model,
    Monitor,
    Ranking,
    Section,
    State,
    Topics,
    default_actions,
)
from stream.errors import ConfigError

__all__ = [
    "OWNED",
    "Action",
    "Batch",
    "Http",
    "Kafka",
    "Learning",
    "Log",
    "Messages",
    "Model",
    "Monitor",
    "Ranking",
    "Section",
    "Settings",
    "State",
    "Topics",
    "default_actions",
    "load",
    "parse_overrides",
    "to_yaml",
]


class Settings(BaseSettings):
    """All settings of a process."""

    model_config = SettingsConfigDict(
        env_prefix="INNERLOOP_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    worker_id: str | None = Field(
        None, description="static member id; persisted in state.dir if unset"
    )
    kafka: Kafka = Kafka()
    messages: Messages = Messages()
    batch: Batch = Batch()
    state: State = State()
    ranking: Ranking = Ranking()
    model: Model = Model()
    learning: Learning = Learning()
    http: Http = Http()
    monitor: Monitor = Monitor()
    log: Log = Log()

    @model_validator(mode="after")
    def _check_timeouts(self) -> Settings:
        if self.kafka.min_insync_replicas > self.kafka.replication:
            raise ValueError("kafka.min_insync_replicas is larger than kafka.replication")
        return self

    @field_validator("worker_id")
    @classmethod
    def _check_worker_id(cls, value: str | None) -> str | None:
        if value is not None and not value.replace("-", "").replace("_", "").isalnum():
            raise ValueError("only letters, digits, '-' and '_'")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables; the YAML file is added by `load`."""
        return init_settings, env_settings


def load(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings of this process.

    `path` is a YAML file or None for the file named by `INNERLOOP_CONFIG`; `overrides` maps dotted
    names to values and comes from flags. Raises `ConfigError` that names the setting.
    """
    path = path or (
        Path(os.environ["INNERLOOP_CONFIG"]) if "INNERLOOP_CONFIG" in os.environ else None
    )
    values = _read(path) if path is not None else {}
    _check_variables()
    try:
        return _settings_class(values)(**_nest(overrides or {}))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigError(str(error), remedy="Write the variable's value as JSON.") from None


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["batch.max_events=5"]` as a dict of dotted names; values are read as YAML scalars."""
    result: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair}", remedy="Write it as --set section.name=value.")
        try:
            result[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(
                f"--set {pair}: the value is not YAML", remedy="Put it in quotes."
            ) from None
    return result


def to_yaml(settings: Settings) -> str:
    """The settings as a YAML file that `load` reads back; secrets are masked."""
    values = settings.model_dump(mode="json")
    secret = ("password", "secret", "key.pem", "oauthbearer")
    for name in values["kafka"]["properties"]:
        if any(word in name for word in secret):
            values["kafka"]["properties"][name] = "***"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, unchecked; an empty file has none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line} is not YAML", remedy="Correct the file.") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no settings",
            remedy="`innerloop worker --print-config` shows what such a file looks like.",
        )
    return {str(name): value for name, value in (values or {}).items()}


def _check_variables() -> None:
    """Refuse a variable whose section does not exist, which would do nothing, unnoticed."""
    prefix, known = "INNERLOOP_", set(Settings.model_fields)
    for variable in os.environ:
        section, nested, _ = variable.removeprefix(prefix).lower().partition("__")
        if variable.startswith(prefix) and nested and section not in known:
            raise ConfigError(f"{variable}: there is no section {section}{_like(section, known)}")


def _settings_class(file: dict[str, Any]) -> type[Settings]:
    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            broker, values = _BrokerVariable(settings_cls), InitSettingsSource(settings_cls, file)
            return init_settings, env_settings, broker, values

    return FromFile


class _BrokerVariable(PydanticBaseSettingsSource):
    """`KAFKA_BOOTSTRAP_SERVERS`, which other Kafka programs read too."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        return {"kafka": {"bootstrap_servers": servers}} if servers else {}


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section} is set to a value as well", remedy=_ONCE)
        if isinstance(place.get(leaf), dict):
            raise ConfigError(f"{name}: settings below it are set as well", remedy=_ONCE)
        place[leaf] = value
    return nested


_ONCE = "Set either the section or what is in it."


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'settings'}: {_complaint(e)}" for e in error.errors()
    )


def _complaint(error: Any) -> str:
    """What is wrong with a setting, in our words where pydantic's are about its classes."""
    if error["type"] == "extra_forbidden":
        return "there is no such setting" + _like(str(error["loc"][-1]), _names(error["loc"][:-1]))
    if error["type"] in ("model_type", "model_attributes_type"):
        return "this is a section, it takes no value of its own"
    return str(error["msg"]).removeprefix("Value error, ")


def _names(sections: tuple[Any, ...]) -> set[str]:
    """The settings of a section."""
    model: Any = Settings
    for section in sections:
        model = model.model_fields[section].annotation if section in model.model_fields else None
        if not hasattr(model, "model_fields"):
            return set()
    return set(model.model_fields)


def _like(name: str, known: set[str]) -> str:
    """A hint at the name that may have been meant."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; perhaps {close[0]} is meant" if close else ""
