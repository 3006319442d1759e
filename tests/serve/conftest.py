"""The API in this process, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liquid_train.generate.session import open_model, open_vq
from liquid_train.image_tokenizer.settings import VQSettings
from liquid_train.serve.settings import ServeLimits
from tests import tiny_model

LIMIT = 10_000  # pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def api(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A client of the API, and its worker."""
    pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from liquid_train.serve.api import build_api
    from liquid_train.serve.engine import Engine
    from liquid_train.serve.image_batches import ImageBatches
    from liquid_train.serve.worker import Worker

    session = open_model(folder, "cpu")
    engine = Engine(session, open_vq(session, VQSettings("auto", "auto")), ServeLimits(pixels=LIMIT))
    worker = Worker(waiting=20)
    with TestClient(build_api(ImageBatches(engine, worker), "tiny"), raise_server_exceptions=False) as client:
        yield client, worker
    worker.close()
