"""The page of operations behind a key, in a real browser: logged in, it writes with its session's token, and logs out."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from e2e.browsing import browser
from e2e.running import wait_for
from scoring_setup import surface

from services.control.app import Control, create_app
from services.loopback import free_port
from services.settings import Settings
from services.wiring import open_dead_letters, open_log, open_state
from streaming.configuration import publish_surface
from streaming.ports import DeadLetter

ADMIN_KEY = "an-admin-key-of-more-than-32-characters"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Settings]:
    """A control service with a key, in this process."""
    (tmp_path / "data").mkdir()
    settings = Settings.load(
        {},
        data=tmp_path / "data",
        http="127.0.0.1:9",
        control_http=f"127.0.0.1:{free_port()}",
        partitions=1,
        admin_key=ADMIN_KEY,
    )
    publish_surface(open_state(settings), surface())
    host, port = settings.control_address
    server = uvicorn.Server(
        uvicorn.Config(create_app(Control.of(settings)), host=host, port=port, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), "the control service answers")
        yield settings
    finally:
        server.should_exit = True
        thread.join()


def test_who_logs_in_may_write_and_who_logs_out_may_not(guarded: Settings, tmp_path: Path) -> None:
    dead = open_dead_letters(guarded)
    dead.put([DeadLetter(0, 0, "undecodable", "", b"u", b"{")])
    url = f"http://{guarded.control_http}"
    assert httpx.get(f"{url}/ops/page/app.js").status_code == 401  # nothing of it is shown to nobody
    with browser(tmp_path / "pictures") as seen:
        page = seen.page
        page.goto(f"{url}/ops")
        assert page.url == f"{url}/ops/login"
        assert seen.violations() == []
        page.get_by_label("Admin key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("Scoring exports no metrics at the moment.").wait_for()
        assert page.locator("#health").inner_text() == "scoring away"
        page.get_by_role("link", name="Stream").click()
        page.get_by_role("button", name="Replay dead letters: undecodable").click()
        page.locator("dialog").get_by_role("button", name="Replay").click()
        page.get_by_text("1 records are in the log again").wait_for()
        assert open_log(guarded).end(0)[0] == 1
        assert seen.wrong == []
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Admin key").wait_for()
        page.goto(f"{url}/ops")
        assert page.url == f"{url}/ops/login"
