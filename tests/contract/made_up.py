"""Methods made up for the contract: one for every hook that a paper's method needs, each as small as it can be.

None of them is any good. ``MADE_UP`` holds their rows as METHODS would, and ``register`` puts them there for a test.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from eunoe.data.buffer import Mixed, take_rows
from eunoe.data.collate import Batch
from eunoe.data.corpus import Blocks, joined
from eunoe.errors import EunoeError
from eunoe.methods import METHODS, Entry
from eunoe.methods.base import Batches, Method, Outputs, Stage, freeze, restore, trainable
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import target_logits


@dataclass(kw_only=True)
class Settings:
    """One number, whatever it means to the method."""

    strength: float = 0.5
    """More of it, more of what the method does."""


class AllWeights(Method):
    """Everything trains."""

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        for p in model.parameters():
            p.requires_grad_(True)


# -- a teacher ---------------------------------------------------------------------------------------------------------
class Teacher(AllWeights):
    """Keeps the answers and the hidden states of the model as it was when the stage began."""

    def begin(self, stage: Stage) -> None:
        self.stage, self.teacher = stage, copy.deepcopy(self.model).eval()

    def extra_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        with torch.no_grad():
            wanted = target_logits(self.teacher, batch)
        hidden, mask = self.stage.forward(batch)  # a second pass, of the weights as they are now
        assert mask.shape == hidden.shape[:2] == batch["input_ids"].shape
        again = (hidden * mask[..., None]).reshape(-1, hidden.shape[-1]).index_select(0, batch["positions"])
        total = F.mse_loss(outputs.logits, wanted, reduction="sum") + (again - outputs.hidden.detach()).square().sum()
        return 0.1 * self.settings.strength * (total + again.square().sum())


# -- a Fisher ----------------------------------------------------------------------------------------------------------
class Fisher(AllWeights):
    """EWC: the squared gradients of single examples say which weights to hold to where they were."""

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        if not self.fisher:
            return None
        named = dict(trainable(self.model))
        pulls = [(self.fisher[n] * (named[n] - self.anchor[n]).square()).sum() for n in sorted(self.fisher)]
        return 1000 * self.settings.strength * torch.stack(pulls).sum()

    def end(self, stage: Stage) -> None:
        self.model.eval()
        named = dict(trainable(self.model))
        squares, rows = {n: torch.zeros_like(p) for n, p in named.items()}, 0
        for step in range(2):
            for batch in stage.batches[step]:
                for row in range(len(batch["input_ids"])):
                    self.model.zero_grad(set_to_none=True)
                    stage.loss(take_rows(batch, [row])).total.backward()
                    rows += 1
                    for name, p in named.items():
                        if p.grad is not None:
                            squares[name] += p.grad.square()
        self.model.zero_grad(set_to_none=True)
        if dist.is_initialized():
            count = torch.tensor(rows)
            for tensor in (*squares.values(), count):
                dist.all_reduce(tensor)
            rows = int(count)
        self.fisher = {n: t / rows + self.fisher.get(n, 0) for n, t in squares.items()}
        self.anchor = {n: p.detach().clone() for n, p in named.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"fisher", "anchor"}:
            raise EunoeError(f"fisher: the saved state holds {', '.join(state)}. It belongs to another method.")
        self.fisher, self.anchor = ({n: t.clone() for n, t in state[key].items()} for key in ("fisher", "anchor"))


# -- a buffer ----------------------------------------------------------------------------------------------------------
class Replay(AllWeights):
    """Adds rows of what was learnt before; keeps from each stage the seed by which its rows were put into the buffer."""

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.seeds: dict[str, int] = {}

    def batches(self, stage: Stage) -> Batches:
        kept: list[Blocks] = []
        for domain, seed in self.seeds.items():
            blocks = stage.earlier[domain]
            chosen = np.random.default_rng(seed).permutation(len(blocks))[:4]
            kept.append(Blocks(blocks.ids[np.sort(chosen)], blocks.special, f"{blocks.digest}.{seed}"))
        if not kept:
            return stage.batches
        assert not isinstance(stage.batches, list)
        return Mixed(stage.batches, joined(kept), 4 * self.settings.strength, stage.seed)  # type: ignore[arg-type]

    def end(self, stage: Stage) -> None:
        self.seeds |= dict.fromkeys(stage.domains, stage.seed)

    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self.seeds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"seeds"}:
            raise EunoeError(f"replay: the saved state holds {', '.join(state)}. It belongs to another method.")
        self.seeds = dict(state["seeds"])


# -- weights of one domain -----------------------------------------------------------------------------------------------
class Slots(nn.Module):
    """Of each domain a weight of its own, and whose is in use."""

    def __init__(self, shapes: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(shapes)
        self.each = nn.ParameterList([nn.Parameter(t) for t in shapes.values()])
        self.active: str | None = None

    def slot(self, domain: str) -> nn.Parameter:
        return self.each[self.names.index(domain)]

    def now(self) -> Tensor | None:
        """The active one, as the model reads it: ten times as large, so that a few steps tell."""
        return None if self.active is None else 10 * self.slot(self.active)


def add_shift(base: nn.Module, _args: Any, output: Any) -> Any:
    slots: Slots = base.slots  # type: ignore[assignment]
    shift = slots.now()
    if shift is not None:
        output.last_hidden_state = output.last_hidden_state + shift
    return output


class OfOneDomain(Method):
    """A frozen model, and of each domain weights of its own, which read nothing of the others: each starts from the base."""

    forgets = False
    needs_domain = True
    starts_from = "base"
    width = 1

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        freeze(model)
        parts = anatomy(model)
        self.base = parts.base
        shape = self.shape(parts.width)
        self.slots = Slots({d: 0.1 * settings.strength * torch.randn(shape) for d in dict.fromkeys(domains)})
        self.base.slots = self.slots  # type: ignore[assignment]
        self.learnt: list[str] = []
        self.running: str | None = None
        self.attach()

    def shape(self, width: int) -> tuple[int, ...]:
        return (width,)

    def attach(self) -> None:
        self.base.register_forward_hook(add_shift)

    def begin(self, stage: Stage) -> None:
        self.slots.active = self.running = stage.name
        for name in self.slots.names:
            self.slots.slot(name).requires_grad_(name == stage.name)

    def before_step(self, step: int, steps: int) -> None:
        self.slots.active = self.running

    def end(self, stage: Stage) -> None:
        self.learnt.append(stage.name)

    def weights(self) -> dict[str, Tensor]:
        """Those of the stage that is learnt, or was learnt last, alone."""
        assert self.running is not None
        return {"slot": self.slots.slot(self.running).detach()}

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        restore({"slot": self.slots.slot(stage).detach()}, weights, where)
        self.load_state_dict(state)
        self.learnt.append(stage)

    def activate(self, domain: str | None) -> None:
        self.slots.active = domain if domain in (*self.learnt, self.running) else None

    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        super().for_end_task(model, domain, freeze)
        slots: Slots = anatomy(model).base.slots  # type: ignore[assignment]
        slots.active = domain if domain in self.learnt else None
        for name in slots.names:
            slots.slot(name).requires_grad_(name == slots.active)
        return {}

    def reads(self, domain: str) -> dict[str, Tensor | None]:
        other = {id(self.slots.slot(name)) for name in self.slots.names if name != domain}
        return {name: None for name, p in self.model.named_parameters() if id(p) not in other}


# -- prompts -----------------------------------------------------------------------------------------------------------
def put_before(base: nn.Module, args: Any, given: dict[str, Any]) -> Any:
    slots: Slots = base.slots  # type: ignore[assignment]
    prompt = slots.now()
    if prompt is None:
        return args, given
    ids = given.pop("input_ids") if "input_ids" in given else args[0]
    words = anatomy(base).base.get_input_embeddings()(ids)  # type: ignore[operator]
    given["inputs_embeds"] = torch.cat([prompt.expand(len(ids), -1, -1), words], 1)
    for key, fill in (("attention_mask", 1), ("token_type_ids", 0)):
        if given.get(key) is not None:
            given[key] = F.pad(given[key], (len(prompt), 0), value=fill)
    return (), given


def strip(base: nn.Module, _args: Any, output: Any) -> Any:
    slots: Slots = base.slots  # type: ignore[assignment]
    prompt = slots.now()
    if prompt is not None:
        output.last_hidden_state = output.last_hidden_state[:, len(prompt) :]
    return output


class Prompts(OfOneDomain):
    """Vectors before the text, of each domain its own; all of them are kept in every checkpoint."""

    starts_from = "previous"
    extra_tokens = 3

    def shape(self, width: int) -> tuple[int, ...]:
        return (self.extra_tokens, width)

    def attach(self) -> None:
        self.base.register_forward_pre_hook(put_before, with_kwargs=True)
        self.base.register_forward_hook(strip)

    def weights(self) -> dict[str, Tensor]:
        return {name: self.slots.slot(name).detach() for name in self.slots.names}

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        Method.restore(self, stage, weights, state, where)

    def state_dict(self) -> dict[str, Any]:
        return {"learnt": list(self.learnt)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"learnt"}:
            raise EunoeError(f"prompts: the saved state holds {', '.join(state)}. It belongs to another method.")
        self.learnt = list(state["learnt"])


# -- stages ------------------------------------------------------------------------------------------------------------
class Joint(AllWeights):
    """All domains at once."""

    @classmethod
    def stages(cls, domains: Sequence[str], settings: Any) -> list[tuple[str, ...]]:
        return [tuple(domains)]


class FromBase(AllWeights):
    """Each domain is learnt from the pretrained model; the state after several is the mean of what they changed."""

    starts_from = "base"

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.base = {n: t.clone() for n, t in self.weights().items()}
        self.changes: list[dict[str, Tensor]] = []

    def restore(self, stage: str, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: str) -> None:
        super().restore(stage, weights, state, where)
        self.changes.append({n: weights[n].to(t.device) - t for n, t in self.base.items()})
        for name, tensor in self.weights().items():
            tensor.copy_(self.base[name] + sum(change[name] for change in self.changes) / len(self.changes))


class Merge(AllWeights):
    """After a stage the weights go back, part of the way, to where it began."""

    def begin(self, stage: Stage) -> None:
        self.start = {n: t.clone() for n, t in self.weights().items()}

    def end(self, stage: Stage) -> None:
        for name, tensor in self.weights().items():
            tensor.copy_(torch.lerp(self.start[name], tensor, self.settings.strength))


class Returning(AllWeights):
    """When a domain returns, one weight is pulled to where the first visit left it. Counts steps inside a stage, too."""

    returns = True

    def __init__(self, model: nn.Module, settings: Settings, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        self.visits: dict[str, Tensor] = {}
        self.pull: Tensor | None = None
        self.done = 0

    def words(self) -> nn.Parameter:
        return self.model.get_input_embeddings().weight  # type: ignore[operator,union-attr,return-value]

    def begin(self, stage: Stage) -> None:
        self.pull, self.done = self.visits.get(stage.domains[0]), 0

    def penalty(self) -> Tensor | None:
        pull = 0.1 * self.done
        return None if self.pull is None else pull * self.settings.strength * (self.words() - self.pull).square().sum()

    def after_step(self) -> None:
        self.done += 1

    def end(self, stage: Stage) -> None:
        self.visits[stage.domains[0]] = self.words().detach().clone()

    def step_state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["done"])

    def state_dict(self) -> dict[str, Any]:
        return {"visits": self.visits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"visits"}:
            raise EunoeError(f"returning: the saved state holds {', '.join(state)}. It belongs to another method.")
        self.visits = {n: t.clone() for n, t in state["visits"].items()}


class OfHalves(AllWeights):
    """An extra loss over some rows only, so that micro-batches have unequal numbers of items, and some have none."""

    def extra_items(self, batch: Batch) -> int:
        return int(self._rows(batch).sum())

    def extra_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        chosen = self._rows(batch)[batch["positions"] // batch["input_ids"].shape[1]]
        return self.settings.strength * outputs.hidden[chosen].square().sum()

    def _rows(self, batch: Batch) -> Tensor:
        return batch["input_ids"].sum(1) % 3 == 0


EARLIER: frozenset[Any] = frozenset({"earlier"})
MADE_UP = {
    "teacher": Entry(Teacher, Settings, "made up"),
    "fisher": Entry(Fisher, Settings, "made up"),
    "old-rows": Entry(Replay, Settings, "made up", reads=EARLIER),
    "of-one-domain": Entry(OfOneDomain, Settings, "made up"),
    "prompts": Entry(Prompts, Settings, "made up"),
    "all-at-once": Entry(Joint, Settings, "made up"),
    "from-base": Entry(FromBase, Settings, "made up"),
    "part-way": Entry(Merge, Settings, "made up"),
    "returning": Entry(Returning, Settings, "made up"),
    "of-halves": Entry(OfHalves, Settings, "made up"),
}


def register(patch: pytest.MonkeyPatch) -> None:
    """As if each were a file of methods/ and a row of METHODS."""
    for name, entry in MADE_UP.items():
        patch.setitem(METHODS, name, entry)


__all__ = ["MADE_UP", "Settings", "register"]
