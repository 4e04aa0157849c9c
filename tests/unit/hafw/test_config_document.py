"""Files as plain values with lines: what is no document, what is hidden in one, JSON and YAML."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from hafw.config.document import parse_document, read_document, validate
from hafw.errors import ConfigError


def refused(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_document(file)
    return str(caught.value).replace(str(file), "FILE")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "FILE: is empty"),
        (b"# only a comment\n", "FILE: is empty"),
        (b"- a\n- b\n", "FILE:1: must be a mapping of keys to values"),
        (b"just words\n", "FILE:1: must be a mapping of keys to values"),
        (b"a: 1\nb: \xff\n", "FILE:2: is not UTF-8 text (byte 0xff)"),
        (b"a: 1\nb: \x07\n", "FILE:2: has a character that YAML does not allow (U+0007)"),
        (b"a: 1\n\tb: 2\n", "FILE:2: is not valid YAML: "),
        (b"a: [1, 2\nb: 3\n", "FILE:2: is not valid YAML: "),
        (b"a: 1\n---\nb: 2\n", "FILE:2: is not valid YAML: "),
        (b"a: &x [*x]\n", "FILE:1: has an alias inside of what it stands for"),
        (b"a: *nowhere\n", "FILE:1: is not valid YAML: "),
        (b"a: " + b"[" * 70 + b"]" * 70, "FILE:1: is nested deeper than 64 levels"),
    ],
)
def test_what_is_no_document(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    assert refused(file).startswith(said)
    assert "\n" not in refused(file)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == "FILE: cannot be read: No such file or directory"
    assert refused(tmp_path) == "FILE: cannot be read: Is a directory"


def test_ten_thousand_brackets_are_refused_not_crashed_on(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("a: " + "[" * 10_000)
    assert "nested too deeply" in refused(file) or "not valid YAML" in refused(file)


def test_aliases_that_multiply_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hafw.config.document.VALUES_MAX", 1000)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    assert "has more than 1000 values" in refused(file)


def test_values_are_plain_and_yaml_1_2() -> None:
    text = (
        "mac: 10:20:30:40:50:01\nswitch: on\nno: no\nyes: true\noctal: 010\nhex: 0x10\n"
        "day: 2026-01-02\nbig: 1e3\nnothing: ~\nquoted: '7'\nlist: [1, two]\n7: seven\n"
    )
    value = parse_document("x", text).value
    assert value == {
        "mac": "10:20:30:40:50:01",
        "switch": "on",
        "no": "no",
        "yes": True,
        "octal": 10,
        "hex": 16,
        "day": "2026-01-02",
        "big": 1000.0,
        "nothing": None,
        "quoted": "7",
        "list": [1, "two"],
        "7": "seven",
    }
    assert {type(v) for v in value.values()} <= {str, int, float, bool, list, type(None)}
    assert not isinstance(value["day"], date)


def test_lines_of_keys_items_and_aliases() -> None:
    document = parse_document("x", "a: &a\n  b: 1\n  c:\n    - x\n    - y: 2\nd: *a\n")
    lines = {path: mark.line for path, mark in document.marks.items()}
    assert lines[("a",)] == 1
    assert lines[("a", "b")] == 2
    assert lines[("a", "c", 0)] == 4
    assert lines[("a", "c", 1, "y")] == 5
    assert lines[("d",)] == 6
    assert document.value["d"] == document.value["a"]


def test_every_key_given_twice_is_told() -> None:
    document = parse_document("x", "a: 1\nb: {c: 1, c: 2}\na: 3\n")
    said = [(p.path, p.line, p.message) for p in document.problems]
    assert said == [
        ("b.c", 2, "is given twice; first in line 2"),
        ("a", 3, "is given twice; first in line 1"),
    ]


def test_a_key_that_is_a_list_is_told() -> None:
    (problem,) = parse_document("x", "a: {[1, 2]: 3}\n").problems
    assert (problem.path, problem.message) == ("a", "a key must be a plain word")


class Box(BaseModel):
    size: int


def test_a_json_document_is_read_fast_and_still_has_lines_for_errors() -> None:
    document = parse_document("x", '{\n  "size":\n    "big"}')
    assert not document.marks
    with pytest.raises(ConfigError) as caught:
        validate(document, Box)
    assert str(caught.value) == 'x:2: size: must be a whole number (got "big")'


def test_json_with_a_key_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x:2: size: is given twice; first in line 1"):
        validate(parse_document("x", '{"size": 1,\n"size": 2}'), Box)


def test_flow_yaml_that_is_not_json_is_read_as_yaml() -> None:
    assert parse_document("x", "{size: 1} # fine\n").value == {"size": 1}


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="has an escape that is no character"):
        validate(parse_document("x", '{"size": "\\ud800"}'), Box)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)
)
keys = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(keys, trees, max_size=5))
def test_json_and_yaml_readers_agree(value: dict[str, Any]) -> None:
    """The fast path and the YAML path, on the same text (json.dumps escapes all but ASCII)."""
    text = json.dumps(value)
    as_json = parse_document("x", text).value
    if value:
        assert parse_document("x", f"# not JSON\n{text}").value == as_json
        assert YAML(typ="safe", pure=True).load(text) == as_json
    assert as_json == value
