"""The proof of zero forgetting can fail: whatever is changed in a run, and made to look right again, is found and named."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from eunoe import checkpoint
from eunoe.cli import main
from eunoe.engine import run
from eunoe.errors import EunoeError
from eunoe.plan import load_run
from eunoe.recipe import load_recipe
from eunoe.sequence import Walk
from eunoe.verify import verify
from tests.tiny_run import as_before_0_2, state, tiny_settings

FIRST, LAST = "domains/0-sport", "domains/1-money"
WAYS = {"ncl": "sequences/ncl.given.seed0", "cpt": "sequences/cpt.given.seed0"}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eunoe.progress.console.quiet", True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe's file and its finished run, of text alone."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EUNOE_CACHE", str(folder / "cache"))
        settings = tiny_settings(folder, seeds=[0], evaluation={"blocks": 4, "batch": 8, "base": False})
        for domain in settings["domains"]:
            del domain["task"]
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        run(load_recipe(file), folder / "out")
    return file, folder / "out"


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "out"))


def findings(out: Path) -> list[tuple[str, str]]:
    return [(f.sequence.split(".")[0], f.domain) for f in verify(out) if f.broken]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make_right(out: Path, stage: str, mark: bool) -> None:
    """The manifest of a stage's final, and its cell's mark, say again what the files are."""
    manifest = out / stage / "final/manifest.json"
    said = json.loads(manifest.read_text())
    said["sha256"] = {name: sha256(manifest.parent / name) for name in said["sha256"]}
    manifest.write_text(json.dumps(said, indent=1, sort_keys=True))
    if mark:
        file = out / stage / "cell.json"
        said = json.loads(file.read_text())
        said["sha256"][f"{stage}/final/manifest.json"] = sha256(manifest)
        file.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")


def flip(file: Path, name: str) -> None:
    """One bit of the first entry of a tensor."""
    tensors = safetensors.torch.load(file.read_bytes())
    # in order, which a file of tensors has none of; a mask's embedding is read by nothing once its domain ended
    key = next(key for key in sorted(tensors) if name in key and not key.endswith("embedding"))
    tensors[key].view(torch.uint8).view(-1)[0] ^= 1
    file.write_bytes(safetensors.torch.save(tensors))


def set_value(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


PARTS: dict[str, Callable[[Path], None]] = {
    "weights": lambda final: flip(final / "weights.safetensors", "/"),
    "probe": lambda final: flip(final / "probe.safetensors", "input_ids"),
    "states": lambda final: flip(final / "probe.safetensors", "states"),
    "steps": lambda final: set_value(final / "values.json", lambda v: v.update(steps=5)),
    "curve": lambda final: set_value(final / "values.json", lambda v: v.update(curve="")),
}


@pytest.mark.parametrize("mark", [False, True], ids=["manifest", "manifest and mark"])
@pytest.mark.parametrize(("method", "part"), [(method, part) for method in WAYS for part in PARTS] + [("cpt", "masks")])
def test_a_bit_of_a_domains_own_checkpoint_is_found_though_its_hashes_are_made_right(
    method: str, part: str, mark: bool, made: tuple[Path, Path], copied: Path
) -> None:
    stage = f"{WAYS[method]}/{FIRST}"
    if part == "masks":
        flip(copied / stage / "final/method.safetensors", "masks")
    else:
        PARTS[part](copied / stage / "final")
    make_right(copied, stage, mark)
    broken = findings(copied)
    assert (method, "sport") in broken or (method, "money") in broken  # the first domain, or what was learnt from it
    assert {name for name, _ in broken} == {method}
    (copied / "finished.json").unlink()
    if not mark:  # the run sees that the state is not what its mark says, and --relearn makes it again
        with pytest.raises(EunoeError, match=r"is not what was learnt: its manifest has SHA-256"):
            run(load_recipe(made[0]), copied)
        run(load_recipe(made[0]), copied, relearn=True)
        assert state(copied, ("times.jsonl",)) == state(made[1], ("times.jsonl",))


@pytest.mark.parametrize("part", ["weights", "masks", "probe", "states"])
def test_the_last_domains_own_checkpoint_is_recomputed_too_and_so_is_that_of_an_earlier_version(
    part: str, copied: Path
) -> None:
    """Nothing was learnt from the last state: here only the numbers themselves can tell."""
    stage = f"{WAYS['cpt']}/{LAST}"
    as_before_0_2(copied)
    final = copied / stage / "final"
    flip(final / "method.safetensors", "masks") if part == "masks" else PARTS[part](final)
    make_right(copied, stage, mark=False)
    # an entry of the plug-ins, which the last domain may read or not; the first domain's mask
    where = {"weights": {"plugins", "money"}, "masks": {"sport"}}
    assert {domain for _, domain in findings(copied)} & where.get(part, {"money"})


FORGED: dict[str, Callable[[Path], None]] = {
    "ids out of range": lambda final: change_probe(final, input_ids=torch.full((2, 16), 10**6)),
    "ids below 0": lambda final: change_probe(final, input_ids=torch.full((2, 16), -7)),
    "ids of floats": lambda final: change_probe(final, input_ids=torch.rand(2, 16)),
    "ids of three dimensions": lambda final: change_probe(final, input_ids=torch.ones(2, 2, 16, dtype=torch.int64)),
    "no ids at all": lambda final: change_probe(final, input_ids=torch.ones(0, 16, dtype=torch.int64)),
    "states of another shape": lambda final: change_probe(final, states=torch.zeros(3)),
    "states of another type": lambda final: change_probe(final, states=torch.zeros(2, 16, 16, dtype=torch.bool)),
    "words for ids": lambda final: set_value(final / "values.json", lambda v: v["probe"].update(input_ids="sport")),
    "words for states": lambda final: set_value(final / "values.json", lambda v: v["probe"].update(states=["a", 1])),
    "a number for the hash": lambda final: set_value(final / "values.json", lambda v: v["probe"].update(reads=3)),
    "no probe": lambda final: set_value(final / "values.json", lambda v: v.pop("probe")),
    "a list for the probe": lambda final: set_value(final / "values.json", lambda v: v.update(probe=[])),
    "words for steps": lambda final: set_value(final / "values.json", lambda v: v.update(steps="many")),
    "no weights": lambda final: set_value(final / "values.json", lambda v: v.pop("weights")),
    "words for weights": lambda final: set_value(final / "values.json", lambda v: v.update(weights={"a": "b"})),
    "a number for the method": lambda final: set_value(final / "values.json", lambda v: v.update(method=3)),
}


def change_probe(final: Path, **change: torch.Tensor) -> None:
    tensors = safetensors.torch.load((final / "probe.safetensors").read_bytes())
    (final / "probe.safetensors").write_bytes(
        safetensors.torch.save({**tensors, **{f"/{k}": v for k, v in change.items()}})
    )


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_checkpoint_is_a_finding_and_never_a_traceback(
    forged: str, made: tuple[Path, Path], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in (FIRST, LAST):
        FORGED[forged](copied / WAYS["cpt"] / stage / "final")
        make_right(copied, f"{WAYS['cpt']}/{stage}", mark=True)
    assert {("cpt", "sport"), ("cpt", "money")} <= set(findings(copied))
    assert main(["verify", str(copied)]) == 1
    out, err = capsys.readouterr()
    assert "BROKEN" in out
    assert "Traceback" not in err
    if "weights" in forged or "steps" in forged or "method" in forged:  # what a run reads
        (copied / "finished.json").unlink()
        shutil.rmtree(copied / WAYS["cpt"] / "scores")
        with pytest.raises(EunoeError, match=r"--relearn|does not fit this model|final"):
            run(load_recipe(made[0]), copied)
        run(load_recipe(made[0]), copied, relearn=True)
        assert state(copied, ("times.jsonl",)) == state(made[1], ("times.jsonl",))


def test_the_first_state_of_another_stage_or_method_is_found(copied: Path) -> None:
    """Put in place with the mark gone: nothing but what it says of itself tells."""
    for method in WAYS:
        shutil.rmtree(copied / WAYS[method] / FIRST / "final")
        shutil.copytree(copied / WAYS[method] / LAST / "final", copied / WAYS[method] / FIRST / "final")
        (copied / WAYS[method] / FIRST / "cell.json").unlink()
        finding = next(f for f in verify(copied) if f.sequence.startswith(method) and f.domain == "sport")
        assert finding.broken
        assert "belongs to another training" in finding.text


def test_a_final_that_says_nothing_of_itself_is_refused_where_all_do(made: tuple[Path, Path], copied: Path) -> None:
    stage = copied / WAYS["cpt"] / FIRST
    said = json.loads((stage / "final/manifest.json").read_text())
    (stage / "final/manifest.json").write_text(json.dumps({k: said[k] for k in ("format", "sha256")}))
    (stage / "cell.json").unlink()
    assert ("cpt", "sport") in findings(copied)
    (copied / "finished.json").unlink()
    with pytest.raises(EunoeError, match="does not say what it is of"):
        run(load_recipe(made[0]), copied)


def test_texts_json_gone_is_said_and_nothing_is_checked_less(copied: Path) -> None:
    for data in (None, b"{", b"[]"):
        (copied / "texts.json").unlink() if data is None else (copied / "texts.json").write_bytes(data)
        with pytest.raises(EunoeError, match=r"texts\.json is missing or damaged, so it cannot be checked whose"):
            verify(copied)


# -- what it costs -------------------------------------------------------------------------------------------------------
def test_verify_holds_one_domains_state_at_a_time_and_reads_each_twice(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, peak, read = checkpoint.load, [0], list[str]()
    loads: list[weakref.ref[Any]] = []

    def counted(folder: Path, identity: Any = None) -> Any:
        gc.collect()
        peak[0] = max(peak[0], 1 + sum(ref() is not None for ref in loads))
        state = real(folder, identity)
        loads.append(weakref.ref(state))
        read.append(str(folder.parent.relative_to(copied)))
        return state

    monkeypatch.setattr(checkpoint, "load", counted)
    assert not [f for f in verify(copied) if f.broken]
    assert peak[0] == 1
    assert (
        max(map(read.count, read)) <= 2
    )  # once as its own, and the last once more as what the others are held against


def test_what_a_domain_reads_of_the_frozen_model_is_named_whole(made: tuple[Path, Path]) -> None:
    """An index for each element of the frozen model would be eight times its size."""
    plan = load_run(made[1])
    walk = Walk(next(way for way in plan.sequences if way.label == "cpt"), plan.recipe.model, made[1])
    walk.after(1)
    reads = walk.method.reads("sport")
    frozen = [name for name, _ in walk.lm.model.named_parameters() if "plugin" not in name]
    assert frozen
    assert all(reads[name] is None for name in frozen if name in reads)
    assert any(name in reads for name in frozen)
