"""near: all weights learn a domain, each pulled to where the domain before left it (L2)."""

from dataclasses import dataclass

from eunoe.errors import EunoeError
from eunoe.methods import Entry
from eunoe.methods.base import Method, trainable


@dataclass(kw_only=True)
class NearSettings:
    strength: float = 0.1
    """Weight of the squared distance to the weights of the stage before."""


class Near(Method):
    def __init__(self, model, settings, domains):
        super().__init__(model, settings, domains)
        self.before = {}  # the weights by name, as the last stage left them

    def penalty(self):
        if not self.before:
            return None  # the first stage has nothing to be pulled to
        pulls = [(p - self.before[name].to(p.device)).square().sum() for name, p in trainable(self.model)]
        return self.settings.strength * sum(pulls)

    def end(self, stage):
        self.before = {name: p.detach().clone() for name, p in trainable(self.model)}

    def state_dict(self):
        return {"before": self.before}

    def load_state_dict(self, state):
        if set(state) != {"before"}:
            raise EunoeError(f"near: the saved state holds {', '.join(state)}. It belongs to another method.")
        self.before = dict(state["before"])


NEAR = Entry(Near, NearSettings, "all weights, each pulled to where the domain before left it", keeps="their weights")
