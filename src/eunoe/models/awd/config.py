"""The configuration of an AWD-LSTM; defaults are those of fastai's published language model (arXiv 1708.02182)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from eunoe.errors import EunoeError

RATES = ("output_dropout", "hidden_dropout", "input_dropout", "embedding_dropout", "weight_dropout")
"""The five dropouts: after the last layer, between layers, on the embedded text, of whole word types, of hidden-to-hidden weights."""
LM_RATES = dict(zip(RATES, (0.1, 0.15, 0.25, 0.02, 0.2), strict=True))
"""fastai's for a language model; those of Merity et al. are twice these or more (0.4, 0.3, 0.65, 0.1, 0.5)."""
CLASSIFIER_RATES = dict(zip(RATES, (0.4, 0.3, 0.4, 0.05, 0.5), strict=True))
"""Those of ULMFiT's classifier (arXiv 1801.06146)."""
PAPER_RATES = dict(zip(RATES, (0.4, 0.3, 0.65, 0.1, 0.5), strict=True))
"""The defaults of Merity et al.'s program."""


class AwdLstmConfig(PretrainedConfig):  # type: ignore[misc]
    """How large an AWD-LSTM is, and how much of it falls in training.

    ``hidden_size`` is the width of the embedding and of what leaves the last layer; ``cell_size`` that of the layers between (1150 in
    the paper, 1152 in fastai). ``backward``: the model was trained on text read from its end, as its tokenizer must read it.
    ``pooled``, ``chunk``, ``padding``, ``head_size``, ``head_dropout`` are the classifier's (``AwdLstmForSequenceClassification``).

    Raises ``EunoeError`` for sizes below 1 and rates outside [0, 1).

    >>> AwdLstmConfig(vocab_size=100).cell_size
    1152
    """

    model_type = "awd_lstm"
    keys_to_ignore_at_inference = ["past_key_values", "hidden", "raw", "mask"]  # noqa: RUF012 - the Trainer adds to it

    def __init__(
        self, vocab_size: int = 60_000, hidden_size: int = 400, cell_size: int = 1152, num_hidden_layers: int = 3,
        output_dropout: float = 0.1, hidden_dropout: float = 0.15, input_dropout: float = 0.25,
        embedding_dropout: float = 0.02, weight_dropout: float = 0.2, output_bias: bool = True, backward: bool = False,
        initializer_range: float = 0.1, pad_token_id: int | None = 1, bos_token_id: int | None = 2,
        eos_token_id: int | None = None, tie_word_embeddings: bool = True, use_cache: bool = True, chunk: int = 72,
        pooled: int = 1440, padding: str = "exact", head_size: int = 50, head_dropout: float = 0.1, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.vocab_size, self.hidden_size, self.cell_size = vocab_size, hidden_size, cell_size
        self.num_hidden_layers = num_hidden_layers
        self.output_dropout, self.hidden_dropout, self.input_dropout = output_dropout, hidden_dropout, input_dropout
        self.embedding_dropout, self.weight_dropout = embedding_dropout, weight_dropout
        self.output_bias, self.backward, self.initializer_range = output_bias, backward, initializer_range
        self.use_cache, self.chunk, self.pooled, self.padding = use_cache, chunk, pooled, padding
        self.head_size, self.head_dropout = head_size, head_dropout
        # in transformers 5 these are fields of a model, no longer of the base
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        for name in ("vocab_size", "hidden_size", "cell_size", "num_hidden_layers", "chunk", "pooled", "head_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise EunoeError(
                    f"{name} of an AWD-LSTM is {getattr(self, name)!r}; it must be a whole number of 1 or more."
                )
        for name in (*RATES, "head_dropout"):
            refuse_rate(name, getattr(self, name))
        if padding not in PADDINGS:
            raise EunoeError(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}.")
        super().__init__(
            pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings, **kwargs,
        )  # fmt: skip

    def widths(self) -> list[tuple[int, int]]:
        """(inputs, width) of each layer."""
        inner = [self.cell_size] * (self.num_hidden_layers - 1)
        return list(zip([self.hidden_size, *inner], [*inner, self.hidden_size], strict=True))


PADDINGS = ("exact", "fastai")
"""How the classifier reads padded rows."""


def refuse_rate(name: str, rate: object) -> None:
    """Raises ``EunoeError`` unless ``rate`` is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise EunoeError(f"{name} is {rate!r}; a dropout rate is a number from 0 up to, but not, 1.")


__all__ = ["CLASSIFIER_RATES", "LM_RATES", "PADDINGS", "PAPER_RATES", "RATES", "AwdLstmConfig", "refuse_rate"]
