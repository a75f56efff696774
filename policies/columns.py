"""The columns of one feature: a value, or n values at once, into float32. `policies.features` says what odd values mean.

Each kind has two ways that agree bit for bit: `write` judges any value and names what is wrong with it; `fill` takes n values
whose types msgspec has checked, at the speed of C, and answers False when one of them needs the verdict of `write`.
"""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from policies.counted import scaling
from policies.surface import Bool, Category, Count, Feature, Number, Rate, Vector, seconds
from policies.types import F32, Value


class WrongValueError(Exception):
    """A value that its feature refuses; the caller knows the path."""


def _expected(what: str, value: object) -> WrongValueError:
    return WrongValueError(f"Expected {what}, got {'null' if value is None else type(value).__name__}")


class NumberColumn:
    kind: Any = int | float  # told apart: rules call a value by what it is

    def __init__(self, name: str, feature: Number, place: int) -> None:
        low, high = float(feature.min), float(feature.max)
        self.names: tuple[str, ...] = (f"{name}:{low!r}..{high!r}",)
        self.place = place
        self.middle, self.half = low / 2 + high / 2, high / 2 - low / 2  # halves first: the span may overflow

    def write(self, row: list[float], value: Value) -> None:
        if type(value) is not float and type(value) is not int:
            if value is None:
                return
            if not isinstance(value, float):  # subclasses of float are welcome, bool is one of int and is not
                raise _expected("number", value)
        try:
            scaled = (value - self.middle) / self.half
        except OverflowError:  # an int beyond every float
            scaled = math.inf if value > 0 else -math.inf
        else:
            if -1.0 <= scaled <= 1.0:
                row[self.place] = scaled
                return
            if not math.isfinite(value):
                raise WrongValueError(f"Expected a finite number, got {value}")
        row[self.place] = 1.0 if scaled > 0 else -1.0


class NumberBlock:
    """All number features of a side at once: packing by `struct` is the fastest way from lists into an array."""

    def __init__(self, parts: Sequence[NumberColumn]) -> None:
        self.places = [part.place for part in parts]
        self.fillers = [part.middle for part in parts]  # what stands for a missing value scales to exactly 0
        self.middle = np.array(self.fillers)[:, None]
        self.half = np.array([part.half for part in parts])[:, None]

    def fill(self, out: F32, columns: Sequence[Sequence[Any] | None]) -> bool:
        n = len(out)
        pack = struct.Struct(f"{n}d").pack
        packed = []
        for filler, column in zip(self.fillers, columns, strict=True):
            try:
                packed.append(pack(*(column or [filler] * n)))
            except struct.error:  # a null among the numbers, or an int beyond every float
                try:
                    packed.append(pack(*[filler if value is None else value for value in column or []]))
                except struct.error:
                    return False
        raw = np.frombuffer(b"".join(packed)).reshape(-1, n)
        if not np.isfinite(raw).all():
            return False
        with np.errstate(over="ignore"):  # far outside the range: clipped in the same breath
            out[:, self.places] = ((raw - self.middle) / self.half).clip(-1.0, 1.0).T
        return True


class CategoryColumns:
    kind: Any = str

    def __init__(self, name: str, feature: Category, place: int) -> None:
        values = sorted(feature.values)
        self.names: tuple[str, ...] = (*(f"{name}={value}" for value in values), f"{name}!unseen")
        self.place = place
        self.codes: dict[Value, int] = {value: i for i, value in enumerate(values)}
        self.unseen = len(values)

    def write(self, row: list[float], value: Value) -> None:
        if isinstance(value, str):
            row[self.place + self.codes.get(value, self.unseen)] = 1.0
        elif value is not None:
            raise _expected("text", value)

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        code, unseen = self.codes.get, self.unseen
        codes = np.array([-1 if value is None else code(value, unseen) for value in values], np.int64)
        there = np.flatnonzero(codes >= 0)
        out[there, self.place + codes[there]] = 1.0
        return True


class BoolColumn:
    kind: Any = bool

    def __init__(self, name: str, place: int) -> None:
        self.names: tuple[str, ...] = (name,)
        self.place = place

    def write(self, row: list[float], value: Value) -> None:
        if isinstance(value, bool):
            row[self.place] = 1.0 if value else -1.0
        elif value is not None:
            raise _expected("true or false", value)

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        out[:, self.place] = [0.0 if value is None else 1.0 if value else -1.0 for value in values]
        return True


class VectorColumns:
    kind: Any = list[float]

    def __init__(self, name: str, feature: Vector, place: int) -> None:
        self.size, self.clip = feature.size, float(feature.clip)
        self.names = tuple(f"{name}[{i}]" for i in range(feature.size))
        self.place = place

    def write(self, row: list[float], value: Value) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            raise _expected(f"{self.size} numbers", value)
        if len(value) != self.size:
            raise WrongValueError(f"Expected {self.size} numbers, got {len(value)}")
        clip = self.clip
        for i, number in enumerate(value, self.place):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise _expected("numbers only", number)
            if -clip <= number <= clip:
                row[i] = number
            elif isinstance(number, float) and not math.isfinite(number):
                raise WrongValueError(f"Expected finite numbers, got {number}")
            else:
                row[i] = clip if number > 0 else -clip

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        silent = [0.0] * self.size
        flat = [silent if value is None else value for value in values]
        if any(len(value) != self.size for value in flat):
            return False
        raw = np.frombuffer(struct.pack(f"{len(flat) * self.size}d", *chain.from_iterable(flat)))
        if not np.isfinite(raw).all():
            return False
        out[:, self.place : self.place + self.size] = raw.clip(-self.clip, self.clip).reshape(-1, self.size)
        return True


class CountedColumn:
    """A count or a rate, as the service counted it or the request brought it (`policies.counted`)."""

    kind: Any = int | float

    def __init__(self, name: str, feature: Count | Rate, place: int) -> None:
        over = f"{feature.kind},{round(seconds(feature.window))}s"
        if isinstance(feature, Rate):
            a, b = map(float, feature.prior)
            over = f"{over}/{feature.per},{a!r}:{b!r}"
        self.names: tuple[str, ...] = (f"{name}:{over}..{float(feature.max)!r}",)
        self.place, self.feature, self.scaled = place, feature, scaling(feature)

    def write(self, row: list[float], value: Value) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _expected("number", value)
        if not value >= 0 or value == math.inf:
            raise WrongValueError(f"Expected a finite number from 0, got {value}")
        row[self.place] = self.scaled(value)

    def fill(self, out: F32, values: Sequence[Any]) -> bool:
        if not all(value is None or 0.0 <= value < math.inf for value in values):
            return False
        scaled = self.scaled
        out[:, self.place] = [0.0 if value is None else scaled(value) for value in values]
        return True


# one feature's columns; `place` is the first
Columns = NumberColumn | CategoryColumns | BoolColumn | VectorColumns | CountedColumn


def columns_of(name: str, feature: Feature, place: int) -> Columns:
    match feature:
        case Number():
            return NumberColumn(name, feature, place)
        case Category():
            return CategoryColumns(name, feature, place)
        case Bool():
            return BoolColumn(name, place)
        case Vector():
            return VectorColumns(name, feature, place)
        case Count() | Rate():
            return CountedColumn(name, feature, place)
