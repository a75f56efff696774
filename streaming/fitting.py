"""Plain values fitted to the shape of a msgspec type, all that is wrong with them said to their document.

msgspec stops at the first mistake and knows no lines; people mend a file faster when they see all of it. What does not fit is
replaced by its default or a neutral value, so that the checks that follow meet a whole document.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from msgspec import NODEFAULT
from msgspec import inspect as shapes

from streaming.documents import Document, Path

DURATION = "a duration such as 30m, 24h or 200ms"
DURATIONS = {"horizon", "correctable", "half_life", "window"}


def got(value: object) -> str:
    """How a mistake names what was written."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping"
        case list():
            return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def unknown(name: str, known: list[str]) -> tuple[str, str]:
    """(hint, expected) for a name that is not one of those known."""
    close = difflib.get_close_matches(name[:64], known, 1)
    return (f"; did you mean {close[0]!r}?" if close else ""), f"one of {', '.join(known)}" if known else "none"


def described(shape: shapes.Type) -> str:
    """What would be right, in words."""
    match shape:
        case shapes.IntType():
            return "an integer" + _bounds(shape)
        case shapes.FloatType():
            return "a number" + _bounds(shape)
        case shapes.StrType():
            return "text"
        case shapes.BoolType():
            return "true or false"
        case shapes.LiteralType(values):
            return f"one of {', '.join(map(str, values))}" if len(values) > 1 else str(values[0])
        case shapes.ListType(item):
            plain = described(item).removeprefix("a ").removeprefix("an ")
            return f"a list of {plain}{'' if plain == 'text' else 's'}"
        case shapes.TupleType(items):
            return f"a list of {len(items)}: {', '.join(map(described, items))}"
        case shapes.UnionType(types):
            return " or ".join(dict.fromkeys(described(one) for one in types if not isinstance(one, shapes.NoneType)))
        case shapes.StructType() | shapes.DictType():
            return "a mapping"
    return "nothing" if isinstance(shape, shapes.NoneType) else "a value"


_SIGNS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _bounds(shape: shapes.IntType | shapes.FloatType) -> str:
    if shape.ge is not None and shape.le is not None:
        return f" from {shape.ge:g} to {shape.le:g}"
    said = [f"{word} {getattr(shape, sign):g}" for sign, word in _SIGNS.items() if getattr(shape, sign) is not None]
    return f" {' and '.join(said)}" if said else ""


def _inside(value: float, shape: shapes.IntType | shapes.FloatType) -> bool:
    return (
        (shape.gt is None or value > shape.gt)
        and (shape.ge is None or value >= shape.ge)
        and (shape.lt is None or value < shape.lt)
        and (shape.le is None or value <= shape.le)
    )


class Fit:
    """Fits plain values to the shape of a type. What is wrong is said to the document; what is returned converts."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def fit(self, value: Any, shape: shapes.Type, path: Path) -> Any:
        match shape:
            case shapes.StructType():
                return self.struct(value, shape, path)
            case shapes.DictType(value_type=item):
                if not isinstance(value, dict):
                    return self.wrong(value, shape, path)
                return {name: self.fit(one, item, (*path, name)) for name, one in value.items()}
            case shapes.ListType(item):
                if not isinstance(value, list):
                    return self.wrong(value, shape, path)
                return [self.fit(one, item, (*path, i)) for i, one in enumerate(value)]
            case shapes.TupleType(items):
                if not isinstance(value, list) or len(value) != len(items):
                    return self.wrong(value, shape, path)
                return [self.fit(one, item, (*path, i)) for i, (one, item) in enumerate(zip(value, items, strict=True))]
            case shapes.UnionType(types):
                return self.union(value, types, shape, path)
        return value if fits(value, shape) else self.wrong(value, shape, path)

    def wrong(self, value: Any, shape: shapes.Type, path: Path) -> Any:
        expected = DURATION if path and path[-1] in DURATIONS else described(shape)
        given = (
            f"{len(value)} of them" if isinstance(shape, shapes.TupleType) and isinstance(value, list) else got(value)
        )
        quote = f"; write '{got(value)}' in quotes" if expected == "text" and isinstance(value, int | float) else ""
        self.document.say(path, f"expected {expected}, got {given}{quote}", expected)
        return neutral(shape)

    def union(self, value: Any, types: tuple[shapes.Type, ...], shape: shapes.Type, path: Path) -> Any:
        if isinstance(value, dict):  # a mapping beside words, such as shares beside `equal`
            mapping = next((one for one in types if isinstance(one, shapes.DictType)), None)
            if mapping is not None:
                return self.fit(value, mapping, path)
        if isinstance(value, list):  # … or a list beside words, such as probabilities beside `estimated`
            several = next((one for one in types if isinstance(one, shapes.ListType)), None)
            if several is not None:
                return self.fit(value, several, path)
        tagged = {one.tag: one for one in types if isinstance(one, shapes.StructType) and one.tag is not None}
        if tagged and isinstance(value, dict):
            tags = ", ".join(map(str, tagged))
            tag = value.get("type")
            if isinstance(tag, str) and tag in tagged:  # JSON may hold anything there, also what does not hash
                return self.struct(value, tagged[tag], path)
            written = (
                f"expected one of {tags}, got {got(value['type'])}" if "type" in value else f"needs a type: {tags}"
            )
            self.document.say((*path, "type") if "type" in value else path, written, f"one of {tags}")
            return neutral(shape)
        inner = [one for one in types if not isinstance(one, shapes.NoneType)]
        if value is None and len(inner) < len(types):
            return None
        if len(inner) == 1:
            return self.fit(value, inner[0], path)
        for one in inner:
            if fits(value, one):
                return value
        return self.wrong(value, shape, path)

    def struct(self, value: Any, shape: shapes.StructType, path: Path) -> Any:
        if not isinstance(value, dict):
            return self.wrong(value, shape, path)
        fields = {one.encode_name: one for one in shape.fields}
        tag = {"type": shape.tag} if shape.tag_field else {}
        for name in value.keys() - fields.keys() - tag.keys():
            hint, expected = unknown(name, [*tag, *fields])
            self.document.say((*path, name), f"unknown key{hint}", expected)
        made: dict[str, Any] = dict(tag)
        for name, one in fields.items():
            if name not in value:
                if one.required:
                    self.document.say(path, f"{name} is missing", f"{name}: {described(one.type)}")
                    made[name] = neutral(one.type)
                continue
            before = len(self.document.mistakes)
            fitted = self.fit(value[name], one.type, (*path, name))
            scalar = not isinstance(one.type, shapes.StructType | shapes.DictType | shapes.ListType)
            if len(self.document.mistakes) > before and scalar and not one.required:
                continue  # the default is more telling than a neutral value for the checks that follow
            made[name] = fitted
        return made


def fits(value: Any, shape: shapes.Type) -> bool:
    """Whether a value is of a scalar shape."""
    match shape:
        case shapes.StrType():
            return isinstance(value, str)
        case shapes.BoolType():
            return isinstance(value, bool)
        case shapes.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _inside(value, shape)
        case shapes.FloatType():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and abs(value) < math.inf and _inside(value, shape)
        case shapes.LiteralType(values):
            return isinstance(value, str | int) and value in values
        case shapes.NoneType():
            return value is None
        case shapes.AnyType():
            return True
    return False


def neutral(shape: shapes.Type) -> Any:
    """A value that fits, in place of one that did not."""
    match shape:
        case shapes.StructType(fields=fields, tag=tag):
            made = {one.encode_name: neutral(one.type) for one in fields if one.default is NODEFAULT and one.required}
            return made if tag is None else {"type": tag, **made}
        case shapes.UnionType(types):
            return neutral(types[0])
        case shapes.TupleType(items):
            return [neutral(one) for one in items]
        case shapes.LiteralType(values):
            return values[0]
        case shapes.ListType():
            return []
        case shapes.DictType():
            return {}
        case shapes.IntType() | shapes.FloatType():
            return 1
        case shapes.BoolType():
            return False
        case shapes.NoneType():
            return None
    return "?"
