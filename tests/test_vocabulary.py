"""Where image ids start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from liquid_train.data.sequence_pieces import image_ids
from liquid_train.errors import UserError
from liquid_train.model import backbone
from liquid_train.model.backbone import ModelCard
from liquid_train.vocabulary import Vocabulary, train_bpe
from tests.tiny_model import TEXT


@pytest.mark.parametrize("gap", [0, 1, 50])
def test_image_ids_start_after_the_last_id_of_the_tokenizer(tmp_path: Path, gap: int) -> None:
    """As made from cl100k: ids in the middle, or before the last, that no entry has."""
    made = train_bpe(TEXT, 300, tmp_path)
    content = json.loads(made.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    last = max(words, key=words.__getitem__)
    words[last] += gap
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<bos>")
    vocabulary = Vocabulary(tokenizer, 64, 500)
    assert vocabulary.image_start == max(tokenizer.get_vocab().values()) + 1 == len(made) + gap == len(tokenizer) + gap
    assert image_ids(np.array([[0, 63]]), tokenizer).tolist() == [vocabulary.image_start, vocabulary.image_end - 1]
    tokenizer.save_pretrained(tmp_path / "model")
    card = ModelCard(vocabulary.image_start, 64, "f", "a", "b", [8, 8], " Draw.")
    card.write(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 500}))
    assert backbone.read_vocabulary(tmp_path / "model").image_start == vocabulary.image_start
    ModelCard(vocabulary.image_start + 1, 64, "f", "a", "b", [8, 8], " Draw.").write(tmp_path / "model")
    with pytest.raises(UserError, match="the tokenizer was changed"):
        backbone.read_vocabulary(tmp_path / "model")
