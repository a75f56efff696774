"""Options of `recurrent_slate`."""

from typing import Annotated, Literal

from msgspec import Meta

from policies.algorithm import Config


class RecurrentSlate(Config, frozen=True):
    """Options.

    group          the item feature, a category, whose values are the groups; None: all items are of one group
    state          how clicks move a user: `linear`, h ← γh + (1−γ)v with γ learned, or `gru`
    size           numbers a vector; hidden, those of the GRU's state
    spread         multiplies the posterior's standard deviation; 1 is Thompson sampling by the book
    replay         decisions that are learned from again and again, the newest ones
    steps, batch   gradient steps a call of the trainer, decisions a step
    learning_rate  of Adam
    seed           of minibatches, of the noise of the gradient and of the GRU's first weights
    """

    group: str | None = None
    state: Literal["linear", "gru"] = "linear"
    size: Annotated[int, Meta(ge=1, le=64)] = 8
    hidden: Annotated[int, Meta(ge=1, le=256)] = 16
    spread: Annotated[float, Meta(ge=0)] = 1.0
    replay: Annotated[int, Meta(ge=1)] = 50_000
    steps: Annotated[int, Meta(ge=1)] = 20
    batch: Annotated[int, Meta(ge=1)] = 512
    learning_rate: Annotated[float, Meta(gt=0)] = 0.03
    seed: Annotated[int, Meta(ge=0)] = 0
