"""What a damaged, hostile or huge recipe does: one error that names the file, in little time and memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from eunoe.errors import EunoeError
from eunoe.recipe import load_recipe, parse_yaml
from tests.recipe.refusal import refusal

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
"""Nine to the tenth values in some 500 bytes."""
MERGES = "b0: &b0 {k: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 10))


@pytest.mark.parametrize("text", [LAUGHS, MERGES], ids=["lists", "merges"])
def test_aliases_that_stand_for_billions_are_refused_before_they_are_built(text: str, tmp_path: Path) -> None:
    assert len(text) < 1000
    file = tmp_path / "laughs.yaml"
    file.write_text(f"{text}name: laughs\n", encoding="utf-8")
    tracemalloc.start()
    try:
        message = refusal(load_recipe, file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "laughs.yaml is not valid YAML: it stands for more than 100,000 values, aliases expanded" in message
    assert peak < 10e6


def test_twenty_thousand_keys_take_seconds_and_the_last_duplicate_is_found() -> None:
    keys = "".join(f"key{i}: {i}\n" for i in range(20_000))
    began = time.process_time()
    assert len(parse_yaml(keys, "many")) == 20_000
    assert time.process_time() - began < 20  # comparing each with each took minutes
    assert "many is not valid YAML: duplicate key 'key0'" in refusal(parse_yaml, keys + "key0: 1\n", "many")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 400 + "]" * 400,
        "{a: " * 300 + "1" + "}" * 300,
        "\n".join(f"{' ' * i}k:" for i in range(200)),
        "- " * 500 + "x",
        "".join(f"n{i}: &n{i} {'[' * 40}{f'*n{i - 1}' if i else 'x'}{']' * 40}\n" for i in range(40)),
    ],
    ids=["lists", "mappings", "blocks", "dashes", "aliases"],
)
@pytest.mark.parametrize("place", ["{}", "methods: {}", "about: {}"])
def test_deep_nesting_is_an_error_wherever_it_stands(text: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    indented = "\n" + "\n".join(f"  {line}" for line in text.splitlines())
    file.write_text(
        "name: deep\nextra:" + indented if place == "{}" else "name: deep\n" + place.format(indented), encoding="utf-8"
    )
    assert "more than 50 levels deep" in refusal(load_recipe, file)


@pytest.mark.parametrize(
    "text", ["!!int ''", "!!float x", "!!bool maybe", "!!timestamp x", "!!binary é", "1" * 5000, "? {a: 1}\n: 2"]
)
def test_whatever_the_yaml_library_raises_is_one_error(text: str) -> None:
    assert refusal(parse_yaml, text, "here").startswith("here is not valid YAML: ")


@pytest.mark.parametrize("content", [b"name: \xff\xfe\n", "näme: x".encode("utf-16"), b"\x80"])
def test_bytes_that_are_no_utf8_are_refused_by_the_files_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    assert "r.yaml is not UTF-8 text" in refusal(load_recipe, tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("data", "place", "said"),
    [
        ({"training.batch": 1e12}, "recipe.training.batch", "must be at most 1000000, received 1000000000000.0"),
        ({"training.block": 10**12}, "recipe.training.block", "must be at most 1000000"),
        ({"training.steps": 1e300}, "recipe.training.steps", "received 1e+300"),
        ({"seeds": [0, -1]}, "recipe.seeds.1", "must be at least 0, received -1"),
        ({"seeds": [2**32]}, "recipe.seeds.0", "must be below 4294967296, received 4294967296"),
        ({"seeds": [True]}, "recipe.seeds[0]", "expected a number, received true"),
        ({"domains.0.task": {"train": "x", "shots_seed": -3}}, "recipe.domains.0.task.shots_seed", "must be at least 0"),
        ({"domains.0.task": {"train": "x", "shots": 0}}, "recipe.domains.0.task.shots",
         "must be 'cpt' or 'all' or must be at least 1, received 0"),
        ({"domains.0.task": {"train": "x", "test_share": 1}}, "recipe.domains.0.task.test_share", "must be below 1"),
        ({"domains.0.corpus.tokens": 0}, "recipe.domains.0.corpus.tokens", "must be at least 1, received 0"),
        ({"threads": 0}, "recipe.threads", "must be at least 1 or must be 'auto', received 0"),
        ({"threads": "all"}, "recipe.threads", "must be 'auto', received 'all'"),
        ({"training.micro_batch": 7}, "recipe.training", "micro_batch must divide batch = "),
    ],
)  # fmt: skip
def test_a_number_out_of_range_names_place_value_and_what_is_allowed(
    data: dict[str, Any], place: str, said: str
) -> None:
    message = refusal(load_recipe, "demo", data)
    assert message.startswith(f"{place}: ")
    assert said in message


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(load_recipe, "demo", {"about": ["x"] * 10_000})) < 500


def test_keys_of_mappings_of_settings_are_checked_too(tmp_path: Path) -> None:
    """``retention`` maps names to corpora, whose unknown keys went unread before."""
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\ntasks: [{name: a, train: x, test: y}]\nsystems: {adamw: finetune}\nretention: {general: {source: x, tokns: 3}}\n",
        encoding="utf-8",
    )
    assert "unknown key in recipe.retention.general 'tokns'. Did you mean tokens?" in refusal(load_recipe, file)


def test_a_recipe_with_aliases_is_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: 2}", "x")["d"] == {"b": 1, "e": 2}
    with pytest.raises(EunoeError, match="an alias holds itself"):
        parse_yaml("a: &x {b: [*x]}", "x")
