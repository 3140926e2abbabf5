"""ULMFiT's classifier on an AWD-LSTM: documents read in chunks, the last states of which are pooled (BPT3C, arXiv 1801.06146).

A document is read ``chunk`` tokens at a time. Each chunk starts from the state that the one before left, but no gradient passes
between them, as in the released scripts: it reaches earlier chunks through the pooled states alone. At most ``pooled`` last
tokens are pooled.

Two ways to read a padded batch (``config.padding``). ``exact``, the default: each row gives the numbers that it gives alone.
``fastai``: as fastai 2.8 computes; a row is left out of every chunk that begins with its padding, so its first tokens are never
read, and their states count as zeros in the pooling. With rows laid out as fastai's loader does both give the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from eunoe.errors import EunoeError
from eunoe.models.awd.config import AwdLstmConfig
from eunoe.models.awd.head import PoolingHead, concat_pool
from eunoe.models.awd.model import AwdLstmModel, AwdLstmPreTrainedModel, AwdState


@dataclass
class AwdLstmClassifierOutput(ModelOutput):  # type: ignore[misc]
    """Loss (mean), logits (B, labels), and the states that were pooled, with output dropout and without."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None
    """(B, T', width)"""
    raw: Tensor | None = None
    """(B, T', width)"""
    mask: Tensor | None = None
    """(B, T'): True where a state is that of a token, and not of padding."""


class AwdLstmForSequenceClassification(AwdLstmPreTrainedModel):
    """The trunk, concat pooling and a head of two blocks.

    >>> tiny = AwdLstmConfig(vocab_size=9, hidden_size=4, cell_size=6, num_labels=2)
    >>> AwdLstmForSequenceClassification(tiny).eval()(input_ids=torch.tensor([[2, 5, 7]])).logits.shape
    torch.Size([1, 2])
    """

    def __init__(self, config: AwdLstmConfig) -> None:
        super().__init__(config)
        self.transformer = AwdLstmModel(config)
        dropouts = (config.output_dropout, config.head_dropout)
        self.head = PoolingHead(3 * config.hidden_size, config.num_labels, config.head_size, dropouts)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None,
        return_dict: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """``input_ids`` (B, T); padding is where ``attention_mask`` is 0, or without one where the padding token stands."""
        if attention_mask is None:
            pad = self.config.pad_token_id
            attention_mask = torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()
        read = self._as_fastai if self.config.padding == "fastai" else self._exactly
        hidden, raw, mask, last = read(input_ids, attention_mask.bool())
        logits = self.head(concat_pool(hidden, mask, last))
        loss = None if labels is None else self._loss(logits, labels)
        out = AwdLstmClassifierOutput(loss=loss, logits=logits, hidden=hidden, raw=raw, mask=mask)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return out if as_dict else out.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.num_labels == 1:
            return F.mse_loss(logits[:, 0].float(), labels.float())
        return F.cross_entropy(logits.float(), labels)

    def _exactly(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        order = mask.to(torch.int8).argsort(dim=1, stable=True)  # all padding to the left, so that rows end together
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        steps, chunk = ids.shape[1], self.config.chunk
        first = steps % chunk or chunk
        bounds = [0, *range(first, steps + 1, chunk)]
        state: AwdState | None = None
        outs: list[Any] = []
        for start, end in pairwise(bounds):
            read = self.transformer(
                input_ids=ids[:, start:end], attention_mask=mask[:, start:end], past_key_values=state, use_cache=True,
                return_dict=True,
            )  # fmt: skip
            state = read.past_key_values.detach()
            if end > steps - self.config.pooled:
                outs.append(read)
        kept = min(steps, self.config.pooled)
        hidden = torch.cat([o.last_hidden_state for o in outs], 1)[:, -kept:]
        return hidden, torch.cat([o.raw for o in outs], 1)[:, -kept:], mask[:, -kept:], None

    def _as_fastai(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, steps = ids.shape
        chunk = self.config.chunk
        state = self.transformer.start(rows)
        hidden, raw, masks = [], [], []
        for start in range(0, steps, chunk):
            end = min(start + chunk, steps)
            n = int(mask[:, start].sum())
            if not bool(mask[:n, start].all()):
                raise EunoeError("with padding: fastai the rows of a batch must stand longest first, padded on the left; set "
                                 "padding: exact to read them in any order.")  # fmt: skip
            part = [x.new_zeros(rows, end - start, self.config.hidden_size) for x in (state[0][0], state[0][0])]
            if n:
                some = torch.arange(n, device=ids.device)
                read = self.transformer(
                    input_ids=ids[:n, start:end], past_key_values=state.select(some), use_cache=True, return_dict=True
                )
                state = _filled(state, read.past_key_values.detach())
                part = [F.pad(x, (0, 0, 0, 0, 0, rows - n)) for x in (read.last_hidden_state, read.raw)]
            if steps - start <= self.config.pooled:
                hidden.append(part[0])
                raw.append(part[1])
                masks.append(mask[:, start:end])
        whole = torch.cat(masks, 1)
        last = whole.shape[1] - 1 - (~whole[:, -chunk:]).sum(1)
        return torch.cat(hidden, 1), torch.cat(raw, 1), whole, last


def _filled(whole: AwdState, first: AwdState) -> AwdState:
    """``whole`` with its first rows replaced by ``first``."""
    n = first.rows
    return AwdState(
        [
            (torch.cat([h, a[n:]]), torch.cat([c, b[n:]]))
            for (h, c), (a, b) in zip(first.layers, whole.layers, strict=True)
        ],
        first.seen,
    )


__all__ = ["AwdLstmClassifierOutput", "AwdLstmForSequenceClassification"]
