"""ULMFiT's classifier on any language model: concat pooling over a document and a batch-norm head (arXiv 1801.06146).

A long document is read in chunks (BPT3C). An AWD-LSTM hands its state from chunk to chunk; a transformer has none to hand on, so it
reads each chunk by itself, and gradients reach all of them through the pooling.
"""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.models.anatomy import RECURRENT, anatomy
from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
from eunoe.models.awd.head import PoolingHead, concat_pool
from eunoe.models.cross_entropy import at_least_float32


class PooledClassifier(nn.Module):
    """A pretrained trunk; [last; max; mean] of the states of its last ``pooled`` tokens; batch norm, dropout, linear, ReLU, and again.

    ``forward(input_ids, attention_mask, ...)`` gives logits (B, labels); one label means regression. ``states=True``: also the states
    (B, T, width) with the output dropout and without, which AR and TAR go by, and which of them are of tokens (B, T). ``chunk``:
    tokens that are read at once; None: all (an AWD-LSTM: those of its configuration). Rows are padded on the right.
    """

    def __init__(
        self, lm: nn.Module, labels: int, *, hidden: int = 50, dropouts: tuple[float, float] = (0.4, 0.1), chunk: int | None = None,
        pooled: int = 1400,
    ) -> None:  # fmt: skip
        super().__init__()
        parts = anatomy(lm)
        self.config, self.chunk, self.pooled = parts.base.config, chunk, pooled
        head = PoolingHead(3 * parts.width, labels, hidden, dropouts)
        self.recurrent = parts.model_type in RECURRENT
        if self.recurrent:
            config = deepcopy(parts.base.config)
            config.num_labels, config.pooled = labels, pooled
            config.chunk = chunk or config.chunk
            body = AwdLstmForSequenceClassification(config)
            body.transformer, body.head = parts.base, head
            self.body: nn.Module = body
        else:
            self.body, self.head = parts.base, head

    @property
    def trunk(self) -> nn.Module:
        """The pretrained part."""
        inner = self.body.transformer if self.recurrent else self.body
        assert isinstance(inner, nn.Module)
        return inner

    def forward(self, states: bool = False, **batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.recurrent:
            out = self.body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True)
            return (out.logits, out.hidden, out.raw, out.mask) if states else out.logits
        hidden, mask = at_least_float32(self._read(batch)), batch["attention_mask"]
        from_end = mask.flip(1).cumsum(1).flip(1)  # 1 for the last token of a row, 2 for the one before it
        logits: Tensor = self.head(concat_pool(hidden, mask.bool() & (from_end <= self.pooled)))
        return (logits, hidden, hidden, mask.bool()) if states else logits

    def _read(self, batch: dict[str, Tensor]) -> Tensor:
        """The states (B, T, width) of all tokens; what is only padding is not read."""
        rows, steps = batch["input_ids"].shape
        if self.chunk is None or steps <= self.chunk:
            whole: Tensor = self.body(**batch)[0]
            return whole
        more = -steps % self.chunk
        cut = {key: F.pad(value, (0, more)).view(-1, self.chunk) for key, value in batch.items()}
        real = cut["attention_mask"].any(1)
        read = self.body(**{key: value[real] for key, value in cut.items()})[0]
        states: Tensor = read.new_zeros(len(real), self.chunk, read.shape[-1])
        states[real] = read
        return states.view(rows, steps + more, -1)[:, :steps]


__all__ = ["PooledClassifier"]
