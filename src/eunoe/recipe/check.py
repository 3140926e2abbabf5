"""What types alone cannot say of a recipe: names are unique and known; keys that belong together stand together."""

from __future__ import annotations

from eunoe.errors import EunoeError
from eunoe.lookup import lookup, unknown
from eunoe.recipe.names import check_names
from eunoe.recipe.settings import Recipe, Study


def check_recipe(recipe: Recipe) -> None:
    """Raises ``EunoeError`` for names that clash or are unknown, and for sections that lack what they need or go unread."""
    names = [d.name for d in recipe.domains]
    check_names(names, "domain")
    check_names(recipe.orders, "order")
    for order, listed in recipe.orders.items():
        for name in listed:
            if name not in names:
                raise unknown(name, names, f"domain in recipe.orders.{order}")
        if not listed:
            raise EunoeError(f"recipe.orders.{order} is empty: name at least one domain.")
    if recipe.domains and not recipe.methods:
        raise EunoeError("recipe.methods is empty: name at least one of those that `eunoe list methods` shows.")
    if recipe.head is not None and recipe.model.head != "train":
        raise EunoeError("recipe.head is given but nothing reads it: set model.head to train, or leave it out.")
    if recipe.model.head == "train" and recipe.head is None:
        raise EunoeError("model.head is train but recipe.head is missing: say which text to train the LM head on, "
                         "as in `head: {corpora: [{source: general.txt}]}`.")  # fmt: skip
    if recipe.evaluation.retention and recipe.general is None:
        raise EunoeError(
            "recipe.evaluation.retention is true, but there is no general text to measure it on: give recipe.general."
        )
    for prompt in recipe.evaluation.asked:
        if not prompt.text.strip():
            raise EunoeError("recipe.evaluation.prompts: an empty prompt cannot be answered; leave it out.")
        if prompt.domain is not None and prompt.domain not in names:
            raise unknown(prompt.domain, names, "domain in recipe.evaluation.prompts")


CITED = ("anchor_distance", "loss", "accuracy", "accuracy_mm", "macro_f1", "f1", "matthews", "pearson", "spearman")
"""What a published number can be of, where not of a task's first metric: the distance and training loss at the end, or a score."""


def check_study(study: Study) -> None:
    """Raises ``EunoeError`` for names that clash or are unknown, and for keys of tasks that do not go together."""
    names = [task.name for task in study.tasks]
    check_names(names, "task")
    check_names(study.systems, "system")
    check_names(study.retention, "retention text")
    for task in study.tasks:
        if (task.glue is None) != (task.folder is None):
            raise EunoeError(f"recipe.tasks ({task.name}): glue and folder belong together; received glue {task.glue!r}, folder "
                             f"{task.folder!r}.")  # fmt: skip
        if task.train_rows is not None and task.shots != "all":
            raise EunoeError(
                f"recipe.tasks ({task.name}): shots and train_rows both say how many rows are fine-tuned on; give one."
            )
        if study.search is not None and study.search.seed in (study.seeds if task.seeds is None else task.seeds):
            raise EunoeError(f"recipe.search.seed is {study.search.seed}, which is among the seeds of {task.name}: what was chosen "
                             "on a seed may not be reported on it. Take another.")  # fmt: skip
    for label, scores in study.published.items():
        lookup(study.systems, label.partition("[")[0], "system in recipe.published")
        for key in scores:
            what, mark, name = key.rpartition("@")
            if name not in names:
                raise unknown(name, names, f"task in recipe.published.{label}")
            if mark and what not in CITED:
                raise unknown(what, CITED, f"measure in recipe.published.{label}")
