"""ELMo's bidirectional language model (NAACL 2018, https://arxiv.org/abs/1802.05365), as a model of transformers.

A word's characters pass a convolution of several widths, maximum over the word, ReLU, highway layers and a projection; two
stacks of LSTMs with projection read the words, one from the left, one from the right. The reference is bilm-tf
(https://github.com/allenai/bilm-tf, Apache-2.0): cell and projection are clipped, and a connection skips every LSTM but the
first. ``models/bilm_release.py`` reads its files.

Different from it: the state that the LSTMs are left in is returned and not kept inside, so that what a sentence becomes
depends on what the caller gives alone. bilm-tf keeps it from call to call, and the same sentence gets other vectors each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from eunoe.data.words import CHARACTERS, LONGEST_WORD
from eunoe.errors import EunoeError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


class BiLMConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of a biLM; the defaults are those of the released original model."""

    model_type = "eunoe-bilm"

    def __init__(
        self, filters: Any = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)), character_width: int = 16,
        characters: int = CHARACTERS, longest_word: int = LONGEST_WORD, activation: str = "relu", highways: int = 2,
        width: int = 512, cells: int = 4096, lstm_layers: int = 2, cell_clip: float | None = 3.0,
        projection_clip: float | None = 3.0, skip: bool = True, dropout: float = 0.1, words: int = 0, **more: Any,
    ) -> None:  # fmt: skip
        self.filters = [list(pair) for pair in filters]
        """(characters that a filter spans, how many there are of it)."""
        self.character_width, self.characters, self.longest_word = character_width, characters, longest_word
        self.activation, self.highways, self.width = activation, highways, width
        self.cells, self.lstm_layers = cells, lstm_layers
        self.cell_clip, self.projection_clip, self.skip, self.dropout = cell_clip, projection_clip, skip, dropout
        self.words = words
        """Words that the softmax knows; 0: there is none (the released models come without)."""
        super().__init__(**more)


class State(NamedTuple):
    """Where the LSTMs stand: ``hidden`` (directions, layers, B, width), ``cell`` (directions, layers, B, cells)."""

    hidden: Tensor
    cell: Tensor


class CharacterEncoder(nn.Module):
    """Character numbers (B, T, characters of a word) -> word vectors (B, T, width)."""

    def __init__(self, config: BiLMConfig) -> None:
        super().__init__()
        if config.activation not in ACTIVATIONS:
            raise EunoeError(f"a biLM's activation is {config.activation!r}; allowed: {', '.join(ACTIVATIONS)}.")
        self.activation = ACTIVATIONS[config.activation]
        size, out = config.character_width, sum(count for _, count in config.filters)
        self.table = nn.Embedding(config.characters, size, padding_idx=0)
        self.filters = nn.ModuleList(nn.Conv1d(size, count, span) for span, count in config.filters)
        self.highways = nn.ModuleList(Highway(out) for _ in range(config.highways))
        self.projection = nn.Linear(out, config.width)
        nn.init.uniform_(self.table.weight, -1.0, 1.0)
        with torch.no_grad():
            self.table.weight[0] = 0  # padding
        for convolve in self.filters:
            assert isinstance(convolve, nn.Conv1d)
            if config.activation == "relu":
                nn.init.uniform_(convolve.weight, -0.05, 0.05)
            else:
                nn.init.normal_(convolve.weight, std=convolve.weight[0].numel() ** -0.5)
            if convolve.bias is not None:
                nn.init.zeros_(convolve.bias)
        _normal(self.projection)

    def forward(self, characters: Tensor) -> Tensor:
        letters = self.table(characters.flatten(0, 1)).transpose(1, 2)
        # the activation rises with its argument, so it may follow the maximum: a fiftieth of the work
        state = torch.cat([self.activation(convolve(letters).amax(-1)) for convolve in self.filters], -1)
        for highway in self.highways:
            state = highway(state)
        out: Tensor = self.projection(state).view(*characters.shape[:2], -1)
        return out


def _normal(linear: nn.Linear) -> None:
    """bilm-tf's start of a linear layer."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    nn.init.zeros_(linear.bias)


class Highway(nn.Module):
    """y = g ReLU(W x + b) + (1 - g) x with g = sigmoid(V x + c); c starts at -2, so that x passes at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.carry = nn.Linear(width, width), nn.Linear(width, width)
        _normal(self.transform)
        _normal(self.carry)
        nn.init.constant_(self.carry.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.carry(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


class ClippedLSTM(nn.Module):
    """One direction of one layer: an LSTM whose cell is clipped, with a projection of its output, clipped too.

    torch's LSTM has the projection but not the clips, so time runs in a loop here; what does not wait for it (the input's
    share of the gates) is one product for all positions.
    """

    def __init__(
        self, inputs: int, cells: int, width: int, cell_clip: float | None, projection_clip: float | None
    ) -> None:
        super().__init__()
        self.cell_clip, self.projection_clip = cell_clip, projection_clip
        self.weight_input = nn.Parameter(torch.empty(4 * cells, inputs))
        """Gates in torch's order: input, forget, candidate, output."""
        self.weight_hidden = nn.Parameter(torch.empty(4 * cells, width))
        self.bias = nn.Parameter(torch.zeros(4 * cells))
        self.projection = nn.Parameter(torch.empty(width, cells)) if width != cells else None
        self.start_afresh()

    def start_afresh(self) -> None:
        """Uniform weights as TensorFlow's LSTM has them (Glorot, over one matrix for input and state), forget gates open (bias 1)."""
        cells = len(self.bias) // 4
        reads = self.weight_input.shape[1] + self.weight_hidden.shape[1]
        for weight, sides in (
            (self.weight_input, reads + 4 * cells),
            (self.weight_hidden, reads + 4 * cells),
            (self.projection, cells + self.weight_hidden.shape[1]),
        ):
            if weight is not None:
                nn.init.uniform_(weight, -(bound := math.sqrt(6 / sides)), bound)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.bias[cells : 2 * cells])

    def forward(
        self, x: Tensor, mask: Tensor | None, h: Tensor, c: Tensor, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` (B, T, inputs), ``mask`` (B, T) bool or None: all are real; ``h`` (B, width), ``c`` (B, cells).

        Returns the outputs (B, T, width), zero at padding, and the state after the last real position that it read.
        """
        gates = F.linear(x, self.weight_input, self.bias)
        outputs: list[Tensor] = []
        for t in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
            i, f, g, o = (gates[:, t] + h @ self.weight_hidden.T).chunk(4, -1)
            cell = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            if self.cell_clip:
                cell = cell.clamp(-self.cell_clip, self.cell_clip)
            out = torch.sigmoid(o) * torch.tanh(cell)
            if self.projection is not None:
                out = out @ self.projection.T
            if (
                self.projection_clip and self.projection is not None
            ):  # as TensorFlow's cell: it clips the projection alone
                out = out.clamp(-self.projection_clip, self.projection_clip)
            if mask is None:
                h, c = out, cell
            else:
                real = mask[:, t, None]
                h, c = torch.where(real, out, h), torch.where(real, cell, c)
                out = out * real
            outputs.append(out)
        return torch.stack(outputs[::-1] if backward else outputs, 1), h, c


class BiLM(PreTrainedModel):  # type: ignore[misc]
    """Characters of words -> the vectors of all layers.

    >>> model = BiLM(BiLMConfig(filters=[(1, 4)], character_width=4, width=8, cells=16)).eval()
    >>> layers, state = model(torch.ones(2, 5, 50, dtype=torch.long))
    >>> layers.shape, state.hidden.shape  # (B, layers + 1, T, 2 width)
    (torch.Size([2, 3, 5, 16]), torch.Size([2, 2, 2, 8]))
    """

    config_class = BiLMConfig
    base_model_prefix = "bilm"
    main_input_name = "characters"

    def __init__(self, config: BiLMConfig) -> None:
        super().__init__(config)
        self.encoder = CharacterEncoder(config)
        self.lstms = nn.ModuleList(
            nn.ModuleList(
                ClippedLSTM(config.width, config.cells, config.width, config.cell_clip, config.projection_clip)
                for _ in range(config.lstm_layers)
            )
            for _ in ("forward", "backward")
        )
        if config.words:
            self.softmax_weight = nn.Parameter(torch.empty(config.words, config.width))
            self.softmax_bias = nn.Parameter(torch.zeros(config.words))
            nn.init.normal_(self.softmax_weight, std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part draws its own start when it is made."""

    def start(self, batch: int) -> State:
        """The state before any text: zeros."""
        shape = (2, self.config.lstm_layers, batch)
        at = self.encoder.projection.weight
        return State(at.new_zeros(*shape, self.config.width), at.new_zeros(*shape, self.config.cells))

    def read(
        self, direction: int, vectors: Tensor, mask: Tensor | None, state: State, backward: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Word vectors (B, T, width) through the LSTMs of one direction, from the right if ``backward``.

        Returns what each layer gives (B, T, width), and its hidden and cell state at the end.
        """
        layers: list[Tensor] = []
        hidden: list[Tensor] = []
        cells: list[Tensor] = []
        x = vectors
        lstms: Any = self.lstms[direction]
        for i, lstm in enumerate(lstms):
            given = self.dropout(x)  # what is added to the output too, as bilm-tf wraps its cells
            out, h, c = lstm(given, mask, state.hidden[direction, i], state.cell[direction, i], backward)
            x = out + given if self.config.skip and i else out
            layers.append(x)
            hidden.append(h)
            cells.append(c)
        return layers, hidden, cells

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``characters`` (B, T, longest word), 0 after a row's end -> layers (B, lstm_layers + 1, T, 2 width) and the state.

        Layer 0 is the word's own vector twice, the others forward and backward state side by side; zero at padding. Bounds
        of the sentences are words like others: ``data.words.character_rows`` puts them around.
        """
        if characters.dim() != 3 or characters.shape[-1] != self.config.longest_word:
            raise EunoeError(f"a biLM reads characters of shape (rows, words, {self.config.longest_word}), received "
                             f"{tuple(characters.shape)}. Make them with data.words.character_rows.")  # fmt: skip
        mask = (characters > 0).any(-1)
        vectors = self.encoder(characters) * mask[..., None]
        state = self.start(len(characters)) if state is None else state
        partly = None if bool(mask.all()) else mask
        sides = [self.read(d, vectors, partly, state, backward=bool(d)) for d in (0, 1)]
        pairs = [(vectors, vectors), *zip(sides[0][0], sides[1][0], strict=True)]
        after = State(*(torch.stack([torch.stack(side[i]) for side in sides]) for i in (1, 2)))
        return torch.stack([torch.cat(pair, -1) for pair in pairs], 1), after


__all__ = ["BiLM", "BiLMConfig", "CharacterEncoder", "ClippedLSTM", "Highway", "State"]
