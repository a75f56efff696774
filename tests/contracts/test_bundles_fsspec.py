"""The bundle store's promises on every store that fsspec opens: in memory, in files, and on S3 as a server speaks it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.fsspec import FsspecBundles
from tests.contracts.adapter_suite import Adapter, Check, Suite
from tests.contracts.test_store_adapters import bundles

BUCKET = "slatewise-test"
KEYS = {"key": "test", "secret": "test"}
_servers: list[str] = []  # the S3 server of this run, once it is up


def opened(url: str, **options: Any) -> FsspecBundles:
    """One that asks the store every time, as a suite of single steps needs it."""
    return FsspecBundles(url, clock=time.monotonic, poll_seconds=0, options=options)


def on_s3(folder: Path) -> FsspecBundles:
    return opened(f"s3://{BUCKET}{folder}", endpoint_url=_servers[-1], **KEYS)


stores: Suite[Any] = Suite(
    [
        Adapter("memory", lambda folder: opened(f"memory://{folder}/bundles")),
        Adapter("file", lambda folder: opened(f"file://{folder}/bundles")),
        Adapter("s3", on_s3, durable=False),  # the checks that this leaves out take hundreds of requests: shorter below
    ],
    bundles.checks,
)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, in a thread, with one bucket."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'slatewise[stores]'")
    server = pytest.importorskip("moto.server", reason="needs an S3 server: pip install 'moto[s3]' flask flask-cors")
    running = server.ThreadedMotoServer("127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        _servers.append(f"http://{host}:{port}")
        opened(f"s3://{BUCKET}", endpoint_url=_servers[-1], **KEYS)._fs.mkdir(BUCKET)
        yield _servers[-1]
    finally:
        running.stop()


@stores.parametrize()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's own
def test_store(adapter: Adapter[Any], check: Check, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if adapter.name == "s3":
        request.getfixturevalue("s3")
    check(adapter, tmp_path)


@pytest.fixture(params=["memory", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], FsspecBundles]:
    """Opens the same place again and again."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    [adapter] = [one for one in stores.adapters if one.name == request.param]
    return lambda: adapter.open(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's own
@pytest.mark.parametrize(
    "store", ["memory", "s3"], indirect=True
)  # fsspec's files are not created in one step: FileBundles
def test_of_those_who_move_at_once_each_moves_its_own(store: Callable[[], FsspecBundles]) -> None:
    """Three writers of a policy each, five moves each: none takes another's back."""

    def move(policy: str) -> None:
        mine = store()
        for n in range(5):
            mine.point(policy, f"{policy}-{n}", 1)

    writers = [threading.Thread(target=move, args=(f"home/{n}",)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store().pointers() == {f"home/{n}": f"home/{n}-4" for n in range(3)}
    assert store().epochs() == {f"home/{n}": 1 for n in range(3)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's own
def test_a_move_is_seen_from_elsewhere_and_old_ones_are_forgotten(store: Callable[[], FsspecBundles]) -> None:
    writer, reader = store(), store()
    for n in range(20):
        writer.point("home/ts", f"{n:064d}", 1)
        if n % 5 == 0:
            assert reader.pointers() == {"home/ts": f"{n:064d}"}
    assert store().pointers() == {"home/ts": f"{19:064d}"}
    assert len(store().names("pointers")) == 16


def test_the_store_is_asked_no_oftener_than_wanted(tmp_path: Path) -> None:
    now = [100.0]
    writer = opened(f"memory://{tmp_path}")
    reader = FsspecBundles(f"memory://{tmp_path}", clock=lambda: now[0], poll_seconds=0.25)
    assert reader.pointers() == {}
    writer.point("home/ts", "b1", 1)
    now[0] += 0.2
    assert reader.pointers() == {}
    now[0] += 0.05
    assert reader.pointers() == {"home/ts": "b1"}
    assert writer.pointers() == {"home/ts": "b1"}


def test_pointers_that_are_no_json_are_corrupt(tmp_path: Path) -> None:
    broken = opened(f"memory://{tmp_path}")
    broken._fs.pipe_file(broken._file(1), b"{half")
    with pytest.raises(Corrupt, match="pointers"):
        broken.pointers()


def test_a_scheme_nobody_opens_is_named() -> None:
    with pytest.raises(Rejected, match="nothing"):
        opened("nothing://bucket/folder")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's own
def test_a_bucket_that_is_not_there_is_not_made(s3: str) -> None:
    wrong = opened("s3://another-bucket/folder", endpoint_url=s3, **KEYS)
    with pytest.raises(Unavailable):
        wrong.put("arrays/a.npy", b"1")
    assert not wrong._fs.exists("another-bucket")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # botocore's own
def test_a_store_that_is_away_is_unavailable(s3: str) -> None:
    away = opened(
        "s3://bucket/folder", endpoint_url="http://127.0.0.1:1", config_kwargs={"retries": {"max_attempts": 0}}, **KEYS
    )
    for call in (lambda: away.put("a", b""), lambda: away.get("a"), away.pointers, lambda: away.point("p", "b", 1)):
        with pytest.raises(Unavailable):
            call()
