"""`python -m benchmarks.learning`: all sets, rows and seeds; see --help."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import frontier, goals, picture, side_by_side, speed, tables
from benchmarks.learning.frontier import Point
from benchmarks.learning.goals import SetResult, Verdict
from benchmarks.learning.rows import CHOSEN_BY, OWN, ROWS
from benchmarks.learning.runs import Plan, Runs
from benchmarks.learning.sets import SETS
from benchmarks.learning.speed import Cost
from stream.errors import InnerloopError
from stream.progress import reporter

RESULTS = Path(__file__).parents[1] / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print tables and verdicts, write JSON."""
    arguments = _arguments(argv)
    wanted = {OWN, *(arguments.rows or _usual(arguments.quick))}
    rows = [row for row in ROWS if row.name in wanted]
    proof = [name for name, data in SETS.items() if data.proof]
    names = arguments.sets or (["movietweetings"] if arguments.quick else proof)
    sets = [SETS[name] for name in names]
    if arguments.validation:
        rows = [replace(row, variants=CHOSEN_BY) for row in rows]
        sets = [data.before_test() for data in sets]
    plan = Plan(
        seeds=arguments.seeds,
        ablation_seeds=arguments.ablation_seeds,
        steps=arguments.steps,
        positions=arguments.positions,
        folder=arguments.folder,
    )
    try:
        with reporter() as shown:
            for data in sets:
                side_by_side.make(data, plan, rows, arguments.jobs, shown)
            found = [Runs(data, plan, shown).result(rows) for data in sets]
            part = arguments.quick or arguments.sets or arguments.rows or arguments.validation
            whole = not part
            varied = frontier.frontier(plan.folder, plan.steps, shown) if whole else []
    except InnerloopError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for own in found:
        made = f"runs of {', '.join(own.commits)}"
        sys.stdout.write(f"\n{own.name} ({made})\n\n{tables.text(own)}\n")
    ablations = tables.ablations(found)
    sys.stdout.write(f"\n{ablations}\n")
    if arguments.validation:
        return 0
    costs = speed.measure(processes=2 if arguments.quick else 5)
    told = [*goals.verdicts(found), *speed.verdicts(costs), *frontier.verdicts(varied)]
    sys.stdout.write(f"\n{speed.text(costs)}\n\n{frontier.text(varied)}\n")
    sys.stdout.write("\n" + "\n".join(verdict.line() for verdict in told) + "\n")
    if whole or arguments.picture is not None:
        picture.save(found, arguments.picture or picture.PATH)
    if whole:
        _write(arguments, found, ablations, told, costs, varied)
    return 0


def _usual(quick: bool) -> list[str]:
    return [row.name for row in ROWS if row.main or not quick]


def _write(
    arguments: argparse.Namespace,
    found: list[SetResult],
    ablations: str,
    told: list[Verdict],
    costs: list[Cost],
    varied: list[Point],
) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit,
        "command": "make evaluate",
        "seeds": arguments.seeds,
        "ablation_seeds": arguments.ablation_seeds,
        "verdicts": [asdict(verdict) for verdict in told],
        "speed": [asdict(cost) for cost in costs],
        "diversity": [asdict(point) for point in varied],
        "ablations": ablations.splitlines(),
        "sets": {own.name: _figures(own) for own in found},
    }
    path = RESULTS / "learning.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"written to {path}\n")


def _figures(own: SetResult) -> dict[str, Any]:
    leads = {name: asdict(goals.ahead(own, name)) for name in own.ndcg}
    return {
        "commits": own.commits,
        "best_simple": own.best_simple,
        "tuned": own.judged.notes,
        "positions": len(own.judged.users),
        "users": len(np.unique(own.judged.users)),
        "table": tables.text(own).splitlines(),
        "ahead": leads,
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description="Trains every row on every set with every seed, judges the lists against "
        "tuned baselines, and says for each goal whether it is met. Runs that are there are kept.",
    )
    parser.add_argument("--quick", action="store_true", help="MovieTweetings, one seed, main rows")
    parser.add_argument(
        "--validation",
        action="store_true",
        help="logs that end where the test begins: what settings are chosen by; no verdicts",
    )
    parser.add_argument("--sets", action="append", choices=SETS, help="this set; repeatable")
    parser.add_argument(
        "--rows", action="append", choices=_usual(False), help=f"this row beside {OWN}; repeatable"
    )
    parser.add_argument("--seeds", type=int, help="seeds of rows that goals ask for (5; quick 1)")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="of the other rows (1)")
    parser.add_argument(
        "--steps", type=int, help="outer steps of every row (the recipe's; quick 200)"
    )
    parser.add_argument("--positions", type=int, help="lists judged at most (10,000; quick 1,500)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="runs so far: not made again (benchmarks/results/learning, with --validation "
        "learning-validation; quick var/evaluate)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=side_by_side.usual(),
        help="trainings at a time, each on a core of its own with some 2 GB; 1 shows their bars "
        f"(as many as cores, {side_by_side.MOST} at most)",
    )
    parser.add_argument(
        "--picture", type=Path, help="draw quality by shots here; the whole run draws the README's"
    )
    found = parser.parse_args(argv)
    quick = found.quick
    found.seeds = found.seeds or (1 if quick else 5)
    found.steps = found.steps or (200 if quick else None)
    found.positions = found.positions or (1_500 if quick else 10_000)
    kept = RESULTS / ("learning-validation" if found.validation else "learning")
    found.folder = found.folder or (Path("var/evaluate") if quick else kept)
    return found


if __name__ == "__main__":
    sys.exit(main())
