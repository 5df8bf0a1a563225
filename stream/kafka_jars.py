"""Apache Kafka's jars: a list with checksums, fetched once, used offline ever after."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import platformdirs

from stream.errors import BrokerStartError

KAFKA_VERSION = "4.3.0"
ENDPOINT = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.kafka:kafka-tools:{KAFKA_VERSION}"
    "+org.slf4j:slf4j-simple:1.7.36"
)
_FETCHERS = 8

Progress = Callable[[int, int], None]
"""Called with the number of jars at hand and the number of all."""


def folder() -> Path:
    """Where the jars of this version are kept."""
    return Path(platformdirs.user_cache_dir("innerloop")) / f"kafka-{KAFKA_VERSION}"


def is_cached() -> bool:
    """Whether a broker can start without the network."""
    return (folder() / "complete").is_file() and all(path.is_file() for path in _paths())


def classpath(progress: Progress | None = None) -> str:
    """Java's class path; fetches what is missing.

    Raises `BrokerStartError` when a jar cannot be fetched or is not the one that was pinned.
    """
    if not is_cached():
        fetch(progress)
    return os.pathsep.join(map(str, _paths()))


def fetch(progress: Progress | None = None) -> None:
    """Bring every pinned jar into the cache and check it.

    `INNERLOOP_MAVEN_URL` names a Maven repository other than Maven Central.
    Raises `BrokerStartError`.
    """
    with _locked(), ThreadPoolExecutor(_FETCHERS) as pool:
        jobs = [pool.submit(_fetch_one, jar, sha256) for jar, sha256 in pinned()]
        for done, job in enumerate(as_completed(jobs), start=1):
            job.result()
            if progress:
                progress(done, len(jobs))
        (folder() / "complete").touch()


def pinned() -> list[tuple[str, str]]:
    """`(group:artifact:version, sha256)` of every jar."""
    text = resources.files("stream").joinpath("data/kafka_jars.txt").read_text()
    return [(jar, sha256) for jar, _, sha256 in (line.partition(" ") for line in text.splitlines())]


def resolve() -> Iterator[str]:
    """Lines for the pinned list, from Maven's own metadata; for a new version of Kafka."""
    import jgo

    for artifact in sorted(jgo.resolve(ENDPOINT), key=str):
        path = artifact.resolve()
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{artifact.groupId}:{artifact.artifactId}:{artifact.version} {sha256}"


def _path(jar: str) -> Path:
    group, artifact, version = jar.split(":")
    return folder().joinpath(*group.split("."), artifact, version, f"{artifact}-{version}.jar")


def _paths() -> list[Path]:
    return [_path(jar) for jar, _ in pinned()]


def _fetch_one(jar: str, sha256: str) -> None:
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    if _matches(_path(jar), sha256):
        return
    url = os.environ.get("INNERLOOP_MAVEN_URL", MAVEN_CENTRAL_URL)
    context = MavenContext(repo_cache=folder(), remote_repos={"maven": url.rstrip("/")}, timeout=30)
    try:
        _path(jar).unlink(missing_ok=True)  # an interrupted download
        context.resolver.download(context.create_dependency(jar).artifact)
    except Exception as error:
        raise BrokerStartError(
            f"{jar} could not be fetched from {url} ({type(error).__name__})",
            remedy="Connect to the network once, set INNERLOOP_MAVEN_URL to a mirror, "
            f"or copy {folder()} from another machine.",
        ) from error
    if not _matches(_path(jar), sha256):
        _path(jar).unlink(missing_ok=True)
        raise BrokerStartError(
            f"{jar} from {url} has another checksum than the pinned one",
            remedy="Try again, or use another Maven repository.",
        )


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


@contextmanager
def _locked() -> Iterator[None]:
    """One process fetches, the others wait for it."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = (folder() / "lock").open("w")
    except OSError as error:
        raise BrokerStartError(
            f"{folder()} is not writable ({error.strerror})",
            remedy="Set XDG_CACHE_HOME to a folder that is.",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
