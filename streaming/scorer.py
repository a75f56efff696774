"""Running a bundle's graph: onnxruntime, one session a graph, any number of bundles.

A bundle's arrays are passed as inputs at each call. Measured beside the alternatives (100 candidates × 32 features, 256
draws, one thread, microseconds a call): passed 28, bound once through IOBinding 29, a session of its own for every bundle
30 and milliseconds to make. So passing costs nothing, needs no lock (a binding is not safe between threads) and no swap.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime

from policies.errors import Corrupt
from policies.types import F32, Arrays

QUIET = 3  # errors only: onnxruntime warns that initialisers are also inputs, which is how a bundle swaps


class BoundScorer:
    """A graph with the arrays of one bundle: immutable, so a request keeps the one it started with."""

    __slots__ = ("_arrays", "_outputs", "_run", "inputs")

    def __init__(self, run: Any, inputs: tuple[str, ...], outputs: list[str], arrays: Arrays) -> None:
        self._run, self.inputs, self._outputs, self._arrays = run, inputs, outputs, arrays

    def scores(self, inputs: Mapping[str, F32]) -> F32:
        """(n, m), contiguous, or what else is the graph's one output. Inputs the graph does not know are left out; KeyError
        when one is missing."""
        found: F32 = self._run(self._outputs, {name: inputs[name] for name in self.inputs} | self._arrays)[0]
        return found


class Scorer:
    """One session. `inputs` are the graph's own, `changing` those that a bundle's arrays stand for.

    Raises Corrupt('format') when onnxruntime cannot load the graph.
    """

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = QUIET
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
            raise Corrupt("format", f"the graph does not load: {error}") from None
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = [o.name for o in self._session.get_outputs()][:1]
        self.changing = tuple(i.name for i in self._session.get_overridable_initializers())

    def bind(self, arrays: Arrays) -> BoundScorer:
        """The scorer of one bundle. The arrays are copied, and arrays the graph does not read are left out."""
        kept = {name: np.array(arrays[name], order="C") for name in self.changing if name in arrays}
        for array in kept.values():
            array.flags.writeable = False
        return BoundScorer(self._session.run, self.inputs, self.outputs, kept)

    def scores(self, inputs: Mapping[str, F32], arrays: Arrays) -> F32:
        """(n, m) under the arrays given."""
        return self.bind(arrays).scores(inputs)


@lru_cache(maxsize=32)
def _scorer(graph: bytes) -> Scorer:
    return Scorer(graph)


def score(graph: bytes, arrays: Arrays, inputs: Mapping[str, F32]) -> F32:
    """What `bundle.build` and `bundle.verify` ask for: scores of a graph, its session kept for the next time."""
    return _scorer(graph).scores(inputs, arrays)
