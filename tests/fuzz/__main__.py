"""`python -m tests.fuzz`: damaged input by the million; see --help."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz.targets import SHARES, Found, Target

BATCH = 500


def main() -> int:
    """Feed all targets; the last line says how many inputs there were and what they broke."""
    arguments = _arguments()
    fed, crashes, began = 0, 0, time.monotonic()
    for target, share in SHARES.items():
        try:
            fed += run(target, arguments.inputs * share // 100, arguments.seed)
        except Found as found:
            crashes += 1
            sys.stderr.write(f"{found}\n  seed {arguments.seed}\n")
        sys.stderr.write(f"{target.__name__}: {fed} inputs, {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"fuzz: {fed} inputs, {crashes} crashes\n")
    return 1 if crashes else 0


def run(target: Target, count: int, seed: int) -> int:
    """Feed at least `count` inputs to one target, whole batches; how many there were."""
    chance = random.Random(f"{target.__name__} {seed}")
    batches = -(-count // BATCH)
    for _ in range(batches):
        target(chance, BATCH)
    return batches * BATCH


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Feeds damaged messages and records to what reads them. Each must end as "
        "documented: accepted, dead letter, skip, or a named error, its neighbours unharmed.",
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many (1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of chance (1)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
