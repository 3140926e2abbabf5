"""DAS by hand: importance from the weights' own gradients, which weights make a head, the soft mask, the contrast and the KL."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eunoe.contract.way import Way, gradients
from eunoe.errors import EunoeError
from eunoe.methods import METHODS
from eunoe.methods.das import Das, DasSettings, _two_passes, importance, info_nce
from eunoe.models.anatomy import FAMILIES, anatomy
from eunoe.models.heads import lm_loss, mean_pool
from eunoe.plugins.gates import Gates, spread
from eunoe.train import train
from tests.contract.made_up import MADE_UP
from tests.models.families import tiny, tokens
from tests.tiny import tiny_bert, tiny_gpt2, tiny_llama

CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def out_in(layer: nn.Module, tensor: Tensor) -> Tensor:
    """A weight, or its gradient, as (out, in)."""
    return tensor if isinstance(layer, nn.Linear) else tensor.T


def by_weights(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient by each unit's gate, from those of the weights behind it: scaling a unit scales all weights that read it."""
    parts, found = anatomy(model), {}
    for layer in parts.layers:
        proj, last = layer.attention_proj, layer.feed_forward_proj
        wanted = [proj.weight, last.weight, *([last.bias] if getattr(last, "bias", None) is not None else [])]
        a, w, *b = torch.autograd.grad(loss, wanted, retain_graph=True)
        reads = out_in(proj, proj.weight * a).sum(0)
        found[f"{layer.name}.heads"] = torch.stack([part.sum() for part in reads.chunk(parts.heads)])
        found[f"{layer.name}.inner"] = out_in(last, last.weight * w).sum(0)
        found[f"{layer.name}.outer"] = out_in(last, last.weight * w).sum(1) + (last.bias * b[0] if b else 0)
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_gates_gradient_is_that_of_scaling_its_unit_in_every_family(family: str) -> None:
    model = tiny(family).double().eval()
    gates = Gates(anatomy(model))
    expected = by_weights(model, model(tokens()).logits.sin().sum())
    ones = gates.ones(next(model.parameters()))
    with gates.at(ones):
        found = torch.autograd.grad(model(tokens()).logits.sin().sum(), list(ones.values()))
    for (name, wanted), gradient in zip(expected.items(), found, strict=True):
        torch.testing.assert_close(gradient, wanted, msg=name)
    assert max(float(g.abs().max()) for g in found) > 1e-6


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["heads", "inner", "outer"])
def test_the_weights_of_a_unit_are_those_that_make_it_and_no_other(family: str, kind: str) -> None:
    """Changing all weights that only this unit's value marks, in front of the unit, changes this unit's output alone."""
    model = tiny(family).eval()
    parts = anatomy(model)
    layer, gates = parts.layers[-1], Gates(parts)
    at = {"heads": layer.attention_proj, "inner": layer.feed_forward_proj, "outer": layer.feed_forward_proj}[kind]
    seen: list[Tensor] = []
    at.register_forward_hook(lambda m, args, output: seen.append(output if kind == "outer" else args[0]))
    units = gates.units[f"{layer.name}.{kind}"]
    model(tokens())
    values = {k: torch.zeros(gates.units[f"{layer.name}.{k}"]) for k in ("heads", "inner", "outer")}
    values[kind][1] = 1.0
    behind = at.weight if kind == "heads" else None  # the columns that read a head do not make it
    marked = []
    with torch.no_grad():
        for weight, mask in spread(parts, layer, values):
            assert torch.broadcast_to(mask, weight.shape).shape == weight.shape
            if mask.any():
                marked.append(weight)
                if weight is not behind:
                    weight += 0.5 * mask * torch.rand_like(weight)
        model(tokens())
    before, after = (x.reshape(-1, units, x.shape[-1] // units).transpose(0, 1) for x in seen)
    changed = [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]
    shared = kind == "heads" and getattr(parts.base.config.get_text_config(), "num_key_value_heads", units) == 1
    assert changed == ([True] * units if shared else [i == 1 for i in range(units)])
    if kind == "heads":
        column = out_in(at, torch.broadcast_to(dict(spread(parts, layer, values))[at.weight], at.weight.shape))
        assert column[:, parts.heads_width // units :].all()
        assert not column[:, : parts.heads_width // units].any()
        assert len(marked) > 1


def test_a_key_that_heads_share_is_as_important_as_the_most_important_of_them() -> None:
    parts = anatomy(tiny_llama(num_attention_heads=4, num_key_value_heads=2))
    values = {"heads": torch.tensor([0.1, 0.7, 0.2, 0.3]), "inner": torch.zeros(32), "outer": torch.zeros(16)}
    found = dict(spread(parts, parts.layers[0], values))
    query, key, _ = (found[p.weight].flatten() for p in parts.layers[0].attention_heads)  # type: ignore[index]
    assert query.view(4, 4).tolist() == [[pytest.approx(v)] * 4 for v in (0.1, 0.7, 0.2, 0.3)]
    assert key.view(2, 4).tolist() == [[pytest.approx(v)] * 4 for v in (0.7, 0.3)]


def test_importance_is_the_tanh_of_the_units_normal_scores() -> None:
    g = [3.0, 1.0, -2.0, 0.5]
    mean = sum(g) / 4
    std = math.sqrt(sum((x - mean) ** 2 for x in g) / 3)
    assert importance(torch.tensor(g)).tolist() == pytest.approx([abs(math.tanh((x - mean) / std)) for x in g])
    assert importance(torch.tensor(g) * 1e-6).tolist() == pytest.approx(importance(torch.tensor(g)).tolist())
    assert importance(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
    assert importance(torch.tensor([5.0])).tolist() == [0]


def test_contrast_by_hand() -> None:
    z1, z2, z3 = (
        torch.tensor(z) for z in ([[1.0, 0.0], [3.0, 4.0]], [[0.0, 2.0], [1.0, 1.0]], [[-1.0, 0.0], [0.0, 5.0]])
    )
    half, tau, total = 1 / math.sqrt(2), 0.5, 0.0
    for positive, scores in ((0.0, [0.0, half, -1.0, 0.0]), (1.4 * half, [0.8, 1.4 * half, -0.6, 0.8])):
        total -= math.log(math.exp(positive / tau) / sum(math.exp(s / tau) for s in scores))
    assert info_nce(z1, z2, z3, tau).item() == pytest.approx(total)


def test_pooling_leaves_padding_out() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]


def test_general_knowledge_is_the_kl_between_the_token_distributions_of_two_passes() -> None:
    logits = [torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.5, 3.0]]), torch.tensor([[0.0, 2.5, 0.0], [1.0, -1.0, 2.0]])]
    passes = iter(logits)
    stage: Any = SimpleNamespace(loss=lambda batch: SimpleNamespace(outputs=SimpleNamespace(logits=next(passes))))
    expected = 0.0
    for one, two in zip(*(part.tolist() for part in logits), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (one, two))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert _two_passes(stage)({}).item() == pytest.approx(expected, rel=1e-5)


# -- in training -------------------------------------------------------------------------------------------------------
def learnt(make: Any, change: dict[str, Any], **settings: Any) -> tuple[Way, Das]:
    way = Way({"name": "das", **settings}, make, ("food", "law"), **change)
    method: Any = way.before(0)
    train(way.job(method, 0, steps=3))
    way.keep(0, method)
    return way, method


@pytest.mark.parametrize(("make", "change"), [(tiny_bert, CALM), (tiny_gpt2, QUIET)])
def test_after_a_domain_importance_is_that_of_its_lm_loss_over_all_rows(make: Any, change: dict[str, Any]) -> None:
    way, method = learnt(make, change)
    batches = way.stage(0, 3).batches
    model = copy.deepcopy(method.model).eval()
    loss = sum(lm_loss(model, batch).total for step in range(3) for batch in batches[step])
    for name, gradient in by_weights(model, loss).items():
        own = ((gradient - gradient.mean()) / gradient.std()).tanh().abs()
        general = method.importance[name]  # the larger of general knowledge's and its own
        assert bool((general >= own - 1e-3).all()), name
        assert bool((general - own).abs().le(1e-3).any()), name


@pytest.mark.parametrize(("make", "change"), [(tiny_bert, {}), (tiny_bert, CALM), (tiny_llama, {})])
def test_general_knowledge_is_measured_before_the_first_domain_with_two_unequal_passes(
    make: Any, change: dict[str, Any]
) -> None:
    """A model without dropout has its units dropped instead."""
    way = Way("das", make, **change)
    method: Any = way.make()
    seen: dict[str, Tensor] = {}
    method.protected = lambda: seen.update(method.importance) or {}
    train(way.job(method, 0, steps=1))
    assert seen.keys() == method.importance.keys()
    assert all(float(v.min()) >= 0 and float(v.max()) < 1 for v in seen.values())
    assert all(float(v.max()) > 0.1 for v in seen.values())
    assert all(bool((method.importance[n] >= v).all()) for n, v in seen.items())
    again: Any = way.make()
    first: dict[str, Tensor] = {}
    again.protected = lambda: first.update(again.importance) or {}
    train(way.job(again, 0, steps=1))
    assert all(torch.equal(first[n], v) for n, v in seen.items()), "a resume measures the same"


@pytest.mark.parametrize(("make", "change"), [(tiny_bert, CALM), (tiny_gpt2, QUIET)])
def test_the_optimizer_meets_gradients_times_one_minus_importance(make: Any, change: dict[str, Any]) -> None:
    """The second domain's first step, against plain autograd; the contrast is left out, so the loss is the LM loss alone."""
    way, _ = learnt(make, change, contrast=0.0)
    method: Any = way.before(1)
    plain = copy.deepcopy(method.model)
    job = way.job(method, 1, steps=1, clip=None)
    total = [lm_loss(plain, batch) for batch in job.batches[0]]
    (sum(t.total for t in total) / sum(t.items for t in total)).backward()
    met: dict[str, Tensor] = {}

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.SGD(model.parameters(), lr=0.1)
        made.register_step_pre_hook(
            lambda *_: met.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
        return made

    job.optimizer = optimizer
    before = dict(method.importance)
    train(job)
    head, inner, outer = (
        before[f"{'encoder.layer' if make is tiny_bert else 'h'}.1.{k}"] for k in ("heads", "inner", "outer")
    )
    wide = head.repeat_interleave(8)
    if make is tiny_bert:
        at = "bert.encoder.layer.1."
        factors = {
            **{f"{at}attention.self.{n}.weight": 1 - wide[:, None] for n in ("query", "key", "value")},
            f"{at}attention.self.query.bias": 1 - wide,
            f"{at}attention.output.dense.weight": 1 - wide[None, :],
            f"{at}intermediate.dense.weight": 1 - inner[:, None],
            f"{at}intermediate.dense.bias": 1 - inner,
            f"{at}output.dense.weight": 1 - outer[:, None],
            f"{at}output.dense.bias": 1 - outer,
        }
        free = (f"{at}attention.output.dense.bias", "bert.embeddings.word_embeddings.weight")
    else:
        at = "transformer.h.1."
        factors = {
            f"{at}attn.c_attn.weight": 1 - wide.repeat(3)[None, :],
            f"{at}attn.c_attn.bias": 1 - wide.repeat(3),
            f"{at}attn.c_proj.weight": 1 - wide[:, None],
            f"{at}mlp.c_fc.weight": 1 - inner[None, :],
            f"{at}mlp.c_proj.weight": 1 - outer[None, :],
            f"{at}mlp.c_proj.bias": 1 - outer,
        }
        free = (f"{at}attn.c_proj.bias", "transformer.wte.weight")
    grads = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for name, factor in factors.items():
        assert float(factor.min()) < 0.9, "else this shows nothing"
        torch.testing.assert_close(met[name], grads[name] * factor, msg=name)
    for name in free:
        torch.testing.assert_close(met[name], grads[name], msg=name)


@pytest.mark.parametrize(("make", "change"), [(tiny_bert, CALM), (tiny_gpt2, QUIET)])
def test_the_contrast_reads_two_passes_and_one_with_units_scaled_by_what_matters(
    make: Any, change: dict[str, Any]
) -> None:
    """Without noise the second pass equals the first; scaling units is scaling the weights that read or make them."""
    way, _ = learnt(make, change, contrast=0.0)
    way.chosen = Way({"name": "das", "contrast": 2.0}).chosen
    method: Any = way.before(1)
    for gate in method.gates.gates.values():
        gate.dropout.p = 0.0
    scaled = copy.deepcopy(method.model).eval()
    parts = anatomy(scaled)
    with torch.no_grad():
        for layer in parts.layers:
            head, inner, outer = (method.importance[f"{layer.name}.{k}"] for k in ("heads", "inner", "outer"))
            out_in(layer.attention_proj, layer.attention_proj.weight).mul_(head.repeat_interleave(8)[None, :])
            out_in(layer.feed_forward_proj, layer.feed_forward_proj.weight).mul_(outer[:, None] * inner[None, :])
            layer.feed_forward_proj.bias.mul_(outer)
    plain = copy.deepcopy(method.model).eval()
    found: list[tuple[Any, Tensor]] = []
    real = method.extra_loss
    method.extra_loss = lambda batch, outputs: found.append((batch, real(batch, outputs))) or found[-1][1]
    train(way.job(method, 1, steps=1))
    (batch, value), *_ = found
    ids = batch["input_ids"]
    z1 = anatomy(plain).base(input_ids=ids)[0].mean(1)
    z3 = parts.base(input_ids=ids)[0].mean(1)
    expected, tau = 0.0, 0.05
    for n in range(len(ids)):
        cos = [torch.cosine_similarity(z1[n], z, 0).item() / tau for z in (*z1, *z3)]
        expected -= 2.0 * math.log(math.exp(cos[n]) / sum(map(math.exp, cos)))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert not torch.allclose(z1, z3, atol=1e-2)


def test_importance_is_measured_on_so_many_rows_and_no_more() -> None:
    counts = []
    for samples in (1, 7, 10_000):
        way = Way({"name": "das", "contrast": 0.0, "samples": samples})
        method: Any = way.make()
        rows: list[int] = []
        real = method.begin

        def begin(stage: Any, real: Any = real, rows: list[int] = rows) -> None:
            loss = stage.loss
            real(stage.bind(loss=lambda batch: rows.append(len(batch["input_ids"])) or loss(batch)))

        method.begin = begin
        train(way.job(method, 0, steps=3))
        counts.append(sum(rows))
    assert counts == [2 * 6, 2 * 12, 2 * 18]  # each row in two passes; a batch is not cut


def test_the_state_of_another_model_is_refused() -> None:
    _, method = learnt(tiny_bert, CALM)
    other = Das(tiny_bert(num_hidden_layers=1), DasSettings(), ["food"])
    with pytest.raises(
        EunoeError, match=r"das: the saved state holds .*encoder\.layer\.0\.heads and so on|another model"
    ):
        other.load_state_dict(method.state_dict())


def test_beside_a_method_with_passes_of_its_own_the_contrast_reads_the_lm_loss_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each adds its own mean; in either order the first step's gradients are the same but for rounding."""
    monkeypatch.setitem(METHODS, "teacher", MADE_UP["teacher"])
    met = []
    for names in (["das", "teacher"], ["teacher", "das"]):
        way = Way({"name": names}, double=True, **CALM)
        for gradients_of_step in gradients(way, 0, 3)[:1]:
            met.append(gradients_of_step)
    assert met[0].keys() == met[1].keys()
    for name, grad in met[0].items():
        torch.testing.assert_close(met[1][name], grad, rtol=1e-9, atol=1e-12)
