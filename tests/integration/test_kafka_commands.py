"""`innerloop topics` and `innerloop doctor` against a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stream.commands import doctor, topics
from stream.config import Settings
from stream.kafka.admin import Admin, NewTopic


@pytest.fixture
def flags(kafka_settings: Settings, tmp_path: Path) -> list[str]:
    """Options that lead to the test's own topics and state folder."""
    kafka = kafka_settings.kafka
    servers = ["--bootstrap-servers", kafka.bootstrap_servers, "--prefix", kafka.prefix]
    return [*servers, "--set", f"state.dir={tmp_path}"]


def test_check_complains_until_create_was_run(flags: list[str]) -> None:
    """Exit 3 with a remedy before, exit 0 with the partition count after."""
    run = CliRunner().invoke
    before = run(topics.app, ["check", *flags])
    assert before.exit_code == 3
    assert "innerloop topics create" in before.output
    made = run(topics.app, ["create", "--partitions", "4", *flags])
    assert (made.exit_code, "created" in made.output) == (0, True)
    after = run(topics.app, ["check", *flags])
    assert (after.exit_code, "4 partitions" in after.output) == (0, True)


def test_create_says_what_it_did_not_touch(flags: list[str], kafka_settings: Settings) -> None:
    """An existing topic with a wrong setting stays wrong and is named, until --alter."""
    run, kafka = CliRunner().invoke, kafka_settings.kafka
    with Admin(kafka) as admin:
        admin.create([NewTopic(kafka.topic("items"), 1, 1, {})])
    first = run(topics.app, ["create", "--partitions", "2", *flags])
    assert (first.exit_code, "items: cleanup.policy is delete" in first.output) == (3, True)
    assert run(topics.app, ["create", "--alter", *flags]).exit_code == 0


def test_the_doctor_fails_on_missing_topics_alone(flags: list[str]) -> None:
    """A healthy machine without topics: broker ok, topics fail, exit non-zero; then all is well."""
    run = CliRunner().invoke
    before = run(doctor.app, flags)
    assert before.exit_code == 1
    failed = {line.split()[1] for line in before.output.splitlines() if line.startswith("fail")}
    assert failed == {"topics"}
    run(topics.app, ["create", "--partitions", "2", *flags])
    after = run(doctor.app, flags)
    assert after.exit_code == 0
    assert "ExecutionProvider" in after.output
