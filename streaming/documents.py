"""Documents that people write, to plain values; mistakes are named by file, line and path, and collected.

YAML is read by its 1.2 core rules: `true`, numbers and `null` are what they look like, everything else is text, so that a
category `no`, a date or `1e6` needs no quotes.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from policies.errors import Rejected

Path = tuple[str | int, ...]

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
