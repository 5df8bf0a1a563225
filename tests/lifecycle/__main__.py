"""`python -m tests.lifecycle`: models are trained, judged, served and rolled back under load."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import machine
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import InnerloopError
from tests.lifecycle.commands import CommandFailed
from tests.lifecycle.result import Result
from tests.lifecycle.run import Plan, run, settings_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def main() -> int:
    """0 when the gate promoted one and refused one, workers followed, and nothing was lost."""
    arguments = _arguments()
    plan, began = Plan(rate=arguments.rate), time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="innerloop-lifecycle-") as folder,
            EmbeddedKafka() as kafka,
        ):
            settings = settings_of(kafka.bootstrap_servers, plan, Path(folder))
            result = run(plan, settings, Path(folder), say)
    except (InnerloopError, CommandFailed) as error:
        say(f"lifecycle: {error}")
        return 1
    seconds = time.monotonic() - began
    if arguments.keep:
        _keep(plan, result, seconds)
    _report(result, seconds)
    return 0 if result.passed else 1


def say(line: str) -> None:
    """A line on standard output, at once; headings are bold on a terminal."""
    bold = line.startswith("==") and sys.stdout.isatty()
    sys.stdout.write(f"\033[1m{line}\033[0m\n" if bold else line + "\n")
    sys.stdout.flush()


def _report(result: Result, seconds: float) -> None:
    """Everything that was found, the line of figures last."""
    verdict = result.verdict
    findings = (*verdict.lost, *verdict.repeated, *verdict.regressions, *result.strays)
    for finding in findings[:50]:
        say(f"  {finding}")
    for trouble in result.troubles:
        say(f"trouble: {trouble}")
    for row in result.table():
        say(row)
    say(
        f"{verdict.events:,} events of {verdict.users:,} users, {verdict.lists:,} lists, "
        f"{len(result.strays)} by a model that did not serve then, {seconds:.0f} s"
    )
    say(result.line())


def _keep(plan: Plan, result: Result, seconds: float) -> None:
    out = RESULTS / f"lifecycle-{datetime.now(UTC):%Y-%m-%d}.json"
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "plan": asdict(plan),
        "seconds": round(seconds, 1),
    }
    out.write_text(json.dumps({**about, **result.as_json()}, indent=1) + "\n")
    say(f"written to {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle", description=__doc__)
    parser.add_argument("--rate", type=float, default=Plan.rate, help="events a second (15)")
    parser.add_argument(
        "--keep", action="store_true", help="write the figures to benchmarks/results/"
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.rate <= 1_000:
        parser.error(f"--rate {arguments.rate:g} is not between 1 and 1,000 events a second")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
