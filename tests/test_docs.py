"""The words stay true: commands parse, recipes load, Python compiles, tables hold every setting, the tree is the tree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

import eunoe.recipe
from eunoe import cli, run_recipe, verify_run
from eunoe.methods import METHODS
from eunoe.methods.base import Method
from eunoe.models.anatomy import FAMILIES
from eunoe.optim import RecAdam
from eunoe.optim.table import OPTIMIZERS, AdamWSettings, BertAdamSettings, RecAdamSettings
from eunoe.plan import resolve
from eunoe.recipe import load_recipe, parse_yaml, shipped_recipes
from eunoe.recipe.pretraining import Pretraining, load_pretraining
from eunoe.study import resolve_study
from eunoe.transfer import TRANSFERS
from eunoe.transfer.elmo import BiLMSettings, ElmoSettings
from eunoe.transfer.features import FeatureSettings
from eunoe.transfer.finetune import FinetuneSettings
from eunoe.transfer.gpt import GptSettings
from eunoe.transfer.lm_text import LMStage
from eunoe.transfer.over_features import LayerSettings, TaskModelSettings
from eunoe.transfer.ulmfit_settings import UlmfitSettings
from eunoe.transfer.vectors import VectorSettings
from tests.tiny import tiny_bert, tiny_folder
from tests.tiny_run import tiny_recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "eunoe"
CARD = PACKAGE / "models" / "embedded" / "minilm" / "README.md"
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")), CARD]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


class Fence(NamedTuple):
    language: str
    text: str


def fences(page: Path, *languages: str) -> list[Fence]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Fence(*pair) for pair in found if not languages or pair[0] in languages]


def prose(page: Path) -> str:
    """The page without its fences."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def commands(fence: Fence) -> Iterator[list[str]]:
    """The words of each command of a shell fence, without comments, prompts and variables set before it."""
    for line in fence.text.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


# -- what a reader copies -----------------------------------------------------------------------------------------
@pages
def test_python_examples_compile_and_import_names_that_exist(page: Path) -> None:
    for fence in fences(page, "python"):
        for node in ast.walk(ast.parse(fence.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "eunoe":
                module = import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}"), name.name


@pages
def test_commands_parse_and_their_recipes_resolve(page: Path, tmp_path: Path, capsys: Any) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for fence in fences(page, "yaml"):
        name = re.match(r"# ([\w.-]+\.yaml)", fence.text)
        if name:
            (tmp_path / name[1]).write_text(fence.text, encoding="utf-8")
    for fence in fences(page, "bash", "console"):
        for words in commands(fence):
            if words[0] == "make":
                assert set(words[1:]) <= set(targets), words
            if words[0] != "eunoe":
                continue
            args, rest = cli.parser().parse_known_args(words[1:])
            assert args.command, words
            assert args.overrides or not rest, words
            if args.command == "list":
                assert cli.main(words[1:]) == 0
            if args.command == "pretrain" and args.recipe in shipped_recipes("pretrain"):
                load_pretraining(args.recipe, cli._overrides(rest), args.scale)
            if args.command in ("run", "demo", "plan"):
                recipe = getattr(args, "recipe", "demo")
                file = next((f for f in (tmp_path / recipe, ROOT / recipe) if f.is_file()), None)
                if file or recipe in shipped_recipes():
                    loaded = load_recipe(file or recipe, cli._overrides(rest), getattr(args, "scale", None))
                    resolve_study(loaded) if isinstance(loaded, eunoe.recipe.Study) else resolve(loaded)
                else:
                    cli._overrides(rest)


@pages
def test_recipes_on_a_page_load_and_resolve(page: Path, tmp_path: Path) -> None:
    for fence in fences(page, "yaml"):
        if fence.text.startswith("# "):
            file = tmp_path / "recipe.yaml"
            file.write_text(fence.text, encoding="utf-8")
            recipe = load_recipe(file)
            assert resolve_study(recipe).points if isinstance(recipe, eunoe.recipe.Study) else resolve(recipe).sequences


@pages
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "code", prose(page))):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.name} links to {target}"
        if anchor:
            slugs = [re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for _, text in headings(file)]
            assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", READMES, ids=lambda p: p.name)
def test_a_newcomer_reads_a_page_and_a_half_before_the_tree(page: Path) -> None:
    assert page.read_text(encoding="utf-8").split("\n```text\nREADME.md ")[0].count("\n") <= 150


def test_the_commands_of_the_readme_make_a_recipe_of_this_repository_that_resolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fence = next(f for f in fences(READMES[0], "bash") if "eunoe new" in f.text)
    for name in ("docs", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    before, _, after = fence.text.partition("eunoe new")
    subprocess.run(["bash", "-euc", before], check=True)
    assert cli.main(["new", *shlex.split(after.splitlines()[0], comments=True)]) == 0
    recipe = load_recipe("mine.yaml")
    assert isinstance(recipe, eunoe.recipe.Recipe)
    assert sorted(domain.name for domain in recipe.domains) == ["code", "pages"]
    assert str(Path("runs", recipe.name)) == re.findall(r"^eunoe verify (\S+)", fence.text, re.MULTILINE)[0]
    assert resolve(recipe).sequences


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny recipe in place of the demo, and a tiny model."""
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = tiny_recipe(tmp_path, methods=["cpt"], seeds=[0])
    monkeypatch.setattr("eunoe.load_recipe", lambda name, changes: load_recipe(small, changes))
    names: dict[str, Any] = {"model": tiny_bert()}
    for fence in fences(READMES[0], "python"):
        exec(compile(fence.text, "README.md", "exec"), names)
    assert "True" in capsys.readouterr().out
    assert Path("short.html").is_file()
    assert isinstance(names["optimizer"], RecAdam)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    api = re.sub(r"<[^>]+>", "", (tmp_path / "site" / "api.html").read_text(encoding="utf-8"))
    assert [name for name in eunoe.__all__ if name not in api and name != "__version__"] == []
    assert "Carry out recipe in the folder out" in api, "docstrings are read"


def test_the_api_page_names_every_public_name() -> None:
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    assert {name for name in eunoe.__all__ if name != "__version__"} == set(
        re.findall(r":: eunoe\.(\w+)$", page, re.MULTILINE)
    )
    for module in re.findall(r"automodule:: (\S+)", page):
        assert import_module(module).__doc__, module


def test_the_package_on_the_page_is_the_example() -> None:
    page, folder = ROOT / "docs" / "own_method.md", ROOT / "examples" / "own_method"
    assert [f.text for f in fences(page, "python")] == [(folder / "eunoe_near.py").read_text(encoding="utf-8")]
    assert [f.text for f in fences(page, "toml")] == [(folder / "pyproject.toml").read_text(encoding="utf-8")]


# -- settings -----------------------------------------------------------------------------------------------------
RECIPES, METHODS_PAGE = ROOT / "docs" / "recipes.md", ROOT / "docs" / "methods.md"
TRANSFER = ROOT / "docs" / "transfer.md"
ULMFIT = ROOT / "docs" / "ulmfit.md"
TABLES: dict[type[Any], tuple[Path, str]] = {
    eunoe.recipe.Recipe: (RECIPES, "The run"),
    eunoe.recipe.ModelSettings: (RECIPES, "`model`"),
    eunoe.recipe.HeadSettings: (RECIPES, "`head`"),
    eunoe.recipe.DomainSettings: (RECIPES, "`domains`"),
    eunoe.recipe.CorpusSettings: (RECIPES, "Corpus"),
    eunoe.recipe.TaskSettings: (RECIPES, "`task`"),
    eunoe.recipe.TrainingSettings: (RECIPES, "`training`"),
    eunoe.recipe.EvaluationSettings: (RECIPES, "`evaluation`"),
    eunoe.recipe.PromptText: (RECIPES, "`prompts`"),
    FinetuneSettings: (RECIPES, "`transfer`"),
    GptSettings: (ROOT / "docs" / "gpt.md", "Settings"),
    TaskModelSettings: (TRANSFER, "`features`, `elmo` and `vectors`"),
    LayerSettings: (TRANSFER, "`features` and `elmo`"),
    FeatureSettings: (TRANSFER, "`features` alone"),
    ElmoSettings: (TRANSFER, "`elmo` alone"),
    BiLMSettings: (TRANSFER, "A new biLM"),
    VectorSettings: (TRANSFER, "`vectors` alone"),
    UlmfitSettings: (ULMFIT, "`ulmfit`"),
    LMStage: (ULMFIT, "`lm` of `ulmfit`"),
    eunoe.recipe.Study: (RECIPES, "Fine-tuning studies"),
    eunoe.recipe.StudyTask: (RECIPES, "`tasks`"),
    eunoe.recipe.SearchSettings: (RECIPES, "`search`"),
    eunoe.recipe.StudyEvaluation: (RECIPES, "`evaluation` of a study"),
    Pretraining: (ROOT / "docs" / "awd_lstm.md", "The recipe"),
    AdamWSettings: (RECIPES, "`adamw`"),
    BertAdamSettings: (RECIPES, "`bert_adam`"),
    RecAdamSettings: (RECIPES, "`recadam`"),
    **{entry.settings: (METHODS_PAGE, name) for name, entry in METHODS.items() if dataclasses.fields(entry.settings)},
}


def table(page: Path, heading: str) -> dict[str, str]:
    """key -> default, as the table below a heading has them."""
    text = page.read_text(encoding="utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)
    assert len(below) == 2, f"{page.name} has the heading {heading!r} {len(below) - 1} times"
    section = re.split(r"^#+ ", below[1], flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| ", section, re.MULTILINE))


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as YAML would give it; ``section`` for settings of their own."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "section"
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("settings", TABLES, ids=lambda c: c.__name__)
def test_every_key_stands_in_its_table_with_its_default(settings: type[Any]) -> None:
    found = table(*TABLES[settings])
    held = {field.name: field for field in dataclasses.fields(settings)}
    inherits = any(base in TABLES for base in settings.__mro__[1:])  # as bcl from hat, whose table is named there
    if (inherits and not set(found) >= set(held)) or settings in (
        FinetuneSettings,
        GptSettings,
        TaskModelSettings,
        eunoe.recipe.StudyTask,
    ):  # what differs from training, from `task`
        held = {name: held[name] for name in inspect.get_annotations(settings)}
    assert set(found) == set(held)
    for name, cell in found.items():
        told = cell.strip("`") if cell in ("required", "section") else parse_yaml(cell.strip("`"), name)
        assert told == default(held[name]), (
            f"{settings.__name__}.{name} is {default(held[name])!r}, the page says {cell}"
        )


def test_no_settings_lack_a_table() -> None:
    own = [
        c
        for _, c in inspect.getmembers(eunoe.recipe, dataclasses.is_dataclass)
        if c.__module__.startswith("eunoe.recipe.")
    ]
    chosen = [entry.settings for entries in (METHODS, TRANSFERS, OPTIMIZERS) for entry in entries.values()]
    lacking = [c for c in [*own, *chosen] if dataclasses.fields(c) and not any(issubclass(t, c) for t in TABLES)]
    assert not lacking


def test_every_family_stands_in_its_table_with_its_places() -> None:
    section = METHODS_PAGE.read_text(encoding="utf-8").split("\n## Families\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    told = {
        name: (re.findall(r"`([^`]+)`", attention)[0], re.findall(r"`([^`]+)`", feed_forward)[0])
        for names, _, attention, feed_forward in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert told == {name: (family.attention_out, family.feed_forward_out) for name, family in FAMILIES.items()}


def test_every_method_has_a_section() -> None:
    assert set(METHODS) <= {text for _, text in headings(METHODS_PAGE)}


def test_the_hooks_on_the_page_are_those_of_the_contract() -> None:
    section = METHODS_PAGE.read_text(encoding="utf-8").split("\n## A method of your own\n")[1]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = [
        (name, words.replace(" ", "").split(",") if words else [])
        for row in rows
        for name, words in re.findall(r"`(\w+)\((.*?)\)`", row)
    ]
    assert len(told) > 8
    for name, words in told:
        assert list(inspect.signature(getattr(Method, name)).parameters)[1:] == words, name


def test_the_method_of_the_page_is_learnt_composed_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eunoe.progress.console.quiet", True)
    monkeypatch.setenv("EUNOE_CACHE", str(tmp_path / "cache"))
    section = METHODS_PAGE.read_text(encoding="utf-8").split("\n## A method of your own\n")[1]
    (example,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    try:
        exec(compile(example, str(METHODS_PAGE), "exec"), {"__name__": "__main__"})
        held = {"name": "near", "strength": 1000.0}
        methods = ["ncl", held, {"name": ["ncl", "near"], "near": {"strength": 1000.0}, "label": "both"}]
        recipe = tiny_recipe(
            tmp_path, methods=methods, seeds=[0], model={"name": str(tiny_folder(tmp_path)), "dropout": 0.0}
        )
        out = run_recipe(recipe, tmp_path / "out").parent
        assert {found.broken for found in verify_run(out)} == {False}
    finally:
        METHODS.pop("near", None)

    def moved(method: str) -> float:
        """How far the second domain moved the weights from where the first left them."""
        first, second = (
            load_file(f) for f in sorted(out.glob(f"sequences/{method}.*/domains/*/final/weights.safetensors"))
        )
        return sum(float((second[name] - first[name]).square().sum()) for name in first)

    assert moved("near") < moved("ncl") / 2
    assert moved("both") == moved("near")


def test_the_model_card_has_the_settings_of_its_recipe() -> None:
    (fence,) = fences(CARD, "yaml")
    head = parse_yaml((ROOT / "recipes" / "embedded_head.yaml").read_text(encoding="utf-8"), "recipe")["head"]
    assert parse_yaml(fence.text, "card") == {key: value for key, value in head.items() if key != "corpora"}


# -- the tree -----------------------------------------------------------------------------------------------------
def tree(page: Path) -> list[tuple[Path, str]]:
    """Every entry of a README's tree with what is said of it."""
    (fence,) = fences(page, "text")
    top, *lines = fence.text.splitlines()
    entries = [(Path(name), "-") for name in top.split()]
    folders: list[str] = []
    for line in lines:
        name, _, about = line.strip().partition(" ")
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        entries.append((Path(*folders, name), about.strip()))
        folders.append(name)
    return entries


def says_nothing(file: Path) -> bool:
    """An ``__init__.py`` that is only a docstring: its folder's line stands for it."""
    return file.name == "__init__.py" and len(ast.parse(file.read_text(encoding="utf-8")).body) == 1


@pytest.mark.parametrize("page", READMES, ids=lambda p: p.name)
def test_the_tree_names_every_file_of_the_package_and_nothing_else(page: Path) -> None:
    named = [path for path, _ in tree(page)]
    assert len(set(named)) == len(named)
    assert [str(path) for path in named if not (ROOT / path).exists()] == []
    files = [f for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts and not says_nothing(f)]
    folders = [f.parent for f in PACKAGE.rglob("__init__.py")]
    methods = {
        Path(inspect.getfile(entry.method)) for entry in METHODS.values()
    }  # the line of their folder stands for all
    lacking = {f.relative_to(ROOT) for f in {*files, *folders} - methods} - set(named)
    assert sorted(map(str, lacking)) == []
    assert [str(path) for path, about in tree(page) if not about and path != Path("src/eunoe")] == []


# -- two languages ------------------------------------------------------------------------------------------------
def test_both_readmes_have_the_same_headings_by_level() -> None:
    english, chinese = ([level for level, _ in headings(page)] for page in READMES)
    assert english == chinese


def test_both_readmes_have_the_same_examples() -> None:
    def bare(fence: Fence, page: Path) -> Any:
        """What an example does, without its comments."""
        if fence.language == "python":
            return ast.dump(ast.parse(fence.text))
        if fence.language == "yaml":
            return parse_yaml(fence.text, "example")
        return [path for path, _ in tree(page)] if fence.language == "text" else list(commands(fence))

    english, chinese = ([(fence.language, bare(fence, page)) for fence in fences(page)] for page in READMES)
    assert english == chinese
