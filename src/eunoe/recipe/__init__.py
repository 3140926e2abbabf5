"""A whole run as typed dataclasses, read from strict YAML: settings, reading, overrides."""

from eunoe.recipe.build import build, named
from eunoe.recipe.names import check_names
from eunoe.recipe.override import Overrides, override
from eunoe.recipe.paths import as_path, expand, refuse_inside
from eunoe.recipe.ranges import Batch, Below1, Block, Count, Epochs, Name, Positive, Seed, Seeds, Share, Threads
from eunoe.recipe.read import load_recipe, recipe_of, shipped_recipes
from eunoe.recipe.settings import (
    CorpusSettings,
    DomainSettings,
    EvaluationSettings,
    HeadSettings,
    LoopSettings,
    ModelSettings,
    PromptText,
    Recipe,
    SearchSettings,
    Study,
    StudyEvaluation,
    StudyTask,
    TaskSettings,
    TrainingSettings,
)
from eunoe.recipe.strict import parse_yaml, read_yaml
from eunoe.recipe.write import differences, recipe_of_run, same_run, to_yaml

__all__ = [
    "Batch",
    "Below1",
    "Block",
    "CorpusSettings",
    "Count",
    "DomainSettings",
    "Epochs",
    "EvaluationSettings",
    "HeadSettings",
    "LoopSettings",
    "ModelSettings",
    "Name",
    "Overrides",
    "Positive",
    "PromptText",
    "Recipe",
    "SearchSettings",
    "Seed",
    "Seeds",
    "Share",
    "Study",
    "StudyEvaluation",
    "StudyTask",
    "TaskSettings",
    "Threads",
    "TrainingSettings",
    "as_path",
    "build",
    "check_names",
    "differences",
    "expand",
    "load_recipe",
    "named",
    "override",
    "parse_yaml",
    "read_yaml",
    "recipe_of",
    "recipe_of_run",
    "refuse_inside",
    "same_run",
    "shipped_recipes",
    "to_yaml",
]
