"""Give an encoder an LM head (recipe section ``head``): the way out for models that came without one.

The head starts as a look-up of tokens (transform at the identity, output tied to the embeddings), a low-rank change
stands beside every linear layer, biases and norms train too; the rest of the encoder is frozen. What is learnt is small
(``RUN/head/patch.safetensors``, half precision) and is merged into the plain model. The embedded model ``minilm``
was made this way (recipes/embedded_head.yaml).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from eunoe.atomic import write_text
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import joined, load_blocks
from eunoe.models.files import PATCH
from eunoe.models.heads import lm_loss
from eunoe.models.load import LanguageModel, prepare_head, pretrained, save_patch
from eunoe.optim.groups import param_groups
from eunoe.progress import say
from eunoe.recipe import HeadSettings, LoopSettings, ModelSettings
from eunoe.train import Job, Trained, train


def train_head(
    model: ModelSettings, head: HeadSettings, folder: Path, seed: int, identity: Mapping[str, str]
) -> Trained | None:
    """Train ``model``'s LM head into ``folder/patch.safetensors``; does nothing if that file is there.

    Raises ``EunoeError`` for text that cannot be read. Interrupted, it resumes from its last checkpoint.
    """
    if (folder / PATCH).is_file():
        shutil.rmtree(folder / "steps", ignore_errors=True)
        return None
    lm, job = head_job(model, head, folder, seed, identity)
    say(f"training an LM head for {model.name}: {head.steps} steps of {head.batch} x {head.block} tokens")
    done = train(job)
    for note in done.notes:
        say(f"skipped a damaged checkpoint: {note}")
    write_text(folder / "curve.csv", done.curve_csv())
    save_patch(lm.model, folder)  # last: it marks the head as trained
    shutil.rmtree(folder / "steps", ignore_errors=True)
    return done


def head_job(
    model: ModelSettings, head: HeadSettings, folder: Path, seed: int, identity: Mapping[str, str]
) -> tuple[LanguageModel, Job]:
    """The model with a head at its start, and the training of it."""
    lm = pretrained(model, seed)
    blocks = joined([load_blocks(c, lm.tokenizer, head.block, "train") for c in head.corpora])
    torch.manual_seed(seed)
    prepare_head(lm.model, head.rank)
    loop = LoopSettings(
        batch=head.batch,
        steps=head.steps,
        lr=head.lr,
        warmup=head.warmup,
        checkpoint_every=head.checkpoint_every,
        precision="float32",  # it is shipped, and read by every run that starts from it
    )
    batches = LMBatches(blocks, lm.objective, lm.mask_id, len(lm.tokenizer), head.batch, head.steps, seed,
                        mask_rate=head.mask_rate)  # fmt: skip
    return lm, Job(name="LM head", model=lm.model, batches=batches, loss=lm_loss, settings=loop, seed=seed,
                   optimizer=lambda m: torch.optim.AdamW(param_groups(m, 0.0), lr=head.lr), folder=folder / "steps",
                   identity=identity)  # fmt: skip
