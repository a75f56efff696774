"""Surface versions as flat arrays, for compiled code: one row a version, kept from batch to batch."""

import numpy as np

from policies.types import F64, I64
from streaming.joined import SHOWN, Terms
from streaming.plain.scan import U8


class TermsTable:
    """`number` of a version is its row in `durations` and `sizes`; `judge` names the columns. `freeze` follows `add`.

    names   letters of surfaces and kinds;   kinds (q, 4): place of a kind's name, then its first and last rule
    columns, low, high (r,)  what one feedback of a kind does: its value, clipped, becomes the reward in that column
    """

    def __init__(self) -> None:
        self.every: list[Terms] = []
        self._numbers: dict[int, int] = {}  # by the 64 bits of the configuration's hash
        self._names = bytearray()
        self._durations: list[tuple[float, float]] = []
        self._sizes: list[tuple[int, ...]] = []
        self._kinds: list[tuple[int, int, int, int]] = []
        self._rules: list[tuple[int, float, float]] = []
        self._silence: list[float] = []
        self._freeze()

    def number(self, code: int) -> int | None:
        """Of a configuration's code as `scan` reads it; None when it was not added."""
        return self._numbers.get(code)

    def add(self, code: int, terms: Terms) -> int:
        number = self._numbers[code] = len(self.every)
        self.every.append(terms)
        rule, first = terms.compiled.rewards, len(self._kinds)
        surface = self._named(terms.surface)
        for kind in sorted(terms.kinds - {SHOWN}):
            name, start = self._named(kind), len(self._rules)
            self._rules += rule.bounds(kind)
            self._kinds.append((*name, start, len(self._rules)))
        self._durations.append((terms.correctable, terms.horizon))
        sizes = (terms.item_bytes, terms.context_bytes // 4, terms.slots, terms.objectives, int(terms.wait), *surface)
        self._sizes.append((*sizes, first, len(self._kinds), len(self._silence)))
        self._silence += rule.silence.tolist()
        self._frozen = False
        return number

    def freeze(self) -> None:
        """Make arrays of what was added: once for all versions that a batch brought."""
        if not self._frozen:
            self._freeze()

    def _named(self, name: str) -> tuple[int, int]:
        start = len(self._names)
        self._names += name.encode()
        return start, len(self._names)

    def _freeze(self) -> None:
        self._frozen = True
        self.names: U8 = np.frombuffer(bytes(self._names) + b"\0", np.uint8)
        self.durations: F64 = np.array(self._durations, np.float64).reshape(-1, 2)
        self.sizes: I64 = np.array(self._sizes, np.int64).reshape(-1, 10)
        self.kinds: I64 = np.array(self._kinds, np.int64).reshape(-1, 4)
        self.columns: I64 = np.array([column for column, _, _ in self._rules], np.int64)
        self.low: F64 = np.array([low for _, low, _ in self._rules], np.float64)
        self.high: F64 = np.array([high for _, _, high in self._rules], np.float64)
        self.silence: F64 = np.array(self._silence, np.float64)
