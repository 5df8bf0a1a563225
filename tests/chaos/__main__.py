"""`python -m tests.chaos`: attack workers and brokers, and check that nothing came of it."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.chaos import run as chaos
from tests.chaos.tally import Goals


def main() -> int:
    """0 when enough was done and nothing was lost, repeated or set back."""
    arguments = _arguments()
    plan = chaos.Plan(
        seed=arguments.seed,
        seconds=max(1_500.0, 3_600 * arguments.hours + 600),
        at_least_s=3_600 * arguments.hours,
    )
    if arguments.rolling:
        plan = replace(plan, rolling=True, seconds=300.0, goals=ROLLING)
    began = time.monotonic()
    say(f"seed {plan.seed}")
    with tempfile.TemporaryDirectory(prefix="innerloop-chaos-") as folder:
        result = chaos.on_a_cluster(plan, Path(folder), say)
        if not result.passed:
            say(f"kept: {keep(result, Path(folder), KEPT / str(plan.seed))}")
    report(result, time.monotonic() - began)
    return 0 if result.passed else 1


KEPT = Path("var/chaos")
"""Where logs of runs that failed are kept."""

ROLLING = Goals(
    kills=0, wipes=0, rebalances=20, broker_restarts=0, stops=0, full_disks=0, each_point=0
)
"""What is done where nobody is killed."""


def keep(result: chaos.Result, folder: Path, place: Path) -> Path:
    """Workers' logs and every finding, for who looks for the cause; returns where they are."""
    place.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, place)
    verdict = result.verdict
    found = (*verdict.lost, *verdict.repeated, *verdict.regressions, *result.troubles)
    (place / "findings.txt").write_text("".join(f"{line}\n" for line in found))
    return place


def report(result: chaos.Result, seconds: float) -> None:
    """Everything that was found, the verdict last."""
    verdict = result.verdict
    for finding in (*verdict.lost, *verdict.repeated, *verdict.regressions)[:50]:
        say(f"  {finding}")
    for trouble in result.troubles[:10]:
        say(f"trouble: {trouble}")
    for name, count in result.missing.items():
        say(f"not enough: {name}, {count} more were wanted")
    for line in result.replayed:
        say(line)
    counts = result.tally.counts
    say(
        f"{verdict.events:,} events of {verdict.users:,} users, {verdict.lists:,} lists, "
        f"{seconds:.0f} s; restarts {counts['restarts']}, stops {counts['stops']}, "
        f"full disks {counts['full_disks']}; "
        f"a partition waited {100 * verdict.waiting_share:.1f}% of the time, "
        f"the longest wait was {verdict.longest_wait:.1f} s"
    )
    say("at each point: " + ", ".join(f"{k} {v}" for k, v in sorted(result.tally.points.items())))
    say(result.line())


def say(line: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the time if not given")
    parser.add_argument("--hours", type=float, default=0.0, help="go on for so long (0)")
    parser.add_argument(
        "--rolling",
        action="store_true",
        help="kill nobody: restart workers in turn, join and leave, and see how long users wait",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
