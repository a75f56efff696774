"""Every estimator there is, by name: each states its assumption, formula and source. Adding one is a line in its family."""

from policies.errors import Rejected
from policies.evaluation.doubly_robust import DOUBLY_ROBUST
from policies.evaluation.estimate import Estimator
from policies.evaluation.importance import IMPORTANCE

ESTIMATORS: dict[str, Estimator] = {each.name: each for each in (*IMPORTANCE, *DOUBLY_ROBUST)}


def estimator(name: str, at: str = "$.estimator") -> Estimator:
    """The estimator of a name. Raises Rejected, naming those there are."""
    if name not in ESTIMATORS:
        raise Rejected(
            f"No estimator {name!r}; there are {', '.join(sorted(ESTIMATORS))}", at=at, code="unknown_estimator"
        )
    return ESTIMATORS[name]
