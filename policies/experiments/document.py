"""What a data scientist writes about an experiment, and what its course adds to that. The types are the schema.

A document says what is compared and how it will be judged. Allocation, start and stop are its course: they are state, and
survive restarts and edits of the document (`semantics.md` 19).
"""

from typing import Literal

from msgspec import Struct

from policies.surface import seconds

Scalar = bool | float | str
Status = Literal["draft", "running", "stopped"]
Kind = Literal["comparison", "interleaving"]


class Draw(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the draw that an arm changes; the policy's bundle, and so its learner, stays the same."""

    floor: float | None = None
    temperature: float | None = None


class Arm(Struct, frozen=True, forbid_unknown_fields=True):
    """One side of a comparison.

    policy   None: the surface's live one, whichever that is
    share    of the units of the layer
    holdout  its decisions say `mode: holdout`
    """

    policy: str | None = None
    share: float = 0.0
    holdout: bool = False
    draw: Draw = Draw()


class Guardrail(Struct, frozen=True, forbid_unknown_fields=True):
    """The experiment stops by itself once an effect below `min_effect` is established (per unit, turned: higher is better)."""

    min_effect: float


class Metrics(Struct, frozen=True, forbid_unknown_fields=True):
    """Objectives of the surface, `decisions`, or names of `ratios`: [numerator, denominator] of the first two."""

    primary: str
    secondary: list[str] = []
    guardrails: dict[str, Guardrail] = {}
    ratios: dict[str, tuple[str, str]] = {}


class Analysis(Struct, frozen=True, forbid_unknown_fields=True):
    """How it will be judged, said before it starts.

    window   W: a unit's total runs so long from its first exposure, and enters when it is complete
    planned  units of all arms together at which the sequential interval is tightest, or the fixed horizon is reached
    effect   standard deviation of effects expected, in standard deviations of a unit's total: the Bayesian prior
    cuped    adjust by the units' totals of the window before the experiment's start
    """

    method: Literal["sequential", "fixed", "bayesian"] = "sequential"
    alpha: float = 0.05
    window: str | float = "1d"
    planned: int = 10_000
    effect: float = 0.1
    cuped: bool = True
    correction: Literal["holm", "bh"] = "holm"

    @property
    def window_seconds(self) -> float:
        return seconds(self.window, "$.analysis.window")


class Condition(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a context feature's raw value; everything named must hold. A value that is missing fulfils none."""

    any: list[Scalar] | None = None
    none: list[Scalar] | None = None
    min: float | None = None
    max: float | None = None


class Experiment(Struct, frozen=True, forbid_unknown_fields=True):
    """A comparison of policies on a surface.

    kind       comparison: an arm's units get its policy's slates; interleaving: units of both arms get slates that both policies
               fill by team draft (`experiments.team_draft`), and what people do with an item is credited to whose it was
    layer      experiments of one layer share no unit; different layers assign independently of each other. Where several
               layers want a request, the first by name decides, layers with a holdout before all others
    unit       sticky by unit, or by session; requests without a session are then in no arm
    control    the arm others are compared with; None: `control` if there is one, else the first
    learners   own: an arm's decisions teach no policy that only other arms draw from; shared: all decisions teach all
    eligible   context feature → condition: a value, a list of values, or {any, none, min, max}
    overrides  key of a unit (the `key` of its answers) → arm, for testing; left out of the readout
    start      RFC 3339: begins by itself then; None: waits to be started
    """

    experiment: str
    surface: str
    arms: dict[str, Arm]
    metrics: Metrics
    kind: Kind = "comparison"
    layer: str = "default"
    unit: Literal["unit", "session"] = "unit"
    control: str | None = None
    learners: Literal["own", "shared"] = "own"
    analysis: Analysis = Analysis()
    eligible: dict[str, Scalar | list[Scalar] | Condition] = {}
    overrides: dict[str, str] = {}
    start: str | None = None
    stop: str | None = None

    @property
    def control_arm(self) -> str:
        return self.control or ("control" if "control" in self.arms else next(iter(self.arms)))

    @property
    def treatments(self) -> list[str]:
        """Arms compared with the control, in their order."""
        return [name for name in self.arms if name != self.control_arm]


class Allocation(Struct, frozen=True):
    """Shares from a moment on. Its place in `Trial.allocations` is logged with every decision."""

    at: float
    shares: dict[str, float]


class Trial(Struct, frozen=True):
    """An experiment with its course, as the state record holds it.

    buckets      one byte a bucket: the arm's number, or `assignment.NOBODY`
    written      shares of the document when they were last made an allocation: an edit of the file is told from the course
    start, stop  epoch seconds between which requests are assigned; 0.0: not yet said
    reason       why it was stopped
    """

    document: Experiment
    buckets: bytes
    allocations: list[Allocation]
    written: dict[str, float]
    status: Status = "draft"
    start: float = 0.0
    stop: float = 0.0
    reason: str = ""
    managed: bool = False
