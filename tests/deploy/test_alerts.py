"""Alert rules and the retraining job: they fit what the monitor tells and what the image runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.config_docs import settings, variable
from stream.metrics import Metrics
from stream.monitor.alarms import Alarm
from stream.monitor.metrics import MonitorMetrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(("what", "file"), [("check", "alerts.yml"), ("test", "alerts_test.yml")])
def test_promtool_accepts_the_rules(what: str, file: str) -> None:
    """Rules are valid, and fire and end when their tests say."""
    result = subprocess.run(
        [str(PROMTOOL), what, "rules", file],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alarm_has_a_rule_and_every_rule_a_test() -> None:
    """What the monitor calls an alarm can page somebody, and the page is tested."""
    said = " ".join(rule["expr"] for rule in RULES)
    assert set(re.findall(r'alarm="(\w+)"', said)) == {alarm.value for alarm in Alarm}
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in RULES}


def test_rules_and_their_advice_name_metrics_that_exist() -> None:
    """A rule on a metric that nobody has would never fire."""
    known = {
        name
        for registry in (Metrics().registry, MonitorMetrics().registry)
        for family in registry.collect()
        for name in (family.name, f"{family.name}_total")
    }
    for rule in RULES:
        text = " ".join([rule["expr"], *rule["annotations"].values()])
        assert set(re.findall(r"innerloop_\w+", text)) <= known, rule["alert"]


def test_rules_send_to_sections_that_exist() -> None:
    """Sections of the documents that an alert names are there."""
    operations = (DEPLOY.parent / "docs/operations.md").read_text()
    for rule in RULES:
        for section in re.findall(r'operations\.md, "([^"]+)"', rule["annotations"]["description"]):
            assert f"\n## {section}\n" in operations, rule["alert"]


# -- the retraining job ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """What deploy/retrain-job.yaml and deploy/retrain-access.yaml hold, by kind."""
    files = ("retrain-job.yaml", "retrain-access.yaml")
    documents = [d for f in files for d in yaml.safe_load_all((DEPLOY / f).read_text())]
    return {document["kind"]: document for document in documents}


def test_the_job_cannot_run_twice(manifests: dict[str, dict[str, Any]]) -> None:
    """A fixed name, so that a second one is refused; it never retries by itself, and it ends."""
    job = manifests["Job"]
    assert job["metadata"]["name"] == "innerloop-retrain"
    assert "generateName" not in job["metadata"]
    assert (job["spec"]["backoffLimit"], job["spec"]["completions"]) == (0, 1)
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["activeDeadlineSeconds"] == 6 * 3_600
    assert job["spec"]["ttlSecondsAfterFinished"] > 60


def test_the_job_runs_the_image_with_settings_that_exist(
    manifests: dict[str, dict[str, Any]],
) -> None:
    """Image of the project's version, as the user that the image has, with known variables."""
    pod = manifests["Job"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    version = re.search(r'^version = "(.+)"', (DEPLOY.parent / "pyproject.toml").read_text(), re.M)
    assert version
    assert container["image"] == f"innerloop:{version[1]}"
    assert pod["securityContext"]["runAsUser"] == 10001
    given = {entry["name"] for entry in container["env"]}
    assert given <= {variable(name) for name in settings()}
    assert "innerloop train --from-kafka" in container["args"][0]
    assert "innerloop promote" in container["args"][0]


def test_the_monitor_may_do_what_the_documented_command_does(
    manifests: dict[str, dict[str, Any]],
) -> None:
    """create, wait and logs need no more than the role grants, in one namespace."""
    rules = manifests["Role"]["rules"]
    granted = {
        (resource, verb) for r in rules for resource in r["resources"] for verb in r["verbs"]
    }
    assert granted == {
        ("jobs", "create"),
        ("jobs", "get"),
        ("jobs", "list"),
        ("jobs", "watch"),
        ("pods", "get"),
        ("pods", "list"),
        ("pods", "watch"),
        ("pods/log", "get"),
    }
    assert manifests["RoleBinding"]["roleRef"]["name"] == manifests["Role"]["metadata"]["name"]
    account = manifests["ServiceAccount"]["metadata"]["name"]
    assert manifests["RoleBinding"]["subjects"][0]["name"] == account
