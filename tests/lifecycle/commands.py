"""`innerloop` as an operator runs it: one configuration file, output on the operator's screen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
import yaml

from adapters.types import Meta
from stream import bundles
from stream.config import Settings
from stream.errors import GateRefused
from tests.integration.world import environment


class CommandFailed(Exception):
    """A command ended with an exit code that nothing explains; its output is above."""


@dataclass(frozen=True, kw_only=True)
class Shell:
    """Runs commands with the settings of one file."""

    config: Path
    say: Callable[[str], None]

    @classmethod
    def of(cls, settings: Settings, folder: Path, say: Callable[[str], None]) -> Shell:
        """Writes the file."""
        config = folder / "innerloop.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        return cls(config=config, say=say)

    def run(self, *words: str) -> None:
        """A command that has to go well. Raises `CommandFailed`."""
        if (code := self.exit_code(*words)) != 0:
            raise CommandFailed(f"innerloop {words[0]} ended with {code}")

    def passes(self, *words: str) -> bool:
        """Whether the gate lets a promotion pass. Raises `CommandFailed` for any other trouble."""
        code = self.exit_code(*words)
        if code not in (0, GateRefused.exit_code):
            raise CommandFailed(f"innerloop {words[0]} ended with {code}")
        return code == 0

    def exit_code(self, *words: str) -> int:
        """Of a command, whose output goes where ours goes."""
        self.say("$ innerloop " + " ".join(f"'{w}'" if " " in w else w for w in words))
        command = [sys.executable, "-m", "stream", *words, "--config", str(self.config)]
        return subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, check=False
        ).returncode


def spoil(address: str, out: str) -> str:
    """Save a model whose weights have changed places, a sound bundle in every other way.

    Returns its version.
    """
    bundle = bundles.load(address)
    manifest = msgspec.structs.replace(bundle.manifest, version="", gate=None, name="spoiled")
    saved = bundles.save(replace(bundle, manifest=manifest, meta=_shuffled(bundle.meta)), out)
    return saved.manifest.version


def _shuffled(meta: Meta) -> Meta:
    """Every weight in the place of another one of its tensor."""
    generator = torch.Generator().manual_seed(1)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.flatten()[order].view_as(tensor)

    return Meta(meta.config, {name: moved(tensor) for name, tensor in meta.tensors.items()})
