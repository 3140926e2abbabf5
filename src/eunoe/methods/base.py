"""What ``train.py`` knows about a method of learning one domain after another: six hooks, and facts about it.

design: the loop calls, for each domain, ``before_task``; for each optimizer step ``before_step`` (it sets what the
forward pass reads, such as CPT's mask temperature), ``penalty`` (once per micro-batch), ``on_gradients`` (after all
micro-batches of the step, before clipping) and ``after_step``; and at the end ``after_task``. Everything a hook
needs to go on after a kill is in ``state_dict``. Penalties of several methods add, so methods compose in a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eunoe.lookup import lookup
from eunoe.models.anatomy import anatomy


class Method:
    """A way to learn a sequence of domains. This base learns with all weights and protects nothing.

    A method is built with the model, before any domain: ``Method(model, settings, domains)``; it may change the
    model (inject plug-ins, freeze weights). ``domains`` are the names in the order they will be learnt.
    """

    forgets: bool = True
    """Whether earlier domains' outputs may change. False is a promise that ``eunoe verify`` holds to the bit."""
    earlier: tuple[str, ...] = ()
    """Domains that were learnt before this sequence, by what the method starts from; ``eunoe verify`` holds them too."""
    epochs: float = 1.0
    """Passes over the running domain's text; who starts the loop sets it before ``before_task``."""

    def __init__(self, model: nn.Module, settings: Any, domains: list[str]) -> None:
        self.model = model
        self.settings = settings
        self.domains = domains

    @staticmethod
    def sources(settings: Any) -> list[Path]:
        """Files that a method with these settings starts from, besides the model: a run holds them to be the same when it goes on."""
        return []

    # -- the six hooks, in the order the loop calls them -------------------------------------------------------
    def before_task(self, domain: str) -> None:
        """Get ready to learn ``domain`` (choose its masks, take an anchor). Called once, also before a resume."""

    def before_step(self, progress: float) -> None:
        """Set what the forward pass reads. ``progress`` = finished steps / steps of this domain, in [0, 1)."""

    def penalty(self, batch: Mapping[str, Tensor], outputs: Any) -> Tensor | None:
        """A scalar to add to the loss of this micro-batch, or None."""
        return None

    def on_gradients(self, progress: float) -> None:
        """Change the finished gradients in place, before clipping."""

    def after_step(self) -> None:
        """Right after the optimizer's step (clamp, count)."""

    def after_task(self, domain: str) -> None:
        """``domain`` is learnt: keep what later domains must respect."""

    # -- the facts ---------------------------------------------------------------------------------------------
    def protected(self) -> dict[nn.Parameter, Tensor]:
        """Weight -> bool tensor of its shape, True where the finished update must leave the weight alone."""
        return {}

    def activate(self, domain: str | None) -> None:
        """Make the model read as it should for text of ``domain`` (None: text of no learnt domain), for use."""

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Get ``model``, a deep copy of the learnt one with a fresh head, ready for an end task of ``domain``.

        Sets what trains: everything, or with ``freeze="backbone"`` all but the pretrained weights. Returns names of
        weights whose learning rate differs, each with its factor on the rate. The method itself is not changed.
        """
        frozen = lookup({"none": False, "backbone": True}, freeze or "none", "freeze")
        for p in model.parameters():
            p.requires_grad_(True)
        if frozen:
            for p in anatomy(model).base.parameters():
                p.requires_grad_(False)
        return {}

    def reads(self, domain: str) -> dict[str, Tensor]:
        """Weight name -> bool tensor of its shape: the entries that the output of a finished ``domain`` depends on.

        ``eunoe verify`` hashes them for methods that promise zero forgetting; the others need not say.
        """
        return {}

    def capacity(self) -> list[dict[str, Any]]:
        """How much room the learnt domains leave, one plain row a place; none where a method has no such limit."""
        return []

    def publish(self, folder: Path) -> None:
        """Write to ``folder`` what a plain script needs to use the learnt domains; nothing where the weights are all."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only: all that is not in the model's weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state but was given {sorted(state)}")


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named weights that training may change; tied weights once."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def freeze(model: nn.Module) -> None:
    """No weight of ``model`` gets a gradient from now on."""
    for p in model.parameters():
        p.requires_grad_(False)


__all__ = ["Method", "freeze", "trainable"]
