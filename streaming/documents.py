"""Documents that people write, to plain values that fit a type, with every mistake named by file, line and path.

YAML is read by its 1.2 core rules: `true`, numbers and `null` are what they look like, everything else is text, so that a
category `no`, a date or `1e6` needs no quotes. What does not fit is reported and replaced by its default or a neutral
value, so that one reading reports all mistakes.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml
from msgspec import NODEFAULT
from msgspec import inspect as shapes

from policies.errors import Rejected

Path = tuple[str | int, ...]

DURATION = "a duration such as 30m, 24h or 200ms"
DURATIONS = {"horizon", "correctable", "half_life"}
MAX_NODES, MAX_DEPTH = 200_000, 32  # a document of aliases to aliases stays finite


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to change: where it is, what is wrong with it, what would be right."""

    file: str
    line: int
    path: str
    message: str
    expected: str = ""

    def __str__(self) -> str:
        hint = f"; expected {self.expected}" if self.expected and self.expected not in self.message else ""
        return f"{self.file}:{self.line}: {self.path}: {self.message}{hint}"


class ConfigInvalid(Rejected):
    """A configuration with mistakes: all of them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        first = mistakes[0]
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        super().__init__(f"{first.path}: {first.message}{more}", at=f"$.{first.path}", code="invalid_config")
        self.mistakes = mistakes

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


@dataclass(slots=True)
class Document:
    """Plain values of one document, with the line of each path and the mistakes found so far."""

    file: str
    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    wrong: set[Path] = field(default_factory=set)

    def say(self, path: Path, message: str, expected: str = "", line: int | None = None) -> None:
        self.wrong.add(path)
        self.mistakes.append(Mistake(self.file, line or self.line(path), spelled(path), message, expected))

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def sound(self, path: Path) -> bool:
        """No mistake was found at the path, around it or inside it."""
        return not any(path[: len(one)] == one[: len(path)] for one in self.wrong)


def spelled(path: Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".") or "document"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_TAG = "tag:yaml.org,2002:"
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]{1,18}", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _name, (_pattern, _first) in _RESOLVERS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})$"), _first)
_SCALARS: dict[str, Callable[[str], Any]] = {
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": int,
    f"{_TAG}float": lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),  # .inf and .nan without their dot
    f"{_TAG}str": str,
}


def from_yaml(text: str, file: str) -> Iterator[Document]:
    """Every document of a YAML stream that is not empty; one that cannot be read ends the stream with its mistake."""
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            document = Document(file)
            document.lines[()] = node.start_mark.line + 1
            document.value = _Plain(document).of(node, ())
            if document.value is not None or document.mistakes:
                yield document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        yield _unreadable(file, line, f"a character that YAML does not allow: {error.character!r}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield _unreadable(file, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except RecursionError:
        yield _unreadable(file, 1, f"nested more than {MAX_DEPTH} levels deep")


def from_json(data: bytes, file: str) -> Document:
    """The document of a request body. Raises Rejected(400) when it is not JSON."""
    try:
        return Document(file, msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(f"Not JSON: {error}", code="undecodable", status=400) from None


def _unreadable(file: str, line: int, message: str) -> Document:
    document = Document(file)
    document.say((), message, "a YAML document", line=line)
    return document


class _Plain:
    """Composed nodes to plain values; lines are those of keys, where a reader looks."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def of(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            if self.nodes <= MAX_NODES or self.nodes == MAX_NODES + 1:
                limit = (
                    f"nested more than {MAX_DEPTH} levels deep" if len(path) > MAX_DEPTH else f"over {MAX_NODES} values"
                )
                self.document.say(path[:MAX_DEPTH], limit)
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.document.lines[(*path, i)] = item.start_mark.line + 1
            return [self.of(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag not in _SCALARS:
            self.document.say(path, f"the tag {node.tag.replace(_TAG, '!!')} is not read", "a plain value")
            return None
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError:
            self.document.say(path, f"{node.value!r} does not fit its tag", "a plain value")
            return None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.document.say(path, "a key that is not text", "text", line=line)
                continue
            here = (*path, key.value)
            if key.value in value:
                self.document.say(here, f"written twice, first on line {self.document.lines[here]}", line=line)
                continue
            self.document.lines[here] = line
            value[key.value] = self.of(item, here)
        return value


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
        tagged = {one.tag: one for one in types if isinstance(one, shapes.StructType) and one.tag is not None}
        if tagged and isinstance(value, dict):
            tags = ", ".join(map(str, tagged))
            if value.get("type") in tagged:
                return self.struct(value, tagged[value["type"]], path)
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
