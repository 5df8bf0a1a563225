"""`innerloop version`."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

PACKAGES = (
    "torch",
    "transformers",
    "onnxruntime-gpu",
    "onnxruntime",
    "confluent-kafka",
    "rocksdict",
)


@app.command(epilog="Example: innerloop version")
def version() -> None:
    """Print the versions of Innerloop and of what it stands on."""
    typer.echo(f"innerloop {_version_of('innerloop')} (Python {platform.python_version()})")
    for package in PACKAGES:
        typer.echo(f"  {package} {_version_of(package)}")


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return installed(package)
    except PackageNotFoundError:
        return "not installed"
