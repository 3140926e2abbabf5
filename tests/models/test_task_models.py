"""The task models over features: a BiLSTM that reads whole padded rows is torch's own on packed ones, drawn alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eunoe.models.task_models import BiLSTM, Shape


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_bilstm_is_torchs_on_packed_rows(layers: int) -> None:
    """States and gradients, in each layer, whatever stands behind the end of a row; rows from one word to all."""
    torch.manual_seed(5)
    own = BiLSTM(6, Shape(cells=4, lstm_layers=layers)).eval()
    torch.manual_seed(5)
    theirs = nn.LSTM(6, 4, layers, batch_first=True, bidirectional=True)
    lengths = torch.tensor([3, 7, 1, 5])
    mask = torch.arange(7) < lengths[:, None]
    x, weight = torch.randn(4, 7, 6), torch.randn(4, 7, 8)
    x[~mask] = 1e6
    ours, packed = x.clone().requires_grad_(), x.clone().requires_grad_()

    out = own(ours, mask)
    pack = pack_padded_sequence(packed, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(theirs(pack)[0], batch_first=True)[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)

    for loss in ((out * weight).sum(), (expected * weight).sum()):
        loss.backward()
    torch.testing.assert_close(ours.grad, packed.grad, rtol=1e-5, atol=1e-6)
    for i in range(layers):
        for direction, name in ((own.ahead, ""), (own.back, "_reverse")):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                torch.testing.assert_close(
                    direction[i].get_parameter(f"{kind}_l0").grad, theirs.get_parameter(f"{kind}_l{i}{name}").grad,
                    rtol=1e-4, atol=1e-5,
                )  # fmt: skip


def test_dropout_lies_between_layers() -> None:
    """With one layer training and evaluation agree; with two they do not."""
    x, mask = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    for layers in (1, 2):
        model = BiLSTM(6, Shape(cells=4, lstm_layers=layers, dropout=0.5))
        assert torch.equal(model.train()(x, mask), model.eval()(x, mask)) == (layers == 1)
