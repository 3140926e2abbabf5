"""HAT by hand: the regulariser, what soft masks let through, which gradients are blocked and how far, and how little that forgets."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eunoe.contract.way import Way, states
from eunoe.errors import EunoeError
from eunoe.methods import choose_method
from eunoe.methods.hat import Hat, HatSettings
from eunoe.models.anatomy import anatomy
from eunoe.models.heads import lm_loss
from eunoe.plugins.files import save_plugins
from eunoe.train import train
from tests.tiny import tiny_bert, tiny_gpt2

CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = [(tiny_bert, CALM), (tiny_gpt2, QUIET)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def first(method: Any) -> Any:
    """The adapter after the first layer's attention."""
    return next(iter(method.adapters.values()))


def with_embeddings(method: Any, inner: float, outer: float) -> None:
    """All mask embeddings set, as if they had been learnt."""
    with torch.no_grad():
        for adapter in method.adapters.values():
            adapter.mask1.embedding.fill_(inner)
            adapter.mask2.embedding.fill_(outer)


class PausedError(Exception):
    """Ends a training in the middle."""


def begun(way: Way, method: Any, i: int) -> None:
    """``method`` as it is between the ``begin`` of stage ``i`` and its first step."""
    real = method.protected

    def stop() -> Any:
        raise PausedError

    method.protected = stop
    with pytest.raises(PausedError):
        train(way.job(method, i))
    method.protected = real


@pytest.mark.parametrize(("make", "change"), MODELS)
def test_an_adapter_computes_x_plus_masked_gelus_with_masks_that_stay_soft(make: Any, change: dict[str, Any]) -> None:
    way = Way("hat", make, **change)
    method: Any = way.make()
    begun(way, method, 0)
    adapter = first(method)
    x = torch.randn(3, 16)
    for s in (1.0, 400.0):
        method.active.s = s
        with_embeddings(method, 0.002, -0.001)
        m1, m2 = sigmoid(s * 0.002), sigmoid(s * -0.001)
        h = m1 * F.gelu(x @ adapter.fc1.weight.T + adapter.fc1.bias)
        torch.testing.assert_close(adapter(x), x + m2 * F.gelu(h @ adapter.fc2.weight.T + adapter.fc2.bias))
    method.active.s = 7.0  # whatever runs later, a finished domain is read at s_max
    for mask in method._masks():
        mask.keep(0)
    method.active.finished, method.active.running = [0], None
    torch.testing.assert_close(adapter(x), x + m2 * F.gelu(h @ adapter.fc2.weight.T + adapter.fc2.bias))


@pytest.mark.parametrize(("make", "change"), MODELS)
def test_the_regulariser_counts_the_free_part_of_what_is_used(make: Any, change: dict[str, Any]) -> None:
    """The mean of the masks at first; then only what no earlier domain has, over what is free. 11 inner units and 16, outer 16."""
    way = Way({"name": "hat", "sparsity": 0.75}, make, **change)
    method: Any = way.make()
    begun(way, method, 0)
    method.before_step(0, 10)
    assert method.active.s == 1 / 400
    with_embeddings(method, 2.0, -3.0)
    method.active.s = 1.5
    inner, outer, units = 2 * (11 + 16), 2 * (16 + 16), 2 * (11 + 16 + 16 + 16)
    mean = (inner * sigmoid(3.0) + outer * sigmoid(-4.5)) / units
    assert method.penalty().item() == pytest.approx(0.75 * mean, rel=1e-6)
    with_embeddings(method, 0.002, -0.001)  # kept at s_max: taken in part
    t1, t2 = sigmoid(0.8), sigmoid(-0.4)
    for mask in method._masks():
        mask.keep(0)
    with_embeddings(method, 2.0, -3.0)
    free = inner * (1 - t1) + outer * (1 - t2)
    value = (inner * sigmoid(3.0) * (1 - t1) + outer * sigmoid(-4.5) * (1 - t2)) / free
    assert method.penalty().item() == pytest.approx(0.75 * value, rel=1e-6)
    off: Any = Way({"name": "hat", "sparsity": 0.0}, make, **change).make()
    assert off.penalty() is None


@pytest.mark.parametrize(("make", "change"), MODELS)
def test_gradients_are_blocked_as_far_as_earlier_domains_use_the_units(make: Any, change: dict[str, Any]) -> None:
    """Against autograd on a copy: W1 and b1 by 1 - t1, W2 by 1 - min(t2, t1), b2 by 1 - t2; e by the compensation."""
    way = Way({"name": "hat", "sparsity": 0.0}, make, **change)
    method: Any = way.make()
    begun(way, method, 0)
    with_embeddings(method, 0.002, -0.001)
    with torch.no_grad():
        first(method).mask1.embedding[0] = 5.0  # one unit is used in full, the others in part
    method.end(way.stage(0))
    way.keep(0, method)
    method = way.before(1)
    job = way.job(method, 1, steps=1, clip=None)
    met: dict[str, Tensor] = {}

    def optimizer(model: Any) -> torch.optim.Optimizer:
        made = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        made.register_step_pre_hook(
            lambda *_: met.update({n: p.grad.clone() for n, p in first(method).named_parameters()})
        )
        return made

    job.optimizer = optimizer
    plain: list[Any] = []
    real = method.before_step

    def before_step(step: int, steps: int) -> None:
        real(step, steps)
        plain.append(copy.deepcopy(method.model))

    method.before_step = before_step
    train(job)
    (batch,) = job.batches[0]
    loss = lm_loss(plain[0], batch)
    (loss.total / loss.items).backward()
    layer = anatomy(plain[0]).layers[0].module.attention_plugin
    own = {n: p.grad for n, p in layer.named_parameters()}  # type: ignore[union-attr]
    t1 = torch.full((11,), sigmoid(0.8))
    t1[0] = 1.0
    t2 = torch.full((16,), sigmoid(-0.4))
    close = lambda name, wanted: torch.testing.assert_close(met[name], wanted, rtol=1e-4, atol=1e-9)  # noqa: E731
    close("fc1.weight", own["fc1.weight"] * (1 - t1)[:, None])
    close("fc1.bias", own["fc1.bias"] * (1 - t1))
    close("fc2.weight", own["fc2.weight"] * (1 - torch.minimum(t2[:, None], t1[None, :])))
    close("fc2.bias", own["fc2.bias"] * (1 - t2))
    e, s = layer.mask1.embedding.detach(), 1 / 400  # type: ignore[union-attr]
    assert first(way.before(1)).fc1.weight.shape == (11, 16)
    close("mask1.embedding", own["mask1.embedding"] * 400 / s * (torch.cosh(s * e) + 1) / (torch.cosh(e) + 1))
    assert float(own["fc1.weight"].abs().max()) > 0


def test_a_weight_of_units_used_in_full_is_left_alone_and_one_of_units_used_in_part_is_not() -> None:
    way = Way("hat", **CALM)
    method: Any = way.make()
    begun(way, method, 0)
    with_embeddings(method, 5.0, 5.0)
    with torch.no_grad():
        first(method).mask1.embedding[3] = 0.002
    method.end(way.stage(0))
    way.keep(0, method)
    start = first(way.after(0)).fc1.weight.detach().clone()
    way.learn(1)
    moved = (first(way.after(1)).fc1.weight != start).any(1)
    assert moved.tolist() == [i == 3 for i in range(11)]


def test_it_forgets_a_little_and_much_less_than_without_masks() -> None:
    """How far the first domain's states move, next to the distance from the base."""
    moved = {}
    for name in ("hat", "ncl"):
        way = Way(name, order=("food", "law", "sea"), **CALM)
        base = states(way.make(), None)
        way.learn(0)
        learnt = states(way.after(0), "food")
        way.walked()
        moved[name] = float((states(way.after(2), "food") - learnt).norm() / (learnt - base).norm())
    assert 0 < moved["hat"] < 0.2 * moved["ncl"]


def test_later_domains_take_few_units_where_the_regulariser_weighs_more() -> None:
    taken = []
    for sparsity in (0.0, 50.0):
        way = Way({"name": "hat", "sparsity": sparsity}, **CALM)
        way.learn(0, steps=20, lr=0.1)
        method: Any = way.after(0)
        taken.append(sum(float(mask.taken.sum()) for mask in method._masks()))
    assert taken[1] < 0.7 * taken[0], taken


def test_soft_masks_cannot_be_written_as_cpts_plug_ins(tmp_path: Path) -> None:
    way = Way("hat").walked(1)
    with pytest.raises(EunoeError, match=r"these have soft masks or capsules\. Read their domains through the run"):
        save_plugins(way.after(0).model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", ["cpt", "ncl", "das", "lora", "adapter-ncl", "classic", "l2", "ewc", "recadam"])
@pytest.mark.parametrize("turned", [False, True])
def test_what_needs_the_model_for_itself_or_pulls_on_masks_is_refused_by_name(other: str, turned: bool) -> None:
    """In either order, and where it is about what trains, when the recipe is read."""
    names = [other, "hat"] if turned else ["hat", other]
    why = {"ncl": "ncl trains weights that hat", "das": "das trains weights that hat"}.get(
        other, "each wants to attach"
    )
    if other in ("l2", "ewc", "recadam"):
        chosen = choose_method({"name": names}, "test")
        with pytest.raises(
            EunoeError, match=f"{names[0]} and {names[1]} cannot be combined: the other would pull mask"
        ):
            chosen.build(tiny_bert(), ["food"])
    else:
        with pytest.raises(EunoeError, match=f"{names[0]} and {names[1]} cannot be combined: {why}"):
            choose_method({"name": names}, "test")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("other", ["lora", "o-lora", "peft", "adapter-ncl"])
def test_what_trains_all_weights_is_refused_beside_what_keeps_the_model_frozen(other: str, turned: bool) -> None:
    names = [other, "das"] if turned else ["das", other]
    with pytest.raises(EunoeError, match=f"cannot be combined: das trains weights that {other} keeps still"):
        choose_method({"name": names}, "test")


@pytest.mark.parametrize("other", ["kd", "replay", "der++"])
def test_what_adds_a_term_or_rows_goes_together_with_masks(other: str) -> None:
    way = Way({"name": ["hat", other]}, order=("food", "law")).walked(None, steps=2)
    alone = Way("hat", order=("food", "law")).walked(None, steps=2)
    first = [dict(one.after(1).model.named_parameters()) for one in (way, alone)]
    assert any(not torch.equal(p, first[1][n]) for n, p in first[0].items()), "the other does something"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": -1}, "hat: sparsity is -1; give 0 or more"),
        ({"activation": "rel"}, "unknown activation 'rel'. Did you mean relu"),
        ({"ffn_size": 0}, "hat: ffn_size is 0; give a whole number of 1 or more"),
        ({"s_max": 1}, "hat: s_max is 1; give a finite number above 1"),
        ({"cosh_clip": 90}, "hat: cosh_clip is 90"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EunoeError, match=message):
        HatSettings(**settings)


def test_masks_of_other_sizes_are_refused() -> None:
    way = Way("hat").walked(1)
    other = Hat(tiny_bert(), HatSettings(ffn_size=5), list(way.names))
    with pytest.raises(EunoeError, match=r"hat: the saved masks are torch\.float32 of shape"):
        other.load_state_dict(way.after(0).state_dict())
