"""Task models over features of words: what word vectors, ELMo and the layers of a frozen model are given to.

A BiLSTM whose states are pooled (one text), two texts that attend to each other (after ESIM, ACL 2017,
https://arxiv.org/abs/1609.06038, which ELMo's paper has for SNLI), and a BiLSTM tagger with or without a CRF (ELMo's NER). The
features enter below the BiLSTM, beside what leaves it, or both, each place with a mix of its own, as ELMo's paper has it.

Different from ESIM: one dropout, between the parts, and a regression gives one number. Question answering, semantic roles
and coreference, ELMo's other tasks, are not here.

A batch holds of each text ``attention_mask`` (B, T) and, where there are any, ``vectors`` (B, T, V), ``layers`` (B, T, L, W) and
``input_ids`` (B, T), rows of the table of tuned word vectors; of a second text the same with ``pair_`` in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from eunoe.models.crf import CRF
from eunoe.models.cross_entropy import at_least_float32
from eunoe.models.mix import ScalarMix

Placement = Literal["input", "output", "both"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a task model reads and how large it is."""

    vectors: int = 0
    """Width of the word vectors; 0: there are none."""
    tuned: int = 0
    """Words whose vectors are tuned; 0: they are as they were given."""
    layers: int = 0
    """Layers of the frozen model; 0: there are none."""
    width: int = 0
    """Width of a layer."""
    placement: Placement = "input"
    layer_norm: bool = False
    cells: int = 128
    """Cells of a BiLSTM in each direction."""
    lstm_layers: int = 1
    dropout: float = 0.5


class Inputs(nn.Module):
    """Features of words -> what enters the BiLSTM, and what stands beside its output.

    A tuned word vector is the given one plus a change that starts at 0, for each word of the training rows: other words keep
    the vectors that they were given, and weight decay pulls to those, not to 0.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        placed = shape.placement if shape.layers else None
        below, beside = placed in ("input", "both"), placed in ("output", "both")
        self.below = ScalarMix(shape.layers, shape.layer_norm) if below else None
        self.beside = ScalarMix(shape.layers, shape.layer_norm) if beside else None
        self.change = nn.Embedding(shape.tuned + 1, shape.vectors, padding_idx=0) if shape.tuned else None
        if self.change is not None:
            nn.init.zeros_(self.change.weight)
        self.dropout = nn.Dropout(shape.dropout)
        self.width = shape.vectors + (shape.width if below else 0)
        self.width_beside = shape.width if beside else 0

    def forward(self, batch: Mapping[str, Tensor], which: str = "") -> tuple[Tensor, Tensor | None, Tensor]:
        """Inputs (B, T, ``width``), what stands beside (B, T, ``width_beside``) or None, and the mask (B, T), of one text."""
        mask = batch[f"{which}attention_mask"].bool()
        parts = []
        if f"{which}vectors" in batch:
            vectors = batch[f"{which}vectors"]
            parts.append(vectors if self.change is None else vectors + self.change(batch[f"{which}input_ids"]))
        if self.below is not None:
            parts.append(self.below(batch[f"{which}layers"], mask))
        beside = None if self.beside is None else self.dropout(self.beside(batch[f"{which}layers"], mask))
        return self.dropout(torch.cat(parts, -1)), beside, mask

    def pull(self) -> Tensor:
        """The squared length of all mixing weights."""
        mixes = [mix.pull() for mix in (self.below, self.beside) if mix is not None]
        return torch.stack(mixes).sum() if mixes else torch.zeros(())


class BiLSTM(nn.Module):
    """(B, T, inputs) and its mask (B, T), real positions first -> (B, T, 2 cells), zero at padding.

    Each direction reads whole padded rows, the backward one with the words of each row turned round: what stands behind a
    row's end changes nothing before it. torch's kernel for packed rows takes about twice as long on rows of different lengths.
    """

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        sizes = [inputs] + [2 * shape.cells] * (shape.lstm_layers - 1)
        # drawn as torch.nn.LSTM(bidirectional=True) draws its own: layer by layer, forward first
        self.ahead, self.back = nn.ModuleList(), nn.ModuleList()
        for size in sizes:
            for direction in (self.ahead, self.back):
                direction.append(nn.LSTM(size, shape.cells, batch_first=True))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, words = mask.shape
        at = torch.arange(words, device=x.device)
        starts = words * torch.arange(rows, device=x.device)[:, None]
        turned = (starts + torch.where(mask, mask.sum(1, keepdim=True) - 1 - at, at)).flatten()

        def turn(states: Tensor) -> Tensor:
            return states.flatten(0, 1).index_select(0, turned).view_as(states)

        for i, (ahead, back) in enumerate(zip(self.ahead, self.back, strict=True)):
            x = x if i == 0 else self.dropout(x)
            x = torch.cat([ahead(x)[0], turn(back(turn(x))[0])], -1)
        return x * mask[..., None]


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, width) -> (B, 2 width): the mean and the maximum over the real positions."""
    real = mask[..., None]
    mean = (states * real).sum(1) / real.sum(1)
    return torch.cat([mean, states.masked_fill(~real, -torch.inf).amax(1)], -1)


class PoolClassifier(nn.Module):
    """One text: BiLSTM, mean and maximum over its words, a hidden layer. ``logits`` (B, labels); one label means regression."""

    def __init__(self, shape: Shape, labels: int) -> None:
        super().__init__()
        self.inputs = Inputs(shape)
        self.lstm = BiLSTM(self.inputs.width, shape)
        self.out = answer(2 * (2 * shape.cells + self.inputs.width_beside), shape, labels)

    def forward(self, **batch: Tensor) -> Tensor:
        x, beside, mask = self.inputs(batch)
        logits: Tensor = self.out(pooled(with_beside(self.lstm(x, mask), beside), mask))
        return logits


class PairClassifier(nn.Module):
    """Two texts that attend to each other: each word meets the other text's words that it is most like. ``logits`` (B, labels)."""

    def __init__(self, shape: Shape, labels: int) -> None:
        super().__init__()
        self.inputs = Inputs(shape)
        self.lstm = BiLSTM(self.inputs.width, shape)
        states = 2 * shape.cells + self.inputs.width_beside
        self.project = nn.Sequential(nn.Linear(4 * states, shape.cells), nn.ReLU(), nn.Dropout(shape.dropout))
        self.compose = BiLSTM(shape.cells, shape)
        self.out = answer(8 * shape.cells, shape, labels)

    def forward(self, **batch: Tensor) -> Tensor:
        texts = []
        for which in ("", "pair_"):
            x, beside, mask = self.inputs(batch, which)
            texts.append((with_beside(self.lstm(x, mask), beside), mask))
        (a, a_mask), (b, b_mask) = texts
        likeness = at_least_float32(a @ b.transpose(1, 2))
        a_sees = (likeness.masked_fill(~b_mask[:, None], -torch.inf).softmax(2) @ at_least_float32(b)).to(b.dtype)
        b_sees = (
            likeness.masked_fill(~a_mask[..., None], -torch.inf).softmax(1).transpose(1, 2) @ at_least_float32(a)
        ).to(a.dtype)
        vectors = []
        for states, sees, mask in ((a, a_sees, a_mask), (b, b_sees, b_mask)):
            met = self.project(torch.cat([states, sees, states - sees, states * sees], -1))
            vectors.append(pooled(self.compose(met, mask), mask))
        logits: Tensor = self.out(torch.cat(vectors, -1))
        return logits


class Tagger(nn.Module):
    """BiLSTM and a score for each tag at each word (B, T, tags); with ``crf`` neighbouring tags have a say."""

    def __init__(self, shape: Shape, tags: int, crf: bool) -> None:
        super().__init__()
        self.inputs = Inputs(shape)
        self.lstm = BiLSTM(self.inputs.width, shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.out = nn.Linear(2 * shape.cells + self.inputs.width_beside, tags)
        self.crf = CRF(tags) if crf else None

    def forward(self, **batch: Tensor) -> Tensor:
        x, beside, mask = self.inputs(batch)
        scores: Tensor = self.out(self.dropout(with_beside(self.lstm(x, mask), beside)))
        return scores

    def best(self, scores: Tensor, mask: Tensor) -> list[list[int]]:
        """The tags of each row, as long as the row."""
        if self.crf is not None:
            return self.crf.best(at_least_float32(scores), mask)
        return [row[:length] for row, length in zip(scores.argmax(-1).tolist(), mask.sum(1).tolist(), strict=True)]


def with_beside(states: Tensor, beside: Tensor | None) -> Tensor:
    """[h ; ELMo]: a BiLSTM's output with the features that stand beside it."""
    return states if beside is None else torch.cat([states, beside.to(states.dtype)], -1)


def answer(inputs: int, shape: Shape, labels: int) -> nn.Sequential:
    """dropout, hidden layer, tanh, dropout, output."""
    dropout = nn.Dropout(shape.dropout)
    return nn.Sequential(dropout, nn.Linear(inputs, shape.cells), nn.Tanh(), dropout, nn.Linear(shape.cells, labels))


__all__ = ["BiLSTM", "Inputs", "PairClassifier", "Placement", "PoolClassifier", "Shape", "Tagger", "pooled"]
