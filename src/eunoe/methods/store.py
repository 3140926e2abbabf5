"""Where what a method keeps beside the model lies: with the model, in main memory, or on disk.

A teacher, a Fisher, an anchor or a buffer is as large as the model, or larger. ``keep: device | cpu | disk`` of a method says where it
lies: on the model's device; in main memory, from where a tensor is brought to the device when it is used; or in a file that is mapped
into memory, of which the system holds as much as it has memory for. The numbers are the same bits everywhere.

The file is written to the stage's folder, or to the folder for temporary files where there is none. It has no name once it is mapped: a
run that is killed leaves nothing behind, and nobody else can change it.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.methods.base import bytes_of

Keep = Literal["device", "cpu", "disk"]


def kept(
    tensors: Mapping[str, Tensor], keep: Keep, folder: Path | None = None, device: Any = None
) -> dict[str, Tensor]:
    """Copies of ``tensors``, of the same names, shapes and bits, where ``keep`` says; the originals may change.

    ``folder``: where the file of ``disk`` is written (default: where temporary files go). ``device``: that of ``keep="device"``
    (default: each tensor's own). A mapped tensor may be read as any other; what is written to it does not reach the file.
    Raises ``EunoeError`` where the file cannot be written.
    """
    if keep == "device":
        return {n: t.detach().to(device or t.device, copy=True) for n, t in tensors.items()}
    if keep == "cpu" or not tensors:
        return {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}
    path = None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="kept-", suffix=".safetensors.partial", dir=folder)
        os.close(handle)
        save_file({n: t.detach().to("cpu").contiguous() for n, t in tensors.items()}, path)
        with safe_open(path, framework="pt") as file:
            return {n: file.get_tensor(n) for n in tensors}
    except (OSError, RuntimeError) as error:  # what safetensors makes of a full disk
        raise EunoeError(
            f"keep: disk needs {bytes_of(dict(tensors)):,} bytes in {folder or tempfile.gettempdir()}, which cannot be written: {error}. "
            "Free space there, set TMPDIR to another folder, or choose keep: cpu."
        ) from error
    finally:
        if path is not None:
            os.unlink(path)


def named_place(what: str, keep: Keep) -> str:
    """``what``, and where it lies unless with the model: as ``Method.sizes`` names it.

    >>> named_place("Fisher", "disk")
    'Fisher, on disk'
    """
    return what + {"device": "", "cpu": ", on the CPU", "disk": ", on disk"}[keep]


def frozen_copy(model: nn.Module, keep: Keep, folder: Path | None = None) -> nn.Module:
    """A copy of ``model`` as it is now, without gradients and dropout, whose weights lie where ``keep`` says.

    It computes on the device of ``model`` all the same: a module's own weights are brought there when it is called, and let go
    after it. Its outputs are the bits that ``model`` gives in evaluation.
    """
    named = dict(model.named_parameters())
    device = next(iter(named.values())).device
    stored = {n: nn.Parameter(t, requires_grad=False) for n, t in kept(named, keep, folder).items()}
    # copied through these, so that no second copy of the weights is made on the way
    made = copy.deepcopy(model, {id(p): stored[n] for n, p in named.items()}).eval()
    if any(p.device != device for p in stored.values()):
        for module in made.modules():
            own = list(module.parameters(recurse=False))
            if own:
                _bring(module, own, device)
    return made


def _bring(module: nn.Module, own: list[nn.Parameter], device: torch.device) -> None:
    """``own`` weights of ``module`` are on ``device`` while it is called, and where they are now at all other times."""
    home = [p.data for p in own]

    def fetch(_module: nn.Module, _args: Any) -> None:
        for p, stored in zip(own, home, strict=True):
            p.data = stored.to(device, non_blocking=True)

    def drop(_module: nn.Module, _args: Any, _output: Any) -> None:
        for p, stored in zip(own, home, strict=True):
            p.data = stored

    module.register_forward_pre_hook(fetch, prepend=True)
    module.register_forward_hook(drop, always_call=True)


__all__ = ["Keep", "frozen_copy", "kept", "named_place"]
