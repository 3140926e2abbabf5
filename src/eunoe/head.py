"""Give an encoder an LM head (recipe section ``head``): the way out for models that came without one.

The head starts as a look-up of tokens (transform at the identity, output tied to the embeddings), a low-rank change
stands beside every linear layer, biases and norms train too; the rest of the encoder is frozen. What is learnt is small
(``RUN/head/patch.safetensors``, half precision) and is merged into the plain model. The embedded model ``minilm``
was made this way (recipes/embedded_head.yaml).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from eunoe.atomic import write_text
from eunoe.data.collate import LMBatches
from eunoe.data.corpus import Blocks, load_blocks
from eunoe.models.heads import lm_loss
from eunoe.models.load import load_lm, prepare_head, save_patch
from eunoe.optim.groups import param_groups
from eunoe.progress import say
from eunoe.recipe import HeadSettings, LoopSettings, ModelSettings
from eunoe.train import Job, Trained, train


def train_head(model: ModelSettings, head: HeadSettings, folder: Path, seed: int) -> Trained | None:
    """Train ``model``'s LM head into ``folder/patch.safetensors``; does nothing if that file is there.

    Raises ``EunoeError`` for text that cannot be read. Interrupted, it goes on from its last checkpoint.
    """
    if (folder / "patch.safetensors").is_file():
        shutil.rmtree(folder / "steps", ignore_errors=True)
        return None
    torch.manual_seed(seed)
    lm = load_lm(model)
    say(f"training an LM head for {model.name}: {head.steps} steps of {head.batch} x {head.block} tokens")
    blocks = _joined([load_blocks(c, lm.tokenizer, head.block, "train") for c in head.corpora])
    prepare_head(lm.model, head.rank)
    loop = LoopSettings(
        batch=head.batch, steps=head.steps, lr=head.lr, warmup=head.warmup, checkpoint_every=head.checkpoint_every
    )
    batches = LMBatches(blocks, lm.objective, lm.mask_id, len(lm.tokenizer), head.batch, head.steps, seed,
                        mask_rate=head.mask_rate)  # fmt: skip
    done = train(Job(name="LM head", model=lm.model, batches=batches, loss=lm_loss, settings=loop, seed=seed,
                     optimizer=lambda m: torch.optim.AdamW(param_groups(m, 0.0), lr=head.lr), folder=folder / "steps"))  # fmt: skip
    for note in done.notes:
        say(f"passed over: {note}")
    write_text(folder / "curve.csv", done.curve_csv())
    save_patch(lm.model, folder)  # last: it marks the head as trained
    shutil.rmtree(folder / "steps", ignore_errors=True)
    return done


def _joined(parts: list[Blocks]) -> Blocks:
    """Several corpora as one; general corpora are small enough to be held."""
    if len(parts) == 1:
        return parts[0]
    return Blocks(np.concatenate([p.ids for p in parts]), parts[0].special, "+".join(p.digest for p in parts))
