"""AWD-LSTM as a Hugging Face model: Merity, Keskar and Socher 2018, arXiv 1708.02182; after fastai 2's module.

A word embedding, a stack of one-layer LSTMs of which the last is as wide as the embedding, and a decoder tied to it. Five
dropouts, all off in evaluation: of word types, on the embedded text, on hidden-to-hidden weights (weight drop, a fresh mask for
each forward call), between layers and on what leaves the last one. Those on activations are *locked*: one mask for a
row, the same at every step.

What we do differently from fastai: the state is not kept inside the module but goes in and out, as Hugging Face's cache
(``past_key_values``), so that a call depends on its arguments alone; rows that are padded read the same numbers as alone,
wherever their padding stands; and dropping word types multiplies the vectors that are read, not the whole matrix (the same numbers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from eunoe.errors import EunoeError
from eunoe.models.awd.config import RATES, AwdLstmConfig, refuse_rate
from eunoe.models.awd.lstm import State, lstm


class AwdState:
    """What an AWD-LSTM has read: (h, c) of each layer, (rows, width) each. It is the cache that ``generate`` carries.

    A forward pass never changes the one it is given; it returns another.
    """

    is_compileable = False

    def __init__(self, layers: Sequence[State], seen: int = 0) -> None:
        self.layers = [(h, c) for h, c in layers]
        self.seen = seen
        """Steps that were read, padding included."""

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> State:
        return self.layers[layer]

    @property
    def rows(self) -> int:
        return int(self.layers[0][0].shape[0])

    def detach(self) -> AwdState:
        """The same numbers, through which no gradient passes: what the next piece of a text starts from."""
        return AwdState([(h.detach(), c.detach()) for h, c in self.layers], self.seen)

    def select(self, rows: Tensor) -> AwdState:
        """The state of these rows, in this order."""
        return AwdState([(h.index_select(0, rows), c.index_select(0, rows)) for h, c in self.layers], self.seen)

    # -- what transformers' generate asks of a cache ------------------------------------------------------------------
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Steps that were read."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows that a beam search chose, in place."""
        self.layers = self.select(beam_idx.to(self.layers[0][0].device)).layers

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times, in place."""
        self.layers = [(h.repeat_interleave(repeats, 0), c.repeat_interleave(repeats, 0)) for h, c in self.layers]

    def crop(self, max_length: int) -> None:
        raise EunoeError(
            "an LSTM's state cannot be shortened: what was read is not kept. Generate without an assistant model."
        )

    # -- in checkpoints ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number, as a checkpoint holds them."""
        return {"seen": self.seen, "h": [h for h, _ in self.layers], "c": [c for _, c in self.layers]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> AwdState:
        """The state that ``state_dict`` gave."""
        return cls(list(zip(state["h"], state["c"], strict=True)), int(state["seen"]))


@dataclass
class AwdLstmOutput(ModelOutput):  # type: ignore[misc]
    """What leaves the trunk: states with the output dropout, without it (``raw``, what AR and TAR read), and what was read."""

    last_hidden_state: Tensor | None = None
    """(B, T, width)"""
    past_key_values: AwdState | None = None
    raw: Tensor | None = None
    """(B, T, width)"""
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class AwdLstmLMOutput(ModelOutput):  # type: ignore[misc]
    """A language model's: loss (mean, nats), logits (B, T, vocabulary), what was read."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: AwdState | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def locked(x: Tensor, rate: float, training: bool) -> Tensor:
    """Variational dropout of ``x`` (steps, rows, width): one mask for each row and feature, the same at every step."""
    if not training or rate == 0:
        return x
    return x * F.dropout(x.new_ones(1, *x.shape[1:]), rate, True)


class WordEmbedding(nn.Embedding):
    """An embedding of which whole word types fall in training; what stays is scaled by 1 / (1 - rate)."""

    dropout = 0.0

    def forward(self, input: Tensor) -> Tensor:
        vectors = super().forward(input)
        if not self.training or self.dropout == 0:
            return vectors
        kept = F.dropout(self.weight.new_ones(self.num_embeddings), self.dropout, True)
        return vectors * kept[input][..., None]


class AwdLstmLayer(nn.Module):
    """One LSTM layer; ``weight_hh`` is the whole matrix, of which a share falls in each training forward call."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.dropout = dropout
        self.weight_ih = nn.Parameter(torch.empty(4 * width, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * width, width))
        self.bias_ih = nn.Parameter(torch.empty(4 * width))
        self.bias_hh = nn.Parameter(torch.empty(4 * width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's start for an LSTM: uniform within 1 / sqrt(width)."""
        for p in self.parameters():
            init.uniform_(p, -(self.width**-0.5), self.width**-0.5)

    def forward(self, x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """``x`` (T, B, inputs) -> states (T, B, width) and the state at the end."""
        w_hh = F.dropout(self.weight_hh, self.dropout, self.training)
        return lstm(x, state, self.weight_ih, w_hh, self.bias_ih, self.bias_hh, lengths)


class AwdLstmPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the three models share."""

    config_class = AwdLstmConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = False
    _is_stateful = True
    _no_split_modules = ("AwdLstmLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AwdLstmLayer):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            if module is self.get_output_embeddings():
                init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
            else:
                init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()
            module.reset_running_stats()


class AwdLstmModel(AwdLstmPreTrainedModel):
    """The trunk: token ids -> states.

    >>> tiny = AwdLstmConfig(vocab_size=9, hidden_size=4, cell_size=6, num_hidden_layers=2)
    >>> AwdLstmModel(tiny)(input_ids=torch.tensor([[2, 5, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 4])
    """

    def __init__(self, config: AwdLstmConfig) -> None:
        super().__init__(config)
        self.embeddings = WordEmbedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(
            AwdLstmLayer(inputs, width, config.weight_dropout) for inputs, width in config.widths()
        )
        self.input_dropout = config.input_dropout
        self.hidden_dropout = config.hidden_dropout
        self.output_dropout = config.output_dropout
        self.embeddings.dropout = config.embedding_dropout
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value  # type: ignore[assignment]

    def start(self, rows: int) -> AwdState:
        """The state of ``rows`` rows that have read nothing: zeros."""
        weight: Any = self.layers[0].weight_hh
        dtype = torch.promote_types(weight.dtype, torch.float32)
        widths = [width for _, width in self.config.widths()]
        blank = (torch.zeros(rows, width, dtype=dtype, device=weight.device) for width in widths)
        return AwdState([(zero, zero.clone()) for zero in blank])

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        past_key_values: AwdState | None = None, inputs_embeds: Tensor | None = None, use_cache: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """``input_ids`` (B, T), or ``inputs_embeds`` (B, T, width); ``attention_mask`` (B, T): 0 at padding, which may stand anywhere: it
        leaves the state as it was, and its own states are 0. ``past_key_values``: what was read before.

        Raises ``EunoeError`` for neither or both inputs, and for a state of another number of rows or layers.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise EunoeError(
                "an AWD-LSTM reads input_ids or inputs_embeds; received both or neither. Give one of them."
            )
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        rows, steps = x.shape[:2]
        state = self.start(rows) if past_key_values is None else past_key_values
        self._refuse_state(state, rows)
        order, lengths = None, None
        if attention_mask is not None:
            real = attention_mask[:, -steps:].to(torch.bool)
            if not bool(real.all()):  # padding goes to the end, where it moves nothing that counts
                order = (~real).to(torch.int8).argsort(dim=1, stable=True)
                lengths = real.sum(1)
                x = x.gather(1, order[..., None].expand_as(x))
        x = locked(x.transpose(0, 1), self.input_dropout, self.training)
        ends: list[State] = []
        collected: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x, end = layer(x, state[i], lengths)
            ends.append(end)
            collected.append(x)
            if i < len(self.layers) - 1:
                x = locked(x, self.hidden_dropout, self.training)
        last = locked(x, self.output_dropout, self.training)

        def back(states: Tensor) -> Tensor:
            """(T, B, width) -> (B, T, width), each state where its token stands."""
            states = states.transpose(0, 1)
            if order is None or lengths is None:
                return states
            counts = torch.arange(steps, device=states.device)[None, :] < lengths[:, None]
            laid: Tensor = torch.zeros_like(states).scatter(
                1, order[..., None].expand_as(states), states * counts[..., None]
            )
            return laid

        read = AwdState(ends, state.seen + steps)
        keep = use_cache if use_cache is not None else (self.config.use_cache and not self.training)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        out = AwdLstmOutput(
            last_hidden_state=back(last),
            past_key_values=read if keep else None,
            raw=back(x),
            hidden_states=tuple(map(back, collected)) if wanted else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()

    def _refuse_state(self, state: AwdState, rows: int) -> None:
        widths = [layer.width for layer in self.layers]
        given_widths = [h.shape[1] for h, _ in state.layers]
        if given_widths != widths:
            raise EunoeError(f"the state given as past_key_values is of layers {given_widths} wide, the model's are {widths}. Start from "
                             "model.start(rows), or from what this model returned.")  # fmt: skip
        if state.rows != rows:
            raise EunoeError(f"the state given as past_key_values is of {state.rows} rows, the text has {rows}. Choose rows with "
                             "state.select(rows).")  # fmt: skip


class AwdLstmForCausalLM(AwdLstmPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The language model: the trunk and a decoder tied to its embedding.

    ``backward`` of its configuration: it was trained on text from its end; what reads text for it must turn it round
    (``eunoe.data.tokens`` does where the tokenizer's ``backward`` says so).
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: AwdLstmConfig) -> None:
        super().__init__(config)
        self.transformer = AwdLstmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is of its own kind: a forward pass makes it

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, past_key_values: AwdState | None = None,
        attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False,
        use_cache: bool | None = None, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What the next forward call reads: after the first one, the tokens that the state has not seen."""
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        given: dict[str, Any] = {"input_ids": new.contiguous()}
        if inputs_embeds is not None and is_first_iteration:
            given = {"inputs_embeds": inputs_embeds}
        return given | {"past_key_values": past_key_values, "attention_mask": attention_mask, "use_cache": use_cache}

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        past_key_values: AwdState | None = None, inputs_embeds: Tensor | None = None, labels: Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, output_hidden_states: bool | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Logits (B, T, vocabulary); with ``labels`` (B, T), -100 where none, also the mean loss of each next token."""
        read = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=use_cache, output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        hidden = read.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.lm_head(hidden[:, kept if isinstance(logits_to_keep, int) else logits_to_keep])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        out = AwdLstmLMOutput(
            loss=loss, logits=logits, past_key_values=read.past_key_values, hidden_states=read.hidden_states
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()


def set_rates(model: nn.Module, rates: Mapping[str, float], times: float = 1.0) -> None:
    """Set dropouts of a built AWD-LSTM (whatever stands around it), by their names in ``RATES``, each multiplied by ``times``.

    The configuration is told too, so that a saved model remembers. Raises ``EunoeError`` for unknown names, rates outside
    [0, 1) and a module without an AWD-LSTM inside.

    >>> model = AwdLstmModel(AwdLstmConfig(vocab_size=9, hidden_size=4, cell_size=6))
    >>> set_rates(model, {"input_dropout": 0.4}, times=0.5)
    >>> model.input_dropout
    0.2
    """
    trunks = [m for m in model.modules() if isinstance(m, AwdLstmModel)]
    if not trunks:
        raise EunoeError(f"{type(model).__name__} has no AWD-LSTM inside, so it has none of its five dropouts.")
    unknown = sorted(set(rates) - set(RATES))
    if unknown:
        raise EunoeError(f"{', '.join(unknown)}: no dropout of an AWD-LSTM. Allowed: {', '.join(RATES)}.")
    for trunk in trunks:
        for name, rate in rates.items():
            value = rate * times
            refuse_rate(name, value)
            setattr(trunk.config, name, value)
            if name == "embedding_dropout":
                trunk.embeddings.dropout = value
            elif name == "weight_dropout":
                for layer in trunk.layers:
                    setattr(layer, "dropout", value)  # noqa: B010 - a ModuleList's entries are only known to be modules
            else:
                setattr(trunk, name, value)


__all__ = ["AwdLstmForCausalLM", "AwdLstmLMOutput", "AwdLstmLayer", "AwdLstmModel", "AwdLstmOutput", "AwdLstmPreTrainedModel", "AwdState",
           "WordEmbedding", "locked", "set_rates"]  # fmt: skip
