"""What KEY.json of a sample may hold. Other keys are free: nothing here reads them.

    captions    [{text, weight}]: wordings of which one is drawn; weight 1 where it says none
    questions   [{question, answers: [text, ...]}]
    messages    [{role, content}]: a conversation
    multiratio  whether the image's size is told in words; then width and height are pixels

null and an empty list say as much as a key that is not there.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, get_args

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config

# pydantic asks for this one before Python 3.12
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Role = Literal["system", "developer", "user", "assistant", "tool"]
Said = Annotated[str, StringConstraints(pattern=r"\S")]  # not blank
strict = with_config(ConfigDict(strict=True))  # "1" and True are no numbers, a text is no list of letters


@strict
class Caption(TypedDict):
    text: Said
    weight: NotRequired[Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]]


@strict
class Question(TypedDict):
    question: Said
    answers: Annotated[list[Said], Field(min_length=1)]


@strict
class Message(TypedDict):
    role: Role
    content: str


@strict
class SampleInfo(TypedDict):
    captions: NotRequired[list[Caption] | None]
    questions: NotRequired[list[Question] | None]
    messages: NotRequired[list[Message] | None]
    multiratio: NotRequired[bool | None]


@strict
class SizeInWords(TypedDict):
    width: Annotated[int, Field(gt=0, le=1_000_000)]
    height: Annotated[int, Field(gt=0, le=1_000_000)]


# pydantic's type of error -> what is wrong, in words that do not depend on the value: damage is
# counted by them.
WORDS = {
    "missing": "is missing",
    "string_type": "is no text",
    "string_pattern_mismatch": "is blank",
    "list_type": "is no list",
    "dict_type": "is no object",
    "too_short": "is empty",
    "bool_type": "is neither true nor false",
    "literal_error": f"is none of {', '.join(get_args(Role))}",
    "int_type": "is no whole number",
}


def fault_of(info: dict[str, Any]) -> str | None:
    """The first thing that is wrong with KEY.json, in words; None where all is right."""
    try:
        _schema(SampleInfo).validate_python(info)
        if info.get("multiratio"):
            _schema(SizeInWords).validate_python(info)
    except ValidationError as error:
        return _in_words(error.errors(include_url=False, include_context=False, include_input=False)[0])
    return None


@cache  # built when the first sample is read: it takes some hundredths of a second
def _schema(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _in_words(error: ErrorDetails) -> str:
    place = ".".join(part for part in error["loc"] if isinstance(part, str))
    return f"json: {place} {WORDS.get(error['type'], 'is no number above 0, or too large a one')}"
