"""The workers of a run, and what they say of the models they serve."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from stream.config import Settings
from tests.chaos.process import WorkerProcess


class Crew:
    """Real workers, each in a process of its own; a context manager that leaves none behind."""

    def __init__(self, settings: Settings, folder: Path, workers: int, bundle: Path) -> None:
        logs = settings.log.model_copy(update={"level": "info"})
        own = settings.model_copy(update={"log": logs})
        names = [f"worker-{number}" for number in range(1, workers + 1)]
        self._workers = [WorkerProcess(own, bundle, folder, name) for name in names]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()

    def start(self) -> None:
        """Begin to run."""
        for worker in self._workers:
            worker.start()

    def stop(self) -> list[str]:
        """SIGTERM to all; a sentence for each that did not end as it should."""
        codes = {worker.name: worker.terminate() for worker in self._workers}
        return [f"{name} ended with exit code {code}" for name, code in codes.items() if code != 0]

    def all_serve(self, version: str) -> bool:
        """Whether this version is every worker's champion."""
        found = [(worker.ready() or {}).get("models", {}) for worker in self._workers]
        return all(models.get("champion") == version for models in found)

    def moved(self, version: str) -> bool:
        """Whether every worker has refreshed its active users since it changed to this version."""
        return all(_moved(worker, version) for worker in self._workers)

    def refreshed(self) -> int:
        """Users who were given a list by a new model, all workers and changes together."""
        return sum(_metric(worker, "innerloop_refreshed_users_total") for worker in self._workers)

    def text(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"{w.name}:\n{w.text()[-3000:]}" for w in self._workers)


def _moved(worker: WorkerProcess, version: str) -> bool:
    """Whether the last change was to this version and a line about its users came after it."""
    told = [x for x in worker.lines() if x["event"] in ("model swapped", "users refreshed")]
    return (
        len(told) > 1
        and told[-1]["event"] == "users refreshed"
        and version in [x for x in told if x["event"] == "model swapped"][-1]["now"]
    )


def _metric(worker: WorkerProcess, name: str) -> int:
    page = worker.page("/metrics")
    samples = [s for family in parse(page[1] if page else "") for s in family.samples]
    return round(sum(sample.value for sample in samples if sample.name == name))
