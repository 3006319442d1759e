"""What the API and the page ask of a model: images, answers, turns of a conversation. The sampler is that of `liquid
generate`.

Everything called `check_...` is cheap and may run in any thread; the rest uses the model and runs in the worker's
thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from liquid_train.data.sequence_pieces import Part
from liquid_train.data.tasks.chat import conversation_ids, end_of_turn
from liquid_train.data.tasks.text import Text
from liquid_train.errors import UserError
from liquid_train.generate.image_sampler import Sampling, columns_of, described_ids, sample_images
from liquid_train.generate.images import decode, encode, load_image
from liquid_train.generate.session import Session
from liquid_train.generate.settings import GenerateJob
from liquid_train.generate.text_sampler import Streamed, answer, caption, complete_ids
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.image_tokenizer.preprocess import READ_ERRORS
from liquid_train.image_tokenizer.settings import AUTO
from liquid_train.serve.requests import AnswerRequest, GenerateRequest, Limited
from liquid_train.serve.settings import ServeLimits

Check = Callable[[], None]  # raises when the work is to stop


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. role: user or assistant. parts: text and images (codes [rows, columns]) in their
    order."""

    role: str
    parts: list[Part]


class Engine:
    """A model and its image tokenizer after the limits of a server. UserError for a model that was trained on no
    images."""

    def __init__(self, session: Session, tokenizer: ImageTokenizer, limits: ServeLimits) -> None:
        self.session, self.tokenizer, self.limits, self.limited = session, tokenizer, limits, Limited(limits)
        self.chats = bool(session.vocabulary.tokenizer.chat_template)
        # that it draws, the usual one first
        self.sizes = [f"{width}x{height}" for width, height in session.sizes(tokenizer.downsampling)]

    def check_generate(self, r: GenerateRequest) -> None:
        """UserError when the model or the limits do not allow it."""
        self.limited.text("prompt", r.prompt)
        self.limited.count(r.count)
        (rows, columns), _ = self._size(r)
        self.limited.pixels(f"size={r.size}", columns * self.tokenizer.downsampling, rows * self.tokenizer.downsampling)
        self.session.null_prompt(AUTO, r.guidance)

    def kind(self, r: GenerateRequest) -> tuple[object, ...]:
        """Equal for requests that can be drawn as one batch: size, settings, and columns of the prompt in the cache."""
        grid, stated = self._size(r)
        ids = described_ids(self.session.vocabulary, r.prompt, self.session.card.prompt, stated)
        return grid, r.guidance, r.temperature, r.top_k, r.top_p, columns_of(len(ids))

    def generate(self, asked: Sequence[GenerateRequest], row_done: Callable[[int, int], object]) -> list[np.ndarray]:
        """The images of requests of one kind: uint8 [count, height, width, 3] each. row_done: called with (rows of
        codes drawn, rows in all)."""
        r, card = asked[0], self.session.card
        (rows, columns), stated = self._size(r)

        def progress(done: int, total: int) -> None:
            row_done(done * rows // total, rows)

        seeds = [one.seed + i for one in asked for i in range(one.count)]
        codes = sample_images(
            self.session.model,
            self.session.vocabulary,
            [one.prompt for one in asked for _ in range(one.count)],
            seeds=seeds,
            grid=(rows, columns),
            guidance=r.guidance,
            temperature=r.temperature,
            top_k=r.top_k,
            top_p=r.top_p,
            batch_size=self.limits.pictures,
            suffix=card.prompt,
            size=stated,
            null_prompt=self.session.null_prompt(AUTO, r.guidance),
            progress=progress,
        )
        ends = np.cumsum([one.count for one in asked])[:-1]
        return np.split(decode(self.tokenizer, codes), ends)

    def _size(self, r: GenerateRequest) -> tuple[tuple[int, int], tuple[int, int] | None]:
        return self.session.image_size(r.size, self.tokenizer.downsampling)

    def check_answer(self, r: AnswerRequest, image: bytes) -> None:
        """UserError when the limits do not allow it, or `image` is none."""
        self.limited.text("question", r.question or "")
        self.limited.new_tokens(r.max_new_tokens)
        self.limited.image("image", image)

    def answer(self, r: AnswerRequest, image: bytes, check: Check) -> str:
        """The greedy answer, or without a question a caption. UserError for an image that turns out to be broken."""
        return self._answer(
            self.codes(image), r.question, r.max_new_tokens or self.limited.usual_tokens, lambda *_: check()
        )

    def codes(self, image: bytes) -> np.ndarray:
        """An image file -> codes [rows, columns], scaled and cropped to the nearest trained size. UserError when it
        is broken."""
        try:
            pixels = load_image(image, self.session.sizes(self.tokenizer.downsampling))
        except READ_ERRORS as error:
            raise UserError(f"image: not an image that can be read: {error}") from error
        codes: np.ndarray = encode(self.tokenizer, pixels[None])[0]
        return codes

    def reply(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        check: Check,
        write: Callable[[str], object],
    ) -> str:
        """What the assistant says next; `write` gets the text as it comes.

        A model whose tokenizer has a chat template reads the whole conversation. Another one answers the last message:
        about the newest image where there is one, else by going on from its text.
        """
        check()
        vocabulary = self.session.vocabulary
        streamed = Streamed(vocabulary, write)

        def on_token(number: int, token: int) -> None:
            check()
            streamed(number, token)

        if self.chats:
            ids = conversation_ids([(turn.role, turn.parts) for turn in turns], vocabulary.tokenizer)
            end = end_of_turn(vocabulary.tokenizer)
        else:
            images = [part for turn in turns for part in turn.parts if isinstance(part, np.ndarray)]
            text = " ".join(part for part in turns[-1].parts if isinstance(part, str)).strip()
            if images:
                return self._answer(images[-1], text, max_new_tokens, on_token)
            ids, end = Text().continued([text], vocabulary.tokenizer), None
        return complete_ids(
            self.session.model,
            vocabulary,
            [ids],
            seeds=[seed],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            end=end,
            on_token=on_token,
        )[0]

    def _answer(
        self, codes: np.ndarray, question: str | None, max_new_tokens: int, on_token: Callable[[int, int], None]
    ) -> str:
        model, vocabulary = self.session.model, self.session.vocabulary
        if not question:
            return caption(model, vocabulary, [codes], max_new_tokens=max_new_tokens, on_token=on_token)[0]
        return answer(model, vocabulary, [(codes, question)], max_new_tokens=max_new_tokens, on_token=on_token)[0]


DEFAULT_SAMPLING = Sampling(GenerateJob.temperature, GenerateJob.top_k, GenerateJob.top_p)
