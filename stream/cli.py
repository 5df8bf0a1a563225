"""`innerloop`: one command a job. Mistakes give one clear line and a non-zero exit."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from stream.errors import InnerloopError

COMMANDS = {
    "demo": "See it work: broker, training, live traffic, two new users.",
    "kafka": "Run Apache Kafka on this machine for development.",
    "topics": "Create the topics, or check existing ones.",
    "load": "Send events or items from files to Kafka.",
    "worker": "Adapt users and publish lists until stopped.",
    "train": "Meta-train a model on logged events and write a bundle.",
    "evaluate": "Measure a bundle on logged events: predict, then learn.",
    "promote": "Let a model serve, if the gate lets it pass.",
    "withdraw": "End a canary.",
    "rollback": "Let the model serve that served before.",
    "models": "List what serves and what served before.",
    "monitor": "Watch lists, lag and drift online, and retrain on a schedule.",
    "export": "Make a bundle's encoder smaller and faster, within a stated loss.",
    "inspect": "Show what is known of a user.",
    "explain": "Say what moved an item in a user's list.",
    "forget": "Erase a user.",
    "dead-letters": "List what could not be used, show it, send it back.",
    "replay": "Prove that state follows from the log.",
    "doctor": "Check this machine, the broker and the topics.",
    "version": "Print versions.",
}
"""Name and one line of help of every command; the module `stream.commands.NAME` holds it,
with `_` for `-`."""


def _module(command: str) -> str:
    return "stream.commands." + command.replace("-", "_")


class LazyGroup(TyperGroup):
    """Imports a command's module when it is called, so that `--help` is quick."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported, or None."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(_module(cmd_name)).app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(epilog="Start with `innerloop demo`. Settings: docs/configuration.md.")
def root() -> None:
    """Adapt a recommender to each user, event by event."""


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What the machine refuses, whatever a command was doing."""

UsageError: Any = typer.BadParameter.__mro__[1]
"""What is raised for options and arguments that are wrong; typer gives it no public name."""


def main() -> None:
    """The console script."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(app(prog_name="innerloop", standalone_mode=False))
    except InnerloopError as error:
        sys.stderr.write(f"innerloop: {error}\n")
        sys.exit(error.exit_code)
    except UsageError as error:
        _explain(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        sys.stderr.write(f"innerloop: {error}. Make room or take another place.\n")
        sys.exit(6)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _explain(error: Any) -> None:
    """One line about a wrong option; the whole page where there was nothing at all."""
    text = error.format_message()
    if "\n" in text:
        sys.stderr.write(text + "\n")
        return
    command = error.ctx.command_path if error.ctx is not None else "innerloop"
    end = "" if text.endswith((".", "?")) else "."
    sys.stderr.write(f"innerloop: {text}{end} See `{command} --help`.\n")
