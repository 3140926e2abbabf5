"""GPT-1's fine-tuning: a linear layer on the last token's state, and the language model's own loss beside the task's.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", with OpenAI's released code
(https://github.com/openai/finetune-transformer-lm), which covers Story Cloze alone. For any causal LM. A row becomes, with three new
tokens (start, delimiter, extract):

- one text:        [start; text; extract]
- entailment:      [start; premise; delimiter; hypothesis; extract]
- similarity:      both orders of the texts, whose states are added
- multiple choice: [start; context, question; delimiter; choice; extract] for each choice, a score each, softmax over them

and the loss is L3 = L2 + lm_weight * L1: L2 of the labels, from the last block's state at the extract token; L1 of every next token
of the row, the new tokens among them. Defaults are the published settings.

Different here, and why:

- The new words stand behind the last row of the embedding table of a copy; the tokenizer is not changed, so a text that spells a
  new token stays text.
- Where a row is too long the context alone is cut (of other pairs the longer text); the release cuts context and choice alike,
  and a choice that is cut may no longer be the right one.
- The learning rate rises on a line and falls on a line to 0; the release multiplies both lines while it rises, 0.2 % of the steps.
- Models that normalise after the last block (all since GPT-2) give the normalised state to both heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.choices import make_optimizer
from eunoe.data.collate import Batch, RowBatches, Rows, long_choice, say_cut, token_ids
from eunoe.data.tasks import Example, Task
from eunoe.data.tokens import backward
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, predictions, task_scores
from eunoe.models.anatomy import anatomy
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.heads import LossSum, only_positions
from eunoe.models.load import LanguageModel, refuse_longer
from eunoe.models.vocabulary import add_words, words_of
from eunoe.recipe import Batch as BatchSize
from eunoe.recipe import Below1, Epochs, LoopSettings, Positive
from eunoe.transfer import finetune
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.encoded import encoded
from eunoe.transfer.phase import phase
from eunoe.transfer.watch import Watch, best_of

STD = 0.02
"""Standard deviation of the new tokens and of the linear layer at their start (the release's)."""


@dataclass(kw_only=True)
class GptSettings(LoopSettings):
    """GPT-1's fine-tuning; the defaults are the paper's."""

    batch: BatchSize = 32
    """Labelled rows in one optimizer step."""
    epochs: Epochs = 3
    """Passes over the training rows."""
    lr: Positive = 6.25e-5
    """Highest learning rate."""
    warmup: Below1 = 0.002
    """Share of the steps over which the learning rate rises."""
    optimizer: Any = field(default_factory=lambda: {"name": "adamw", "weight_decay": 0.01})
    """A name of the optimizer table, or a mapping with its options."""
    max_length: BatchSize = 512
    """Tokens of a sequence, the new ones among them; of a longer one the context is cut, never a choice."""
    lm_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Weight (lambda) of the LM loss on the labelled rows; 0: without the auxiliary objective."""
    both_orders: bool | None = None
    """Read pairs in both orders and add their states (similarity), or in one (entailment); null: both where the task says that the
    order means nothing, or the labels are numbers."""
    dropout: Below1 = 0.1
    """Dropout rate before the linear layer; the choices of a row share what is dropped."""
    start: Literal["pretrained", "random"] = "pretrained"
    """``random``: no pretraining, all weights start afresh."""
    transferred: Annotated[int, Field(ge=0)] | None = None
    """Layers transferred: those above the first so many start afresh (0: embeddings, final norm and LM head alone are pretrained);
    null: all."""
    evaluate_every: Positive | None = None
    """Score the test rows every so many steps (below 1: share of the run) and report the best of them too; null: only
    after the last step."""
    observe_every: Positive | None = None
    """Record the distance to the pretrained weights every so many steps (below 1: share of the run)."""


def resolve(settings: GptSettings, where: str) -> GptSettings:
    """The settings with names looked up and the optimizer's options written out; raises ``EunoeError``."""
    if settings.start == "random" and settings.transferred is not None:
        raise EunoeError(f"{where}: transferred = {settings.transferred} of a random start: no layer is. Leave it out, or set "
                         "start: pretrained.")  # fmt: skip
    resolved: GptSettings = finetune.resolve(settings, where)  # type: ignore[arg-type, assignment]
    return resolved


def check(lm: LanguageModel, task: Task, settings: GptSettings, where: str) -> None:
    """Refuse a model that is not causal, and lengths, layers and orders that do not fit."""
    if lm.objective != "causal":
        raise EunoeError(f"{where}: this transfer reads from left to right and adds the loss of the next token, so it needs a causal LM; "
                         f"{lm.name!r} is a {lm.objective} one. Name a causal model, or choose another transfer.")  # fmt: skip
    if backward(lm.tokenizer):
        raise EunoeError(f"{where}: this transfer reads from left to right, and {lm.name!r} reads from the end. Name a model that reads "
                         "forward, or choose finetune or ulmfit.")  # fmt: skip
    words_of(lm.model)
    if settings.both_orders is not None and (task.choices or not _pairs(task)):
        raise EunoeError(f"{where}: both_orders is {settings.both_orders}, which is about pairs of texts, and {task.name} has none. "
                         "Leave it out (of a study: set it in the transfer of the tasks that have pairs).")  # fmt: skip
    known = len(anatomy(lm.model).layers)
    if settings.transferred is not None and settings.transferred > known:
        raise EunoeError(
            f"{where}: transferred is {settings.transferred}, but {lm.name!r} has {known} layers. Set it to {known} or less."
        )
    refuse_longer(lm, settings.max_length, f"{where}.max_length")
    encode_task(lm, task, settings)


def _pairs(task: Task) -> bool:
    return any(e.pair is not None for e in task.train[:1])


def _both_orders(task: Task, settings: GptSettings) -> bool:
    if task.choices or not _pairs(task):
        return False
    return task.symmetric or task.kind == "regression" if settings.both_orders is None else settings.both_orders


# -- rows as token ids --------------------------------------------------------------------------------------------------
def encode_task(lm: LanguageModel, task: Task, settings: GptSettings) -> tuple[Rows, Rows]:
    """The task's training and test rows as token ids."""
    both = _both_orders(task, settings)
    key = ("gpt", settings.max_length, both, words_of(lm.model)[0].num_embeddings)
    return encoded(
        lm.tokenizer, task, key, lambda: (encode(lm, task, task.train, settings), encode(lm, task, task.test, settings))
    )


def encode(lm: LanguageModel, task: Task, examples: Sequence[Example], settings: GptSettings) -> Rows:
    """Rows of ``task`` as sequences of the module's four forms; raises ``EunoeError`` for a choice that does not fit."""
    words, most = words_of(lm.model)[0].num_embeddings, settings.max_length
    start, delimiter, extract = range(words, words + 3)
    least = 5 if task.choices or _pairs(task) else 3
    if most < least:
        raise EunoeError(
            f"max_length is {most}, which leaves nothing of the texts beside the new tokens. Set it to {least} or more."
        )
    texts = token_ids(lm.tokenizer, [e.text for e in examples])
    pairs = token_ids(lm.tokenizer, [e.pair or "" for e in examples])
    sequences: list[list[int]] = []
    each = 1
    if task.choices:
        each, cut = task.choices, 0
        choices = iter(token_ids(lm.tokenizer, [choice for e in examples for choice in e.choices]))
        for e, context, question in zip(examples, texts, pairs, strict=True):
            for offered in e.choices:
                choice = next(choices)
                room = most - 3 - len(question) - len(choice)
                if room < 1:
                    raise long_choice(offered, len(question) + len(choice), most - 4, most)
                cut += len(context) > room
                sequences.append([start, *context[:room], *question, delimiter, *choice, extract])
        say_cut(cut, len(sequences), most)
    elif _pairs(task):
        orders = [(texts, pairs), (pairs, texts)] if _both_orders(task, settings) else [(texts, pairs)]
        each = len(orders)
        for i in range(len(examples)):
            for firsts, seconds in orders:
                first, second = _fit(firsts[i], seconds[i], most - 3)
                sequences.append([start, *first, delimiter, *second, extract])
    else:
        sequences = [[start, *text[: most - 2], extract] for text in texts]
    labels = finetune.gold_labels(task, examples)
    numbers = torch.float32 if task.kind == "regression" else torch.int64
    # padding is behind every real token, and a causal LM never looks ahead: any id does
    return Rows([{"input_ids": ids} for ids in sequences], torch.tensor(labels, dtype=numbers), 0, each)


def _fit(first: list[int], second: list[int], most: int) -> tuple[list[int], list[int]]:
    """Two texts cut to ``most`` tokens together, the longer one first."""
    kept = min(len(second), max(most - len(first), most // 2))
    return first[: most - kept], second[:kept]


# -- the model ----------------------------------------------------------------------------------------------------------
class DoubleHead(nn.Module):
    """A causal LM, and beside its LM head a linear layer on the last real token's state.

    ``each``: sequences of a row, which lie one after the other in a batch; ``add``: their states are added (similarity), else each has
    outputs of its own (choices). ``forward`` gives logits (rows * outputs, labels), and with ``with_lm`` also the LM loss of each row,
    the mean over its sequences of the mean over their next tokens, as the release has it.
    """

    base_model_prefix = "trunk"
    """Says to ``anchored_groups`` what the pretrained part is."""

    def __init__(self, lm: nn.Module, labels: int, each: int, add: bool, dropout: float) -> None:
        super().__init__()
        self.lm, self.each, self.add = lm, each, add
        self.config = anatomy(lm).base.config
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(anatomy(lm).width, labels)
        nn.init.normal_(self.out.weight, std=STD)
        nn.init.zeros_(self.out.bias)

    @property
    def trunk(self) -> nn.Module:
        """The pretrained model without its LM head."""
        base: nn.Module = anatomy(self.lm).base
        return base

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, with_lm: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not with_lm:
            return self._logits(self.trunk(**given)[0], attention_mask)
        sequence, place = attention_mask[:, 1:].nonzero(as_tuple=True)  # tokens that have a next one
        with only_positions(self.lm, sequence * input_ids.shape[1] + place) as seen:
            logits = self.lm(**given).logits.flatten(0, 1)
        losses = F.cross_entropy(at_least_float32(logits), input_ids[sequence, place + 1], reduction="none")
        sums = losses.new_zeros(len(input_ids)).index_add(0, sequence, losses)
        lengths = attention_mask[:, 1:].sum(1).clamp(min=1)
        return self._logits(seen[-1][1], attention_mask), (sums / lengths).view(-1, self.each).mean(1)

    def _logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        state = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        state = state.view(-1, self.each, state.shape[-1])
        if self.add:
            state = state.sum(1, keepdim=True)
        state = state * self.dropout(torch.ones_like(state[:, :1]))
        out: Tensor = self.out(state.flatten(0, 1))
        return out


class GptLoss:
    """L3 of a batch, summed over its rows: of each the loss of its label, and ``weight`` times its LM loss."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def items(self, batch: Batch) -> int:
        """How many rows the batch has."""
        return len(batch["labels"])

    def __call__(self, model: nn.Module, batch: Batch) -> LossSum:
        given, labels = {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
        if not self.weight:
            logits = model(**given)
            return LossSum(finetune.label_loss(logits, labels), self.items(batch), logits)
        logits, lm = model(**given, with_lm=True)
        return LossSum(finetune.label_loss(logits, labels) + self.weight * lm.sum(), self.items(batch), logits)


def gpt(start: Start, settings: GptSettings) -> Tuned:
    """Fine-tune a copy of the causal LM on the task and score it on the test rows; model and tokenizer are not changed.

    Where the method keeps the pretrained weights frozen in end tasks, the new words are frozen with their table.
    """
    lm, task, seed = start.lm, start.task, start.seed
    train_rows, test_rows = encode_task(lm, task, settings)
    torch.manual_seed(seed)
    start.method.activate(start.domain)
    copied = deepcopy(lm.model)
    if settings.start == "random" or settings.transferred is not None:
        afresh(copied, lm.model, settings.transferred)
    model = DoubleHead(
        copied, max(len(task.labels), 1), train_rows.each, _both_orders(task, settings), settings.dropout
    ).to(next(lm.model.parameters()).device)
    rates = start.method.for_end_task(model, start.domain)
    add_words(copied, 3, STD)  # not before: a method may put a table of its own, which has no such rows, into the copy
    batches = RowBatches(train_rows, settings.batch, settings.epochs, seed, settings.steps, settings.micro_batch)

    def score() -> list[Score]:
        return task_scores(model, test_rows, task, start.batch)

    pretrained = dict(anatomy(lm.model).base.named_parameters())
    watch = Watch(score, model.trunk, pretrained, len(batches), settings.evaluate_every, settings.observe_every)
    recalled = {f"lm.{n}": p.detach() for n, p in lm.model.named_parameters()} if settings.start == "random" else None
    done = phase(
        model, batches, GptLoss(settings.lm_weight),
        lambda m: make_optimizer(settings.optimizer, m, settings.lr, len(batches), recalled),
        settings, None, rates, start.folder, name=start.name or f"end task {task.name}", seed=seed, identity=start.identity,
        observe=watch.observe if watch.asked else None,
    )  # fmt: skip
    best, best_step = best_of(done.observed, len(test_rows))

    def predict(examples: Sequence[Example]) -> list[Any]:
        return predictions(model, encode(lm, task, examples, settings), task, start.batch)

    return Tuned(scores=score(), phases={"finetune": done}, predict=predict, trunk=model.trunk, best=best,
                 best_step=best_step)  # fmt: skip


def afresh(copied: nn.Module, lm: nn.Module, above: int | None) -> None:
    """Give ``copied``, a copy of ``lm``, new random weights: its layers from ``above`` on, or (None) all, an untied LM head too."""
    finetune.start_afresh(anatomy(copied).base, lm, above)
    head: Any = copied.get_output_embeddings()  # type: ignore[operator]
    if above is None and head.weight is not anatomy(copied).embeddings.weight:
        nn.init.normal_(head.weight, std=float(getattr(lm.config, "initializer_range", STD) or STD))
        if head.bias is not None:
            nn.init.zeros_(head.bias)


__all__ = ["DoubleHead", "GptLoss", "GptSettings", "afresh", "check", "encode", "encode_task", "gpt", "resolve"]
