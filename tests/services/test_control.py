"""The control service over real stores: edits are compared, managed surfaces are not edited, releases hold."""

import asyncio
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from policies import linear_graph
from policies.errors import Rejected
from services import releases as releasing
from services.configuring import apply_folder, apply_quickstart
from services.control import health
from services.control import window as window_module
from services.control.app import Control, create_app
from services.control.window import Window
from services.epochs import take_epoch
from services.exposition import Exposition
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles, open_dead_letters, open_log, open_state
from streaming.adapters.memory import MemoryLog
from streaming.configuration import Compiled, Configs
from streaming.events import Decision, Feedback, Sample, encode
from streaming.ports import DeadLetter
from streaming.publish import Publisher
from streaming.verdicts import HEARD_EACH

NOW = time.time()
SAMPLE = Sample(
    rate=1.0,
    distributions=np.array([[0.25, 0.75], [0.0, 1.0]]).tobytes(),
    uniforms=np.zeros(2).tobytes(),
    boosts=np.array([0.0, 2.0]).tobytes(),
)


class House:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings.load({}, data=folder / "data", http="127.0.0.1:9", partitions=1)
        self.state, self.bundles, self.log = (
            open_state(self.settings),
            open_bundles(self.settings),
            open_log(self.settings),
        )
        apply_quickstart(self.state)
        self.configs = Configs()
        self.configs.follow(self.state)
        self.publisher = Publisher(self.bundles, self.configs, take_epoch(self.state))

    @property
    def compiled(self) -> Compiled:
        found = self.configs.current("home")
        assert found is not None
        return found

    def publish(self) -> str:
        outcome = self.publisher.publish(self.compiled.policies["home-ts"], [], {0: 0}, NOW)
        assert outcome.manifest is not None
        return outcome.manifest.bundle


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(releasing, "SEEN_SECONDS", 0.0)  # no learning service runs here
    return House(tmp_path)


class Http:
    """Requests to an app in this process, its lifespan around them."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self.app, self.runner = app, runner

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self._ask(method, path, options))

    def get(self, path: str) -> httpx.Response:
        return self("GET", path)

    def put(self, path: str, **options: Any) -> httpx.Response:
        return self("PUT", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self("POST", path, **options)

    async def _ask(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await client.request(method, path, **options)


@pytest.fixture
def http(house: House) -> Iterator[Http]:
    app = create_app(Control.of(house.settings))
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield Http(app, runner)
        runner.run(lifespan.__aexit__(None, None, None))


def written(http: Http) -> tuple[dict[str, Any], str]:
    answer = http.get("/v1/surfaces/home")
    return answer.json(), answer.headers["etag"]


def test_a_surface_is_read_edited_and_compared(http: Http) -> None:
    document, etag = written(http)
    assert document["policies"]["home-ts"]["floor"] == 0.02
    document["policies"]["home-ts"]["floor"] = 0.1
    assert http.put("/v1/surfaces/home", json=document).status_code == 428
    assert http.put("/v1/surfaces/home", json=document, headers={"if-match": '"0000"'}).status_code == 412
    answer = http.put("/v1/surfaces/home", json=document, headers={"if-match": etag})
    assert answer.status_code == 200
    assert answer.headers["etag"] != etag
    assert written(http)[0]["policies"]["home-ts"]["floor"] == 0.1
    assert http.put("/v1/surfaces/home", json=document, headers={"if-match": etag}).status_code == 412  # lost update


def test_a_new_surface_is_created(http: Http) -> None:
    assert http.put("/v1/surfaces/side", json={"surface": "side", "slots": 3}).status_code == 201
    assert [line["surface"] for line in http.get("/v1/surfaces").json()["surfaces"]] == ["home", "side"]


def test_mistakes_are_named_and_nothing_is_written(http: Http) -> None:
    document, etag = written(http)
    document["live"] = "nobody"
    document["slots"] = "many"
    answer = http.put("/v1/surfaces/home", json=document, headers={"if-match": etag})
    assert answer.status_code == 422
    assert {"code", "message", "at"} <= set(answer.json()["error"])
    assert answer.json()["mistakes"]
    assert written(http)[1] == etag


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[1,2", b"{}", b'{"surface": "other"}', b"surface: home\n---\nsurface: b"]
)
def test_a_body_that_is_no_surface_is_refused(http: Http, body: bytes) -> None:
    answer = http.put("/v1/surfaces/home", content=body, headers={"if-match": written(http)[1]})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_a_large_body_is_refused(http: Http) -> None:
    assert http.put("/v1/surfaces/home", content=b" " * (2 << 20)).status_code == 413


def test_a_surface_of_a_folder_is_edited_in_the_folder(http: Http, house: House, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "a.yaml").write_text("surface: filed\nslots: 2\n")
    assert apply_folder(house.state, folder)
    assert not apply_folder(house.state, folder)  # once for each content
    etag = http.get("/v1/surfaces/filed").headers["etag"]
    answer = http.put("/v1/surfaces/filed", json={"surface": "filed"}, headers={"if-match": etag})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "managed")


def test_what_is_not_there_is_said(http: Http) -> None:
    for path in ("/v1/surfaces/nobody", "/v1/bundles/none", "/v1/nothing"):
        answer = http.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"]
    assert http.get("/v1/dead-letters?limit=0").status_code == 422
    assert http.get("/v1/dead-letters?limit=x").status_code == 422


def test_bundles_and_policies_are_listed(http: Http, house: House) -> None:
    bundle = house.publish()
    assert http.get("/v1/bundles").json()["bundles"] == [{"policy": "home/home-ts", "bundle": bundle, "held": False}]
    assert http.get(f"/v1/bundles/{bundle}").json()["number"] == 0
    lines = {line["policy"]: line for line in http.get("/v1/policies").json()["policies"]}
    assert lines["home-ts"]["bundle"] == bundle
    assert lines["home-ts"]["live"]
    assert lines["home-popular"]["bundle"] is None


def test_a_rollback_holds_until_it_is_resumed(http: Http, house: House) -> None:
    first, second = house.publish(), house.publish()
    assert house.bundles.pointers()["home/home-ts"] == second
    asked = {"policy": "home/home-ts", "action": "rollback", "to": first}
    assert http.post("/v1/releases", json=asked).json()["bundle"] == first
    assert open_bundles(house.settings).pointers()["home/home-ts"] == first
    assert http.get("/v1/releases").json()["holds"] == {"home/home-ts": first}
    assert http.post("/v1/releases", json={"policy": "home/home-ts", "action": "resume"}).status_code == 200
    assert http.get("/v1/releases").json()["holds"] == {}
    assert http.post("/v1/releases", json={"policy": "home/home-ts", "action": "resume"}).status_code == 404


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"policy": "home/home-ts", "action": "rollback"}, 422),
        ({"policy": "home/home-ts", "action": "rollback", "to": "none"}, 404),
        ({"policy": "home/none", "action": "rollback", "to": "none"}, 404),
        ({"policy": "home/home-ts", "action": "rollback", "before": "soon"}, 422),
        ({"policy": "home/home-ts", "action": "rollback", "before": "10m"}, 404),  # nothing was answered yet
        ({"policy": "home/home-ts", "action": "explode"}, 422),
        ({"policy": "home/home-ts"}, 422),
        ([], 422),
    ],
)
def test_a_release_that_cannot_be_is_refused(http: Http, house: House, asked: Any, status: int) -> None:
    bundle = house.publish()
    answer = http.post("/v1/releases", json=asked)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert house.bundles.pointers()["home/home-ts"] == bundle


def test_a_spoilt_bundle_is_no_way_back(http: Http, house: House) -> None:
    first = house.publish()
    pool = next((house.settings.data / "bundles" / "arrays").iterdir())
    spoilt = bytearray(pool.read_bytes())
    spoilt[-1] ^= 1
    pool.write_bytes(spoilt)
    answer = http.post("/v1/releases", json={"policy": "home/home-ts", "action": "rollback", "to": first})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "hash"
    assert http.get("/v1/releases").json()["holds"] == {}


def test_before_finds_the_bundle_that_answered_then(house: House) -> None:
    for bundle in ("b0", "b1"):
        house.log.append([(b"u", encode(decision(house, f"u-{bundle}", bundle)))])
        time.sleep(0.02)
    time.sleep(0.02)
    releases = releasing.Releases.of(house.settings)
    appended = [record.appended for record in house.log.read(0, 0, 10)]
    assert appended[0] < appended[1]
    assert releases.answered_by("home/home-ts", appended[1]) == "b0"
    assert releases.answered_by("home/home-ts", appended[1] + 1) == "b1"
    with pytest.raises(Rejected, match="No decision"):
        releases.answered_by("home/home-ts", appended[0])


def test_the_page_needs_nothing_from_outside(http: Http) -> None:
    page = http.get("/ops")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    parts = [word for word in page.text.split('"') if word.startswith("/ops/page/")]
    assert len(parts) >= 4
    for part in [*parts, "/ops/page/uplot-1.6.32.LICENSE.txt"]:
        assert http.get(part).status_code == 200
    outside = [word for word in page.text.split('"') if word.startswith(("http://", "https://", "//"))]
    assert outside == []
    assert http.get("/ops/page/app.py").status_code == 404
    assert http.get("/ops/page/..%2fapp.py").status_code == 404


def test_a_decision_is_read_from_the_log(http: Http, house: House) -> None:
    unit = "0123456789abcdef"
    made = decision(house, f"{unit}-1", acted=["fresh"], candidates=["a", "b"], sample=SAMPLE)
    other = decision(house, f"{unit}-2")
    events = [
        made,
        other,
        click(made.decision_id),
        click(other.decision_id, "g"),
        click(made.decision_id, "", retracts="f"),
    ]
    house.log.append([(unit.encode(), encode(event)) for event in [*events, made]])
    house.log.append([(unit.encode(), b"{"), (unit.encode(), f'["{made.decision_id}"'.encode())])
    found = http.get(f"/v1/decisions/{made.decision_id}").json()
    assert (found["offset"], found["searched"]) == (0, 8)
    assert found["decision"]["acted"] == ["fresh"]
    assert [(slot["item"], slot["propensity"], slot["greedy"]) for slot in found["slots"]] == [
        ("a", 0.5, "a"),
        ("b", 1.0, "b"),
    ]
    assert found["slots"][0]["likely"] == [
        {"item": "b", "p": 0.75, "boost": 2.0},
        {"item": "a", "p": 0.25, "boost": 0.0},
    ]
    assert found["slots"][1]["likely"] == [{"item": "b", "p": 1.0, "boost": 2.0}]
    assert [one.get("retracts") or one["kind"] for one in found["feedback"]] == ["click", "f"]


def test_a_decision_that_is_not_in_the_log_is_not_found(http: Http, house: House) -> None:
    house.log.append([(b"u", encode(decision(house, "mine/1")))])
    assert http.get("/v1/decisions/mine%2F1").json()["decision"]["decision_id"] == "mine/1"
    answer = http.get("/v1/decisions/0123456789abcdef-1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_decision")
    assert http.get("/v1/decisions/" + "x" * 600).json()["error"]["at"] == "$.id"
    assert http.get("/v1/decisions?limit=0").json()["error"]["at"] == "$.limit"


def test_dead_letters_are_brought_to_the_log_again(http: Http, house: House) -> None:
    dead = open_dead_letters(house.settings)
    dead.put([DeadLetter(0, 3, "unknown_surface", "", b"u", b"one"), DeadLetter(0, 4, "undecodable", "", b"u", b"two")])
    answer = http.post("/v1/dead-letters/replay", json={"reason": "unknown_surface"})
    assert answer.json() == {"records": 1, "last": 2}
    assert [record.value for record in house.log.read(0, 0, 10)] == [b"one"]
    [change] = http.get("/v1/audit?subject=dead-letters/unknown_surface").json()["changes"]
    assert (change["action"], change["after"]) == ("replay", {"records": 1, "from": 0, "to": 2})
    assert http.post("/v1/dead-letters/replay", json={"after": -1}).json()["error"]["at"] == "$.after"
    assert http.post("/v1/dead-letters/replay", json={"reasons": "x"}).status_code == 422


def test_the_coefficients_of_a_linear_policy_are_those_of_its_draws(http: Http, house: House) -> None:
    house.publish()
    found = http.get("/v1/policies/home/home-ts/coefficients").json()
    encoder = house.compiled.encoder
    bundle = releasing.Releases.of(house.settings).read("home/home-ts")
    by_name = {line["column"]: line for line in found["coefficients"]}
    assert found["columns"] == 1 + encoder.context_size + encoder.item_size + len(encoder.cross_names)
    for row, name in enumerate(encoder.item_names):
        if name in by_name:
            assert by_name[name]["sd"] == pytest.approx(bundle.arrays["pool"][row].std(), rel=1e-5)
    # one context column and one item column at 1: what the graph's weights give a cross is what is told of it
    context, items = np.eye(encoder.context_size), np.eye(encoder.item_size)
    left, right = next(name for name in by_name if "×" in name).split("×")
    crossed = by_name[f"{left}×{right}"]["mean"]
    here = context[encoder.context_names.index(left)], items[encoder.item_names.index(right)][None]
    inputs = {"context": here[0].astype(np.float32), "items": here[1].astype(np.float32)}
    score = linear_graph.reference(house.compiled.policies["home-ts"].problem, bundle.arrays, inputs).mean()
    alone = {name: part.mean(-1) for name, part in bundle.arrays.items() if name in ("base", "pool")}
    rest = alone["base"][0] + alone["base"][1 + encoder.context_names.index(left)]
    assert crossed == pytest.approx(score - rest - alone["pool"][encoder.item_names.index(right)], abs=1e-5)
    assert http.get("/v1/policies/home/none/coefficients").status_code == 404
    house.publisher.publish(house.compiled.policies["home-popular"], [], {0: 0}, NOW)
    assert http.get("/v1/policies/home/home-popular/coefficients").json()["error"]["code"] == "not_linear"


def test_the_stream_says_how_far_it_is(http: Http, house: House) -> None:
    house.log.append([(b"u", b"one"), (b"u", b"two")])
    report = http.get("/v1/stream").json()
    [partition] = report["partitions"]
    assert (partition["first"], partition["end"], partition["join_lag_seconds"]) == (
        0,
        2,
        None,
    )  # nothing to scrape here


def test_draws_and_lags_are_read_from_a_scrape() -> None:
    telemetry = Telemetry()
    telemetry.set("join_lag_seconds", "0", value=1.5)
    telemetry.set("selection_entropy_nats", "home", "home-ts", value=0.7)
    telemetry.set("selection_entropy_nats", "home", "home-popular", value=0.1)
    telemetry.set("exposure_share", "home", "jazz", value=0.25)
    telemetry.set("constraint_multiplier", "home", "home-ts", "click", value=2.0)
    scrape = Exposition.parse(telemetry.text().decode())
    log = MemoryLog(1)
    assert health.stream(scrape, log)["partitions"][0]["join_lag_seconds"] == 1.5
    assert health.draws(scrape, "home", "home-ts")["entropy_nats"] == 0.7
    assert health.draws(scrape, "home", "none")["entropy_nats"] is None
    found = health.goals(scrape, "home")
    assert found["groups"] == {"jazz": {"share": 0.25}}
    assert [(one["objective"], one["of"], one["value"]) for one in found["objectives"]] == [
        ("click", "multiplier", 2.0)
    ]
    assert health.goals(scrape, "other") == {"groups": {}, "objectives": []}


def test_the_overview_says_what_is_missing(http: Http, house: House) -> None:
    house.publish()
    report = http.get("/v1/overview").json()
    assert report["missing"] == ["scoring"]
    assert report["surfaces"]["home"]["decisions"] == 0
    assert {line["policy"] for line in report["surfaces"]["home"]["bundles"]} >= {"home-ts", "given_order"}


def decision(house: House, name: str, bundle: str = "b", **changes: Any) -> Decision:
    compiled = house.compiled
    shown = compiled.encoder.rows([{"genre": "jazz"}, {"genre": "rock"}], "$")
    made = {
        "decision_id": name, "unit": "u", "at": NOW, "surface": "home", "config": compiled.hash, "policy": "home-ts",
        "bundle": bundle, "mode": "live", "slate": ["a", "b"], "slots": [0, 1], "rows": [0, 1],
        "propensities": [0.5, 1.0], "remaining": [2, 1], "greedy": [0, 1],
        "context": compiled.encoder.context({}).tobytes(), "shown": shown.tobytes(),
    }  # fmt: skip
    return Decision(**(made | changes))


def click(name: str, feedback_id: str = "f", **changes: Any) -> Feedback:
    made = {"decision_id": name, "unit": "u", "at": NOW, "kind": "click", "slot": 0, "feedback_id": feedback_id}
    return Feedback(**(made | changes))


def test_the_window_counts_what_was_heard_once(house: House) -> None:
    events = [decision(house, f"d{i}") for i in range(4)]
    heard = [
        click("d0"),
        click("d0"),  # delivered twice
        click("d1", slot=None, item="b"),
        click("d2"),
        Feedback(decision_id="d2", unit="u", at=NOW, retracts="f"),
        click("d3", slot=7),  # was not shown
        click("d3", at=NOW + 86_400.0),  # after the horizon
        click("unknown"),
    ]
    window = Window(house.log, house.configs)
    house.log.append([(b"u", encode(event)) for event in [*events, *heard]] + [(b"u", b"not json")])
    assert window.follow() == 13
    report = window.report("home")
    assert report["decisions"] == 4
    assert report["reward"] == pytest.approx(2 / 4)
    assert report["greedy_share"] == 1.0


def test_a_window_holds_what_it_shows_and_not_what_was_logged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, wide = 200, 10
    monkeypatch.setattr(window_module, "KEPT", kept)

    def record(number: int) -> tuple[bytes, bytes]:
        made = decision(
            house,
            f"{number:037x}",
            slate=[f"item-{number % 7}{i}" for i in range(wide)],
            slots=list(range(wide)),
            rows=list(range(wide)),
            propensities=[1 / (number % 9 + 2 + i) for i in range(wide)],
            remaining=[100 - i for i in range(wide)],
            greedy=list(range(wide)),
            candidates=[f"candidate-{i}" for i in range(100)],
            matrix=bytes(4 * 32 * 100),
        )
        return b"u", encode(made)

    window = Window(house.log, house.configs)
    house.log.append([record(number) for number in range(4 * kept)])
    tracemalloc.start()
    try:
        while window.follow():
            pass
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert window.report("home")["decisions"] == kept
    assert held <= kept * 5_000  # 2,200 each, and whatever else this process does; whole they are 24 kB


def test_a_decision_hears_so_much_and_no_more(house: House) -> None:
    window = Window(house.log, house.configs)
    said = [click("d", f"f{i}", slot=0) for i in range(HEARD_EACH + 5)]
    house.log.append([(b"u", encode(event)) for event in [decision(house, "d"), *said, said[0]]])
    while window.follow():
        pass
    [line] = window.recent(1)
    assert line["feedback"] == HEARD_EACH


def test_the_line_goes_forward_in_time(house: House) -> None:
    """Partitions are read in turns, a block each: what was read later may have happened earlier."""
    times = iter(range(100))
    log = MemoryLog(2, lambda: NOW + next(times))
    window = Window(log, house.configs)
    for number in range(40):
        log.append([(b"u%d" % (number % 7), encode(decision(house, f"d{number}")))])
    assert all(log.end(partition)[0] for partition in range(2))
    window.follow()
    series = [point["at"] for point in window.report("home")["series"]]
    assert len(series) == 40
    assert series == sorted(series)


def test_the_value_of_uniform_slates_is_recovered_from_a_greedy_policy(house: House) -> None:
    """Two items, one earns 0.8 and is shown nine times of ten, the other earns 0.1: uniform earns 0.45 in the first slot."""
    window, generator, records = Window(house.log, house.configs), np.random.default_rng(5), []
    for number in range(3_000):
        good = generator.random() < 0.9
        slate, p = (["a"], [0.9]) if good else (["b"], [0.1])
        shown = house.compiled.encoder.rows([{}], "$").tobytes()
        one = decision(
            house,
            f"d{number}",
            slate=slate,
            slots=[0],
            rows=[0 if good else 1],
            propensities=p,
            remaining=[2],
            greedy=[0],
            shown=shown,
        )
        records.append((b"u", encode(one)))
        if generator.random() < (0.8 if good else 0.1):
            records.append((b"u", encode(click(f"d{number}"))))
    house.log.append(records)
    while window.follow():
        pass
    report = window.report("home")
    assert report["reward"] == pytest.approx(0.73, abs=4 * report["reward_error"])
    assert report["uniform"] == pytest.approx(0.45, abs=4 * report["uniform_error"])
    assert report["uniform_error"] < 0.05
    assert report["greedy"] == pytest.approx(0.8, abs=4 * report["greedy_error"])
    assert report["greedy_error"] < 0.01
    [answered] = report["answered"]["home-ts"]
    assert (answered["bundle"], answered["decisions"]) == ("b", 3_000)
    [newest, before] = window.recent(2)
    assert (newest["decision_id"], before["decision_id"]) == ("d2999", "d2998")


def test_nothing_is_said_of_greedy_slates_that_were_never_shown(house: House) -> None:
    window = Window(house.log, house.configs)
    house.log.append([(b"u", encode(decision(house, "d", greedy=[1, 0])))])
    window.follow()
    assert window.report("home")["greedy"] is None
    assert window.report("home")["uniform"] is not None
