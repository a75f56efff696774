"""What holds the log against the callers' word finds each way in which a promise can be broken."""

import time
from pathlib import Path

import numpy as np
import pytest

from services.chaos.traffic import CANDIDATES, SLOTS, SURFACE, Answered, Told
from services.chaos.verify import gap, verify
from services.configuring import apply_folder
from services.epochs import take_epoch
from services.learning.shards import open_shards
from services.settings import Settings
from services.wiring import open_checkpoints, open_log, open_state
from streaming.configuration import Compiled, Configs
from streaming.events import Decision, Feedback, encode
from streaming.ports import Commit

KEY = "0123456789abcdef"


class Story:
    """A log of decisions and feedback, and what their callers were told."""

    def __init__(self, folder: Path) -> None:
        (folder / "config").mkdir()
        (folder / "config" / "page.yaml").write_text(SURFACE)
        self.settings = Settings.load({}, data=folder / "data", partitions=2)
        self.settings.data.mkdir()
        self.state = open_state(self.settings)
        apply_folder(self.state, folder / "config")
        self.configs, self.told, self.log = Configs(), Told(), open_log(self.settings)
        self.configs.follow(self.state)
        for number in range(30):
            self.log.append([self.decided(f"{KEY}-{number}", number % 5)])
            self.log.append([self.heard(f"{KEY}-{number}", "f", float(number % 3))])

    @property
    def compiled(self) -> Compiled:
        found = self.configs.current("page")
        assert found is not None
        return found

    def decided(self, name: str, first: int, at: float | None = None) -> tuple[bytes, bytes]:
        """A decision as logged; its caller was told the same."""
        shown = CANDIDATES[first : first + SLOTS]
        items = [str(item["id"]) for item in shown]
        rows = self.compiled.encoder.rows([item["features"] for item in shown], "$")  # type: ignore[misc]
        self.told.answers[name] = Answered(0.0, 0.01, "live", KEY, tuple(items), (0.5,) * SLOTS, True, False)
        decision = Decision(
            decision_id=name, unit=KEY, at=at or time.time(), surface="page", config=self.compiled.hash, policy="model",
            bundle="b", mode="live", slate=items, slots=list(range(SLOTS)), rows=list(range(SLOTS)),
            weight=0.8, propensities=[0.5] * SLOTS, remaining=[3, 2, 1], greedy=list(range(SLOTS)),
            context=self.compiled.encoder.context({}).tobytes(), shown=rows.tobytes(),
        )  # fmt: skip
        return KEY.encode(), encode(decision)

    def heard(self, name: str, feedback_id: str, value: float) -> tuple[bytes, bytes]:
        item = self.told.answers[name].items[0]
        self.told.accepted[name, feedback_id] = item, value
        event = Feedback(
            decision_id=name, unit=KEY, at=time.time(), kind="score", item=item, feedback_id=feedback_id, value=value
        )
        return KEY.encode(), encode(event)

    def learn(self) -> None:
        for shard in open_shards(self.settings, self.state, self.configs, take_epoch(self.state), range(2)):
            while shard.step().records:
                pass


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_kept_promises_are_found_kept(story: Story) -> None:
    verdict = verify(story.settings, story.told)
    assert verdict.kept
    assert (verdict.decisions, verdict.feedback, verdict.repeated) == (30, 30, 0)


def test_records_delivered_again_break_nothing(story: Story) -> None:
    name = f"{KEY}-7"
    story.log.append([story.heard(name, "f", 1.0)])
    verdict = verify(story.settings, story.told)
    assert verdict.repeated == 1
    assert verdict.kept


def test_a_lost_decision_is_found(story: Story) -> None:
    story.decided("never-logged", 1)
    verdict = verify(story.settings, story.told)
    assert verdict.lost_decisions == 1
    assert not verdict.kept


def test_a_lost_feedback_is_found(story: Story) -> None:
    story.heard(f"{KEY}-3", "another", 2.0)
    verdict = verify(story.settings, story.told)
    assert verdict.lost_feedback == 1
    assert not verdict.kept


def test_a_slate_that_differs_from_the_answer_is_found(story: Story) -> None:
    logged = story.decided("drawn-twice", 1)
    story.log.append([logged])
    story.decided("drawn-twice", 4)
    verdict = verify(story.settings, story.told)
    assert verdict.changed_decisions == 1
    assert not verdict.kept


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_sums_that_are_a_little_off_are_found(story: Story, factor: float) -> None:
    story.learn()
    for partition in range(2):
        checkpoints = open_checkpoints(story.settings, partition)
        loaded = checkpoints.load()
        for key, arrays in loaded.statistics.items():
            off = {name: array * factor for name, array in arrays.items() if name == "B"}
            checkpoints.commit(
                Commit(
                    partition,
                    loaded.offset,
                    loaded.clock,
                    loaded.epoch,
                    statistics={key: arrays | off},
                    extra=loaded.extra,
                    evicted=loaded.evicted,
                )
            )
    verdict = verify(story.settings, story.told)
    assert 1e-4 < verdict.off < 1e-2
    assert verdict.counted_off > 1e-4
    assert not verdict.kept


def test_a_feedback_counted_twice_is_found(story: Story) -> None:
    """Under another id, as a retry without one would be."""
    name = f"{KEY}-5"
    said = story.heard(name, "again", 2.0)
    del story.told.accepted[name, "again"]
    story.log.append([said])
    verdict = verify(story.settings, story.told)
    assert verdict.counted_off > 0
    assert not verdict.kept


def test_numbers_are_compared_and_names_are_too() -> None:
    assert gap(np.array(["a"]), np.array(["b"])) == float("inf")
    assert gap(np.array([1.0, np.inf]), np.array([1.0, np.inf])) == 0.0
    assert gap(np.array([1.0, 2.0]), np.array([1.0, np.inf])) == float("inf")
