"""ELMo (NAACL 2018, https://arxiv.org/abs/1802.05365): a biLM's layers as features, mixed by the task, the biLM frozen.

The biLM is a given one (released weights, or a folder that ``train_bilm`` wrote), or a new one that is trained on text first; either
can then be tuned on the task's own text. Training is bilm-tf's: its first weights; both directions at once with one softmax, sampled; the
state is carried from batch to batch; Adagrad with learning rate 0.2, the loss of a word times the words of a step, gradient norm at
most 10. The task's language model is not read: in a run over domains the biLM stands beside it, and the score is the same after every
domain.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from eunoe.atomic import write_text
from eunoe.data.cache import sha256
from eunoe.data.collate import Batch, permutation, refuse_larger
from eunoe.data.corpus import texts
from eunoe.data.tasks import Task
from eunoe.data.words import bounds, characters, split_words
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.models.bilm import BiLM, BiLMConfig, State
from eunoe.models.bilm_release import load_release
from eunoe.models.files import digest, stamp
from eunoe.models.heads import LossSum
from eunoe.models.load import LanguageModel
from eunoe.models.sampled import vocabulary_loss
from eunoe.recipe import Batch as BatchSize
from eunoe.recipe import Below1, CorpusSettings, Epochs, LoopSettings, Positive, expand
from eunoe.train import Trained
from eunoe.transfer import over_features
from eunoe.transfer.base import Start, Tuned
from eunoe.transfer.over_features import LayerSettings, check_task_model, train_task_model, words_of
from eunoe.transfer.phase import phase
from eunoe.transfer.readers import BiLMReader

UNKNOWN, BEGIN, END = "<UNK>", "<S>", "</S>"
_MARKS = (BEGIN, END, UNKNOWN)
VOCABULARY = "vocabulary.txt"


@dataclass(kw_only=True)
class BiLMSettings:
    """A new biLM and how it is trained; the defaults are a small one. The released original has 512, 4096 and filters of widths 1 to 7
    with 32, 32, 64, 128, 256, 512 and 1024."""

    bilm_width: BatchSize = 128
    """Width of a direction."""
    bilm_cells: BatchSize = 512
    """Cells of an LSTM."""
    bilm_filters: list[list[int]] = field(default_factory=lambda: [[1, 16], [2, 16], [3, 32], [4, 64], [5, 128]])
    """Character filters: [characters that one spans, how many there are]."""
    bilm_words: BatchSize = 50_000
    """Words that the softmax knows at most, the most frequent ones; others count as unknown when they are to be predicted."""
    bilm_epochs: Epochs = 10
    """Passes over its text that a new biLM makes."""
    bilm_batch: BatchSize = 32
    """Streams that are read side by side (ELMo: 128 on each of three GPUs); fewer where the text is short."""
    bilm_unroll: BatchSize = 20
    """Words of a stream in one step."""
    bilm_lr: Positive = 0.2
    """Learning rate of Adagrad."""
    bilm_samples: BatchSize = 8192
    """Words that the softmax is taken over in training, besides the right one."""
    bilm_dropout: Below1 = 0.1
    """Dropout rate of a new biLM."""


@dataclass(kw_only=True)
class ElmoSettings(BiLMSettings, LayerSettings):
    """ELMo: features from the layers of a biLM."""

    bilm: str | None = None
    """Folder of a biLM: released (options.json and an .hdf5 file; needs eunoe[elmo]) or written by ``train_bilm``; null: a new one
    is trained first."""
    bilm_text: str | None = None
    """Text to train a new biLM on, a file or folder as for a corpus; null: the task's own text (its training rows' and its
    unlabelled text)."""
    tune_epochs: Annotated[float, Field(ge=0)] = 0
    """Passes over the task's own text that the biLM makes before the task; 0: it stays as it is."""


_UNREAD: dict[str, Any] = asdict(BiLMSettings())
"""What a given biLM leaves unread, with the default."""
_TUNING = ("bilm_words", "bilm_batch", "bilm_unroll", "bilm_lr", "bilm_samples")
"""Of these, what its tuning reads."""


def check(lm: LanguageModel, task: Task, settings: ElmoSettings, where: str) -> None:
    """Refuse a biLM that cannot be read, text that nothing would read, a kind without a task model."""
    check_task_model(task, settings, where)
    if settings.bilm is not None:
        if settings.bilm_text is not None:
            raise EunoeError(f"{where}: bilm_text trains a new biLM, and bilm gives one. Leave one of the two out.")
        _, words = load_bilm(settings.bilm, f"{where}.bilm")
        tuning = tuple(name for name in _TUNING if name != "bilm_words" or not words)  # a softmax that is there stays
        for name, default in _UNREAD.items():
            if getattr(settings, name) != default and not (settings.tune_epochs and name in tuning):
                raise EunoeError(f"{where}.{name} is for a biLM that is trained here, and bilm gives one"
                                 f"{' that is not tuned' if name in tuning else ''}. Leave it out"
                                 f"{', or set tune_epochs' if name in tuning else ''}.")  # fmt: skip
    elif (
        any(len(pair) != 2 or min(pair) < 1 or pair[0] > 50 for pair in settings.bilm_filters)
        or not settings.bilm_filters
    ):
        raise EunoeError(f"{where}.bilm_filters: expected pairs [characters spanned, 1 to 50; how many], as in [[1, 16]]; received "
                         f"{settings.bilm_filters}.")  # fmt: skip
    if task.unlabelled and not (settings.tune_epochs or (settings.bilm is None and settings.bilm_text is None)):
        raise EunoeError(f"{where}: the task's unlabelled text is not read: the biLM is given or has text of its own, and is not tuned. "
                         "Set tune_epochs, or leave unlabelled out.")  # fmt: skip


def reads(settings: ElmoSettings) -> dict[str, str]:
    """The biLM's files or the text that it is trained on, and the word vectors."""
    read = over_features.reads(settings)
    if settings.bilm is not None:
        files = sorted(path for path in Path(expand(settings.bilm)).iterdir() if path.is_file())
        read["biLM"] = sha256([path.name, digest(path, stamp(path))] for path in files)
    elif settings.bilm_text is not None:
        read["biLM's text"] = sha256(texts(CorpusSettings(source=settings.bilm_text)))
    return read


def elmo(start: Start, settings: ElmoSettings) -> Tuned:
    """Get the biLM, train or tune it where that is asked for, then train the task model on its frozen layers."""
    phases: dict[str, Trained] = {}
    own = [*own_text(start.task), *start.task.unlabelled]
    if settings.bilm is not None:
        model, vocabulary = load_bilm(settings.bilm, "bilm")
    else:
        text = own if settings.bilm_text is None else list(texts(CorpusSettings(source=settings.bilm_text)))
        lines = Lines.read(text)
        vocabulary = lines.vocabulary(settings.bilm_words)
        model = new_bilm(settings, vocabulary, start.seed)
        phases["bilm"] = _learn(model, lines, vocabulary, settings, settings.bilm_epochs, start, "bilm")
    if settings.tune_epochs:
        lines = Lines.read(own)
        model, vocabulary = with_softmax(model, vocabulary, lines, settings.bilm_words, start.seed)
        phases["tune"] = _learn(model, lines, vocabulary, settings, settings.tune_epochs, start, "tune")
    reader = BiLMReader(model.requires_grad_(False).eval(), settings.max_length, settings.read_layers == "all")
    return train_task_model(start, settings, reader, phases)


def train_bilm(
    source: str, folder: Path, settings: BiLMSettings, *, seed: int = 0, precision: Any = "float32"
) -> Trained:
    """Train a new biLM on text and write it to ``folder`` (config.json, model.safetensors, vocabulary.txt), for ``bilm: FOLDER``.

    Stopped and called again with the same arguments it resumes, and ends in the same bits. Raises ``EunoeError`` for text that
    cannot be read, and for a folder with a biLM of other text, settings, seed or precision.

    >>> train_bilm("wiki.txt", Path("my_bilm"), BiLMSettings(bilm_epochs=1))  # doctest: +SKIP
    """
    lines = Lines.read(texts(CorpusSettings(source=source)))
    vocabulary = lines.vocabulary(settings.bilm_words)
    model = new_bilm(settings, vocabulary, seed)
    done = learn_bilm(model, lines, vocabulary, settings, settings.bilm_epochs, folder / "steps", seed, f"biLM on {source}",
                      {"settings": repr(settings), "seed": str(seed), "precision": str(precision)}, precision)  # fmt: skip
    write_text(folder / VOCABULARY, "".join(f"{word}\n" for word in vocabulary))
    model.save_pretrained(folder)
    return done


def load_bilm(name: str, where: str) -> tuple[BiLM, list[str]]:
    """The biLM of a folder and the words of its softmax ([] where it has none); raises ``EunoeError`` naming what is missing."""
    folder = Path(expand(name))
    weights = sorted(folder.glob("*weights*.hdf5")) or sorted(folder.glob("*.hdf5"))
    options = next(iter(sorted(folder.glob("*options.json"))), None)
    if options is not None and len(weights) == 1:
        return load_release(options, weights[0]), []
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise EunoeError(f"{where}: {visible(name)!r} is not the folder of a biLM. It holds options.json and one .hdf5 file (released), or "
                         "config.json, model.safetensors and vocabulary.txt (train_bilm); this one has "
                         f"{', '.join(sorted(p.name for p in folder.glob('*'))[:8]) or 'none of them'}.")  # fmt: skip
    with reading(folder, "Is it a folder that train_bilm wrote?"):
        if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") != BiLMConfig.model_type:
            raise EunoeError(
                f"{where}: {visible(name)!r} holds a model, but not a biLM (model_type {BiLMConfig.model_type})."
            )
        model: BiLM = BiLM.from_pretrained(folder)
        words = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1] if model.config.words else []
    if len(words) != model.config.words:
        raise EunoeError(
            f"{where}: {VOCABULARY} in {visible(name)!r} has {len(words)} words, its softmax {model.config.words}."
        )
    return model.eval(), words


# -- text as words ----------------------------------------------------------------------------------------------
def own_text(task: Task) -> list[str | Sequence[str]]:
    """The texts of the task's training rows; of tagging rows their words."""
    return [example.tokens or text.text for example in task.train for text in words_of(example) if text is not None]


@dataclass(frozen=True)
class Lines:
    """Text as sentences (the lines of its documents) of words, by number: ``words[i]`` is word i, ``sentences`` hold numbers."""

    words: list[str]
    sentences: list[NDArray[np.int64]]

    @classmethod
    def read(cls, documents: Iterable[str | Sequence[str]]) -> Lines:
        """Of documents, or of sentences that are words already; raises ``EunoeError`` where there are fewer than two words."""
        number: dict[str, int] = {BEGIN: 0, END: 1}
        sentences = []
        for document in documents:
            for words in map(split_words, document.splitlines()) if isinstance(document, str) else [document]:
                if len(words):
                    sentences.append(np.array([number.setdefault(f" {word}", len(number)) for word in words]))
        if sum(map(len, sentences)) < 2:
            raise EunoeError("the text to train a biLM on has fewer than two words. Give more text.")
        return cls([word.removeprefix(" ") for word in number], sentences)

    def vocabulary(self, most: int) -> list[str]:
        """The marks and the most frequent words, frequent ones first, as the drawing of samples needs them."""
        counts = Counter(int(i) for sentence in self.sentences for i in sentence)
        order = sorted(counts, key=lambda i: (-counts[i], self.words[i]))
        return [*_MARKS, *(self.words[i] for i in order[: max(1, most - len(_MARKS))])]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the words, in order."""
        total = hashlib.sha256("\n".join(self.words).encode())
        for sentence in self.sentences:
            total.update(sentence.tobytes() + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class StreamBatches:
    """``batches[step]``: the next words of every stream, for both directions, with what they should predict.

    Sentences between their bounds are laid end to end, in an order of each epoch's own, and cut into ``batch`` streams of one
    length; for the backward direction each sentence is turned round first. What is left over at the end is not read.
    """

    lines: Lines
    vocabulary: tuple[str, ...]
    batch: int
    unroll: int
    epochs: float
    seed: int
    longest: int
    _kept: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        refuse_larger(self.streams, self.unroll * self.longest, "streams")

    @cached_property
    def total(self) -> int:
        """Words to read in an epoch, the bounds among them; the last is only predicted."""
        return sum(len(sentence) + 2 for sentence in self.lines.sentences) - 1

    @cached_property
    def streams(self) -> int:
        """Streams that there is text for: each has a step's words at least, where the text has so many."""
        return max(1, min(self.batch, self.total // self.unroll))

    @cached_property
    def per_epoch(self) -> int:
        return -(-(self.total // self.streams) // self.unroll)

    def __len__(self) -> int:
        return max(1, round(self.per_epoch * self.epochs))

    def __getitem__(self, step: int) -> list[Batch]:
        epoch, place = divmod(step, self.per_epoch)
        batch: Batch = {}
        for d, stream in enumerate(self._laid(epoch)):
            length = self.total // self.streams
            ids = np.lib.stride_tricks.as_strided(
                stream, (self.streams, length + 1), (length * stream.strides[0], stream.strides[0])
            )
            ids = ids[:, place * self.unroll : (place + 1) * self.unroll + 1]
            batch["characters_back" if d else "characters"] = torch.from_numpy(
                self._characters[ids[:, :-1]].astype(np.int64)
            )
            batch["labels_back" if d else "labels"] = torch.from_numpy(self._numbers[ids[:, 1:]])
        return [batch | {"input_ids": batch["labels"]}]

    def _laid(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The words of an epoch in its order, for both directions; the last one is kept."""
        if epoch not in self._kept:
            order = permutation(self.seed, epoch, len(self.lines.sentences))
            forward = [np.concatenate([[0], self.lines.sentences[i], [1]]) for i in order]
            self._kept.clear()
            self._kept[epoch] = np.concatenate(forward), np.concatenate([sentence[::-1] for sentence in forward])
        return self._kept[epoch]

    @cached_property
    def _characters(self) -> NDArray[np.uint16]:
        begin, end = bounds(self.longest)
        return np.array([begin, end, *(characters(word, self.longest) for word in self.lines.words[2:])], np.uint16)

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """The vocabulary's number of each word of the text."""
        index = {word: i for i, word in enumerate(self.vocabulary[len(_MARKS) :], len(_MARKS))}
        unknown = _MARKS.index(UNKNOWN)
        return np.array(
            [_MARKS.index(BEGIN), _MARKS.index(END), *(index.get(word, unknown) for word in self.lines.words[2:])]
        )


# -- training ---------------------------------------------------------------------------------------------------
class BiLMLoss:
    """The mean of both directions' losses (nats), summed over the words; it carries the state from batch to batch."""

    def __init__(self, model: BiLM, streams: int, samples: int) -> None:
        self.state, self.samples = model.start(streams), samples

    def items(self, batch: Batch) -> int:
        """How many words are predicted, in each direction."""
        return batch["labels"].numel()

    def __call__(self, model: Any, batch: Batch) -> LossSum:
        model, state = getattr(model, "module", model), State(*(part.to(batch["labels"].device) for part in self.state))
        vectors = model.encoder(torch.cat([batch["characters"], batch["characters_back"]])).chunk(2)
        hidden, cells, losses = [], [], []
        for d, labels in enumerate((batch["labels"], batch["labels_back"])):
            layers, h, c = model.read(
                d, vectors[d], None, state, backward=False
            )  # the backward stream is turned round already
            out = model.dropout(layers[-1]).flatten(0, 1)
            losses.append(
                vocabulary_loss(out, labels.flatten(), model.softmax_weight, model.softmax_bias, self.samples)
            )
            hidden.append(torch.stack(h))
            cells.append(torch.stack(c))
        self.state = State(torch.stack(hidden).detach().float(), torch.stack(cells).detach().float())
        return LossSum((losses[0] + losses[1]) / 2, self.items(batch), None)

    def state_dict(self) -> dict[str, Tensor]:
        return self.state._asdict()

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        self.state = State(**saved)


def new_bilm(settings: BiLMSettings, vocabulary: Sequence[str], seed: int) -> BiLM:
    """A fresh biLM whose softmax knows ``vocabulary``."""
    torch.manual_seed(seed)
    return BiLM(BiLMConfig(
        filters=settings.bilm_filters, width=settings.bilm_width, cells=settings.bilm_cells, dropout=settings.bilm_dropout,
        words=len(vocabulary),
    ))  # fmt: skip


def with_softmax(model: BiLM, vocabulary: list[str], lines: Lines, most: int, seed: int) -> tuple[BiLM, list[str]]:
    """The biLM with a softmax: its own, or a fresh one over the words of ``lines`` where it came without."""
    if vocabulary:
        return model, vocabulary
    words = lines.vocabulary(most)
    torch.manual_seed(seed)
    config = BiLMConfig(**{**model.config.to_dict(), "words": len(words)})
    larger = BiLM(config)
    larger.load_state_dict(model.state_dict(), strict=False)
    return larger, words


def learn_bilm(
    model: BiLM, lines: Lines, vocabulary: Sequence[str], settings: BiLMSettings, epochs: float, folder: Path | None, seed: int,
    name: str, identity: dict[str, str], precision: Any, checkpoint_every: int = 200,
) -> Trained:  # fmt: skip
    """Train a biLM in place on text, resumable.

    bilm-tf takes the gradient of the loss times ``bilm_unroll``, with 1 in Adagrad's sums at the start and a norm of 10 at most. Dividing
    these two as the gradient would be multiplied is the same, and leaves the loss that is shown in nats a word.
    """
    batches = StreamBatches(lines, tuple(vocabulary), settings.bilm_batch, settings.bilm_unroll, epochs, seed,
                            model.config.longest_word)  # fmt: skip
    loss = BiLMLoss(model, batches.streams, settings.bilm_samples)
    times = settings.bilm_unroll
    loop = LoopSettings(lr=settings.bilm_lr, schedule="constant", warmup=0.0, clip=10.0 / times, precision=precision,
                        checkpoint_every=checkpoint_every)  # fmt: skip
    return phase(
        model, batches, loss,
        lambda m: torch.optim.Adagrad(m.parameters(), settings.bilm_lr, initial_accumulator_value=times**-2, eps=0.0), loop,
        None, {}, folder, name=name, seed=seed, identity={**identity, "text": lines.identity}, carry=loss, keep_last=True,
    )  # fmt: skip


def _learn(
    model: BiLM, lines: Lines, vocabulary: Sequence[str], settings: ElmoSettings, epochs: float, start: Start, part: str
) -> Trained:
    folder = None if start.folder is None else start.folder / part
    return learn_bilm(model, lines, vocabulary, settings, epochs, folder, start.seed, f"{start.name or start.task.name} · {part}",
                      dict(start.identity), settings.precision, settings.checkpoint_every)  # fmt: skip


__all__ = [
    "BiLMLoss", "BiLMSettings", "ElmoSettings", "Lines", "StreamBatches", "check", "elmo", "learn_bilm", "load_bilm", "reads",
    "train_bilm",
]  # fmt: skip
