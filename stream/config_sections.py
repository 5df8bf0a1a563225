"""The settings by section: their names, defaults, bounds, and what each is for.

`stream.config` reads them; docs/configuration.md is made from their descriptions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

COMMIT_GRACE_S = 30.0
"""How much longer than a transaction may last its end is waited for."""


_PROMISE = "what is delivered once rests on it; leave it out"
OWNED = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "group.id": "set kafka.group",
    "group.instance.id": "set worker_id",
    "session.timeout.ms": "set kafka.session_timeout_ms",
    "transaction.timeout.ms": "set kafka.transaction_timeout_ms",
    "partitioner": "set kafka.partitioner",
    **dict.fromkeys(
        (
            "acks",
            "auto.offset.reset",
            "delivery.report.only.error",
            "enable.auto.commit",
            "enable.auto.offset.store",
            "enable.idempotence",
            "enable.partition.eof",
            "group.protocol",
            "isolation.level",
            "partition.assignment.strategy",
            "request.required.acks",
            "transactional.id",
        ),
        _PROMISE,
    ),
}
"""librdkafka's properties that are no user's to set, and what to do instead."""


class Section(BaseModel):
    """A group of settings; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Topics(Section):
    """Names of the topics, without the prefix."""

    events: str = Field("events", description="what users do, and forget requests")
    items: str = Field("items", description="text, attributes and vectors of items")
    recommendations: str = Field("recommendations", description="the lists")
    state: str = Field("state", description="changelog of user records")
    signals: str = Field("signals", description="item counters and neighbours")
    models: str = Field("models", description="which model bundle serves")
    retraining: str = Field("retraining", description="the newest run of scheduled retraining")
    dead_letters: str = Field("dead-letters", description="what could not be used")


class Kafka(Section):
    """The cluster, the group and the topics."""

    bootstrap_servers: str = Field(
        "localhost:9092", description="brokers to start from, host:port[,host:port]"
    )
    prefix: str = Field("", description="put in front of every topic name and of the group")
    topics: Topics = Topics()
    group: str = Field("innerloop", description="consumer group of all workers")
    partitions: int = Field(32, ge=1, le=10_000, description="fixed when topics are created")
    replication: int = Field(1, ge=1, le=9, description="copies of every topic; 3 in production")
    min_insync_replicas: int = Field(1, ge=1, le=9, description="of every topic; 2 in production")
    partitioner: Literal["murmur2_random", "consistent_random"] = Field(
        "murmur2_random", description="of all producers of `events`; the first is the JVM's"
    )
    session_timeout_ms: int = Field(
        10_000, ge=1_000, description="after so long without a sign of life a worker is replaced"
    )
    transaction_timeout_ms: int = Field(
        15_000, ge=1_000, description="longer than the longest batch; the broker aborts after it"
    )
    properties: dict[str, str] = Field(
        {}, description="handed to librdkafka as they are: TLS, SASL, buffers"
    )

    @field_validator("properties")
    @classmethod
    def _check_properties(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in OWNED:
                raise ValueError(f"{name}: {OWNED[name]}")
        return value

    def topic(self, role: str) -> str:
        """The full name of the topic with this role, such as `events` or `dead_letters`."""
        return self.prefix + str(getattr(self.topics, role))

    @property
    def patience_s(self) -> float:
        """Seconds for which the end of a transaction is waited for."""
        return self.transaction_timeout_ms / 1000 + COMMIT_GRACE_S

    @property
    def group_id(self) -> str:
        """The consumer group of all workers."""
        return self.prefix + self.group


class Action(Section):
    """What an action of a user says about the item."""

    weight: float = Field(
        1.0, ge=-10, le=10, description="evidence of one event; negative = dislike"
    )
    graded: bool = Field(
        False, description="multiply the weight with the event's value, see `neutral`"
    )
    neutral: float = Field(0.0, description="the value that says nothing (3 of 5 stars)")
    scale: float = Field(1.0, gt=0, description="distance from neutral that counts as one")


def default_actions() -> dict[str, Action]:
    """Weights that hold up in the absence of better knowledge; all are configuration."""
    return {
        "click": Action(),
        "view": Action(weight=0.5),
        "like": Action(weight=2.0),
        "share": Action(weight=2.0),
        "comment": Action(weight=1.5),
        "add_to_cart": Action(weight=2.0),
        "purchase": Action(weight=3.0),
        "rating": Action(weight=1.0, graded=True, neutral=2.5, scale=2.5),
        "dwell": Action(weight=1.0, graded=True, neutral=0.0, scale=30.0),
        "watch": Action(weight=1.0, graded=True, neutral=0.0, scale=1.0),
        "skip": Action(weight=-0.5),
        "dislike": Action(weight=-2.0),
    }


class Messages(Section):
    """What is accepted from `events` and `items`."""

    max_bytes: int = Field(65_536, ge=256, description="largest event or item, in bytes")
    max_id_bytes: int = Field(256, ge=8, description="largest user, item or event id, UTF-8 bytes")
    max_ranking_items: int = Field(200, ge=1, description="items in one `ranking` event")
    future_ms: int = Field(
        600_000, ge=0, description="how far event time may be ahead of the record"
    )
    max_per_minute: int | None = Field(
        None,
        ge=1,
        le=64,
        description="interactions of one user within a minute of event time; more are counted and "
        "skipped, which keeps bots out; off by default",
    )
    past_ms: int | None = Field(None, description="how far it may lie behind; off by default")
    actions: dict[str, Action] = Field(
        default_factory=default_actions, description="what each action is worth; replaces all"
    )


class Batch(Section):
    """How many events share a transaction."""

    max_events: int = Field(1_000, ge=1, le=100_000, description="records in one transaction")
    linger_ms: int = Field(20, ge=0, description="how long a batch waits for more events")
    max_events_per_user: int = Field(
        64, ge=1, description="of one user computed at once; more take further rounds"
    )


class State(Section):
    """What is kept of a user, and where."""

    dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_state_dir("innerloop")),
        description="folder of the stores, one worker's own",
    )
    ttl_days: float | None = Field(
        None, gt=0, description="forget users who have not acted for so long"
    )
    feedback_window_s: float = Field(
        1_800.0, gt=0, description="shown and not acted on within this time"
    )
    forget_within_hours: float = Field(
        24.0, gt=0, description="compaction deadline of erased records"
    )
    cache_mb: int = Field(64, ge=8, description="block cache of all stores together")
    write_buffer_mb: int = Field(64, ge=8, description="write buffers of all stores together")

    @property
    def forget_within_s(self) -> float:
        """`forget_within_hours` in seconds."""
        return 3_600 * self.forget_within_hours


class Ranking(Section):
    """The published lists."""

    top_k: int = Field(20, ge=1, le=1_000, description="items in a list")
    exclude_seen: bool = Field(True, description="off for repeat consumption such as groceries")
    diversity: float = Field(0.1, ge=0, le=1, description="0 = pure relevance")
    expires_hours: float = Field(24.0, gt=0, description="after so long a list is not to be used")
    control_share: float = Field(0.0, ge=0, le=0.5, description="users without adaptation, by hash")

    @property
    def repeats(self) -> bool:
        """Whether items that a user acted on may come again."""
        return not self.exclude_seen


class Model(Section):
    """Where the model comes from and where it runs."""

    bundle: str | None = Field(
        None,
        description="any fsspec address of a bundle folder; with model.follow until `models` "
        "names a champion",
    )
    follow: bool = Field(
        True, description="take over what `models` names, without a restart; off: model.bundle"
    )
    refresh_within_days: float = Field(
        7.0,
        ge=0,
        description="after a change of the model, users whose last event is no older get a list "
        "by the new one without acting; 0 = nobody",
    )
    registry: str = Field(
        default_factory=lambda: str(platformdirs.user_data_path("innerloop") / "models"),
        description="where promoted bundles stay: any fsspec address that all workers can read",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = CUDA where it works")
    threads: int = Field(
        0,
        ge=0,
        description="on the CPU; 0 = one, and all cores where `train` encodes items",
    )


class Learning(Section):
    """What `train` meta-trains. The defaults are what pays; the rest is for comparison."""

    kind: Literal["fast_weight", "gru", "sasrec", "maml"] = Field(
        "fast_weight", description="the adapter; the others are for comparison"
    )
    interests: int = Field(1, ge=1, le=8, description="interests a user")
    inner_loop: bool = Field(True, description="off: inner steps of size zero")
    first_order: bool = Field(False, description="no gradient through what a step has learned")
    decay: bool = Field(True, description="off: no pull back to the shared start")
    experts: bool = Field(True, description="off: lists by the adapter's score alone")
    user_delta: bool = Field(False, description="users have expert weights of their own, too")
    item_features: Literal["all", "text", "id"] = Field(
        "all", description="`text`: no id embedding; `id`: neither text nor attributes"
    )
    horizon: int = Field(
        1, ge=1, le=50, description="a prediction is about one of so many next positives"
    )
    few_weight: float = Field(0.5, ge=0, le=10, description="weight of the support part's loss")
    diversity_weight: float = Field(
        0.0, ge=0, le=100, description="weight of a loss on lists of items alike"
    )
    steps: int | None = Field(
        None,
        ge=0,
        description="outer steps at most; unset: as many as fit into --budget, and without one "
        "as there are batches of events, at least 600 and at most 3,000; 0, as by --experts-only: "
        "the parent's weights stay, the experts alone are fitted",
    )
    batch: int = Field(64, ge=1, le=4_096, description="episodes of an outer step")
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        description="of AdamW at its peak: 3% of the run rise to it, then a cosine",
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="of AdamW, times the learning rate")
    averaging: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="decay a step of the mean of all weights, which is checked and kept; 0 = off",
    )
    patience: int | None = Field(
        4,
        ge=1,
        description="checks on held-out users, one every 50 steps, without anything better that "
        "end the outer loop; unset: it never stops early",
    )
    mixed_precision: Literal["auto", "always", "never"] = Field(
        "auto", description="products of the outer loop in bfloat16; auto = on a GPU"
    )
    checkpoint_s: float = Field(
        20.0, ge=0, description="seconds between checkpoints, from which --resume goes on"
    )
    pretrain_s: float | None = Field(
        None,
        gt=0,
        description="seconds at most that the backbone is trained further on the items' texts, as "
        "--pretrain; it is kept only where it helps; unset: none, unless `pretrain_steps` is set",
    )
    pretrain_steps: int | None = Field(
        None, ge=1, description="steps of that at most: repeatable, as seconds are not"
    )
    pretrain_rate: float = Field(
        5e-5, gt=0, le=1, description="of AdamW at its peak in further pretraining"
    )
    pretrain_contrast: float = Field(
        1.0,
        ge=0,
        le=100,
        description="weight of titles that find the rest of their text, beside hidden tokens",
    )
    tune_backbone: Literal["off", "lora", "last_layers"] = Field(
        "off",
        description="train the backbone's last layers with the adapter: a product of low rank on "
        "their attention, or all of their weights",
    )
    tune_layers: int = Field(
        1, ge=1, le=48, description="last layers of the backbone that are tuned"
    )
    tune_rank: int = Field(8, ge=1, le=256, description="rank of `lora`")
    tune_items: int = Field(
        128,
        ge=1,
        description="items of an outer step that are encoded with gradients; the others have "
        "vectors of up to 50 steps before",
    )

    @field_validator("tune_backbone", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """`off`, which YAML reads as no."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _texts_are_read(self) -> Learning:
        if self.tune_backbone != "off" and self.item_features == "id":
            raise ValueError("tune_backbone trains texts, which item_features=id leaves out")
        return self


class Http(Section):
    """The endpoint for metrics and health."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 in a container")
    port: int = Field(9108, ge=0, le=65_535, description="0 = any free one")


class Monitor(Section):
    """`innerloop monitor`: what is measured online, when it alarms, when models are retrained."""

    group: str = Field("innerloop-monitor", description="consumer group of all monitors")
    dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_state_dir("innerloop")) / "monitor",
        description="folder of this monitor's id, lock and logs of retraining, one monitor's own",
    )
    host: str = Field("127.0.0.1", description="address of its pages; 0.0.0.0 in a container")
    port: int = Field(6066, ge=0, le=65_535, description="0 = any free one")
    window_minutes: float = Field(
        60.0, gt=0, le=10_080, description="figures are about the latest so many minutes"
    )
    k: int = Field(10, ge=1, le=1_000, description="places of a list that count for hits and CTR")
    weak_evidence: float = Field(
        0.5, ge=0, le=10, description="what says no more than this about its item is no hit"
    )
    max_events_per_s: int = Field(
        2_000, ge=1, description="above it users are sampled, by hash: a half, a quarter, ..."
    )
    max_users: int = Field(
        50_000, ge=100, description="users whose latest lists are remembered, about 2 kB each"
    )
    lag_s: float = Field(10.0, gt=0, le=600, description="seconds between two looks at the lag")
    lag_alarm_s: float = Field(60.0, gt=0, description="alarm: a partition is so far behind")
    absent_alarm_s: float = Field(60.0, gt=0, description="alarm: for so long no worker is there")
    freshness_alarm_s: float = Field(5.0, gt=0, description="alarm: 1% of the lists took longer")
    drift_alarm: float = Field(
        0.1, gt=0, le=1, description="alarm: clicks differ so much from before, in bits"
    )
    drift_clicks: int = Field(
        500, ge=10, description="hits, now and before, below which drift is not told"
    )
    reference_hours: float = Field(
        24.0, gt=0, description="half-life of what clicks are compared with"
    )
    control_hours: float = Field(
        24.0, gt=0, description="adapted lists are compared with the control's over so long"
    )
    control_users: int = Field(
        100, ge=2, description="users of each kind below which learning is not judged"
    )
    control_gain: float = Field(
        0.02, ge=0, le=10, description="gain over the control, relative, that is worth learning"
    )
    retrain_cron: str | None = Field(
        None, description="when to retrain, five fields, UTC (`0 3 * * *`); unset: never"
    )
    retrain_command: str = Field(
        "innerloop train --from-kafka --window 30d --out {run}/bundle --runs {run}"
        " && innerloop promote {run}/bundle --from-kafka && rm -r {run}/bundle",
        description="of a shell, with the monitor's settings; `{run}` is a new folder of the run",
    )
    retrain_timeout_hours: float = Field(
        6.0, gt=0, le=720, description="a run that takes longer is ended and counts as failed"
    )


class Log(Section):
    """Log lines."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is written"
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto = console on a terminal, JSON elsewhere"
    )
