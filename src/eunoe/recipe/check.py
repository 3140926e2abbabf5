"""What types alone cannot say of a recipe: names are safe, unique and known; keys that belong together stand together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from eunoe.errors import EunoeError
from eunoe.foreign import visible
from eunoe.lookup import lookup, unknown
from eunoe.recipe.settings import HeadSettings, LoopSettings, Recipe, Study, TrainingSettings

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_name(name: object) -> None:
    """Raises ``EunoeError`` for a name that is not safe as a folder's name and in a row.

    >>> check_name("../x")
    Traceback (most recent call last):
    eunoe.errors.EunoeError: the name '../x' is not allowed: use 1 to 64 letters, digits, - and _.
    """
    if not _SAFE.fullmatch(str(name)):
        shown = visible(repr(name), 100)
        raise EunoeError(f"the name {shown} is not allowed: use 1 to 64 letters, digits, - and _.")


def check_domain_names(names: Sequence[object]) -> None:
    """Raises ``EunoeError`` for a domain name that is not safe, that rows use for something else, or that is given twice.

    The one rule for domains, whether a recipe, a script, ``eunoe import`` or a plug-in folder names them.
    """
    for name in names:
        check_name(name)
        if name in ("general", "base"):
            raise EunoeError(f"a domain may not be called {name!r}: rows use that name.")
    twice = sorted(str(name) for name, times in Counter(names).items() if times > 1)
    if twice:
        raise EunoeError(f"domain names stand twice: {', '.join(twice)}. Give each domain a name of its own.")


def check_recipe(recipe: Recipe) -> None:
    """What types alone cannot say: names are safe, unique and known; numbers lie where they make sense."""
    names = [d.name for d in recipe.domains]
    for name in [recipe.name, *recipe.orders]:
        check_name(name)
    check_domain_names(names)
    if len(set(recipe.seeds)) != len(recipe.seeds) or not recipe.seeds:
        raise EunoeError(f"recipe.seeds: give at least one seed, each once; received {recipe.seeds}.")
    for order, listed in recipe.orders.items():
        for name in listed:
            if name not in names:
                raise unknown(name, names, f"domain in recipe.orders.{order}")
        if len(set(listed)) != len(listed) or not listed:
            raise EunoeError(f"recipe.orders.{order}: name each domain at most once, and at least one.")
    if recipe.domains and not recipe.methods:
        raise EunoeError("recipe.methods is empty: name at least one, as in `methods: [ncl, cpt]`.")
    if recipe.head is not None and recipe.model.head != "train":
        raise EunoeError("recipe.head is given but nothing reads it: set model.head to train, or leave it out.")
    if recipe.model.head == "train" and recipe.head is None:
        raise EunoeError("model.head is train but recipe.head is missing: say which text to train the LM head on, "
                         "as in `head: {corpora: [{source: general.txt}]}`.")  # fmt: skip
    check_training(recipe.training, "recipe.training")
    if recipe.head is not None:
        _check_text(recipe.head, "recipe.head")
        for key, least in (("rank", 0), ("batch", 1), ("steps", 1), ("checkpoint_every", 1)):
            _at_least(recipe.head, key, least, "recipe.head")
        if recipe.head.lr <= 0 or not 0 <= recipe.head.warmup < 1 or not recipe.head.corpora:
            raise EunoeError(f"recipe.head needs lr above 0, warmup in [0, 1) and at least one corpus; received lr {recipe.head.lr}, "
                             f"warmup {recipe.head.warmup}, {len(recipe.head.corpora)} corpora.")  # fmt: skip
    if recipe.evaluation.retention and recipe.general is None:
        raise EunoeError(
            "recipe.evaluation.retention is true, but there is no general text to measure it on: give recipe.general."
        )
    _at_least(recipe.evaluation, "batch", 1, "recipe.evaluation")
    _at_least(recipe.evaluation, "blocks", 1, "recipe.evaluation")
    _at_least(recipe.evaluation, "answer_tokens", 1, "recipe.evaluation")
    if not all(prompt.strip() for prompt in recipe.evaluation.prompts):
        raise EunoeError("recipe.evaluation.prompts: an empty prompt cannot be answered; leave it out.")
    if recipe.model.dropout is not None and not 0 <= recipe.model.dropout < 1:
        raise EunoeError(f"recipe.model.dropout must lie in [0, 1), received {recipe.model.dropout}.")


def check_study(study: Study) -> None:
    """What types alone cannot say about a study."""
    names = [task.name for task in study.tasks]
    for name in [study.name, *names, *study.systems, *study.retention]:
        check_name(name)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise EunoeError(f"recipe.tasks: name at least one task, each once; {', '.join(twice) or 'none'} given"
                         f"{' twice' * bool(twice)}.")  # fmt: skip
    if not study.systems:
        raise EunoeError("recipe.systems is empty: name at least one, as in `systems: {adamw: finetune}`.")
    for task in study.tasks:
        if (task.glue is None) != (task.folder is None):
            raise EunoeError(f"recipe.tasks ({task.name}): glue and folder belong together; received glue {task.glue!r}, folder "
                             f"{task.folder!r}.")  # fmt: skip
        if task.glue is None and task.train_rows is not None:
            raise EunoeError(
                f"recipe.tasks ({task.name}): train_rows is read with glue alone; for rows of your own set shots."
            )
        seeds = study.seeds if task.seeds is None else task.seeds
        if len(set(seeds)) != len(seeds) or not seeds:
            raise EunoeError(f"recipe.tasks ({task.name}): give at least one seed, each once; received {seeds}.")
        if study.search is not None and study.search.seed in seeds:
            raise EunoeError(f"recipe.search.seed is {study.search.seed}, which is among the seeds of {task.name}: what was chosen "
                             "on a seed may not be reported on it. Take another.")  # fmt: skip
    for label, scores in study.published.items():
        lookup(study.systems, label.partition("[")[0], "system in recipe.published")
        for key in scores:
            what, mark, name = key.rpartition("@")
            if name not in names:
                raise unknown(name, names, f"task in recipe.published.{label}")
            if mark and what not in ("anchor_distance", "loss"):
                raise unknown(what, ("anchor_distance", "loss"), f"measure in recipe.published.{label}")
    for key, least in (("batch", 1), ("blocks", 1), ("block", 8)):
        _at_least(study.evaluation, key, least, "recipe.evaluation")


def _at_least(settings: Any, key: str, least: int, where: str) -> None:
    value = getattr(settings, key)
    if value is not None and value < least:
        raise EunoeError(f"{where}.{key} must be at least {least}, received {value}.")


def _check_text(settings: TrainingSettings | HeadSettings, where: str) -> None:
    if settings.block < 8:
        raise EunoeError(f"{where}.block must be at least 8 tokens, received {settings.block}.")
    if not 0 < settings.mask_rate < 1:
        raise EunoeError(f"{where}.mask_rate must lie in (0, 1), received {settings.mask_rate}.")


def check_training(training: TrainingSettings, where: str) -> None:
    """Refuse numbers of a post-training that make no sense, naming ``where``."""
    check_loop(training, where)
    _check_text(training, where)


def check_loop(loop: LoopSettings, where: str) -> None:
    """Refuse numbers of a training that make no sense, naming ``where``."""
    for key in ("batch", "epochs", "lr", "checkpoint_every"):
        if getattr(loop, key) <= 0:
            raise EunoeError(f"{where}.{key} must be above 0, received {getattr(loop, key)}.")
    if loop.steps is not None and loop.steps < 1:
        raise EunoeError(f"{where}.steps must be at least 1, received {loop.steps}.")
    if not 0 <= loop.warmup < 1:
        raise EunoeError(f"{where}.warmup is a share of the steps in [0, 1), received {loop.warmup}.")
    if loop.micro_batch is not None and (loop.micro_batch < 1 or loop.batch % loop.micro_batch):
        raise EunoeError(f"{where}.micro_batch must divide batch = {loop.batch}, received {loop.micro_batch}.")
    if loop.clip is not None and loop.clip <= 0:
        raise EunoeError(f"{where}.clip must be above 0, or null for none; received {loop.clip}.")
