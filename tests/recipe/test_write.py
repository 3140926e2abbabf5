"""RUN/recipe.yaml: read back by later versions, and refused where it is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from eunoe.cli import main
from eunoe.engine import plan_of, run
from eunoe.errors import EunoeError
from eunoe.methods.cpt import Cpt
from eunoe.recipe import load_recipe, recipe_of_run, same_run, to_yaml
from eunoe.report.page import write_report
from eunoe.verify import verify
from tests.recipe.refusal import refusal
from tests.tiny_run import as_before_0_2, state, tiny_recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and its finished run: one domain, one method, no end task."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        patch.setattr("eunoe.progress.console.quiet", True)
        file = tiny_recipe(folder, methods=["cpt"], seeds=[0])
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        data["domains"] = [{"name": "sport", "corpus": data["domains"][0]["corpus"]}]
        file.write_text(yaml.safe_dump(data), encoding="utf-8")
        out = run(load_recipe(file), str(folder / "out")).parent  # a path as text
    return file, out


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "out"))


def without(text: str, *keys: str) -> str:
    """The recipe of a version that did not know ``keys`` yet (dotted), wherever they stand."""
    data = yaml.safe_load(text)
    for key in keys:
        *path, last = key.split(".")
        inner: Any = data
        for part in path:
            inner = inner[int(part)] if part.isdecimal() else inner[part]
        del inner[last]
    return yaml.safe_dump(data, sort_keys=False)


def resolved(recipe: Any) -> Any:
    return plan_of(recipe).recipe


@pytest.mark.parametrize(
    "keys",
    [
        ("threads",),
        ("evaluation.answer_tokens", "training.precision"),
        ("methods.0.skip", "methods.0.training.clip_by"),
        ("transfer.pooling", "transfer.optimizer.eps"),
    ],
)
def test_the_folder_of_a_version_that_lacked_a_key_is_resumed(keys: tuple[str, ...], made: Any, copy: Path) -> None:
    text = (as_before_0_2(copy) / "recipe.yaml").read_text(encoding="utf-8")
    (copy / "recipe.yaml").write_text(without(text, *keys), encoding="utf-8")
    before = state(copy)
    assert same_run(copy, resolved(load_recipe(made[0], {"threads": recipe_of_run(copy).threads})), resolved) == []
    run(load_recipe(made[0]), copy)  # finished: nothing is done again, and nothing is refused
    assert state(copy) == before


def test_a_run_that_a_version_without_a_key_began_is_resumed_and_a_recipe_changed_since_is_refused(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as earlier:
        earlier.setattr("eunoe.folder.to_yaml", lambda recipe: without(to_yaml(recipe), "threads", "methods.0.skip"))
        earlier.setattr(Cpt, "publish", full)
        with pytest.raises(OSError, match="No space"):
            run(load_recipe(made[0]), out)
    text = (out / "recipe.yaml").read_text(encoding="utf-8")
    changed = load_recipe(made[0], {"methods.0.s_max": 300})
    (out / "recipe.yaml").write_text(to_yaml(resolved(changed)), encoding="utf-8")
    with pytest.raises(EunoeError, match="belongs to another"):
        run(changed, out)
    (out / "recipe.yaml").write_text(f"# a remark\n{text}", encoding="utf-8")
    run(load_recipe(made[0]), out)
    assert (out / "rows.jsonl").read_bytes() == (made[1] / "rows.jsonl").read_bytes()
    but = ("cell.json", "manifest.json")  # they hold the run's name
    assert state(out / "sequences", but) == state(made[1] / "sequences", but)


def test_a_key_that_was_added_counts_with_its_default(made: Any, copy: Path) -> None:
    text = (copy / "recipe.yaml").read_text(encoding="utf-8")
    (copy / "recipe.yaml").write_text(without(text, "methods.0.s_max", "training.clip"), encoding="utf-8")
    loaded = load_recipe(
        made[0], {"methods.0.s_max": 300, "training.clip": 0.5, "threads": recipe_of_run(copy).threads}
    )
    assert same_run(copy, resolved(loaded), resolved) == [
        "methods.0.s_max: 400.0 there, 300.0 now",
        "methods.0.training.clip: 1.0 there, 0.5 now",
        "training.clip: 1.0 there, 0.5 now",
    ]
    with pytest.raises(EunoeError, match=r"belongs to another recipe: .*s_max: 400.0 there, 300.0 now"):
        run(loaded, copy)


def cut(text: str, share: float) -> bytes:
    return text.encode()[: int(share * len(text))]


DAMAGE: dict[str, Any] = {
    "bytes": lambda text: b"\xff\xfe" + text.encode(),
    "empty": lambda text: b"",
    "list": lambda text: b"- a\n- b\n",
    "deep": lambda text: b"name: " + b"[" * 2000,
    "zeros": lambda text: text.encode()[:500] + bytes(500),
    "unknown key": lambda text: text.encode() + b"later: 1\n",
    **{f"cut at {share}": lambda text, share=share: cut(text, share) for share in (0.2, 0.5, 0.8, 0.95)},
    "cut between keys": lambda text: text[: text.index("seeds:")].encode(),
    "cut before the last key": lambda text: text[: text.index("scales:")].encode(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_recipe_is_named_by_all_that_read_it(damage: str, made: Any, copy: Path, capsys: Any) -> None:
    file = copy / "recipe.yaml"
    file.write_bytes(DAMAGE[damage](file.read_text(encoding="utf-8")))
    for call in (lambda: recipe_of_run(copy), lambda: verify(str(copy)), lambda: run(load_recipe(made[0]), copy)):
        message = refusal(call)
        assert f"{file} is damaged, or not what this version writes: " in message
        assert "Restore it from a copy" in message
    assert main(["verify", str(copy)]) == 2
    printed = capsys.readouterr().err
    assert "promises" not in printed
    assert "is damaged" in printed


def test_every_cut_of_a_recipe_is_noticed(made: Any, copy: Path) -> None:
    file = copy / "recipe.yaml"
    whole = file.read_bytes()
    assert whole.endswith(b"scales: {}\n")
    for end in range(len(whole) - len(b"scales: {}\n"), 0, -97):
        file.write_bytes(whole[:end])
        assert "is damaged" in refusal(recipe_of_run, copy), end


def test_what_is_written_is_read_back(made: Any) -> None:
    assert to_yaml(recipe_of_run(made[1])) == (made[1] / "recipe.yaml").read_text(encoding="utf-8")


def test_paths_may_be_text(made: Any, copy: Path) -> None:
    assert [f.broken for f in verify(str(copy))] == [f.broken for f in verify(copy)]
    assert write_report(str(copy)) == write_report([str(copy)]) == write_report([copy]) == copy / "report.html"
    assert write_report([str(copy)], str(copy / "other.html")) == copy / "other.html"


@pytest.mark.parametrize("path", [None, 3, b"out", ""])
def test_what_is_no_path_is_refused(path: Any, made: Any) -> None:
    calls = [lambda: verify(path), lambda: write_report([path])]
    for call in [*calls, lambda: run(load_recipe(made[0]), path)] if path is not None else calls:  # None: runs/NAME
        assert f"is given as {path!r}; give a path" in refusal(call)
