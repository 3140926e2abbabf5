"""A whole run as typed dataclasses, read from strict YAML: settings, reading, overrides."""

from eunoe.recipe.build import build, named
from eunoe.recipe.check import check_domain_names, check_loop, check_training
from eunoe.recipe.override import override
from eunoe.recipe.paths import expand
from eunoe.recipe.read import differences, load_recipe, parse_yaml, recipe_of, shipped_recipes, to_yaml
from eunoe.recipe.settings import (
    CorpusSettings,
    DomainSettings,
    EvaluationSettings,
    HeadSettings,
    LoopSettings,
    ModelSettings,
    Recipe,
    SearchSettings,
    Study,
    StudyEvaluation,
    StudyTask,
    TaskSettings,
    TrainingSettings,
)

__all__ = [
    "CorpusSettings",
    "DomainSettings",
    "EvaluationSettings",
    "HeadSettings",
    "LoopSettings",
    "ModelSettings",
    "Recipe",
    "SearchSettings",
    "Study",
    "StudyEvaluation",
    "StudyTask",
    "TaskSettings",
    "TrainingSettings",
    "build",
    "check_domain_names",
    "check_loop",
    "check_training",
    "differences",
    "expand",
    "load_recipe",
    "named",
    "override",
    "parse_yaml",
    "recipe_of",
    "shipped_recipes",
    "to_yaml",
]
