"""The expressions of `liquid data filter --where`: which samples stay, by what their KEY.json says. No Python is run.

A test is true, false, or cannot be decided: for a field that the sample lacks, or a text compared with a number. `and`,
`or` and `not` carry that on as SQL does with NULL, so that `not score < 5` does not take samples without a score, and
every sample that is left out is counted by its reason. lark parses them (GRAMMAR): it is small, needs no other package,
and tells where an expression goes wrong.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from liquid_train.data.shard_format import Sample
from liquid_train.errors import UserError
from liquid_train.files import sha256_of

GRAMMAR = r"""
?start: either
?either: every ("or"i every)*
?every: _inverse ("and"i _inverse)*
_inverse: test | negation
negation: "not"i _inverse
?test: "(" either ")"
     | value (COMPARISON value)+        -> compare
     | value "contains"i value          -> contains
     | value "matches"i TEXT            -> matches
     | value "in"i members              -> membership
     | value "not"i "in"i members       -> no_membership
     | field "is"i "missing"i           -> missing
     | field "is"i "present"i           -> present
     | field                            -> flag
?value: constant | field -> needed | "length"i "(" field ")" -> length
constant: NUMBER | TEXT | TRUE | FALSE
members: "[" constant ("," constant)* "]" | FILE
field: (NAME | QUOTED) ("." (NAME | QUOTED | PLACE))*
COMPARISON: "<=" | ">=" | "!=" | "==" | "=" | "<" | ">"
TRUE: "true"i
FALSE: "false"i
NAME: /[^\W\d]\w*/i
PLACE: /\d+/
QUOTED: /`[^`]+`/
NUMBER: /[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?/i
TEXT: /"(\\.|[^"\\])*"|'(\\.|[^'\\])*'/s
FILE: /@("[^"]+"|[^\s()\[\]]+)/
%ignore /\s+/
"""
FACTS = ("key", "number", "shard", "text", "has_image", "aspect")
MAX_CHARACTERS = 20_000
EXAMPLES = '"length(text) >= 20 and width >= 512", "score > 0.3 and not source in [\'easy_vqa\']"'
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Subject:
    """A sample, its number in the set, and the name of its tar."""

    sample: Sample
    number: int
    shard: str


class Undecided(Exception):  # noqa: N818 (no error: the third value of a test)
    """A test has no answer for this sample; the message says why, and never holds the sample's own words."""


Value = Callable[[Subject], Any]  # of an operand; raises Undecided where it has none
Test = Callable[[Subject], bool]  # raises Undecided


@dataclass
class Where:
    """A parsed expression. seen: how often each field that it needs was there. files: those named by @, with the sha256
    of their content."""

    text: str
    test: Test
    seen: Counter[str]
    files: dict[str, str]
    evaluated: int = 0

    def reason(self, subject: Subject) -> str | None:
        """None for a sample to be kept; else why it is not."""
        self.evaluated += 1
        try:
            return None if self.test(subject) else "where is false"
        except Undecided as error:
            return f"where cannot be decided: {error}"

    def refuse_unknown(self, known: set[str]) -> None:
        """After all samples: raise UserError for a field that none had. known: names of fields that some had."""
        unknown = [name for name, times in self.seen.items() if not times] if self.evaluated else []
        if unknown:
            raise UserError(
                f"--where {self.text!r}: no sample has the field {unknown[0]}; there are {', '.join(sorted(known))} in "
                f"KEY.json, and {', '.join(FACTS)} (`tokenize.keep` keeps more fields of a source)"
            )


def parse_where(text: str) -> Where:
    """Raises UserError naming the place where an expression cannot be understood, and for a file that cannot be
    read."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"--where: {len(text):,} characters, {MAX_CHARACTERS:,} are allowed; put a list of values into a file, a "
            "line each, as in: key in @keys.txt"
        )
    builder = _Builder()
    try:
        test = builder.transform(Lark(GRAMMAR, parser="lalr").parse(text))
        where = Where(text, test, builder.seen, builder.files)
        where.reason(Subject({"key": "", "info": {}}, 0, ""))  # nested too deeply also for evaluating it?
    except UnexpectedInput as error:
        raise UserError(f"--where {text!r}: {_fault(error, text)}; for example {EXAMPLES}") from error
    except VisitError as error:
        if isinstance(error.orig_exc, UserError):
            raise UserError(f"--where {text!r}: {error.orig_exc}") from error
        raise
    except RecursionError as error:
        raise UserError(f"--where {text[:40]!r}...: nested too deeply; use fewer brackets") from error
    where.evaluated = 0
    return where


def _fault(error: UnexpectedInput, text: str) -> str:
    if isinstance(error, UnexpectedToken) and error.token.type != "$END":
        return f"{str(error.token)!r} at character {error.column} does not belong there"
    if isinstance(error, UnexpectedCharacters):
        return f"{text[error.pos_in_stream :][:12]!r} at character {error.column} cannot be understood"
    return "something is missing at its end"


class _Builder(Transformer[Token, Any]):
    """From the tree of an expression to a function of a Subject; a method is called as its rule or terminal is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.files: dict[str, str] = {}

    def either(self, tests: list[Test]) -> Test:
        return tests[0] if len(tests) == 1 else lambda subject: _joined(tests, subject, True)

    def every(self, tests: list[Test]) -> Test:
        return tests[0] if len(tests) == 1 else lambda subject: _joined(tests, subject, False)

    def negation(self, tests: list[Test]) -> Test:
        return lambda subject: not tests[0](subject)

    def NUMBER(self, token: Token) -> int | float:  # noqa: N802
        return int(token) if token.lstrip("+-").isdecimal() else float(token)

    def TEXT(self, token: Token) -> str:  # noqa: N802
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)

    def TRUE(self, token: Token) -> bool:  # noqa: N802
        return True

    def FALSE(self, token: Token) -> bool:  # noqa: N802
        return False

    def constant(self, values: list[Any]) -> Value:
        return lambda subject: values[0]

    def field(self, tokens: list[Token]) -> tuple[str, Value]:
        """Its name, and how to find its value: None where there is none."""
        path = [token[1:-1] if token.type == "QUOTED" else str(token) for token in tokens]
        return ".".join(path), lambda subject: _find(subject, path)

    def needed(self, fields: list[tuple[str, Value]]) -> Value:
        name, find = fields[0]
        self.seen[name] += 0

        def value(subject: Subject) -> Any:
            found = find(subject)
            if found is None:
                raise Undecided(f"no field {name}")
            self.seen[name] += 1
            return found

        return value

    def length(self, fields: list[tuple[str, Value]]) -> Value:
        value = self.needed(fields)

        def length(subject: Subject) -> int:
            found = value(subject)
            if not isinstance(found, (str, list, dict)):
                raise Undecided(f"{fields[0][0]} is {_kind(found)}, which has no length")
            return len(found)

        return length

    def compare(self, parts: list[Any]) -> Test:
        """Also several in a row, as in 256 <= width < 1024."""
        values, operators = parts[::2], [OPERATORS[symbol] for symbol in parts[1::2]]

        def compare(subject: Subject) -> bool:
            found = [value(subject) for value in values]
            for a, b in zip(found, found[1:], strict=False):
                if not _comparable(a, b):
                    raise Undecided(f"{_kind(a)} compared with {_kind(b)}")
            return all(test(a, b) for test, a, b in zip(operators, found, found[1:], strict=False))

        return compare

    def contains(self, parts: list[Value]) -> Test:
        def contains(subject: Subject) -> bool:
            whole, part = parts[0](subject), parts[1](subject)
            if isinstance(whole, list):
                return any(_comparable(value, part) and value == part for value in whole)
            if not (isinstance(whole, str) and isinstance(part, str)):
                raise Undecided(f"{_kind(whole)} asked whether it contains {_kind(part)}")
            return part in whole

        return contains

    def matches(self, parts: list[Any]) -> Test:
        try:
            pattern = re.compile(parts[1])
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"{parts[1]!r} is not a regular expression: {error}") from error

        def matches(subject: Subject) -> bool:
            found = parts[0](subject)
            if not isinstance(found, str):
                raise Undecided(f"{_kind(found)} matched with a regular expression")
            return pattern.search(found) is not None

        return matches

    def members(self, parts: list[Any]) -> Callable[[Any], bool]:
        """Whether a value is one of a list, or a line of a file."""
        if not isinstance(parts[0], Token):
            constants = [constant(None) for constant in parts]
            return lambda value: any(_comparable(value, constant) and value == constant for constant in constants)
        path = Path(parts[0][1:].strip('"')).expanduser()
        try:
            lines = {line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")} - {""}
            self.files[path.name] = sha256_of(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"@{path} cannot be read ({error}); give a file with a value a line") from error
        return lambda value: str(value) in lines

    def membership(self, parts: list[Any]) -> Test:
        value, member = parts
        return lambda subject: member(value(subject))

    def no_membership(self, parts: list[Any]) -> Test:
        return self.negation([self.membership(parts)])

    def missing(self, fields: list[tuple[str, Value]]) -> Test:
        return lambda subject: fields[0][1](subject) is None

    def present(self, fields: list[tuple[str, Value]]) -> Test:
        return lambda subject: fields[0][1](subject) is not None

    def flag(self, fields: list[tuple[str, Value]]) -> Test:
        value = self.needed(fields)

        def flag(subject: Subject) -> bool:
            found = value(subject)
            if not isinstance(found, bool):
                raise Undecided(f"{fields[0][0]} is {_kind(found)}, neither true nor false")
            return found

        return flag


def _joined(tests: list[Test], subject: Subject, decisive: bool) -> bool:
    """`or` (decisive: True) or `and` (False): a test that cannot be decided matters only if no other decides."""
    undecided: Undecided | None = None
    for test in tests:
        try:
            if test(subject) is decisive:
                return decisive
        except Undecided as error:
            undecided = undecided or error
    if undecided is not None:
        raise undecided
    return not decisive


def _find(subject: Subject, path: list[str]) -> Any:
    """What a dotted name stands for, None where the sample has no such thing. Facts come before fields of KEY.json."""
    sample, info = subject.sample, subject.sample["info"]
    facts: dict[str, Callable[[], Any]] = {
        "key": lambda: sample["key"],
        "number": lambda: subject.number,
        "shard": lambda: subject.shard,
        "text": lambda: sample.get("text"),
        "has_image": lambda: "codes" in sample,
        "aspect": lambda: _aspect(info.get("width"), info.get("height")),
    }
    if len(path) == 1 and path[0] in FACTS:
        return facts[path[0]]()
    value: Any = info
    if path[0] == "json" and "json" not in info:  # KEY.json's own where a fact has the same name: json.key
        path = path[1:]
    for name in path:
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


def _aspect(width: Any, height: Any) -> float | None:
    """Long side / short side, as in tokenize.max_aspect."""
    sides = [side for side in (width, height) if isinstance(side, (int, float)) and side > 0]
    return max(sides) / min(sides) if len(sides) == 2 else None


def _comparable(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return numbers and isinstance(a, bool) == isinstance(b, bool) or isinstance(a, str) and isinstance(b, str)


def _kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "nothing")
