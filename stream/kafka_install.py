"""What a broker for development needs, once: Kafka's jars, and Java's notes of a first start.

`python -m stream.kafka_install` fetches the pinned jars and starts a broker once, from which Java
keeps the classes that it loaded and linked (JEP 483, JEP 514): starts that follow take about half
the time. `--resolve` prints the list of jars for a new version.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence

from stream import kafka_jars, kafka_node
from stream.embedded_kafka import EmbeddedKafka
from stream.errors import BrokerStartError

_NOTED_BY_THEN_S = 120.0


def install(progress: kafka_jars.Progress | None = None) -> None:
    """Bring what is missing. Raises `BrokerStartError` as `kafka_jars.fetch` and a start do."""
    kafka_jars.classpath(progress)
    if not kafka_node.class_cache().exists():
        _note_classes()


def _note_classes() -> None:
    """Start a broker and stop it in order; Java writes its notes at the end.

    A Java that keeps none leaves none, and starts are as slow as before.
    """
    path = kafka_node.class_cache()
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    flags = ("-XX:+IgnoreUnrecognizedVMOptions", f"-XX:AOTCacheOutput={scratch}")
    with EmbeddedKafka(heap_mb=256, java_flags=flags) as kafka:
        os.kill(kafka.pids[0], signal.SIGTERM)
        deadline = time.monotonic() + _NOTED_BY_THEN_S
        while kafka.pids and time.monotonic() < deadline:
            time.sleep(0.05)
        ended = not kafka.pids
    if scratch.exists():
        scratch.replace(path) if ended else scratch.unlink()


def report(done: int, total: int) -> None:
    """Progress of a fetch on stderr: a line that moves on a terminal, one line elsewhere."""
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        sys.stderr.write(f"Apache Kafka {kafka_jars.KAFKA_VERSION}: {done} of {total} jars{end}")
        sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, or write the list of jars for a new version."""
    parser = argparse.ArgumentParser(prog="python -m stream.kafka_install")
    parser.add_argument("--resolve", action="store_true", help="print the list to be pinned")
    if parser.parse_args(arguments).resolve:
        sys.stdout.writelines(f"{line}\n" for line in kafka_jars.resolve())
        return
    try:
        install(report)
    except BrokerStartError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
