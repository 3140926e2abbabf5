"""What a run over domains reads: blocks to learn, held-out batches, end tasks. Read and checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from eunoe.data.cache import sha256
from eunoe.data.collate import Batch, refuse_larger
from eunoe.data.corpus import Blocks, Part, load_blocks
from eunoe.data.tasks import Task, draws, load_task
from eunoe.data.tokens import Named
from eunoe.errors import EunoeError
from eunoe.evaluate.answers import refuse_unanswerable
from eunoe.evaluate.evaluator import eval_batches
from eunoe.models.load import LanguageModel, refuse_longer
from eunoe.progress import say_once
from eunoe.recipe import Recipe
from eunoe.transfer import Entry


@dataclass(frozen=True)
class Material:
    """Text and tasks of a run."""

    train: dict[str, Blocks]
    valid: dict[str, list[Batch]]
    """Held-out batches by domain, and of ``general`` text."""
    tasks: dict[str, dict[int | None, Task]]
    """Domain -> seed of the few-shot draw (None: all rows) -> the end task."""
    general: Blocks | None = None
    """General text as training blocks, for methods that mix it in; never the blocks that are scored."""

    def digests(self) -> dict[str, str]:
        """Name -> SHA-256 of each thing that is read: a run that is resumed must read the same."""
        digests = {name: blocks.digest for name, blocks in self.train.items()}
        for name, batches in self.valid.items():
            digests[f"{name} (held out)"] = sha256(batch["input_ids"].tolist() for batch in batches)
        for name, samples in self.tasks.items():
            digests[f"{name} (end task)"] = sha256(
                [(e.text, e.pair, e.label, *e.choices) for e in part]
                for task in samples.values()
                for part in (task.train, task.test)
            )
            if more := [task.unlabelled for task in samples.values() if task.unlabelled]:
                digests[f"{name} (end task's text)"] = sha256(more)
        return digests


def read_material(
    recipe: Recipe, used: Iterable[str], lm: LanguageModel, transfer: Entry, settings: Any, extra_tokens: Mapping[str, int],
    mixes_general: bool = False, batches: Iterable[int] = (),
) -> Material:  # fmt: skip
    """Read, tokenise and check all text and tasks of a run; raises ``EunoeError`` before anything is trained.

    ``used``: the domains that some order names. ``extra_tokens``: method -> positions that its prompts take.
    ``mixes_general``: some method trains on general text; what it is scored on is then held out.
    ``batches``: blocks that the sequences' training takes at once.
    """
    rate, evaluation, used, batches = recipe.training.mask_rate, recipe.evaluation, set(used), set(batches)
    named = Named(lm.tokenizer)
    refuse_longer(lm, recipe.training.block, "recipe.training.block")
    for batch in batches:
        refuse_larger(batch, recipe.training.block, "blocks")
    for label, extra in extra_tokens.items():
        if extra:
            refuse_longer(
                lm, recipe.training.block + extra, f"recipe.training.block with the {extra} prompt tokens of {label}"
            )
    if recipe.head is not None:
        refuse_longer(lm, recipe.head.block, "recipe.head.block")
        refuse_larger(recipe.head.batch, recipe.head.block, "blocks")
        count = sum(len(load_blocks(corpus, named, recipe.head.block, "train")) for corpus in recipe.head.corpora)
        _say_larger(recipe.head.batch, count, "the text of recipe.head")
    # a prompt before the text takes places that a row then cannot use
    beside = replace(lm, taken=max(extra_tokens.values(), default=0))
    refuse_unanswerable(
        beside, [prompt.text for prompt in evaluation.asked], evaluation.answer_tokens, "recipe.evaluation"
    )
    train_blocks, valid = {}, {}
    tasks: dict[str, dict[int | None, Task]] = {}
    for domain in recipe.domains:
        # no order learns it, and what nothing uses is not read
        if domain.name not in used:
            continue
        train_blocks[domain.name] = load_blocks(domain.corpus, named, recipe.training.block, "train")
        _refuse_unknown_words(lm, train_blocks[domain.name], domain.name)
        _say_larger(max(batches, default=0), len(train_blocks[domain.name]), repr(domain.name))
        held_out = load_blocks(domain.corpus, named, recipe.training.block, "valid").take(evaluation.blocks)
        valid[domain.name] = eval_batches(lm, held_out, evaluation.batch, rate)
        if domain.task is not None:
            tasks[domain.name] = {}
            for draw in draws(domain.task):
                task = load_task(domain.name, draw, domain.corpus)
                transfer.refuse(beside, task, settings, "recipe.transfer")
                tasks[domain.name][task.shots_seed] = task
    if recipe.general is not None:
        # text that is mixed into batches must not be scored as unseen
        part: Part = "valid" if recipe.general.valid is not None or mixes_general else "all"
        scored = load_blocks(recipe.general, named, recipe.training.block, part).take(evaluation.blocks)
        valid["general"] = eval_batches(lm, scored, evaluation.batch, rate)
    elif mixes_general:
        raise EunoeError(
            "a method mixes general text into its batches, but recipe.general is missing. Give it, or leave the method out."
        )
    general = (
        load_blocks(recipe.general, named, recipe.training.block, "train") if recipe.general and mixes_general else None
    )
    return Material(train_blocks, valid, tasks, general)


UNKNOWN = 0.5
"""Share of unknown words above which a text is not of a language and script that the tokenizer knows."""


def _say_larger(batch: int, blocks: int, name: str) -> None:
    """A warning where one step reads the same blocks more than once: the recipe may ask for it, and most likely does not."""
    if batch > blocks:
        say_once(f"warning: a batch holds {batch:,} blocks, but {name} has {blocks:,}: one step reads each of them "
                 f"{batch / blocks:,.3g} times "
                 f"on average. Lower batch to {blocks:,} or less, or give more text.")  # fmt: skip


def _refuse_unknown_words(lm: LanguageModel, blocks: Blocks, name: str) -> None:
    """Raise ``EunoeError`` where most of a domain's tokens are the tokenizer's sign for an unknown word."""
    unknown = lm.tokenizer.unk_token_id
    if unknown is None or lm.tokenizer.unk_token_id == lm.tokenizer.eos_token_id:
        return  # the sign has another use too (GPT-2), and such tokenizers know every byte
    share = float((blocks.take(64).ids == unknown).mean())
    if share > UNKNOWN:
        raise EunoeError(
            f"{100 * share:.0f} % of the tokens of {name!r} are unknown words ({lm.tokenizer.unk_token}): the tokenizer of {lm.name!r} "
            "does not know its language or script. Choose a model that does, or check the file's encoding."
        )


__all__ = ["Material", "read_material"]
