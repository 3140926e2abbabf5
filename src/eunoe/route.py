"""How often the plug-in with the least LM loss is the right one: a finished run's held-out text, block by block.

Each block of each domain is read under every domain's plug-in (``evaluate/routing.py``). Two questions are asked. With the
whole block read: is the chosen domain the block's own? And where the first half of a block chooses: what does the
second half lose, in nats a token, under the chosen plug-in or the mixture, against being told the domain?
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence as Listed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from eunoe import checkpoint, stop
from eunoe.atomic import write_text
from eunoe.data.collate import Batch
from eunoe.data.corpus import load_blocks
from eunoe.errors import EunoeError
from eunoe.evaluate.routing import mixed_losses, mixture, route, routing_batches, row_means, second_half, token_losses
from eunoe.methods import METHODS, Method
from eunoe.plan import RunPlan, load_run, model_settings
from eunoe.recipe import as_path
from eunoe.sequence import Sequence, Walk


@dataclass(frozen=True)
class Routing:
    """One sequence's counts. ``confusion[i][j]``: blocks of ``domains[i]`` that the plug-in of ``choices[j]`` fits best."""

    method: str
    order: str
    seed: int
    domains: tuple[str, ...]
    """Those of the run, whose held-out text is read."""
    choices: tuple[str, ...]
    """All that have plug-ins: those learnt before the run come first."""
    confusion: list[list[int]]
    half: list[list[int]]
    """The same where the first half of a block chooses."""
    loss: dict[str, list[float]]
    """Mean loss of the second halves a domain: ``base`` (no plug-in), ``told``, ``routed``, ``mixed``."""


def route_run(out: Path, top: int = 2) -> str:
    """Route the held-out text of every finished sequence with plug-ins; write routing.json and routing.csv; the tables as text.

    Raises ``EunoeError`` if the run is not finished or no method of it has plug-ins.
    """
    if top < 1:
        raise EunoeError(f"--top is {top}; mix at least 1 plug-in.")
    out = as_path(out, "out")
    plan = load_run(out)
    if isinstance(plan.recipe.threads, int):
        torch.set_num_threads(plan.recipe.threads)
    routings = [
        _route(plan, way, out, top)
        for way in plan.sequences
        if way.method is not None and way.method.needs_domain and way.stages
    ]
    if not routings:
        those = ", ".join(name for name, row in METHODS.items() if row.method.needs_domain)
        raise EunoeError(f"no method of {out} reads text by its domain, so there is nothing to choose. Route a run of one that does: "
                         f"{those}.")  # fmt: skip
    write_text(
        out / "routing.json", json.dumps({"top": top, "sequences": [asdict(f) for f in routings]}, indent=1) + "\n"
    )
    write_text(out / "routing.csv", _csv(routings))
    methods = dict.fromkeys((f.method, tuple(sorted(f.choices))) for f in routings)
    return "\n\n".join(
        _table([f for f in routings if (f.method, tuple(sorted(f.choices))) == key], top) for key in methods
    )


def _route(plan: RunPlan, way: Sequence, out: Path, top: int) -> Routing:
    last = len(way.stages) - 1
    if not checkpoint.whole(out / way.stage_key(last) / "final"):
        raise EunoeError(
            f"{way.folder} of {out} is not finished. Let it run first: eunoe run {out / 'recipe.yaml'} --out {out}"
        )
    walk = Walk(way, model_settings(plan.recipe, out), out)
    walk.after(last)
    domains = tuple(dict.fromkeys(way.order))
    choices = (*walk.method.earlier, *domains)
    whole, half = [], []
    loss: dict[str, list[float]] = {name: [] for name in ("base", "told", "routed", "mixed")}
    for domain in domains:
        losses, rows, late, count = _read(plan, walk, domain, choices)
        own, base = losses[:, :-1], losses[:, -1]
        whole.append(_counts(route(row_means(own, rows, count)), len(choices)))
        first = row_means(own[~late], rows[~late], count)
        chosen = route(first)
        half.append(_counts(chosen, len(choices)))
        after, where = own[late], rows[late]
        loss["base"].append(float(base[late].double().mean()))
        loss["told"].append(float(after[:, choices.index(domain)].double().mean()))
        loss["routed"].append(float(after.gather(1, chosen[where][:, None]).double().mean()))
        loss["mixed"].append(float(mixed_losses(after.double(), mixture(first, top)[where]).mean()))
    return Routing(way.label, way.order_name, way.seed, domains, choices, whole, half, loss)


def _read(plan: RunPlan, walk: Walk, domain: str, choices: Listed[str]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Losses (n, C + 1) of a domain's held-out tokens read as every choice and as none, their blocks, which stand in a second
    half, and how many blocks there are."""
    recipe, lm = plan.recipe, walk.lm
    corpus = next(d.corpus for d in recipe.domains if d.name == domain)
    blocks = load_blocks(corpus, lm.tokenizer, recipe.training.block, "valid").take(recipe.evaluation.blocks)
    losses, rows, late = [], [], []
    last = len(walk.sequence.stages) - 1
    names = [walk.sequence.reads_as(choice, last) or choice for choice in choices]
    device = next(lm.model.parameters()).device

    def read(batch: Batch, choice: str | None) -> Tensor:
        """As a domain; as none the pretrained model, also where a method would mix its domains then."""
        return walk.method.log_probs(batch, choice) if choice else Method.log_probs(walk.method, batch, None)

    for batch, owners in routing_batches(lm, blocks, recipe.evaluation.batch, recipe.training.mask_rate):
        stop.check("routing")
        here = {k: v.to(device) for k, v in batch.items()}
        losses.append(token_losses(lm.model, here, [*names, None], read))
        rows.append(owners)
        late.append(second_half(batch))
    return torch.cat(losses), torch.cat(rows), torch.cat(late), len(blocks)


def _counts(chosen: Tensor, n: int) -> list[int]:
    return torch.bincount(chosen, minlength=n).tolist()


def _cells(f: Routing, table: list[list[int]]) -> dict[tuple[str, str], int]:
    """(text's domain, chosen domain) -> blocks."""
    return {
        (own, other): n
        for own, row in zip(f.domains, table, strict=True)
        for other, n in zip(f.choices, row, strict=True)
    }


def _right(routings: Listed[Routing], key: str) -> tuple[int, int]:
    """How many blocks went to their own domain, and how many there are."""
    cells = [cell for f in routings for cell in _cells(f, getattr(f, key)).items()]
    return sum(n for (own, other), n in cells if own == other), sum(n for _, n in cells)


def _table(routings: list[Routing], top: int) -> str:
    """One method's sequences summed: confusion, how often right, and what the choice costs."""
    names = routings[0].choices
    total: Counter[tuple[str, str]] = Counter()
    for f in routings:
        total.update(_cells(f, f.confusion))
    lines = [["text of", *names, "right"]]
    for own in routings[0].domains:
        row = [total[own, other] for other in names]
        lines.append([own, *map(str, row), f"{100 * total[own, own] / sum(row):.1f} %"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    whole, half = _right(routings, "confusion"), _right(routings, "half")
    loss = {key: _mean([x for f in routings for x in f.loss[key]]) for key in routings[0].loss}
    return "\n".join([
        f"{routings[0].method}: blocks of held-out text (rows) by the plug-in with the least LM loss, {len(routings)} sequences",
        *text,
        f"right: {100 * whole[0] / whole[1]:.1f} % of {whole[1]:,} whole blocks; {100 * half[0] / half[1]:.1f} % where the first "
        "half chooses",
        f"LM loss of the second halves, nats: with the domain given {loss['told']:.3f}, chosen by the first half {loss['routed']:.3f}, "
        f"best {top} mixed {loss['mixed']:.3f}, no plug-in {loss['base']:.3f}",
    ])  # fmt: skip


def _mean(values: Listed[float]) -> float:
    return sum(values) / len(values)


def _csv(routings: Listed[Routing]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "order", "seed", "text", "chosen", "blocks", "blocks_by_first_half"])
    for f in routings:
        half = _cells(f, f.half)
        writer.writerows([f.method, f.order, f.seed, *key, n, half[key]] for key, n in _cells(f, f.confusion).items())
    return file.getvalue()


__all__ = ["Routing", "route_run"]
