"""The rows of the tables: each is one training with one or two settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """A training, and the variants of its model that are judged."""

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)  # what differs from the defaults
    variants: tuple[str, ...] = ("adapted", "encoder only")
    main: bool = False  # part of the quick run
    judged: bool = False  # a goal asks for it: all seeds are run; an ablation takes fewer
    windows: int = 1  # of the test; the experts' weights are fitted anew before each but the first

    def seeds(self, all_of_them: int, ablation: int) -> int:
        """How often this row is trained."""
        return all_of_them if self.main or self.judged else min(all_of_them, ablation)

    def label(self, variant: str) -> str:
        """What a variant is called in tables."""
        return self.name if variant == "adapted" else f"{self.name}, {variant}"

    @property
    def ablation(self) -> bool:
        """Whether this is the recipe with a part changed, and no control of its own."""
        return bool(self.settings) and not self.main


CHOSEN_BY = ("adapted", "encoder only")
"""What settings are compared by on validation slices."""

ALONE = ("encoder only", "encoder only, steps off")
"""The adapter's score without experts, and what is left of it without steps."""

OWN = "fast weight"
"""The row with all defaults."""

FOLLOWING = "weights follow"
"""The same, with the experts fitted anew now and then, as `train --experts-only` does."""

IDS = "id only"
"""The row whose items are known by nothing but who took them."""

ROWS = (
    Row(OWN, variants=("adapted", "steps off", *ALONE, "experts only", "mix alone"), main=True),
    Row(FOLLOWING, variants=("adapted",), judged=True, windows=6),
    Row("no inner loop", {"learning.inner_loop": False}, main=True),
    Row("GRU", {"learning.kind": "gru"}, main=True),
    Row("SASRec", {"learning.kind": "sasrec"}, main=True),
    Row("MAML", {"learning.kind": "maml"}),
    Row("MAML, first order", {"learning.kind": "maml", "learning.first_order": True}),
    Row("first order", {"learning.first_order": True}),
    Row("no decay", {"learning.decay": False}),
    Row("text only", {"learning.item_features": "text"}),
    Row(IDS, {"learning.item_features": "id"}, judged=True),
    Row(
        "own expert weights",
        {"learning.user_delta": True},
        variants=("adapted", "own weights off", "steps off"),
    ),
    Row("4 interests", {"learning.interests": 4}),
    Row("next 10 as targets", {"learning.horizon": 10}),
    Row("no L_few", {"learning.few_weight": 0.0}),
    Row("L_few x 2", {"learning.few_weight": 1.0}),
    Row("variety in the loss", {"learning.diversity_weight": 5.0}),
)
"""All trainings; order is that of the tables."""
