"""A configuration file as plain values with the line of each, and a model made from it.

Shared by cluster.yaml and policy.yaml. Theory of operation: the text is composed to YAML 1.2
nodes, which know their lines; the nodes are turned into plain dicts, lists, strings, numbers and
booleans (no type of the YAML library gets out), duplicate keys being noted on the way. The model
validates those values as strict JSON, so that ``id: true`` or ``id: "1"`` is not a number. What it
says is worded again by `hafw.config.problems` and given the line of its path. Everything wrong is
reported at once, in file order.

A file that begins with ``{`` is first tried as JSON (which is YAML too, but ten times faster to
read: generated policies have tens of thousands of rules); its lines are looked up only on error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from hafw.config.problems import problems_of
from hafw.errors import ConfigError, ConfigProblem

__all__ = ["VALUES_MAX", "Document", "Mark", "parse_document", "read_document", "validate"]

VALUES_MAX = 4_000_000
"""Values in one document after aliases are followed; beyond it the file is refused."""
DEPTH_MAX = 64
FILE_BYTES_MAX = 256 << 20

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value begins (1-based line of its key or list item), and its text if a scalar."""

    line: int
    text: str | None = None


@dataclass(slots=True)
class Document:
    """`value` is plain Python; `marks` is empty until lines are needed."""

    file: str
    text: str
    value: Any
    marks: dict[Path_, Mark] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)

    def mark(self, path: Path_) -> Mark | None:
        """The mark of a path or of its nearest ancestor that is in the file."""
        if not self.marks:
            self.marks = _Composer(self.file).compose(self.text).marks
        for length in range(len(path), -1, -1):
            if path[:length] in self.marks:
                return self.marks[path[:length]]
        return None


def read_document(file: Path) -> Document:
    """Raises ConfigError: missing, unreadable, empty, not UTF-8, not YAML, not a mapping."""
    name = str(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(name, [ConfigProblem("", f"cannot be read: {reason}")]) from None
    if len(data) > FILE_BYTES_MAX:
        message = f"is larger than {FILE_BYTES_MAX >> 20} MiB"
        raise ConfigError(name, [ConfigProblem("", message)])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise ConfigError(name, [ConfigProblem("", message, line)]) from None
    return parse_document(name, text)


def parse_document(name: str, text: str) -> Document:
    """`read_document` for text at hand."""
    if text.lstrip().startswith("{") and (fast := _parse_json(name, text)) is not None:
        return fast
    return _Composer(name).compose(text)


def _parse_json(name: str, text: str) -> Document | None:
    """None if the text is not plain JSON or repeats a key: then the YAML path judges it."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise ValueError
        return made

    def refuse_constant(_: str) -> Any:
        raise ValueError

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return Document(name, text, value)


class _Composer:
    """Text to a `Document` with marks. Raises ConfigError if there is nothing to validate."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._yaml = YAML(typ="safe", pure=True)
        self._marks: dict[Path_, Mark] = {}
        self._problems: list[ConfigProblem] = []
        self._open: set[int] = set()

    def compose(self, text: str) -> Document:
        root = self._nodes(text)
        if root is None:
            raise self._error("is empty")
        if not isinstance(root, MappingNode):
            line = root.start_mark.line + 1
            raise self._error("must be a mapping of keys to values", line)
        value = self._value(root, (), root.start_mark.line + 1)
        return Document(self._file, text, value, self._marks, self._problems)

    def _error(self, message: str, line: int | None = None) -> ConfigError:
        return ConfigError(self._file, [ConfigProblem("", message, line)])

    def _nodes(self, text: str) -> Node | None:
        try:
            node: Node | None = self._yaml.compose(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 1
            words = " ".join(part for part in (error.problem, error.context) if part)
            raise self._error(f"is not valid YAML: {words}", line) from None
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            message = f"has a character that YAML does not allow (U+{_code(error.character):04X})"
            raise self._error(message, line) from None
        except (YAMLError, ValueError) as error:
            raise self._error(f"is not valid YAML: {error}") from None
        except RecursionError:
            raise self._error("is nested too deeply") from None
        return node

    def _value(self, node: Node, path: Path_, line: int) -> Any:
        if len(self._marks) >= VALUES_MAX:
            raise self._error(f"has more than {VALUES_MAX} values", line)
        if len(path) > DEPTH_MAX:
            raise self._error(f"is nested deeper than {DEPTH_MAX} levels", line)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path, line)
        self._marks[path] = Mark(line)
        if id(node) in self._open:
            raise self._error("has an alias inside of what it stands for", line)
        self._open.add(id(node))
        if isinstance(node, SequenceNode):
            value: Any = [
                self._value(item, (*path, index), item.start_mark.line + 1)
                for index, item in enumerate(node.value)
            ]
        else:
            value = self._mapping(node, path)
        self._open.discard(id(node))
        return value

    def _mapping(self, node: Node, path: Path_) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._problem(path, "a key must be a plain word", line)
                continue
            key = str(key_node.value)
            if key in made:
                first = self._marks[(*path, key)].line
                self._problem((*path, key), f"is given twice; first in line {first}", line)
                continue
            made[key] = self._value(value_node, (*path, key), line)
        return made

    def _scalar(self, node: ScalarNode, path: Path_, line: int) -> Any:
        text = str(node.value)
        quoted = node.style in ("'", '"')
        self._marks[path] = Mark(line, f'"{text}"' if quoted else text)
        construct = self._yaml.constructor
        try:
            match str(node.tag).removeprefix("tag:yaml.org,2002:"):
                case "null":
                    return None
                case "bool":
                    return bool(construct.construct_yaml_bool(node))
                case "int":
                    return int(construct.construct_yaml_int(node))
                case "float":
                    return float(construct.construct_yaml_float(node))
        except (ValueError, KeyError, OverflowError):
            pass  # Not what its tag claims: the model judges the text.
        return text

    def _problem(self, path: Path_, message: str, line: int) -> None:
        dotted = ".".join(str(part) for part in path)
        self._problems.append(ConfigProblem(dotted, message, line))


def _code(character: str | int) -> int:
    return character if isinstance(character, int) else ord(character)


def validate(document: Document, model: type[M]) -> M:
    """Raises ConfigError with every problem of the document, in file order."""
    problems = list(document.problems)
    made: M | None = None
    try:
        made = model.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        for path, message, hint in problems_of(error, model, document.value):
            problems.append(locate(document, path, message, hint))
    if problems or made is None:
        raise ConfigError(document.file, in_file_order(problems))
    return made


def locate(document: Document, path: Path_, message: str, hint: str | None) -> ConfigProblem:
    """A problem with the line of its path, and the value there if it is a scalar."""
    mark = document.mark(path)
    exact = document.marks.get(path)
    text = None if exact is None or message.startswith("the key ") else exact.text
    if text is not None and len(text) > 60:
        text = text[:57] + "..."
    dotted = ".".join(str(part) for part in path)
    return ConfigProblem(dotted, message, mark.line if mark else None, text or None, hint)


def in_file_order(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    return sorted(problems, key=lambda problem: problem.line or 0)
