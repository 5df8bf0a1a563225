"""What `test_team` runs in several processes: a training of a planted log, loss by loss."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from adapters import meta_train
from adapters.episodes import Draw
from adapters.outer_loop import Progress
from adapters.team import Team
from tests.model.test_meta_train import CONFIG, RECIPE, features_of, planted

STEPS = 40


def run(team: Team, interests: int = 1) -> dict[str, list[float]]:
    """Losses of every step, checks, and some weights of the model.

    Batches are so small that one of long windows has a single episode.
    """
    losses: list[float] = []
    checks: list[float] = []

    def progress(now: Progress) -> None:
        losses.append(now.losses["total"])
        checks.extend([] if now.validation is None else [now.validation])

    draw = Draw(batch=6, windows=(10, 20), long_window=90, long_share=0.3)
    recipe = replace(RECIPE, steps=STEPS, popularity=True, check_every=10, draw=draw)
    trained = meta_train.train(
        planted(users=400),
        features_of(),
        replace(CONFIG, interests=interests),
        recipe=recipe,
        held_out=np.arange(200),
        progress=progress,
        team=team,
    )
    weights = trained.meta["adapter.write"].flatten()[:50].tolist()
    return {"losses": losses, "checks": checks, "weights": weights}


if __name__ == "__main__":
    from torch import distributed

    distributed.init_process_group("gloo")
    own = Team(distributed.get_rank(), distributed.get_world_size())
    found = run(own)
    Path(sys.argv[1], f"{own.rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the interpreter
