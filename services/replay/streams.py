"""One-slot streams made of public data: the same rounds for us and for our peers.

A round is a context, the candidates that may be shown and their rewards. Where only the logged action's outcome is known
(Hillstrom, actions assigned at random, 1/3 each) a round counts only when the policy draws the logged action: rejection
replay, which is unbiased because the logging was uniform (Li, Chu, Langford, Wang 2011, arXiv 1003.5956).

jester     1,473 users, 80 jokes, taste from 20 other jokes (`jester.py`), reward (rating + 10) / 20
coat       290 users, 16 coats shown to each at random in rounds of 4, reward (rating − 1) / 4; user and coat attributes
hillstrom  customers of a randomised e-mail campaign, 3 actions, reward = visit
digits     1,797 handwritten digits (UCI, shipped with scikit-learn), 4 × 4 mean-pooled pixels, 10 labels, reward = right label
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.types import F32, F64, I64
from policies.worlds.replay_world import Rounds
from services.replay import jester
from services.replay.datasets import located
from services.replay.logged import hillstrom_rows


@dataclass(frozen=True)
class Stream:
    """T rounds over K arms.

    context (T, c); arms (K, d) features of the arms, d = 0 where arms are just names
    candidates (T, a) arms on offer in a round
    rewards (T, a) of the candidates, in [0, 1]; NaN where unknown (then `logged` says which is known)
    logged (T,) position of the logged candidate, or None where every reward is known
    worth (T, a) expected rewards where a world knows them: what a choice is judged by, while `rewards` is what is learned from
    """

    name: str
    context: F32
    arms: F32
    candidates: I64
    rewards: F64
    logged: I64 | None = None
    worth: F64 | None = None

    def __len__(self) -> int:
        return len(self.context)

    def shuffled(self, seed: int, rounds: int | None = None) -> "Stream":
        """The same rounds in the order of a seed: every player of that seed sees the same order."""
        order = np.random.default_rng([seed, 7]).permutation(len(self))[:rounds]
        logged = None if self.logged is None else self.logged[order]
        worth = None if self.worth is None else self.worth[order]
        candidates, rewards = self.candidates[order], self.rewards[order]
        return Stream(self.name, self.context[order], self.arms, candidates, rewards, logged, worth)

    def offered(self, seed: int, count: int) -> "Stream":
        """The same rounds with `count` of the candidates of each, drawn by a seed."""
        rng = np.random.default_rng([seed, 19])
        kept = np.argsort(rng.random(self.candidates.shape), axis=1)[:, :count]
        candidates, rewards = np.take_along_axis(self.candidates, kept, 1), np.take_along_axis(self.rewards, kept, 1)
        return Stream(self.name, self.context, self.arms, candidates, rewards)

    def rounds(self) -> Rounds:
        """The same data for `policies.worlds.replay_world`; what is logged was logged uniformly."""
        even = None if self.logged is None else np.full(len(self), 1.0 / self.candidates.shape[1])
        return Rounds(self.context, self.arms, self.candidates, self.rewards, self.logged, even)


def jester_stream(data: Path | None) -> Stream:
    w = jester.world(data)
    arms = np.column_stack([(w.popularity + 10.0) / 20.0, w.embedding]).astype(np.float32)
    users, jokes = w.rewards.shape
    return Stream("jester", w.taste.astype(np.float32), arms, np.tile(np.arange(jokes), (users, 1)), w.rewards)


def coat_stream(data: Path | None, offered: int = 4) -> Stream:
    test = np.loadtxt(located(data, "coat/test.ascii"))
    users = np.loadtxt(located(data, "coat/user_item_features/user_features.ascii"), dtype=np.float32)
    coats = np.loadtxt(located(data, "coat/user_item_features/item_features.ascii"), dtype=np.float32)
    rng = np.random.default_rng(290)  # which of a user's 16 coats meet in a round: fixed, the same for everybody
    context, candidates, rewards = [], [], []
    for user, rated in enumerate(test):
        coats_of_user = rng.permutation(np.flatnonzero(rated))
        for group in coats_of_user[: len(coats_of_user) // offered * offered].reshape(-1, offered):
            context.append(users[user])
            candidates.append(group)
            rewards.append((rated[group] - 1.0) / 4.0)
    return Stream("coat", np.array(context), coats, np.array(candidates), np.array(rewards))


def hillstrom_stream(data: Path | None) -> Stream:
    rows = hillstrom_rows(located(data, "hillstrom/hillstrom.csv"))
    n = len(rows.action)
    rewards = np.full((n, 3), np.nan)
    rewards[np.arange(n), rows.action] = rows.visit
    return Stream(
        "hillstrom", rows.numbers, np.zeros((3, 0), np.float32), np.tile(np.arange(3), (n, 1)), rewards, rows.action
    )


def digits_stream(data: Path | None = None) -> Stream:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # comes with mabwiser, in the bench extra

    images, labels = load_digits(return_X_y=True)
    pooled = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16.0
    rewards = (labels[:, None] == np.arange(10)).astype(np.float64)
    return Stream(
        "digits",
        pooled.astype(np.float32),
        np.zeros((10, 0), np.float32),
        np.tile(np.arange(10), (len(labels), 1)),
        rewards,
    )


STREAMS = {"jester": jester_stream, "coat": coat_stream, "hillstrom": hillstrom_stream, "digits": digits_stream}
