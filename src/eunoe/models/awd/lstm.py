"""One LSTM layer over a whole text, forward and backward, in as few large products as there can be.

Hochreiter and Schmidhuber 1997, with the gates of ``torch.nn.LSTM`` in its order (input, forget, cell, output)::

    i, f, o = sigmoid(...), u = tanh(W_ih x_t + W_hh h_(t-1) + b);  c_t = f c_(t-1) + i u;  h_t = o tanh(c_t)

Weight drop gives a fresh hidden-to-hidden matrix to each forward call. Here it is an ordinary argument, so nothing is copied
into a module; its gradient is one product over all steps instead of one a step. On other devices than the CPU this is torch's own
kernel (cuDNN's on a GPU). Every state of every step comes back, so that rows may end at different steps.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from eunoe.models.products import packed, product

State = tuple[Tensor, Tensor]
"""The hidden state h and the cell c of one layer, each (rows, width)."""


def lstm(
    x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, State]:
    """Read ``x`` (steps, rows, inputs) from ``state`` on: the hidden states (steps, rows, width), and the state at the end.

    ``w_ih`` (4 width, inputs), ``w_hh`` (4 width, width), ``b_ih`` and ``b_hh`` (4 width,). ``lengths`` (rows,): how many steps of each row
    count, from the first on; later ones leave the state as it was. Under autocast the products are in its type, the states in
    float32. A second derivative is not defined.
    """
    half = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    if x.device.type != "cpu":
        return _torch_lstm(x, state, (w_ih, w_hh, b_ih, b_hh), lengths)
    kind = torch.promote_types(x.dtype, torch.float32)
    h, c = (part.to(kind) for part in state)
    bias = (b_ih + b_hh).to(kind)
    hs, cs = _Lstm.apply(x, h, c, w_ih, w_hh, bias, half or x.dtype)  # type: ignore[no-untyped-call]
    if lengths is None:
        return hs[1:].to(x.dtype), (hs[-1], cs[-1])
    rows = torch.arange(x.shape[1], device=x.device)
    return hs[1:].to(x.dtype), (hs[lengths, rows], cs[lengths, rows])


def _torch_lstm(x: Tensor, state: State, weights: tuple[Tensor, ...], lengths: Tensor | None) -> tuple[Tensor, State]:
    """torch's own kernel; rows of different lengths are packed, of which none may be empty, so each reads one step at least."""
    start, train = tuple(part[None].to(x.dtype) for part in state), torch.is_grad_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the weights do not lie in one piece of memory
        if lengths is None:
            out, h, c = torch._VF.lstm(x, start, list(weights), True, 1, 0.0, train, False, False)
            return out, (h[0], c[0])
        pack = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
        order, back_order = pack.sorted_indices, pack.unsorted_indices
        assert order is not None
        assert back_order is not None
        start = tuple(part.index_select(1, order) for part in start)
        out, h, c = torch._VF.lstm(pack.data, pack.batch_sizes, start, list(weights), True, 1, 0.0, train, False)
    laid, _ = torch.nn.utils.rnn.pad_packed_sequence(pack._replace(data=out), total_length=x.shape[0])
    back = (part.index_select(1, back_order)[0] for part in (h, c))
    empty = (lengths == 0)[:, None]
    h_end, c_end = (torch.where(empty, old.to(new.dtype), new) for old, new in zip(state, back, strict=True))
    return laid, (h_end, c_end)


class _Lstm(torch.autograd.Function):
    """(hs, cs), each (steps + 1, rows, width) with the start first."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, half: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        steps, rows, inputs = x.shape
        width = h.shape[1]
        gates = product(x.reshape(steps * rows, inputs).to(half), w_ih.to(half)).to(h.dtype)
        gates = gates.add_(bias).view(steps, rows, 4 * width)
        hs, cs = h.new_empty(steps + 1, rows, width), h.new_empty(steps + 1, rows, width)
        hs[0], cs[0] = h, c
        tanhs = h.new_empty(steps, rows, width)
        recurrent = packed(w_hh.to(half), rows)
        for t in range(steps):
            gate = gates[t].add_(product(hs[t].to(half), recurrent))
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            i, f, u, o = gate.chunk(4, 1)
            torch.mul(f, cs[t], out=cs[t + 1]).addcmul_(i, u)
            torch.tanh(cs[t + 1], out=tanhs[t])
            torch.mul(o, tanhs[t], out=hs[t + 1])
        ctx.save_for_backward(x, w_ih, w_hh, gates, hs, cs, tanhs)
        ctx.half = half
        ctx.set_materialize_grads(False)
        return hs, cs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w_ih, w_hh, gates, hs, cs, tanhs = ctx.saved_tensors
        half, needs = ctx.half, ctx.needs_input_grad
        (steps, rows, inputs), width = x.shape, hs.shape[2]
        from_h, from_c = grads
        dgates = torch.empty_like(gates)
        recurrent = packed(w_hh.t().contiguous().to(half), rows)
        dh, dc = torch.zeros_like(hs[0]), torch.zeros_like(cs[0])
        for t in range(steps - 1, -1, -1):
            if from_h is not None:
                dh = dh + from_h[t + 1]
            if from_c is not None:
                dc = dc + from_c[t + 1]
            i, f, u, o = gates[t].chunk(4, 1)
            di, df, du, do = dgates[t].chunk(4, 1)
            dc = dc + torch.ops.aten.tanh_backward(dh * o, tanhs[t])
            torch.ops.aten.sigmoid_backward.grad_input(dc * u, i, grad_input=di)
            torch.ops.aten.sigmoid_backward.grad_input(dc * cs[t], f, grad_input=df)
            torch.ops.aten.tanh_backward.grad_input(dc * i, u, grad_input=du)
            torch.ops.aten.sigmoid_backward.grad_input(dh * tanhs[t], o, grad_input=do)
            dc = dc * f
            dh = product(dgates[t].to(half), recurrent).to(hs.dtype)
        if from_h is not None:
            dh = dh + from_h[0]
        if from_c is not None:
            dc = dc + from_c[0]
        flat = dgates.view(steps * rows, 4 * width).to(half)
        across = flat.t().contiguous() if needs[3] or needs[4] else flat
        dx = product(flat, w_ih.to(half).t().contiguous()).to(x.dtype).view_as(x) if needs[0] else None
        dw_ih = (
            product(across, x.reshape(steps * rows, inputs).to(half).t().contiguous()).to(w_ih.dtype)
            if needs[3]
            else None
        )
        before = hs[:-1].reshape(steps * rows, width).to(half)
        dw_hh = product(across, before.t().contiguous()).to(w_hh.dtype) if needs[4] else None
        return dx, dh, dc, dw_ih, dw_hh, dgates.sum((0, 1)) if needs[5] else None, None


__all__ = ["State", "lstm"]
