"""Several methods at once: ``name: [replay, ewc]`` in a recipe.

Batches are chained (each method adds rows to what the one before it gave), penalties and extra losses add up (each extra loss is
a mean over its own items: ``terms``), weights, masks and states stand side by side. Two methods that cannot be combined say
why (``Method.clashes``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from eunoe.data.collate import Batch
from eunoe.errors import EunoeError
from eunoe.methods.base import Batches, Method, Stage


class Together(Method):
    """The methods of ``parts``, which are built around one model, as one method. Raises ``EunoeError`` where two clash.

    ``names``: what recipes call them, each once; default: their classes' names.

    Its promises are the weakest of its parts': it forgets if all of them forget, as one that protects every earlier output
    protects it from the others too (``eunoe verify`` checks that it does).

    >>> Together([Ewc(model, ewc, domains), Replay(model, replay, domains)])  # doctest: +SKIP
    """

    def __init__(self, parts: Sequence[Method], names: Sequence[str] | None = None) -> None:
        super().__init__(parts[0].model, [part.settings for part in parts], parts[0].domains)
        self.parts = list(parts)
        called = list(names or (type(part).__name__.lower() for part in parts))
        self.keys = [name if called.count(name) == 1 else f"{name}{i}" for i, name in enumerate(called)]
        refuse_kinds(called, [type(part) for part in parts])
        for i, one in enumerate(parts):
            for k, other in enumerate(parts[i + 1 :], i + 1):
                why = one.clashes(other) or other.clashes(one)
                if not why and type(one) is type(other):
                    why = "it would be applied twice"
                if not why and all(type(part).log_probs is not Method.log_probs for part in (one, other)):
                    why = "each has its own way to get probabilities from the model, and only one can be used"
                if not why and one.starts_from != other.starts_from:
                    why = "one starts each stage from the pretrained model and the other from the stage before"
                if why:
                    raise _refused(called[i], called[k], why)
        self.forgets = all(part.forgets for part in parts)
        self.needs_domain = any(part.needs_domain for part in parts)
        self.starts_from = parts[0].starts_from
        self.returns = all(part.returns for part in parts)
        self.extra_tokens = sum(part.extra_tokens for part in parts)
        self.earlier = tuple(dict.fromkeys(domain for part in parts for domain in part.earlier))

    # -- hooks -------------------------------------------------------------------------------------------------
    def begin(self, stage: Stage) -> None:
        for part in self.parts:
            part.begin(stage)

    def batches(self, stage: Stage) -> Batches:
        for part in self.parts:
            stage = stage.bind(batches=part.batches(stage))
        return stage.batches

    def on_optimizer(self, optimizer: Optimizer) -> None:
        for part in self.parts:
            part.on_optimizer(optimizer)

    def before_step(self, step: int, steps: int) -> None:
        for part in self.parts:
            part.before_step(step, steps)

    def penalty(self) -> Tensor | None:
        terms = [term for part in self.parts if (term := part.penalty()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def on_gradients(self) -> None:
        for part in self.parts:
            part.on_gradients()

    def after_step(self) -> None:
        for part in self.parts:
            part.after_step()

    def end(self, stage: Stage) -> None:
        for part in self.parts:
            part.end(stage)

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor for part in self.parts for name, tensor in part.weights().items()}

    def state_dict(self) -> dict[str, Any]:
        return {key: part.state_dict() for key, part in zip(self.keys, self.parts, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, part in zip(self.keys, self.parts, strict=True):
            part.load_state_dict(self._own(state, key))

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        """Each part takes back its own; a weight that several hold is written once for each, with the same bits."""
        for key, part in zip(self.keys, self.parts, strict=True):
            own = part.weights()
            alone = type(part).restore is Method.restore
            part.restore(
                stage,
                {n: w for n, w in weights.items() if n in own} if alone else weights,
                self._own(state, key),
                where,
            )

    def step_state(self) -> dict[str, Any]:
        return {key: part.step_state() for key, part in zip(self.keys, self.parts, strict=True)}

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        for key, part in zip(self.keys, self.parts, strict=True):
            part.load_step_state(self._own(state, key))

    def _own(self, state: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        if set(state) != set(self.keys):
            raise EunoeError(f"the state holds {', '.join(sorted(map(str, state))[:5]) or 'nothing'}, but this method is made of "
                             f"{', '.join(self.keys)}. It belongs to another method.")  # fmt: skip
        own: Mapping[str, Any] = state[key]
        return own

    # -- use and facts -----------------------------------------------------------------------------------------
    def activate(self, domain: str | None) -> None:
        for part in self.parts:
            part.activate(domain)

    def log_probs(self, batch: Batch, domain: str | None) -> Tensor:
        self.activate(domain)
        own = [part for part in self.parts if type(part).log_probs is not Method.log_probs]  # one at most: two clash
        return own[0].log_probs(batch, domain) if own else super().log_probs(batch, domain)

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        rates: dict[str, float] = {}
        own = [part for part in self.parts if type(part).for_end_task is not Method.for_end_task]
        for part in own or [self.parts[0]]:
            rates |= part.for_end_task(model, domain, freeze)
        return rates

    def protected(self) -> dict[nn.Parameter, Tensor]:
        joined: dict[nn.Parameter, Tensor] = {}
        for part in self.parts:
            for weight, mask in part.protected().items():
                joined[weight] = joined[weight] | mask if weight in joined else mask
        return joined

    def reads(self, domain: str) -> dict[str, Tensor | None]:
        joined: dict[str, Tensor | None] = {}
        for part in self.parts:
            for name, mask in part.reads(domain).items():
                before = joined.get(name, mask)
                joined[name] = None if mask is None or before is None else before | mask
        return joined

    def notes(self) -> dict[str, Any]:
        each = [part.notes() for part in self.parts]
        general = [note["general"] for note in each if "general" in note]
        lines = [line for note in each for line in note.get("lines", ())]
        return {**({"general": general[0]} if general else {}), **({"lines": lines} if lines else {})}

    def facts(self) -> tuple[dict[str, Any], list[str]]:
        each = [part.facts() for part in self.parts]
        return {k: v for files, _ in each for k, v in files.items()}, [line for _, lines in each for line in lines]

    def sizes(self) -> dict[str, int]:
        each = zip(self.keys, self.parts, strict=True)
        return {f"{key}: {name}": size for key, part in each for name, size in part.sizes().items()}

    def publish(self, folder: Path) -> None:
        for part in self.parts:
            part.publish(folder)

    def clashes(self, other: Method) -> str | None:
        return next((why for part in self.parts if (why := part.clashes(other))), None)


def refuse_kinds(names: Sequence[str], kinds: Sequence[type[Method]]) -> None:
    """Raises ``EunoeError`` for methods, called ``names``, of which one trains what another keeps frozen; asked before any is built."""
    for i, one in enumerate(kinds):
        for k, other in enumerate(kinds[i + 1 :], i + 1):
            if {one.trains, other.trains} == {"all", "own"}:
                frozen, trained = (names[i], names[k]) if one.trains == "own" else (names[k], names[i])
                raise _refused(names[i], names[k], f"{trained} trains weights that {frozen} keeps still")
            if one.trains == other.trains == "own":
                raise _refused(names[i], names[k], "each wants to attach weights of its own to the frozen model")


def _refused(one: str, other: str, why: str) -> EunoeError:
    return EunoeError(f"the methods {one} and {other} cannot be combined: {why}. Leave one out.")


def terms(method: Method) -> list[Method]:
    """The methods whose extra losses are means of their own: the method itself, or each part of several."""
    return [term for part in method.parts for term in terms(part)] if isinstance(method, Together) else [method]


__all__ = ["Together", "refuse_kinds", "terms"]
