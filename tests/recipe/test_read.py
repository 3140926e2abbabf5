from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eunoe.errors import EunoeError
from eunoe.recipe import (
    LoopSettings,
    Recipe,
    build,
    differences,
    expand,
    load_recipe,
    named,
    override,
    parse_yaml,
    shipped_recipes,
    to_yaml,
)
from tests.recipe.refusal import refusal

BASE = """
name: small
domains:
  - {name: a, corpus: {source: a.txt}}
  - {name: b, corpus: {source: b.txt, tokens: 9}, task: {train: b.csv, test: c.csv}}
methods: [ncl, {name: cpt, ffn_size: 8}]
scales:
  full: {training.block: 256, domains.*.corpus.tokens: null}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def read(more: str = "", *overrides: tuple[str, str], scale: str | None = None, base: str = BASE) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(base + more, encoding="utf-8")
        return load_recipe(path, overrides, scale)

    return read


# -- keys and types -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "place", "close"),
    [
        ("trainig: {}\n", "recipe 'trainig'", "training"),
        ("training: {bloc: 3}\n", "recipe.training 'bloc'", "block"),
        ("training: {Block: 3}\n", "recipe.training 'Block'", "block"),
        ("head: {corpora: [{source: x, colum: y}]}\n", "recipe.head.corpora[0] 'colum'", "column"),
        ("general: {source: x, tokns: 3}\n", "recipe.general 'tokns'", "tokens"),
    ],
)
def test_an_unknown_key_at_any_depth_gets_its_close_match(recipe: Any, more: str, place: str, close: str) -> None:
    message = refusal(recipe, more)
    assert f"unknown key in {place}. Did you mean {close}?" in message
    assert "Allowed: " in message


def test_an_unknown_key_of_a_task_is_placed(recipe: Any) -> None:
    message = refusal(recipe, base=BASE.replace("train: b.csv", "trian: b.csv"))
    assert "unknown key in recipe.domains[1].task 'trian'. Did you mean train" in message


@pytest.mark.parametrize(
    ("more", "place", "value"),
    [
        ("training: {batch: many}\n", "recipe.training.batch", "'many'"),
        ("training: {batch: 1.5}\n", "recipe.training.batch", "1.5"),
        ("training: {batch: true}\n", "recipe.training.batch", "true"),
        ("training: {steps: false}\n", "recipe.training.steps", "false"),
        ("training: {lr: .nan}\n", "recipe.training.lr", "nan"),
        ("training: {clip: .inf}\n", "recipe.training.clip", "inf"),
        ("training: {precision: half}\n", "recipe.training.precision", "'half'"),
        ("training: 3\n", "recipe.training", "3"),
        ("seeds: [0, x]\n", "recipe.seeds.1", "'x'"),
        ("seeds: 0\n", "recipe.seeds", "0"),
        ("evaluation: {base: maybe}\n", "recipe.evaluation.base", "'maybe'"),
        ("general: {column: text}\n", "recipe.general.source", "required"),
        ("about: [x]\n", "recipe.about", "['x']"),
    ],
)
def test_a_wrong_type_names_the_place_and_the_value(recipe: Any, more: str, place: str, value: str) -> None:
    message = refusal(recipe, more)
    assert f"{place}:" in message
    assert value in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("training: {lr: 0}\n", "training.lr: must be above 0, received 0"),
        ("training: {batch: -1}\n", "training.batch: must be at least 1, received -1"),
        ("training: {batch: 8, micro_batch: 3}\n", "micro_batch must divide batch = 8, received 3"),
        ("training: {warmup: 1}\n", "training.warmup: must be below 1, received 1"),
        ("training: {clip: 0}\n", "training.clip: must be above 0, received 0"),
        ("training: {steps: 0}\n", "training.steps: must be at least 1, received 0"),
        ("training: {block: 4}\n", "training.block: must be at least 8, received 4"),
        ("training: {mask_rate: 1}\n", "training.mask_rate: must be below 1, received 1"),
        ("evaluation: {batch: 0}\n", "evaluation.batch: must be at least 1, received 0"),
        ("evaluation: {blocks: 0}\n", "evaluation.blocks: must be at least 1, received 0"),
        ("model: {dropout: 1.5}\n", "model.dropout: must be below 1, received 1.5"),
        ("seeds: []\n", "at least one seed"),
        ("seeds: [1, 1]\n", "each once; received [1, 1]"),
        ("model: {head: train}\n", "recipe.head is missing"),
        ("head: {corpora: [{source: x}]}\n", "nothing reads it: set model.head to train"),
        ("model: {head: train}\nhead: {corpora: [{source: x}], steps: 0}\n", "head.steps: must be at least 1"),
        ("model: {head: train}\nhead: {corpora: []}\n", "head.corpora: must have at least one entry"),
        ("orders: {o: [a, c]}\n", "unknown domain in recipe.orders.o 'c'"),
        ("orders: {o: []}\n", "orders.o is empty: name at least one domain"),
    ],
)
def test_numbers_and_names_that_make_no_sense_are_refused(recipe: Any, more: str, words: str) -> None:
    assert words in refusal(recipe, more)


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "", ".", "..", ".hidden", "-dash", "a b", "a\\b", "x" * 65, "a\n", "ä", "~"]
)
def test_names_that_could_leave_the_run_folder_are_refused(recipe: Any, name: str) -> None:
    quoted = yaml.safe_dump(name, default_style='"').strip()
    for base in (BASE.replace("name: small", f"name: {quoted}"), BASE.replace("{name: a,", f"{{name: {quoted},")):
        assert f"the name {name!r} is not allowed" in refusal(recipe, base=base)
    assert "is not allowed" in refusal(recipe, f"orders: {{{quoted}: [a]}}\n")


def test_domain_names_stand_once_and_leave_the_names_of_rows_alone(recipe: Any) -> None:
    assert "duplicate domain names: a" in refusal(recipe, base=BASE.replace("{name: b,", "{name: a,"))
    assert "the name 'general' is not allowed for a domain" in refusal(
        recipe, base=BASE.replace("{name: b,", "{name: general,")
    )
    assert "recipe.methods is empty" in refusal(recipe, base=BASE.replace("[ncl, {name: cpt, ffn_size: 8}]", "[]"))


# -- YAML ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2e+3", -2e3),
        ("1.e-4", 1e-4),
        ("1.5e-4", 1.5e-4),
        ("3_0e1", 300.0),
        ("0.1", 0.1),
        ("7", 7),
    ],
)
def test_numbers_are_read_as_the_numbers_they_are(text: str, number: float) -> None:
    assert parse_yaml(f"x: {text}", "here") == {"x": number}


def test_words_that_only_look_like_numbers_stay_words() -> None:
    assert parse_yaml("[e4, 1e, 1e-4x, x1e4, '1e-4']", "here") == ["e4", "1e", "1e-4x", "x1e4", "1e-4"]


def test_repeated_keys_are_refused_at_any_depth() -> None:
    for text in ("a: 1\na: 2", "x: {a: 1, b: 2, a: 3}", "- {k: {a: 1, a: 1}}"):
        with pytest.raises(EunoeError, match=r"here is not valid YAML: duplicate key 'a'"):
            parse_yaml(text, "here")


def test_merge_keys_fill_in_and_may_be_overridden() -> None:
    text = "base: &b {lr: 1, batch: 2}\nown: {<<: *b, lr: 3}"
    assert parse_yaml(text, "here")["own"] == {"lr": 3, "batch": 2}


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: b: c", "\ta: 1", "a: 2022-99-99", "a: &x [*x]", "a: *missing", "a: \x00", "? [1]\n: 2", "[" * 1200],
)
def test_broken_yaml_names_the_file(text: str) -> None:
    with pytest.raises(EunoeError, match=r"^here is not (valid|usable) YAML"):
        parse_yaml(text, "here")


def test_yaml_is_data_never_code() -> None:
    with pytest.raises(EunoeError, match="python/object"):
        parse_yaml("!!python/object/apply:os.system ['true']", "here")


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "NoneType"), (b"- a", "list"), (b"\xff\xfe", "UTF-8"), (b"7", "int")]
)
def test_a_file_that_is_no_recipe_says_so(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(EunoeError, match=word):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    for name in ("dmeo", tmp_path / "absent.yaml", "x" * 200):
        with pytest.raises(EunoeError, match=r"unknown recipe .*Allowed: .*demo.*path of a YAML file"):
            load_recipe(name)


def test_shipped_recipes_are_read_by_name_and_survive_being_written_out() -> None:
    assert "demo" in shipped_recipes()
    for name in shipped_recipes():
        loaded = load_recipe(name)
        assert build(type(loaded), parse_yaml(to_yaml(loaded), "resolved"), "recipe") == loaded
        assert "&id" not in to_yaml(loaded)


# -- overrides and scales -----------------------------------------------------------------------------------------
def test_overrides_set_dotted_keys_as_yaml(recipe: Any) -> None:
    got = recipe(
        "", ("training.lr", "1e-3"), ("seeds", "[3, 4]"), ("domains.1.corpus.tokens", "5"), ("model.patch", "null")
    )
    assert (got.training.lr, got.seeds, got.model.patch) == (1e-3, [3, 4], None)
    assert [d.corpus.tokens for d in got.domains] == [None, 5]


def test_a_star_sets_all_entries(recipe: Any) -> None:
    got = recipe("", ("domains.*.corpus.tokens", "77"), ("domains.*.task", "{made: headlines, shots: 4}"))
    assert [d.corpus.tokens for d in got.domains] == [77, 77]
    assert [d.task.shots for d in got.domains] == [4, 4]


def test_a_key_below_a_name_makes_it_a_mapping(recipe: Any) -> None:
    below = (
        ("methods.0.training.lr", "1e-3"),
        ("methods.1.training.lr", "1"),
        ("transfer.epochs", "2"),
        ("training.optimizer.gamma", "5"),
    )
    got = recipe("", *below)
    assert got.methods == [
        {"name": "ncl", "training": {"lr": 1e-3}},
        {"name": "cpt", "ffn_size": 8, "training": {"lr": 1}},
    ]
    assert got.transfer == {"name": "finetune", "epochs": 2}
    assert got.training.optimizer == {"name": "adamw", "gamma": 5}
    got = recipe("transfer: other\ntraining: {optimizer: recadam}\n", *below)
    assert got.transfer == {"name": "other", "epochs": 2}
    assert got.training.optimizer == {"name": "recadam", "gamma": 5}


def test_a_star_sets_a_key_of_every_entry_of_a_mapping_and_picks_something() -> None:
    data: dict[str, Any] = {"systems": {"a": "finetune", "b": {"name": "finetune", "batch": 4}}}
    override(data, "systems.*.batch", 8)
    assert data == {"systems": {"a": {"name": "finetune", "batch": 8}, "b": {"name": "finetune", "batch": 8}}}
    with pytest.raises(EunoeError, match="picks no entry"):
        override({"systems": {}}, "systems.*.batch", 8)


def test_the_last_override_wins_and_comes_after_the_scale(recipe: Any) -> None:
    assert recipe(scale="full").training.block == 256
    assert [d.corpus.tokens for d in recipe(scale="full").domains] == [None, None]
    got = recipe("", ("training.block", "32"), ("training.block", "64"), scale="full")
    assert got.training.block == 64
    assert [d.corpus.tokens for d in recipe().domains] == [None, 9]


def test_an_override_below_an_alias_leaves_the_others_alone(recipe: Any) -> None:
    base = BASE.replace("corpus: {source: a.txt}", "corpus: &c {source: a.txt}").replace(
        "{source: b.txt, tokens: 9}", "*c"
    )
    got = recipe("", ("domains.0.corpus.tokens", "3"), base=base)
    assert [d.corpus.tokens for d in got.domains] == [3, None]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("training.bach", "Did you mean batch?"),
        ("domains.7.corpus.tokens", "'7' picks no entry; there are 2: 0 to 1"),
        ("domains.x.corpus.tokens", "'x' picks no entry"),
        ("domains.²", "give the whole list"),
        ("domains.0", "give the whole list"),
        ("name.x", "'name' is 'small' and has no key of its own"),
        ("seeds.0.a.b", "recipe.seeds"),
    ],
)
def test_an_override_that_fits_nothing_is_refused(recipe: Any, key: str, words: str) -> None:
    if key.startswith("scales"):
        assert recipe("", (key, "1")).scales["full"]["training"] == {
            "block": {"x": 1}
        }  # a name in dots is one key there
        return
    assert words in refusal(recipe, "", (key, "1"))


def test_an_override_into_a_number_or_an_empty_list_is_refused(recipe: Any) -> None:
    assert "would stand below 5" in refusal(recipe, "seeds: [5]\n", ("seeds.0.a.b", "1"))
    assert "the list is empty" in refusal(recipe, "seeds: []\n", ("seeds.*.a", "1"))
    assert "--training.lr is not valid YAML" in refusal(recipe, "", ("training.lr", "["))


@pytest.mark.parametrize(
    ("scales", "words"),
    [("[a]", "recipe.scales"), ("{full: 3}", "recipe.scales.full"), ("{ful: {}}", "Did you mean ful?")],
)
def test_a_scale_that_is_none_is_refused(recipe: Any, scales: str, words: str) -> None:
    base = BASE.split("scales:")[0] + f"scales: {scales}\n"
    assert words in refusal(recipe, scale="full", base=base)


# -- small functions ----------------------------------------------------------------------------------------------
def test_build_serves_settings_of_any_owner() -> None:
    @dataclasses.dataclass(kw_only=True)
    class Own(LoopSettings):
        size: int = 3

    assert build(Own, {"size": 4, "lr": 1}, "method cpt") == Own(size=4, lr=1.0)
    with pytest.raises(EunoeError, match=r"unknown key in method cpt 'sise'\. Did you mean size"):
        build(Own, {"sise": 4}, "method cpt")
    with pytest.raises(EunoeError, match="expected keys of Own, received 3"):
        build(Own, 3, "method cpt")  # type: ignore[arg-type]


def test_named_reads_a_name_or_a_mapping() -> None:
    assert named("cpt", "methods.0") == ("cpt", {})
    assert named({"name": "cpt", "size": 3}, "methods.0") == ("cpt", {"size": 3})
    for value in (3, {"size": 3}, {"name": 3}, None, ["cpt"]):
        with pytest.raises(EunoeError, match=r"methods\.0: expected a name"):
            named(value, "methods.0")


def test_expand_reads_variables_and_refuses_unset_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "/texts")
    monkeypatch.delenv("ABSENT", raising=False)
    assert expand("$TEXTS/a") == expand("${TEXTS}/a") == "/texts/a"
    assert expand("~/a") == str(Path.home() / "a")
    with pytest.raises(EunoeError, match=r"environment variable ABSENT, which is not set.*export ABSENT="):
        expand("${ABSENT}/a")


def test_differences_name_the_dotted_key_and_both_values(recipe: Any) -> None:
    old = dataclasses.asdict(recipe())
    new = dataclasses.asdict(recipe("", ("training.lr", "0.5"), ("domains.1.corpus.tokens", "10"), ("seeds", "[0, 1]")))
    assert differences(old, old) == []
    assert differences(old, new) == [
        "domains.1.corpus.tokens: 9 there, 10 now",
        "training.lr: 0.0001 there, 0.5 now",
        "seeds: [0] there, [0, 1] now",
    ]
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 there, None now", "b: None there, 2 now"]


TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(TREES, TREES)
def test_differences_are_none_exactly_for_equal_trees(a: Any, b: Any) -> None:
    assert differences(a, a) == []
    assert bool(differences(a, b)) == (a != b)
