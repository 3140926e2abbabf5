"""Fine-tuning from the command line without a recipe file: ``eunoe finetune`` and ``eunoe glue`` compose a study from options.

What they leave is a study like any other (its recipe.yaml says all), so it resumes, is shared and reported in the same way;
``--key value`` after the options overrides any key of that recipe.
"""

from __future__ import annotations

import argparse
import html
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.table import Table

from eunoe.atomic import write_text
from eunoe.data.glue import GLUE
from eunoe.data.shots import evenly
from eunoe.errors import EunoeError
from eunoe.lookup import lookup
from eunoe.optim.advice import Point
from eunoe.optim.table import OPTIMIZERS
from eunoe.progress import console
from eunoe.recipe import Recipe, Study, recipe_of
from eunoe.report.lines import together
from eunoe.study import load_study_task, resolve_study
from eunoe.transfer import TRANSFERS

Overrides = list[tuple[str, str]]
GLUE_EPOCHS = 3
"""Passes that ``eunoe glue`` makes over the rows of a task where ``--epochs`` does not say."""


def finetune_study(args: argparse.Namespace, overrides: Overrides) -> Study:
    """The study of ``eunoe finetune``: one task from files or GLUE, one system for each transfer and optimizer."""
    if (args.glue is None) == (args.train is None):
        raise EunoeError(f"eunoe {args.command} needs the labelled rows: --train FILE (and --test FILE or --test-share 0.2), or "
                         "--glue rte --data FOLDER; give one of the two.")  # fmt: skip
    own = ("train", "test", "test_share", "unlabelled", "text", "pair", "label", "kind", "choices", "layout")
    given = {key: value for key in own if (value := getattr(args, key)) is not None}
    if len(given.get("choices", ())) == 1:
        given["choices"] = given["choices"][0]
    if args.glue is not None:
        if given:
            options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise EunoeError(
                f"{options}: not read with --glue, whose rows, columns and labels are known. Leave it out."
            )
        task = {"name": args.glue, "glue": args.glue, "folder": args.data or "hub"}
    elif args.data is not None:
        raise EunoeError(
            f"--data {args.data}: read only with --glue TASK. Rows of your own are given by --train and --test."
        )
    else:
        task = {"name": "task", **given}
    return _study(args, [task], overrides)


def glue_study(args: argparse.Namespace, overrides: Overrides) -> Study:
    """The study of ``eunoe glue``: the named tasks of a GLUE folder, or those of the nine that it is asked for."""
    trainable = {name: spec for name, spec in GLUE.items() if "train" in spec.splits}
    tasks = []
    for name in args.tasks:
        lookup(trainable, name, "GLUE task")
        tasks.append({"name": name, "glue": name, "folder": args.data})
    evaluation = {"predict_test": True} if args.submit else {}
    return _study(args, tasks, overrides, evaluation=evaluation)


def _study(args: argparse.Namespace, tasks: list[dict[str, Any]], overrides: Overrides, **more: Any) -> Study:
    systems = _systems(args)
    for key, _ in overrides:
        system = key.removeprefix("systems.").split(".")[0]
        if key.startswith("systems.") and system not in (*systems, "*"):
            raise EunoeError(f"--{key} is about the system {system!r}, but the systems are {', '.join(systems)}. "
                             "Add its optimizer or transfer, as in --optimizer adamw recadam.")  # fmt: skip
    data = {
        "name": args.command, "model": {"name": args.model}, "tasks": tasks, "systems": systems, "seeds": args.seeds,
        "retention": {"general": {"source": args.general}} if args.general else {}, **more,
    }  # fmt: skip
    study = recipe_of(data, overrides)
    assert isinstance(study, Study)
    return study


def _systems(args: argparse.Namespace) -> dict[str, Any]:
    """The systems that ``--transfer`` and ``--optimizer`` name, with the options that were given.

    Fine-tuning is called by its optimizer, another transfer by its own name; and by both where several optimizers are
    compared. An option that none of the transfers has is refused; each takes those that it has.
    """
    every = {field.name for entry in TRANSFERS.values() for field in fields(entry.settings)}
    known = {name: getattr(args, name) for name in sorted(every) if hasattr(args, name)}
    options = {key: value for key, value in known.items() if value is not None and key != "optimizer"}
    chosen = {name: lookup(TRANSFERS, name, "transfer") for name in args.transfer}
    names = {name: {field.name for field in fields(entry.settings)} for name, entry in chosen.items()}
    for key in (*options, *(["optimizer"] if args.optimizer else [])):
        if not any(key in has for has in names.values()):
            raise EunoeError(f"--{key.replace('_', '-')} is not an option of {' or '.join(chosen)}, so nothing would read it. Leave it "
                             "out, or add a transfer that has it, as in --transfer NAME.")  # fmt: skip
    systems: dict[str, Any] = {}
    for name, entry in chosen.items():
        plain = name == Recipe.transfer
        base = {"name": name, **({"epochs": GLUE_EPOCHS} if plain and args.command == "glue" else {}), **entry.composed}
        base |= {key: value for key, value in options.items() if key in names[name]}
        optimizers = args.optimizer or (["adamw"] if plain else [])
        if "optimizer" not in names[name] or not optimizers:
            systems[name] = base
            continue
        for optimizer in optimizers:
            lookup(OPTIMIZERS, optimizer, "optimizer")
            label = optimizer if plain else name if len(optimizers) == 1 else f"{name}-{optimizer}"
            systems[label] = {**base, "optimizer": {"name": optimizer}}
    return systems


# -- what annealing will do -----------------------------------------------------------------------------------------
def plot_lambda(study: Study, out: Path) -> Path:
    """Before anything trains: lambda, the pull and the learning rate over the steps of each RecAdam system and task.

    Prints a table and the warnings, and writes a plot each to ``OUT.lambda.html``, beside the study folder ``out`` that is to
    be; returns its path.
    Raises ``EunoeError`` where no system uses recadam.
    """
    rows = {task.name: len(load_study_task(task).train) for task in study.tasks}
    works = [work for works in resolve_study(study).points.values() for work in works]
    figures: list[str] = []
    for work in works:
        plan = work.entry.course(work.settings, rows[work.task])
        if plan is None:
            continue
        title = f"{work.task} · {work.label} · {plan.steps} steps"
        _print_curve(title, plan.curve)
        for line in plan.warnings:
            console.print(f"warning: {line}", markup=False, highlight=False)
        warnings = "".join(f"<p>{html.escape(line)}</p>" for line in plan.warnings)
        figures.append(f"<h2>{html.escape(title)}</h2>{_plot(plan.curve, f'lambda{len(figures)}')}{warnings}")
    if not figures:
        raise EunoeError("--plot-lambda shows RecAdam's annealing, but no system uses it. Add --optimizer recadam.")
    page = f"<!doctype html><meta charset=utf-8><title>lambda</title><body style='font-family:sans-serif'>{''.join(figures)}"
    file = out.parent / f"{out.resolve().name}.lambda.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page)
    return file


SHOWN = ("lambda", "pull a step", "learning rate of the task")
"""lambda: the task's share; pull: share of the distance taken away in a step; learning rate: lambda times the schedule's."""


def _plot(curve: list[Point], name: str) -> str:
    """SVG of lambda, pull and learning rate over the steps; the learning rate as a share of its highest."""
    steps, share, pull, rate = zip(*curve, strict=True)
    highest = max(rate) or 1.0
    lines = (share, pull, [value / highest for value in rate])
    return together(steps, dict(zip(SHOWN, lines, strict=True)), name)


def _print_curve(title: str, curve: list[Point]) -> None:
    table = Table(title=title, title_justify="left", box=None)
    for name in ("step", "lambda", "", *SHOWN[1:]):
        table.add_column(name, justify="left" if not name else "right")
    for i in evenly(len(curve), 12):
        step, share, pull, rate = curve[i]
        table.add_row(f"{step:,}", f"{share:.3f}", "#" * round(20 * share), f"{100 * pull:.2f} %", f"{rate:.2e}")
    console.print(table)
