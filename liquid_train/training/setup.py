"""The parts that a run is built from: its progress, vocabulary, model card and sharded model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from liquid_train.checkpoint.progress import Progress, read_progress
from liquid_train.checkpoint.resume import as_lines, changes_since, continued
from liquid_train.checkpoint.state import load_checkpoint
from liquid_train.config.schema import TrainJob
from liquid_train.data.shards import ShardSet
from liquid_train.distributed.parallelize import World, compute_dtype, parallelize
from liquid_train.errors import UserError
from liquid_train.image_tokenizer.base import ImageTokenizer
from liquid_train.image_tokenizer.preprocess import nearest_size
from liquid_train.model import backbone
from liquid_train.model.attention import choose_kernel, describe, implementation
from liquid_train.model.attention_kernels import ONE_GRAPH
from liquid_train.model.embedding_init import fill_image_rows
from liquid_train.model.families import family_of
from liquid_train.model.loss import LossModule
from liquid_train.model.router_balance import balance_routers
from liquid_train.optim.optimizer import build_optimizer
from liquid_train.optim.row_rates import RowRates
from liquid_train.training.metrics import Compute
from liquid_train.training.run_vocabulary import make_tokenizer, open_vocabulary
from liquid_train.vocabulary import UNCONDITIONAL, Vocabulary, check_ids


def restore_progress(
    config: TrainJob, checkpoint: Path | None, sets: dict[str, ShardSet]
) -> tuple[Progress, list[str]]:
    """How far the run has come, and lines that name what has changed since the checkpoint.

    Raises UserError where the checkpoint cannot be continued under this config or with these shard sets.
    """
    shards = {name: s.digest for name, s in sets.items()}
    if not checkpoint:
        return Progress(shards=shards), []
    changes = changes_since(checkpoint, config, shards)
    progress = read_progress(checkpoint)[0]
    progress.streams, given_up = continued(progress.streams, changes, config)
    progress.shards = shards
    return progress, [*(f"changed since the checkpoint: {line}" for line in as_lines(changes)), *given_up]


def build_vocabulary(
    config: TrainJob, checkpoint: Path | None, sets: dict[str, ShardSet], codebook_size: int, main: bool
) -> Vocabulary:
    """The checkpoint's vocabulary, or a new run's, whose tokenizer the main rank makes; a collective."""
    folder = checkpoint / "model" if checkpoint else Path(config.run.dir) / "tokenizer"
    if main and not checkpoint:
        make_tokenizer(config, sets, folder)
    dist.barrier()
    vocabulary = open_vocabulary(config, folder, codebook_size)
    for name, shards in sets.items():
        check_ids(shards.ids_fingerprint, vocabulary.tokenizer, f"data.sources.{name}.path={shards.path}")
    return vocabulary


def check_image_rows(config: TrainJob, image_tokenizer: ImageTokenizer) -> list[str]:
    """A line where the backbone has image rows already. Raises UserError where they are those of another VQ's codes."""
    card, path = backbone.start_card(config.backbone), config.backbone.path
    if card is None:
        return []
    if card.vq_fingerprint != image_tokenizer.fingerprint:
        raise UserError(
            f"backbone.path={path}: its image rows are those of another VQ (fingerprint {card.vq_fingerprint[:16]}, "
            f"here {image_tokenizer.fingerprint[:16]}); give vq.config and vq.checkpoint of that one"
        )
    return [f"backbone.path={path}: its {card.codebook_size:,} image rows are kept"]


def check_positions(config: TrainJob, vocabulary: Vocabulary) -> list[str]:
    """Whether data.seq_len goes beyond the backbone's positions: a line where they are rotary, which go on beyond what
    the model has seen. Raises UserError where each position has an embedding of its own, and there are no more."""
    hf_config, seq_len = backbone.model_config(config.backbone, vocabulary.text_size), config.data.seq_len
    positions = getattr(hf_config, "max_position_embeddings", None)
    if not positions or seq_len <= positions:
        return []
    if not any(getattr(hf_config, name, None) for name in ("rope_parameters", "rope_theta")):
        raise UserError(
            f"data.seq_len={seq_len}: the backbone has {positions} positions (max_position_embeddings), a longer "
            f"document has no place in it; give data.seq_len={positions} or less"
        )
    return [
        f"data.seq_len={seq_len}: beyond the backbone's {positions} positions (max_position_embeddings): a document of "
        "more tokens than that would be trained at positions that the model does not claim to know. Positions begin "
        "anew at every document, so shorter ones in one sequence are as good as ever"
    ]


def build_card(
    config: TrainJob, sets: dict[str, ShardSet], vocabulary: Vocabulary, image_tokenizer: ImageTokenizer
) -> backbone.ModelCard:
    """What liquid.json tells an inference program of the model's images and prompts."""
    sizes = list(dict.fromkeys(size for s in sets.values() for size in s.multiratio_sizes))
    if sizes:
        width, height = nearest_size(sizes, 1, 1)
        grid = [height // image_tokenizer.downsampling, width // image_tokenizer.downsampling]
    else:
        grid = next((list(found) for s in sets.values() if (found := s.usual_grid())), [])
    return backbone.ModelCard(
        vocabulary.image_start,
        vocabulary.codebook_size,
        image_tokenizer.fingerprint,
        config.vq.config,
        config.vq.checkpoint,
        grid,
        config.data.prompts[0],
        null_prompt=UNCONDITIONAL if config.data.unconditional else "",
        sizes=[list(size) for size in sizes],
        vq_kind=config.vq.kind,
        vq_options=config.vq.options,
        family=config.backbone.family,
    )


@dataclass
class TrainedModel:
    """The sharded model under its loss, with its optimizer. compute: for FLOPs; attention: how it is computed, in
    words; loaded: what this rank has read of weights, None where they began at random."""

    root: LossModule
    optimizer: torch.optim.Optimizer
    rates: RowRates
    compute: Compute
    attention: str
    loaded: backbone.Loaded | None


def build_model(
    config: TrainJob, checkpoint: Path | None, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer, world: World
) -> TrainedModel:
    """On meta, then sharded, then filled: from the checkpoint, a published model, or at random; a collective."""
    settings = config.backbone
    hf_config = backbone.model_config(settings, vocabulary.text_size)
    family, dtype = family_of(hf_config.model_type), compute_dtype(config.parallel)
    softcap = family.attention_softcap(hf_config)
    kernel = choose_kernel(config.parallel.attention, world.device, dtype, softcap, family.attention_sinks)
    lm = backbone.build(hf_config, vocabulary, implementation(kernel))
    root = LossModule.of(lm, vocabulary, config.loss)
    root.balance = balance_routers(lm, config.loss, rows=config.data.global_batch, ranks=world.data_size)
    compute = Compute.of(lm, vocabulary, world.device)
    parallelize(root, lm, config.parallel, world, root.separate_head(), one_graph=kernel in ONE_GRAPH)
    backbone.materialize(lm, world.device, offloaded=config.parallel.cpu_offload)
    optimizer = build_optimizer(lm, config.optimizer)
    rates = RowRates(lm, vocabulary, config.optimizer)
    loaded = None
    if checkpoint:
        loaded = load_checkpoint(checkpoint, root, optimizer)
    elif settings.init == "pretrained":
        assert settings.path is not None
        loaded = backbone.fill_from_folder(lm, settings.path)
        if backbone.start_card(settings) is None:
            codebook = image_tokenizer.code_vectors() if settings.image_init == "codebook" else None
            fill_image_rows(lm, vocabulary, settings.image_init, codebook, config.seed)
    else:
        backbone.fill_random(lm, config.seed)
    return TrainedModel(root, optimizer, rates, compute, describe(kernel, softcap), loaded)
