"""What holds for every task, and for the numbers and names of a run's tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from liquid_train.data.keyed import keyed_generator
from liquid_train.data.sequence_pieces import BadSample, Piece
from liquid_train.data.settings import DataConfig, SourceConfig
from liquid_train.data.tasks import FIRST, TASKS, Task, find_task, generating_task, task_names
from liquid_train.errors import UserError


class Short(Task):
    name = "short"

    def pieces(self, fields: Any, tokenizer: Any) -> list[Piece]:
        return [([1, 2], False), ([3], True)]


class Apart(Short):
    name = "apart"


class Impostor(Short):
    name = "text"


HERE = __name__


def data(*tasks: str, heldout: tuple[str, ...] = ()) -> DataConfig:
    sources, held = ({f"s{n}": SourceConfig("x", task) for n, task in enumerate(g)} for g in (tasks, heldout))
    return DataConfig(sources, held)


def test_every_file_is_a_task_of_its_name() -> None:
    assert set(FIRST) <= set(TASKS.names())
    for name in TASKS.names():
        assert find_task(name, "task").name == name


def test_numbers_of_the_first_tasks_never_change() -> None:
    """They are in the arrays of every run."""
    assert task_names(data("t2i")) == FIRST == ("text", "t2i", "i2t", "vqa", "chat")
    own = data(f"{HERE}.Short", "vqa", heldout=(f"{HERE}.Apart", f"{HERE}.Short"))
    assert task_names(own) == (*FIRST, "apart", "short")


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=f"data.sources.s0.task={HERE}.Impostor: its name, text, is that of text"):
        task_names(data(f"{HERE}.Impostor"))


@pytest.mark.parametrize("task", ["numpy.ndarray", f"{HERE}.data", "liquid_train.data.tasks.Task"])
def test_what_is_no_task_is_refused(task: str) -> None:
    with pytest.raises(UserError, match=f"data.sources.a.task={task}: not a subclass of liquid_train.data.tasks.Task"):
        find_task(task, "data.sources.a.task")


def test_what_a_task_need_not_say() -> None:
    """An eos after the pieces, no generation, no shortening, and a prompt of words alone."""
    task, tokenizer = find_task(f"{HERE}.Short", "task"), type("T", (), {"eos_token_id": 9, "bos_token_id": 8})()
    ids, labels = task.sequence({}, tokenizer)
    assert ids.tolist() == [1, 2, 3, 9] and labels.tolist() == [-100, -100, 3, 9]
    assert task.sequence({}, tokenizer, append_eos=False)[0].tolist() == [1, 2, 3]
    assert task.continued(["x"], tokenizer) == [8] and task.shorten({}, 1, tokenizer) is None
    with pytest.raises(UserError, match="short: its prompts have no place for <image:FILE>"):
        task.continued(["x", np.zeros((1, 1))], tokenizer)
    with pytest.raises(UserError, match="Short: nothing can be generated"):
        generating_task(f"{HERE}.Short", "task")
    assert generating_task("t2t", "task")[0].name == "text"


def test_an_answer_and_an_order_of_questions_are_drawn_by_sample() -> None:
    questions = [{"question": str(n), "answers": ["a", "b"]} for n in range(5)]
    sample: Any = {"key": "k", "codes": np.zeros((1, 1)), "info": {"questions": questions}}
    source = SourceConfig("x", "vqa", questions_per_document=2)
    vqa = find_task("vqa", "task")
    first, again, other = (vqa.documents(sample, source, partial(keyed_generator, n)) for n in (0, 0, 1))
    assert [len(document["turns"]) for document in first] == [2, 2, 1]
    assert first == again != other
    assert sorted(question for document in first for question, _ in document["turns"]) == [str(n) for n in range(5)]
    assert vqa.documents({**sample, "info": {}}, source, lambda: keyed_generator(0)) == []


def test_a_caption_is_drawn_where_there_is_no_text_and_a_blank_text_is_none() -> None:
    codes: Any = np.zeros((1, 1))
    wordings = [{"text": "a"}, {"text": "b", "weight": 3}]
    for name in ("t2i", "i2t"):
        task = find_task(name, "task")
        sample: Any = {"key": "k", "codes": codes, "info": {"captions": wordings}}
        assert len(task.documents(sample, SourceConfig("x", name), lambda: keyed_generator(0))) == 1
        drawn = set[str]()
        for n in range(20):
            fields: dict[str, Any] = {"captions": wordings}
            task.draw(fields, data(), keyed_generator(n))
            drawn.add(fields["text"])
        assert drawn == {"a", "b"}
    for name, text in [("t2i", ""), ("i2t", " \n"), ("text", "\ufeff\0")]:
        with pytest.raises(BadSample, match="text is blank"):
            find_task(name, "task").draw({"text": text}, data(), keyed_generator(0))
