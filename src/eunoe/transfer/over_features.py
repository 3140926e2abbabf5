"""Training a task model over features of words that lie on the disk: what the transfers features, elmo and vectors share.

The model that gives the features is left alone. The task model is ELMo's kind (NAACL 2018, https://arxiv.org/abs/1802.05365): a
BiLSTM over features mixed from layers, and beside its output where ``mix_placement`` says so; texts, pairs that attend to each other,
or tags of words. Settings that its paper leaves open (cells, batch, learning rate) are ours; the mix, its pull (0.001 or 1), the layer norm
and the placements are the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe import stop
from eunoe.choices import make_optimizer, written_out
from eunoe.data.collate import NO_TARGET, Batch, refuse_larger, row_steps, rows_of_step
from eunoe.data.features import Stored
from eunoe.data.tasks import Example, Task
from eunoe.data.words import Words, join_words, split_words
from eunoe.errors import EunoeError
from eunoe.evaluate.evaluator import Score, answer_scores
from eunoe.foreign import visible
from eunoe.lookup import lookup
from eunoe.models.cross_entropy import at_least_float32, cross_entropy
from eunoe.models.heads import LossSum
from eunoe.models.task_models import PairClassifier, Placement, PoolClassifier, Shape, Tagger
from eunoe.models.vectors import load_vectors, vectors_identity
from eunoe.optim.schedules import SCHEDULES
from eunoe.progress import say
from eunoe.recipe import Batch as BatchSize
from eunoe.recipe import Below1, Epochs, LoopSettings, Positive
from eunoe.train import Trained
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.finetune import gold_labels
from eunoe.transfer.phase import phase
from eunoe.transfer.readers import Reader, VectorReader, read_texts
from eunoe.transfer.watch import best_of, in_steps

KINDS = ("classification", "regression", "tagging")
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(kw_only=True)
class TaskModelSettings(LoopSettings):
    """A task model over features of words."""

    batch: BatchSize = 32
    """Labelled rows in one optimizer step."""
    epochs: Epochs = 10
    """Passes over the training rows."""
    lr: Positive = 1e-3
    """Highest learning rate."""
    warmup: Below1 = 0.0
    """Share of the steps over which the learning rate rises."""
    optimizer: Any = field(default_factory=lambda: {"name": "adamw", "weight_decay": 0.0})
    """A name of the optimizer table, or a mapping with its options."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """The task model is small: half precision gains little. The frozen model computes in float32 in any case."""
    max_length: BatchSize = 164
    """The most of a text that is read, in words (features: in the model's tokens); the rest is cut. A tagging row may not be longer."""
    lstm_cells: BatchSize = 128
    """Cells of the BiLSTM in each direction."""
    lstm_layers: Annotated[int, Field(ge=1, le=16)] = 1
    """Layers of the BiLSTM."""
    dropout: Below1 = 0.5
    """Dropout rate on the features and between the parts of the task model."""
    crf: bool = False
    """Tagging: a conditional random field over the tags, so that neighbouring tags have a say."""
    evaluate_every: Positive | None = None
    """Score the test rows every so many steps (below 1: share of the run) and report the best of them too; null: only
    after the last step."""
    stored_as: Literal["float16", "float32"] = "float16"
    """How features are kept on the disk; training reads them from there, so the numbers are the same in every epoch and run."""
    keep_features: bool = True
    """False: take the features off the disk when the task is done (a run over domains makes new ones after every domain)."""


@dataclass(kw_only=True)
class LayerSettings(TaskModelSettings):
    """A task model over the layers of a frozen model."""

    read_layers: Literal["all", "last"] = "all"
    """``all``: a mix of all layers, learnt by the task; ``last``: the last alone, ELMo's ablation."""
    mix_placement: Placement = "input"
    """Where the mix enters: below the BiLSTM, beside its output, or both with a mix each; ``output`` needs word vectors below."""
    mix_pull: NotNegative = 0.001
    """L2 pull of the mix to the mean of all layers; ELMo's paper has 0.001 (free) and 1 (close to the mean)."""
    layer_norm: bool = False
    """Normalise each layer before mixing."""
    word_vectors: str | None = None
    """Word vectors beside the layers (``wordllama`` or a text file); null: none."""
    tune_vectors: bool = False
    """Also train the vectors of the words in the training rows."""


def resolve(settings: Any, where: str) -> Any:
    """The settings with names looked up and the optimizer's options written out; raises ``EunoeError`` for what does not go together."""
    lookup(SCHEDULES, settings.schedule, f"schedule in {where}")
    if getattr(settings, "tune_vectors", False) and settings.word_vectors is None:
        raise EunoeError(
            f"{where}: tune_vectors is true, but there are no word_vectors. Set word_vectors, or leave it out."
        )
    if isinstance(settings, LayerSettings) and settings.mix_placement == "output" and settings.word_vectors is None:
        raise EunoeError(f"{where}: mix_placement: output leaves nothing for the BiLSTM to read. Set word_vectors (wordllama, or a file), "
                         "or mix_placement: both.")  # fmt: skip
    if (
        isinstance(settings, LayerSettings)
        and settings.read_layers == "last"
        and settings.mix_pull != LayerSettings.mix_pull
    ):
        raise EunoeError(f"{where}: mix_pull is {settings.mix_pull:g}, but read_layers: last leaves one layer, and no mix to pull. Leave "
                         "one of the two out.")  # fmt: skip
    return replace(settings, optimizer=written_out(settings.optimizer, f"{where}.optimizer"))


def check_task_model(task: Task, settings: Any, where: str) -> None:
    """Refuse a CRF without tags, vectors that cannot be read, and tags of more words than are read."""
    if settings.crf and task.kind != "tagging":
        raise EunoeError(f"{where}.crf is for tagging tasks, and {task.name!r} is of kind {task.kind}. Leave it out.")
    if settings.word_vectors is not None:
        vectors_identity(settings.word_vectors, f"{where}.word_vectors")
    for example in (*task.train, *task.test):
        if len(example.tokens) > settings.max_length:
            raise too_long(task, example, settings.max_length)


def reads(settings: Any) -> dict[str, str]:
    """The word vectors, where there are any."""
    return {} if settings.word_vectors is None else {"word vectors": vectors_identity(settings.word_vectors)}


def too_long(task: Task, example: Example, read: int) -> EunoeError:
    start = " ".join(example.tokens[:8])
    return EunoeError(f"task {task.name!r}: of a row of {len(example.tokens)} words ({visible(start, 60)} ...) {read} are read, as "
                      "max_length says, and each word needs a tag. Raise max_length, or split the row.")  # fmt: skip


# -- rows -----------------------------------------------------------------------------------------------------------
def words_of(example: Example) -> tuple[Words, Words | None]:
    """The words of a row's texts; those of a tagging row as they were given."""
    first = join_words(example.tokens) if example.tokens else split_words(example.text)
    return first, None if example.pair is None else split_words(example.pair)


def tags_of(example: Example) -> tuple[str, ...]:
    """The tags of a tagging row; () where it has none, as a row to be answered."""
    return example.label if isinstance(example.label, tuple) else ()


@dataclass
class FeatureRows:
    """Labelled rows and their features: row i's text is text i, its second text stands at ``len(rows) + i``."""

    task: Task
    examples: Sequence[Example]
    texts: list[Words]
    vectors: Stored | None
    layers: Stored | None
    tuned: Mapping[str, int]
    """Word -> its row in the table of tuned vectors; {}: none is."""

    def __post_init__(self) -> None:
        parts = [stored for stored in (self.vectors, self.layers) if stored is not None]
        # both readers see the same words, and may cut a text in other places
        self.lengths = [min(part.lengths[i] for part in parts) for i in range(len(self.texts))]
        if self.task.kind == "tagging":
            index = {label: i for i, label in enumerate(self.task.labels)}
            # a tag of a test row that no training row has is nothing that could be answered
            self.labels: list[Any] = [[index.get(tag, 0) for tag in tags_of(e)] for e in self.examples]
            self._refuse_cut()
        else:
            self.labels = gold_labels(self.task, self.examples)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def pairs(self) -> bool:
        return len(self.texts) > len(self.examples)

    def length(self, row: int) -> int:
        """Words of a row, of its longer text; at least 1, as no model reads a row of none."""
        return max(1, self.lengths[row], self.lengths[row + len(self)] if self.pairs else 0)

    def batch(self, chosen: Sequence[int]) -> Batch:
        """The chosen rows, padded on the right, as the task models read them, and their ``labels``."""
        batch = self._text(chosen, "")
        if self.pairs:
            batch |= self._text([len(self) + i for i in chosen], "pair_")
        if self.task.kind == "tagging":
            labels = torch.full(batch["input_ids"].shape, NO_TARGET)
            for row, i in zip(labels, chosen, strict=True):
                row[: len(self.labels[i])] = torch.tensor(self.labels[i], dtype=torch.long)
        else:
            labels = torch.tensor([self.labels[i] for i in chosen])
        return batch | {"labels": labels}

    def _text(self, chosen: Sequence[int], which: str) -> Batch:
        lengths = [max(1, self.lengths[i]) for i in chosen]
        shape = (len(chosen), max(lengths))
        batch = {"attention_mask": (torch.arange(shape[1])[None, :] < torch.tensor(lengths)[:, None]).long()}
        for name, stored in (("vectors", self.vectors), ("layers", self.layers)):
            if stored is None:
                continue
            values = np.zeros((*shape, *stored.values.shape[1:]), stored.values.dtype)
            for row, i in zip(values, chosen, strict=True):
                row[: self.lengths[i]] = stored[i][: self.lengths[i]]
            # layers are many, and the mix takes them as they lie on the disk
            batch[name] = torch.from_numpy(values[:, :, 0]).float() if name == "vectors" else torch.from_numpy(values)
        ids = torch.zeros(shape, dtype=torch.long)
        for row, i in zip(ids, chosen, strict=True) if self.tuned else ():
            words = list(self.texts[i])[: self.lengths[i]]
            row[: len(words)] = torch.tensor([self.tuned.get(word, 0) for word in words], dtype=torch.long)
        batch["input_ids"] = ids
        return {which + name: value for name, value in batch.items()}

    def _refuse_cut(self) -> None:
        for example, length in zip(self.examples, self.lengths, strict=False):
            if length < len(example.tokens):
                raise too_long(self.task, example, length)


@dataclass(frozen=True)
class FeatureBatches:
    """``batches[step]``: seeded order per epoch, micro-batches cut by length; the last batch of an epoch may be smaller."""

    rows: FeatureRows
    batch: int
    epochs: float
    seed: int
    steps: int | None = None
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        refuse_larger(min(self.batch, len(self.rows)), max(map(self.rows.length, range(len(self.rows)))), "rows")

    def __len__(self) -> int:
        return row_steps(len(self.rows), self.batch, self.epochs, self.steps)

    def __getitem__(self, step: int) -> list[Batch]:
        parts = rows_of_step(step, len(self.rows), self.batch, self.micro_batch, self.seed, self.rows.length)
        return [self.rows.batch(chosen) for chosen in parts]


# -- the task model -------------------------------------------------------------------------------------------------
class FeatureLoss:
    """The task's summed loss over a batch, with the pull of the mixing weights once a step (as often as there are items)."""

    def __init__(self, kind: str, pull: float) -> None:
        self.kind, self.pull = kind, pull

    def items(self, batch: Batch) -> int:
        """How many rows the batch has; of tags, how many words."""
        return int((batch["labels"] != NO_TARGET).sum()) if self.kind == "tagging" else len(batch["labels"])

    def __call__(self, model: Any, batch: Batch) -> LossSum:
        model = getattr(model, "module", model)
        logits = model(**{name: value for name, value in batch.items() if name != "labels"})
        labels, items = batch["labels"], self.items(batch)
        if self.kind == "regression":
            total = F.mse_loss(at_least_float32(logits[:, 0]), labels, reduction="sum")
        elif self.kind == "classification":
            total = cross_entropy(logits, labels)
        elif model.crf is None:
            total = cross_entropy(logits.flatten(0, 1), labels.flatten())
        else:
            total = model.crf.loss(at_least_float32(logits), labels.clamp(min=0), batch["attention_mask"].bool())
        return LossSum(total + items * self.pull * model.inputs.pull(), items, logits)


@torch.inference_mode()
def feature_predictions(model: Any, rows: FeatureRows, batch: int) -> list[Any]:
    """For each row a class, a number, or the list of its tags."""
    model.eval()
    device, task = next(model.parameters()).device, rows.task
    predicted: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (rows.length(i), i))
    for start in range(0, len(order), batch):
        stop.check("scoring labelled rows")
        chosen = order[start : start + batch]
        made = {name: value.to(device) for name, value in rows.batch(chosen).items() if name != "labels"}
        logits: Tensor = model(**made)
        if task.kind == "tagging":
            paths = model.best(logits, made["attention_mask"].bool())
            answers: list[Any] = [
                [task.labels[k] for k in p[: rows.lengths[i]]] for i, p in zip(chosen, paths, strict=True)
            ]
        else:
            answers = [task.labels[k] for k in logits.argmax(-1).tolist()] if task.labels else logits[:, 0].tolist()
        for i, answer in zip(chosen, answers, strict=True):
            predicted[i] = answer
    return predicted


def train_task_model(
    start: Start, settings: Any, reader: Reader | None, before: Mapping[str, Trained] | None = None
) -> Tuned:
    """Read the features of the task's rows, train the task model on them, score it on the test rows.

    ``reader``: gives the layers; None: word vectors alone. ``before``: phases that went before. The readers' models stay as they are.
    """
    task, stores = start.task, list[Stored]()
    tuned: dict[str, int] = {}
    if settings.tune_vectors:
        texts = [text for example in task.train for text in words_of(example) if text is not None]
        tuned = {word: i for i, word in enumerate(dict.fromkeys(word for text in texts for word in text), 1)}

    how = (settings.stored_as, start.batch, settings.keep_features)

    def rows_of(examples: Sequence[Example], what: str) -> FeatureRows:
        firsts, seconds = zip(*map(words_of, examples), strict=True)
        texts = [*firsts, *(text for text in seconds if text is not None)]
        vectors = layers = None
        if settings.word_vectors is not None:
            vectors = read_texts(_vector_reader(texts, settings, what), texts, what, *how)
            stores.append(vectors)
        if reader is not None:
            layers = read_texts(reader, texts, what, *how)
            stores.append(layers)
        return FeatureRows(task, examples, texts, vectors, layers, tuned)

    train_rows, test_rows = (
        rows_of(task.train, f"{task.name}'s training rows"),
        rows_of(task.test, f"{task.name}'s test rows"),
    )
    torch.manual_seed(start.seed)
    model = task_model(train_rows, settings)
    batches = FeatureBatches(
        train_rows, settings.batch, settings.epochs, start.seed, settings.steps, settings.micro_batch
    )
    every, gold = in_steps(settings.evaluate_every, len(batches)), [e.label for e in task.test]

    def scores() -> list[Score]:
        return answer_scores(task, gold, feature_predictions(model, test_rows, start.batch))

    def observe(step: int) -> dict[str, float]:
        return {s.metric: s.value for s in scores()} if step % every == 0 or step == len(batches) else {}

    done = phase(
        model, batches, FeatureLoss(task.kind, getattr(settings, "mix_pull", 0.0)),
        lambda m: make_optimizer(settings.optimizer, m, settings.lr, len(batches)), settings, None, {},
        None if start.folder is None else start.folder / "task", name=start.name or f"end task {task.name}", seed=start.seed,
        identity=start.identity, observe=observe if every else None,
    )  # fmt: skip
    best, best_step = best_of(done.observed, len(test_rows))

    def let_go() -> None:
        while stores:
            stored = stores.pop()
            if not settings.keep_features:  # those that another task keeps stay
                stored.remove()

    def predict(examples: Sequence[Example]) -> list[Any]:
        answers = feature_predictions(model, rows_of(examples, f"rows of {task.name}"), start.batch)
        let_go()
        return answers

    last = scores()
    let_go()
    return Tuned(scores=last, phases={**(before or {}), "task": done}, predict=predict, trunk=None,
                 best=best, best_step=best_step)  # fmt: skip


def task_model(rows: FeatureRows, settings: Any) -> nn.Module:
    """The task model for rows of this kind, with weights drawn from torch's generator."""
    vectors, layers = rows.vectors, rows.layers
    shape = Shape(
        vectors=0 if vectors is None else vectors.values.shape[2], tuned=len(rows.tuned),
        layers=0 if layers is None else layers.values.shape[1], width=0 if layers is None else layers.values.shape[2],
        placement=getattr(settings, "mix_placement", "input"), layer_norm=getattr(settings, "layer_norm", False),
        cells=settings.lstm_cells, lstm_layers=settings.lstm_layers, dropout=settings.dropout,
    )  # fmt: skip
    labels = max(1, len(rows.task.labels))
    if rows.task.kind == "tagging":
        return Tagger(shape, labels, settings.crf)
    return (PairClassifier if rows.pairs else PoolClassifier)(shape, labels)


def _vector_reader(texts: Sequence[Words], settings: Any, what: str) -> VectorReader:
    words = [word for text in texts for word in list(text)[: settings.max_length]]
    vectors = load_vectors(settings.word_vectors, words)
    say(f"{vectors.name} has {100 * vectors.known(words):.1f} % of the {len(set(words)):,} different words of {what}")
    return VectorReader(vectors, settings.max_length)


__all__ = [
    "FeatureBatches", "FeatureLoss", "FeatureRows", "LayerSettings", "TaskModelSettings", "check_task_model", "feature_predictions",
    "reads", "resolve", "task_model", "too_long", "train_task_model", "words_of",
]  # fmt: skip
