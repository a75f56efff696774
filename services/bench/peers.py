"""What peers from PyPI need for one decision among 100 candidates, in process, on this machine, in this run.

vw        cb_explore_adf --squarecb -q ca: predict over 100 action lines of 32 features, then learn; text format, its fastest
          way in from Python
mabwiser  LinTS, 100 arms, a context of 32: predict, then partial_fit; one model an arm
They choose one item, log nothing and know no propensity of a slate; ours draws ten slots, logs and answers.
"""

import numpy as np

from services.bench.floors import CANDIDATES, FEATURES, per_second
from services.bench.report import Report


def measure(report: Report, count: int = 300) -> None:
    """Rows for each peer that is installed; a note for each that is not (`pip install slatewise[bench]`)."""
    for name, part in (("vowpalwabbit", _vw), ("mabwiser", _mabwiser)):
        try:
            part(report, count)
        except ImportError as error:
            report.note(f"{name} not measured: {error}; pip install 'slatewise[bench]'")


def _vw(report: Report, count: int) -> None:
    from vowpalwabbit import Workspace

    rng = np.random.default_rng(0)
    vw = Workspace("--cb_explore_adf --squarecb -q ca --quiet")
    shared = "shared |c ios:1 hour:0.5"
    lines = [
        "|a " + " ".join(f"f{i}:{v:.3f}" for i, v in enumerate(row)) for row in rng.normal(size=(CANDIDATES, FEATURES))
    ]
    asked = "\n".join([shared, *lines])
    told = "\n".join([shared, f"0:-1:0.1 {lines[0]}", *lines[1:]])

    def once() -> None:
        vw.predict(asked)
        vw.learn(told)

    report.add(
        "vw squarecb: predict", 1e6 / per_second(lambda: vw.predict(asked), count), "µs", note="100 actions, one chosen"
    )
    report.add("vw squarecb: predict and learn", 1e6 / per_second(once, count), "µs")
    vw.finish()


def _mabwiser(report: Report, count: int) -> None:
    from mabwiser.mab import MAB, LearningPolicy

    rng = np.random.default_rng(0)
    arms = list(range(CANDIDATES))
    contexts = rng.normal(size=(CANDIDATES * 3, FEATURES))
    mab = MAB(arms, LearningPolicy.LinTS(), seed=1)
    mab.fit(arms * 3, rng.random(CANDIDATES * 3), contexts)
    one = contexts[:1]

    def once() -> None:
        mab.partial_fit([mab.predict(one)], [1.0], one)

    few = max(count // 10, 10)
    report.add(
        "mabwiser LinTS: predict", 1e6 / per_second(lambda: mab.predict(one), few, 3), "µs", note="100 arms, one chosen"
    )
    report.add("mabwiser LinTS: predict and learn", 1e6 / per_second(once, few, 3), "µs")
