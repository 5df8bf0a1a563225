"""The model changes under real workers: under traffic, with bundles that are bad, and with kill -9.

After each the lists, the changelogs, the stores and the offsets are held against the log of events
by a checker that knows nothing of the worker.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from stream import checkpoints
from stream.checkpoints import SWEEP
from stream.config import Settings
from tests.chaos.process import Plan, WorkerProcess
from tests.integration.faults import USERS, Site, site
from tests.integration.world import FILMS, eventually, save_bundle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models to be released in turn; the second knows other items in another order."""
    folders = [tmp_path_factory.mktemp(name) for name in ("red", "blue")]
    save_bundle(folders[0], Settings(), seed=7)
    save_bundle(folders[1], Settings(), FILMS[:5:-1], seed=9)
    return [folder / "bundle" for folder in folders]


@pytest.fixture(scope="module")
def place(broker: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two partitions that all swaps share; each test leaves them in order."""
    with site(broker, bundle, tmp_path_factory.mktemp("swaps")) as made:
        yield made


def names(place: Site) -> list[str]:
    """The users that `Site.act` lets act."""
    return [f"user-{number}" for number in range(USERS)]


def newest(place: Site) -> dict[str, dict[str, Any]]:
    """The newest list of every user that acts."""
    found = {user: place.topics.lists(user) for user in names(place)}
    return {user: lists[-1] for user, lists in found.items() if lists}


def all_by(place: Site, version: str) -> bool:
    """Whether the newest list of everybody who ever acted is this model's."""
    found = newest(place)
    return len(found) == USERS and all(x["model_version"] == version for x in found.values())


def versions_rise(place: Site) -> None:
    """No user's state version ever went back, nor was one given twice."""
    for user in names(place):
        versions = [x["state_version"] for x in place.topics.lists(user)]
        assert versions == sorted(set(versions)), user


def served(worker: WorkerProcess) -> dict[str, Any]:
    """What /readyz says of models; nothing while the worker is not ready."""
    return (worker.ready() or {}).get("models", {})


def finish(place: Site, worker: WorkerProcess) -> None:
    """Stop the worker and check everything."""
    place.settle(worker)
    assert worker.terminate() == 0, worker.text()
    place.check(owner=worker)
    versions_rise(place)


# -- under traffic ------------------------------------------------------------------------------


def test_a_worker_takes_over_a_release_under_traffic(place: Site, models: list[Path]) -> None:
    """Lists before and after name their model; users who wait are refreshed; nothing is lost."""
    with place.worker() as worker:
        worker.start()
        for bundle in (*models, models[0]):
            place.act()
            place.settle(worker)
            version = place.topics.release(bundle)
            eventually(lambda v=version: served(worker).get("champion") == v, worker.text)
            eventually(lambda v=version: all_by(place, v), worker.text)
            place.act()
        finish(place, worker)
    swaps = worker.lines("model swapped")
    assert len(swaps) == 3
    assert any(x["caused_by"] is None for x in newest_lists(place))


def newest_lists(place: Site) -> list[dict[str, Any]]:
    """All lists of everybody."""
    return [x for user in names(place) for x in place.topics.lists(user)]


def test_a_challenger_serves_its_share_until_it_is_withdrawn(
    place: Site, models: list[Path]
) -> None:
    """Two models answer in one batch; afterwards everybody is the champion's again."""
    with place.worker() as worker:
        worker.start()
        champion = place.topics.release(models[0])
        tried = place.topics.release(models[1], role="challenger", share=0.5)
        eventually(lambda: served(worker).get("challenger") == tried, worker.text)
        place.act(2 * USERS)
        place.settle(worker)
        assert {x["model_version"] for x in newest(place).values()} == {champion, tried}
        place.topics.send_raw("models", b"challenger", None)
        eventually(lambda: served(worker).get("challenger") is None, worker.text)
        place.act()
        place.settle(worker)
        assert all_by(place, champion)
        finish(place, worker)


def test_a_worker_that_does_not_follow_serves_its_bundle(
    place: Site, bundle: Path, models: list[Path]
) -> None:
    """With model.follow off the champion changes nothing."""
    place.topics.release(models[0])
    with place.worker("fixed") as worker:
        model = worker.settings.model.model_copy(update={"follow": False})
        worker.settings = worker.settings.model_copy(update={"model": model})
        worker.start()
        place.act()
        place.settle(worker)
        eventually(lambda: worker.ready(), worker.text)
        assert served(worker) == {}
        configured = orjson.loads(read(bundle))["version"]
        assert all_by(place, configured)
        finish(place, worker)


def command(place: Site, name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command on these topics."""
    kafka = place.settings.kafka
    where = ["-b", kafka.bootstrap_servers, "--prefix", kafka.prefix]
    app = import_module(f"stream.commands.{name}").app
    result = CliRunner().invoke(app, [*arguments, *where])
    return result.exit_code, result.output


def test_commands_look_at_the_champion(place: Site, models: list[Path]) -> None:
    """Without --bundle they take what workers serve; versions that a sweep raised are no fault."""
    with place.worker() as worker:
        worker.start()
        version = place.topics.release(models[1])
        place.act()
        place.settle(worker)
        eventually(lambda: all_by(place, version), worker.text)
        finish(place, worker)
    code, text = command(place, "inspect", "user-1", "--json")
    assert code == 0
    assert orjson.loads(text)["model_version"] == version
    code, text = command(place, "explain", "user-1")
    assert code == 0, text
    assert version in text
    code, text = command(place, "replay", "--from-events", "--no-adapters")
    assert code == 0, text


# -- bundles that are bad -----------------------------------------------------------------------


def flip(bundle: Path) -> None:
    """One byte in the middle of a file is another."""
    path = bundle / "meta.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def newer(bundle: Path) -> None:
    """The manifest of a release to come."""
    path = bundle / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps(manifest | {"format_version": 99}))


def other_buckets(bundle: Path) -> None:
    """A well-made model whose signals mean something else."""
    shutil.rmtree(bundle)
    save_bundle(bundle.parent, Settings(), bucket=60.0)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "flip": (flip, "is not what the manifest says"),
    "half": (lambda bundle: (bundle / "items.safetensors").unlink(), "half-written"),
    "none": (lambda bundle: (bundle / "manifest.json").unlink(), "no manifest.json"),
    "newer": (newer, "format 99"),
    "terms": (other_buckets, "bucket"),
}


@pytest.fixture
def bad(tmp_path: Path) -> dict[Path, tuple[str, str]]:
    """Bundles of which something is wrong: version, and the reason to be told."""
    made = {}
    for seed, (name, (spoil, why)) in enumerate(BAD.items(), 11):
        bundle = tmp_path / name / "bundle"
        save_bundle(bundle.parent, Settings(), seed=seed)
        version = orjson.loads(read(bundle))["version"]
        spoil(bundle)
        if (bundle / "manifest.json").exists():
            version = orjson.loads(read(bundle))["version"]
        made[bundle] = version, why
    return made


def test_a_bad_bundle_is_refused_while_the_old_model_goes_on(
    place: Site, bad: dict[Path, tuple[str, str]]
) -> None:
    """One line with the reason for each; lists go on, also after a restart."""
    assert len({version for version, _ in bad.values()}) == len(BAD)
    with place.worker() as worker:
        worker.start()
        eventually(lambda: "champion" in served(worker), worker.text)
        before = served(worker)["champion"]
        for bundle, (version, why) in bad.items():
            place.topics.release(bundle, version=version)
            eventually(lambda v=version: v in served(worker).get("refused", {}), worker.text)
            assert why in served(worker)["refused"][version]
            assert [x["version"] for x in worker.lines("model refused")].count(version) == 1
            place.act()
            place.settle(worker)
            assert {x["model_version"] for x in newest(place).values()} == {before}
        assert worker.terminate() == 0
        worker.start()
        eventually(lambda: served(worker).get("champion") == before, worker.text)
        place.act()
        finish(place, worker)


def test_a_worker_starts_with_its_copy_where_the_address_is_gone(
    place: Site, models: list[Path], tmp_path: Path
) -> None:
    """The bundle was deleted, the worker still has it; a worker without it says what is wrong."""
    shutil.copytree(models[0], tmp_path / "bundle")
    version = place.topics.release(tmp_path / "bundle")
    with place.worker() as worker:
        worker.start()
        eventually(lambda: served(worker).get("champion") == version, worker.text)
        assert worker.terminate() == 0
        shutil.rmtree(tmp_path / "bundle")
        worker.start()
        place.act()
        place.settle(worker)
        assert served(worker)["champion"] == version
        finish(place, worker)
    with place.worker("stranger") as stranger:
        stranger.start()
        eventually(lambda: stranger.lines("serving the configured model"), stranger.text)
        assert "no manifest.json" in stranger.lines("model refused")[0]["why"]
        eventually(lambda: served(stranger).get("refused", {}).get(version), stranger.text)
        shutil.copytree(models[0], tmp_path / "bundle")
        eventually(lambda: served(stranger).get("champion") == version, stranger.text)
        stranger.terminate()


# -- kill -9 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        checkpoints.PREPARING,
        checkpoints.COPIED,
        checkpoints.SWAPPED,
        SWEEP + checkpoints.PRODUCED,
        SWEEP + checkpoints.COMMITTED,
    ],
)
def test_a_crash_while_the_model_changes(place: Site, models: list[Path], point: str) -> None:
    """The next start serves what `models` names; nothing is lost, repeated or set back."""
    with place.worker() as worker:
        worker.start()
        place.act(2 * USERS)
        place.settle(worker)
        now = served(worker)["champion"]
        assert worker.terminate() == 0
        worker.start(Plan(point=point, commits=3))  # later than the first lists for unseen users
        for _ in range(3):
            place.act()
            place.settle(worker)
        other = next(b for b in models if now not in str(orjson.loads(read(b))["version"]))
        version = place.topics.release(other)
        if point.startswith(SWEEP):  # who acts is not left to the sweep
            eventually(lambda: not worker.alive, worker.text)
        else:
            place.act_until(worker)
        assert worker.join() == -signal.SIGKILL, worker.text()
        assert worker.lines("sabotage")
        worker.start()
        eventually(lambda: served(worker).get("champion") == version, worker.text)
        eventually(lambda: all_by(place, version), worker.text)
        finish(place, worker)


def read(bundle: Path) -> bytes:
    """The manifest of a bundle."""
    return (bundle / "manifest.json").read_bytes()
