"""What ``train.py`` and ``sequence.py`` know about a method of learning one domain after another.

A **stage** is what is learnt at one go: one domain, or several at once. For each stage the loop calls ``begin`` (the model
is on its device, in its start-of-stage state), ``batches``, ``on_optimizer``; for each optimizer step ``before_step``, ``extra_loss`` (once
a micro-batch), ``penalty`` (once a step), ``on_gradients`` (all micro-batches and processes are in), ``after_step``; and at last
``end``. Between stages everything is in ``weights`` and ``state_dict``; inside one, ``step_state`` holds what the weights
and the step's number do not say.

A step has the same gradient however it is cut into micro-batches and processes: ``penalty`` is added once, as it is, and
``extra_loss`` is a sum that the loop divides by ``extra_items`` over the whole step. The items are a function of the batch
and are asked for before the forward pass, because a micro-batch's share must be known before its backward pass. The one exception
is a contrast between the rows of a micro-batch, which a method says of itself (``contrasts``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.data.collate import Batch
from eunoe.data.corpus import Blocks
from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import LossSum, Outputs, target_outputs


class Batches(Protocol):
    """``batches[step]``: the micro-batches of an optimizer step; the same for the same step, in any order of asking."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int, /) -> list[Batch]: ...


class Loss(Protocol):
    """A summed loss that says beforehand over how many items it sums."""

    def items(self, batch: Batch, /) -> int: ...
    def __call__(self, model: nn.Module, batch: Batch, /) -> LossSum: ...


def _unbound(batch: Batch) -> Any:
    raise RuntimeError("this stage is not bound to a model: train.py does it before begin()")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is learnt at one go, as a method sees it. ``train.py`` binds ``loss`` and ``forward`` to the model."""

    name: str
    """Its key in states, folders and messages: the domain, ``domain#2`` where it returns, ``a+b`` for several at once."""
    domains: tuple[str, ...]
    index: int = 0
    """From 0, among the stages of the sequence."""
    epochs: float = 1.0
    """Passes over the stage's text."""
    seed: int = 0
    batches: Batches
    """The stage's own text; a pure function of the step."""
    loss: Callable[[Batch], LossSum] = _unbound
    """The LM loss of the bare model (not wrapped for several processes), on its device, in the run's precision."""
    forward: Callable[[Batch], tuple[Tensor, Tensor]] = _unbound
    """Hidden states (B, T, width) of ALL positions of a batch's ``input_ids``, and their mask (B, T): for second passes."""
    earlier: Mapping[str, Blocks] = field(default_factory=dict)
    """Training blocks of earlier domains, by name; only for methods whose row in METHODS says that they read them."""
    general: Blocks | None = None
    """Training blocks of general text; likewise."""
    valid: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """Held-out batches of the stage's domains, and of ``earlier`` ones for methods that read old text."""
    folder: Path | None = None
    """Where ``end`` may keep partial results of a long pass; it is gone after the stage."""

    def bind(self, **change: Any) -> Stage:
        """The same stage with ``loss``, ``forward`` or others replaced."""
        return replace(self, **change)


class Method:
    """A way to learn a sequence of domains. This base learns with all weights and protects nothing.

    A method is built with the model, before any domain: ``Method(model, settings, domains)``; it may change the
    model (inject plug-ins, freeze weights). ``domains`` are the names in the order they will be learnt: of each stage its name
    (``sport``, and ``sport#2`` where that returns), of one that learns several at once those of its domains.
    """

    forgets: bool = True
    """Whether earlier domains' outputs may change. False is a promise that ``eunoe verify`` holds to the bit."""
    needs_domain: bool = False
    """Is text read under ``activate(name)``? None is then the base model."""
    starts_from: Literal["previous", "base"] = "previous"
    """``base``: each stage starts from the pretrained model, so stages may run side by side, and the state after stage i is
    what the finals of stages 0 to i hold together (``restore`` is called for each in turn)."""
    returns: bool = False
    """May an order name a domain again? Its second stage is then called ``name#2``, and is a domain of its own to a method: the
    names that ``activate``, ``reads`` and ``for_end_task`` get are those of ``domains``, and who calls them has chosen the stage
    (the latest that learnt the domain, for scores and end tasks; each one, for ``eunoe verify``)."""
    naive: bool = False
    """Is it plain training that protects nothing, which a report holds the others against?"""
    keeps_text: bool = False
    """Does its state hold text of earlier domains?"""
    trains: Literal["all", "own", "given"] = "given"
    """``all``: every weight of the model; ``own``: weights that it brings, and the model stays frozen; ``given``: whichever train.
    Two methods can be combined only where this agrees."""
    pulls: bool = False
    """Does it pull each trainable weight toward a value that it keeps?"""
    contrasts: bool = False
    """Does its extra loss compare the rows of a micro-batch with each other? Then, and only then, a step's gradient depends on
    how the step is cut. Such a method has a setting ``contrast``, the weight of that term, and at 0 it does not depend on it."""
    freezes_backbone: bool = False
    """Do the pretrained weights stay frozen in an end task, even where the transfer does not ask for it?"""
    extra_tokens: int = 0
    """Positions that prompts take."""
    earlier: tuple[str, ...] = ()
    """Domains that were learnt before this sequence, by what the method starts from; ``eunoe verify`` holds them too."""

    def __init__(self, model: nn.Module, settings: Any, domains: Sequence[str]) -> None:
        self.model = model
        self.settings = settings
        self.domains = list(domains)

    @staticmethod
    def sources(settings: Any) -> list[Path]:
        """Files that a method with these settings starts from, besides the model: a run checks that they stay the same."""
        return []

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        """The domains of each stage: one a stage, unless a method learns all at once, or none."""
        return [(domain,) for domain in domains]

    @classmethod
    def reads_again(cls, settings: Any) -> frozenset[str]:
        """Which old text a method with these settings reads, of what its row in METHODS says: ``earlier``, ``general``."""
        return frozenset({"earlier", "general"})

    # -- hooks, in the order the loop calls them ---------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        """Get ready to learn ``stage``: choose masks, copy a teacher. Called before a resume too, in the same state."""

    def batches(self, stage: Stage) -> Batches:
        """What is learnt from: the stage's own batches, or these with rows added, drawn by (seed, step)."""
        return stage.batches

    def on_optimizer(self, optimizer: Optimizer) -> None:
        """The stage's optimizer is made, with its largest learning rates: its steps may be hooked. It is the stage's alone."""

    def before_step(self, step: int, steps: int) -> None:
        """Set what the forward pass reads; ``step`` (from 0) of ``steps``."""

    def extra_items(self, batch: Batch) -> int:
        """Over how many items ``extra_loss`` sums in this micro-batch; 0: it is not called."""
        return 0

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """A sum over ``extra_items(batch)`` items; the step adds the mean over all its micro-batches and processes."""
        raise NotImplementedError(f"{type(self).__name__} says that it has extra items, but has no extra_loss")

    def penalty(self) -> Tensor | None:
        """A scalar of the weights, added to the step's loss once, as it is; None for nothing."""
        return None

    def on_gradients(self) -> None:
        """Change the finished gradients in place, before clipping."""

    def after_step(self) -> None:
        """Right after the optimizer's step (clamp, count)."""

    def end(self, stage: Stage) -> None:
        """``stage`` is learnt: keep what later stages must respect (Fisher, masks, buffer), or merge weights."""

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint must hold, by name, as they are in memory: ``restore`` writes into them.

        Default: what trains, and persistent buffers that are not whole numbers (running statistics).
        """
        named: dict[str, Tensor] = {name: p.detach() for name, p in trainable(self.model)}
        kept = self.model.state_dict(keep_vars=True)
        return named | {n: b for n, b in self.model.named_buffers() if n in kept and b.is_floating_point()}

    def state_dict(self) -> dict[str, Any]:
        """Between stages: tensors and plain values, all that is in no weight (Fisher, masks, buffer)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; raises ``EunoeError`` for the state of something else."""
        if state:
            raise EunoeError(f"{type(self).__name__.lower()} keeps no state between stages, but was given "
                             f"{', '.join(sorted(map(str, state))[:5])}. It belongs to another method.")  # fmt: skip

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        """Take back ``weights`` and ``state_dict`` as they were when ``stage`` ended; ``where`` is named in errors."""
        restore(self.weights(), weights, where)
        self.load_state_dict(state)

    def step_state(self) -> dict[str, Any]:
        """Inside a stage: what a step changes besides the weights; small, for it is in every checkpoint."""
        return {}

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``step_state`` gave."""
        if state:
            raise EunoeError(f"{type(self).__name__.lower()} keeps no state between steps, but was given "
                             f"{', '.join(sorted(map(str, state))[:5])}. It belongs to another method.")  # fmt: skip

    # -- use ---------------------------------------------------------------------------------------------------
    def activate(self, domain: str | None) -> None:
        """Make the model read as it should for text of ``domain``, one of ``domains`` (None: text of no learnt domain)."""

    def log_probs(self, batch: Batch, domain: str | None) -> Tensor:
        """Log-probabilities (n, vocabulary), float32, at the target positions of a batch read as ``domain``."""
        self.activate(domain)
        return torch.log_softmax(target_outputs(self.model, batch).logits.float(), -1)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Get ``model``, a deep copy of the learnt one with a fresh head, ready for an end task of ``domain``.

        Sets what trains: everything, or all but the pretrained weights with ``freeze="backbone"`` and where the method
        ``freezes_backbone``. Returns names of weights whose learning rate differs, each with its factor on the learning
        rate. The method itself is not changed.
        """
        frozen = lookup({"none": self.freezes_backbone, "backbone": True}, freeze or "none", "freeze")
        for p in model.parameters():
            p.requires_grad_(True)
        if frozen:
            for p in anatomy(model).base.parameters():
                p.requires_grad_(False)
        return {}

    # -- facts -------------------------------------------------------------------------------------------------
    def protected(self) -> dict[nn.Parameter, Tensor]:
        """Weight -> bool tensor of its shape, True where the finished update must leave the weight alone."""
        return {}

    def reads(self, domain: str) -> dict[str, Tensor | None]:
        """Weight name -> which entries a finished ``domain``'s output depends on: bool, of its shape; None: all of them.
        The entries are of the weights that the model has while the domain is active.

        ``eunoe verify`` hashes them for methods that promise zero forgetting; the others need not say.
        """
        return {}

    def notes(self) -> dict[str, Any]:
        """What a report says of this method: ``general`` (how general text is read), ``lines`` (a list of sentences)."""
        return {}

    def facts(self) -> tuple[dict[str, Any], list[str]]:
        """After a stage: files beside its state (name -> what JSON holds), and warnings for people."""
        return {}, []

    def sizes(self) -> dict[str, int]:
        """Bytes that the method keeps beside the model while it learns the next domain, wherever they lie, by what they are: ``Fisher``,
        ``buffer, on disk``. Asked for after a stage.

        Default: the tensors of ``state_dict``, by its keys. A method adds what lives within a stage alone, as a teacher does.
        """
        return {key: size for key, value in self.state_dict().items() if (size := bytes_of(value))}

    def publish(self, folder: Path) -> None:
        """Write to ``folder`` what a plain script needs to use the learnt domains; nothing where the weights are all."""

    def clashes(self, other: Method) -> str | None:
        """Why this method cannot be combined with ``other`` (``Together``); None where it can."""
        return None


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named weights that training may change; tied weights once."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in nested mappings and lists.

    >>> bytes_of({"mask": torch.ones(3, dtype=torch.bool), "each": [torch.ones(2)], "name": "a"})
    11
    """
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(bytes_of, inner))


def freeze(model: nn.Module) -> None:
    """No weight of ``model`` gets a gradient from now on."""
    for p in model.parameters():
        p.requires_grad_(False)


def not_its_state(name: str, state: Mapping[str, Any], expected: str, owner: str = "method") -> EunoeError:
    """The error of a method called ``name`` that was given a ``state`` of something else; ``expected``: what it needs, with its verb."""
    listed = ", ".join(sorted(map(str, state))[:5]) or "nothing"
    return EunoeError(f"{name}: the saved state holds {listed}, expected {expected}. It belongs to another {owner}.")


def nothing_to_keep(other: Method) -> str | None:
    """Why a method that holds on to earlier domains cannot be combined with ``other``, if that forgets nothing."""
    return (
        None
        if other.forgets
        else "the other keeps every output of earlier domains by itself, so nothing is left to preserve"
    )


def restore(into: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Write saved ``tensors`` into those of the same names; raises ``EunoeError`` where names, shapes or types differ."""
    wrong = sorted(set(into) ^ set(tensors)) or [
        n
        for n, t in tensors.items()
        if not isinstance(t, Tensor) or into[n].shape != t.shape or into[n].dtype != t.dtype
    ]
    if wrong:
        raise EunoeError(
            f"{where} does not fit this model: {', '.join(wrong[:3])} differ. It belongs to another recipe."
        )
    with torch.no_grad():
        for name, value in tensors.items():
            into[name].copy_(value)


__all__ = [
    "Batches",
    "Loss",
    "LossSum",
    "Method",
    "Outputs",
    "Stage",
    "bytes_of",
    "freeze",
    "nothing_to_keep",
    "restore",
    "trainable",
]
