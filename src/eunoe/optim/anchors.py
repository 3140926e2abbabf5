"""A group's anchors: the pretrained values, where each is kept, and the fingerprint that a checkpoint holds in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eunoe.errors import EunoeError


class Anchors(list[Tensor]):
    """One tensor for each weight of a group, in the weights' order.

    Raises ``EunoeError`` for what is not a list of tensors, and for tensors without values.
    """

    def __init__(self, anchors: Any) -> None:
        if isinstance(anchors, str) or not isinstance(anchors, Iterable):
            raise EunoeError(
                f"anchor is {anchors!r}; RecAdam takes a list of tensors, one for each weight of the group, or None. "
                "anchored_groups(model, anchor=...) makes such groups from a file, a folder or a state dict."
            )
        super().__init__([anchors] if isinstance(anchors, Tensor) else anchors)
        for i, anchor in enumerate(self):
            if not isinstance(anchor, Tensor):
                raise EunoeError(
                    f"anchor number {i} of a group is {type(anchor).__name__}; RecAdam takes a tensor for each weight. "
                    "Give weights without an anchor a group of their own with anchor=None."
                )
            if anchor.is_meta:
                raise EunoeError(
                    f"anchor number {i} of a group is on the meta device, so it has no values to recall. Load the model "
                    "first, or name the checkpoint: anchored_groups(model, anchor=FOLDER)."
                )
            self[i] = anchor.detach().contiguous()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of dtypes, shapes and values. Computed when it is first asked for, because it reads all of them."""
        digest = hashlib.sha256()
        for anchor in self:
            whole: Any = anchor
            if is_sharded(whole):
                whole = whole.full_tensor()
            digest.update(f"{whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def beside(self, index: int, p: Tensor) -> Tensor:
        """The anchor of weight ``p``, on its device and sharded like it; brought there at the first use."""
        anchor = self[index]
        if is_sharded(p) and not is_sharded(anchor):
            from torch.distributed.tensor import distribute_tensor  # slow to import, and rarely needed

            _ = self.fingerprint  # while the whole is here: afterwards it takes all processes to read it
            sharded: Any = p
            anchor = distribute_tensor(anchor.to(p.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
            self[index] = anchor
        elif anchor.device != p.device:
            anchor = self[index] = anchor.to(p.device)
        return local(anchor)


def anchors_of(group: dict[str, Any]) -> Anchors | None:
    """The anchors of a group, whose list may have been replaced by one of the user's, or cut, since it was added."""
    if group["anchor"] is not None and not isinstance(group["anchor"], Anchors):
        group["anchor"] = Anchors(group["anchor"])
    anchors: Anchors | None = group["anchor"]
    return anchors


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked by attribute because importing torch.distributed.tensor is slow."""
    return type(x) not in (Tensor, nn.Parameter) and hasattr(x, "placements")


def local(x: Any) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor itself."""
    part: Tensor = x.to_local() if is_sharded(x) else x
    return part
