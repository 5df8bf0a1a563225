"""TensorBoard curves of a training run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from adapters.meta_train import Progress
    from adapters.report import Report


def run_folder(root: Path | None, name: str, started: str) -> Path:
    """The folder of a run that began at `started`; without `root` among the user's data."""
    return (root or platformdirs.user_data_path("innerloop") / "runs") / f"{name}-{started}"


class Curves:
    """Writes event files to a run's folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Curves:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush and close the files."""
        self._writer.close()

    def step(self, now: Progress) -> None:
        """Losses of the outer loop."""
        for name, value in now.losses.items():
            self._writer.add_scalar(f"loss/{name}", value, now.step)

    def report(self, report: Report) -> None:
        """nDCG of every variant in every cohort."""
        for row in report.rows:
            self._writer.add_scalar(f"ndcg/{row.cohort}/{row.variant}", row.ndcg.mean, 0)
