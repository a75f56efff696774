"""Every estimator there is, by name: each states its assumption, formula and source. Adding one is a line in its family."""

from policies.errors import Rejected
from policies.evaluation.doubly_robust import DOUBLY_ROBUST
from policies.evaluation.estimate import Estimator
from policies.evaluation.importance import IMPORTANCE
from policies.evaluation.slates import SLATES
from policies.evaluation.tails import TAILS

ESTIMATORS: dict[str, Estimator] = {each.name: each for each in (*IMPORTANCE, *DOUBLY_ROBUST, *SLATES, *TAILS)}


def estimator(name: str, at: str = "$.estimator") -> Estimator:
    """The estimator of a name. Raises Rejected, naming those there are."""
    if name not in ESTIMATORS:
        raise Rejected(
            f"No estimator {name!r}; there are {', '.join(sorted(ESTIMATORS))}", at=at, code="unknown_estimator"
        )
    return ESTIMATORS[name]
