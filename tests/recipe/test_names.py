"""Names of one kind that cannot stand beside each other in rows and folders."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from eunoe.errors import EunoeError
from eunoe.plan import resolve
from eunoe.recipe import check_names, load_recipe
from eunoe.study import resolve_study
from tests.recipe.refusal import refusal

RUN = {
    "name": "r",
    "domains": [{"name": "a", "corpus": {"source": "a.txt"}}, {"name": "b", "corpus": {"source": "b.txt"}}],
    "methods": ["ncl"],
}
STUDY = {"name": "s", "tasks": [{"name": "a", "train": "x", "test": "y"}], "systems": {"adamw": "finetune"}}


@pytest.fixture
def read(tmp_path: Any) -> Any:
    def read(data: dict[str, Any], **change: Any) -> Any:
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**data, **change}), encoding="utf-8")
        recipe = load_recipe(tmp_path / "r.yaml")
        return resolve_study(recipe) if "tasks" in data else resolve(recipe)

    return read


@pytest.mark.parametrize("label", ["base", "head-start", "head-trained", "Base", "HEAD-START"])
def test_a_method_label_that_other_rows_have_is_refused(label: str, read: Any) -> None:
    message = refusal(read, RUN, methods=["ncl", {"name": "ncl", "label": label}])
    assert f"the name {label!r} is not allowed for a method label: rows use it for something else" in message


@pytest.mark.parametrize("label", ["a/b", "", "é", "x" * 65, "..", ["x"]])
def test_a_method_label_that_is_no_safe_name_is_refused(label: Any, read: Any) -> None:
    assert "is not allowed: use 1 to 64 letters" in refusal(read, RUN, methods=[{"name": "ncl", "label": label}])


def test_a_method_label_alone_may_have_a_plus(read: Any) -> None:
    """der++ is a method's name; a domain a+b would read as the stage of two domains."""
    check_names(["der++", "replay-der++"], "method label")
    assert "use 1 to 64 letters, digits, -, + and _" in refusal(read, RUN, methods=[{"name": "ncl", "label": "++"}])
    for kind in ("domain", "order", "task"):
        with pytest.raises(EunoeError, match=r"the name 'a\+b' is not allowed: use 1 to 64 letters, digits, - and _,"):
            check_names(["a+b"], kind)


@pytest.mark.parametrize(
    ("data", "change", "kind", "names"),
    [
        (RUN, {"domains": [{"name": n, "corpus": {"source": "x"}} for n in ("news", "News")]}, "domain", ("news", "News")),
        (RUN, {"methods": ["ncl", {"name": "ncl", "label": "NCL"}]}, "method label", ("ncl", "NCL")),
        (RUN, {"orders": {"forth": ["a", "b"], "Forth": ["b", "a"]}}, "order", ("forth", "Forth")),
        (STUDY, {"tasks": [{"name": n, "train": "x", "test": "y"} for n in ("rte", "RTE")]}, "task", ("rte", "RTE")),
        (STUDY, {"systems": {"adamw": "finetune", "AdamW": "finetune"}}, "system", ("adamw", "AdamW")),
        (STUDY, {"retention": {n: {"source": "x"} for n in ("wiki", "Wiki")}}, "retention text", ("wiki", "Wiki")),
    ],
)  # fmt: skip
def test_names_that_differ_in_case_alone_are_refused(
    data: dict[str, Any], change: dict[str, Any], kind: str, names: tuple[str, str], read: Any
) -> None:
    message = refusal(read, data, **change)
    assert f"the {kind} names " in message
    assert all(repr(name) in message for name in names)
    assert "differ in case alone" in message


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (RUN, {"methods": ["ncl", "ncl"]}, "duplicate method label names: ncl"),
        (STUDY, {"tasks": [STUDY["tasks"][0]] * 2}, "duplicate task names: a"),  # type: ignore[index]
        (RUN, {"domains": [{"name": "General", "corpus": {"source": "x"}}]}, "'General' is not allowed for a domain"),
    ],
)
def test_duplicates_and_reserved_domains_are_refused(data: Any, change: Any, message: str, read: Any) -> None:
    assert message in refusal(read, data, **change)


def test_names_that_differ_are_fine(read: Any) -> None:
    plan = read(RUN, methods=["ncl", {"name": "ncl", "label": "ncl2"}], orders={"x": ["a"], "y": ["b"]})
    assert {s.label for s in plan.sequences} == {"base", "ncl", "ncl2"}
