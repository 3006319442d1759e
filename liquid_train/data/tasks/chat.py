"""chat: messages through the tokenizer's chat template, loss on the assistant's turns with the token that ends them.

Only what the template itself says can be a control token, never what a message spells: the template is rendered with a
mark in place of every content, so that the contents can be encoded apart. Nothing is added that the template does not
say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from liquid_train.data.sample_schema import fault_of
from liquid_train.data.sequence_pieces import BadSample, Part, Piece, assemble, encode_text, parts_ids, whole_image
from liquid_train.data.settings import SourceConfig
from liquid_train.data.tasks import TASKS, Generation, Task
from liquid_train.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from liquid_train.data.shard_format import Sample

IMAGE_PLACE = "<image>"  # in a message: where its image stands


@TASKS.register("chat")
class Chat(Task):
    name = "chat"
    generation = Generation(given="prompt", makes="text")

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_chat_template(tokenizer)

    def documents(
        self, sample: Sample, source: SourceConfig, generator: Callable[[], np.random.Generator]
    ) -> list[dict[str, Any]]:
        return [{}] if sample["info"].get("messages") else []

    def prompt_ids(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        raise UserError("task=chat: it has no fixed prompt; the chat template decides what a conversation begins with")

    def sequence(
        self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, append_eos: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        return assemble(self.pieces(fields, tokenizer))  # the template ends every turn

    def pieces(self, fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
        """The first token after an assistant's content ends the turn and carries loss with it."""
        check_chat_template(tokenizer)
        messages = fields["messages"]
        if fault := fault_of({"messages": messages}):
            raise BadSample(fault)
        images = sum(m["content"].count(IMAGE_PLACE) for m in messages)
        if images != ("codes" in fields):
            raise BadSample(f"messages: {images} times {IMAGE_PLACE} for {int('codes' in fields)} images")
        pieces: list[Piece] = []
        assistant = False
        *before, last = _between_contents(messages, tokenizer, BadSample)
        for message, said in zip(messages, before, strict=True):
            pieces += _template_pieces(said, assistant, tokenizer)
            assistant = message["role"] == "assistant"
            head, image, tail = message["content"].strip().partition(IMAGE_PLACE)
            pieces.append((encode_text(tokenizer, head), assistant))
            if image:
                pieces.append((whole_image(fields["codes"], tokenizer), assistant))
                pieces.append((encode_text(tokenizer, tail), assistant))
        return [*pieces, *_template_pieces(last, assistant, tokenizer)]

    def continued(self, prompt: Sequence[Part], tokenizer: PreTrainedTokenizerBase) -> list[int]:
        said = list(prompt)  # without the space around it, as messages are trained on
        if said and isinstance(said[0], str):
            said[0] = said[0].lstrip()
        if said and isinstance(said[-1], str):
            said[-1] = said[-1].rstrip()
        return conversation_ids([("user", said)], tokenizer)

    def end(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        return end_of_turn(tokenizer)


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise UserError(
            "task=chat: the tokenizer has no chat template; choose the folder of an instruction-tuned model "
            "(backbone.path), or another task"
        )


def conversation_ids(turns: Sequence[tuple[str, Sequence[Part]]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Turns (role, parts) through the chat template, up to where the assistant's next one begins.

    UserError for a tokenizer without a template, or with one that refuses them.
    """
    check_chat_template(tokenizer)
    messages = [{"role": role, "content": ""} for role, _ in turns]
    *before, last = _between_contents(messages, tokenizer, UserError, add_generation_prompt=True)
    ids: list[int] = []
    for (_, parts), said in zip(turns, before, strict=True):
        ids += tokenizer.encode(said, add_special_tokens=False) + parts_ids(parts, tokenizer)
    return [*ids, *tokenizer.encode(last, add_special_tokens=False)]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the template puts after an assistant's message, which training teaches to end it; None where it
    puts none."""
    check_chat_template(tokenizer)
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
    ids = tokenizer.encode(_between_contents(messages, tokenizer, UserError)[-1], add_special_tokens=False)
    return ids[0] if ids else None


def _between_contents(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    error_type: type[ValueError],
    *,
    add_generation_prompt: bool = False,
) -> list[str]:
    """What the template says before the first content, between all contents and after the last one.

    Raises error_type where the template refuses the messages, cannot make anything of what else they hold, or leaves
    one out.
    """
    from jinja2 import TemplateError

    marks = [f"\ue000{n}\ue001" for n in range(len(messages))]  # private use: no template spells them
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    try:
        rest = str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        raise error_type(f"messages: the chat template refuses them: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # in what the template does
        raise error_type(f"messages: the chat template fails: {type(error).__name__}") from error
    said = []
    for message, mark in zip(messages, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise error_type(f"messages: the chat template leaves out a message of role {message['role']}")
        said.append(before)
    return [*said, rest]


def _template_pieces(text: str, ends_answer: bool, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [(ids[:1], ends_answer), (ids[1:], False)]
