"""The authors' checkpoints as our plug-ins: the numbers of golden/cpt again, after import, save and load."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from eunoe.cli import main
from eunoe.errors import EunoeError
from eunoe.models.load import read_weights
from eunoe.plugins.cpt_release import import_cpt
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import adapters, set_domain
from tests.conftest import shared
from tests.tiny import tiny_tokenizer

DOMAINS = ["restaurant", "ai", "acl"]


@dataclass
class Release:
    spec: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def checkpoint(self) -> dict[str, Tensor]:
        return {k.removeprefix("model."): v for k, v in self.tensors.items() if k.startswith("model.")}

    def base(self) -> RobertaForMaskedLM:
        """The RoBERTa below the plug-ins, as transformers has it."""
        keep = RobertaConfig().to_dict().keys() - {"transformers_version", "torch_dtype", "dtype"}
        config = RobertaConfig(**{key: value for key, value in self.spec["config"].items() if key in keep})
        model = RobertaForMaskedLM(config).double().eval()
        names = {name.replace("attention.self.self_attn.", "attention.self.").replace("self_output.", ""): value
                 for name, value in self.checkpoint.items() if "adapter_mask" not in name and "position_ids" not in name}  # fmt: skip
        model.load_state_dict(names)
        return model

    def expected(self, task: int) -> Tensor:
        return self.tensors[f"t{task}.s400.logits"]


@pytest.fixture(params=["parallel", "sequential"])
def release(request: pytest.FixtureRequest) -> Release:
    folder = shared("golden/cpt")
    spec = json.loads((folder / f"{request.param}.json").read_text())
    return Release(spec, load_file(folder / f"{request.param}.safetensors"))


def logits(model: RobertaForMaskedLM, release: Release) -> Tensor:
    with torch.no_grad():
        return model(input_ids=release.tensors["input_ids"]).logits


def test_imported_plug_ins_give_the_authors_numbers_in_a_fresh_model(release: Release, tmp_path: Path) -> None:
    model = release.base()
    plain = logits(model, release)
    found = import_cpt(model, release.checkpoint, DOMAINS)
    assert (found.placement, found.rows, found.differs, found.unknown) == (release.spec["mode"], 3, (), ())
    assert found.sizes == {"attention": 12, "feed_forward": 20}
    save_plugins(model, tmp_path)

    fresh = release.base()
    load_plugins(fresh, tmp_path)
    assert torch.equal(logits(fresh, release), plain), "off until a domain is set"
    for task, domain in enumerate(DOMAINS):
        set_domain(fresh, domain)
        torch.testing.assert_close(logits(fresh, release), release.expected(task), atol=1e-10, rtol=0)


def test_the_command_reads_torch_files_and_writes_the_folder(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "roberta", tmp_path / "plug-ins"
    base = release.base().float()
    base.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    state = {f"module.{name}": value.float() for name, value in release.checkpoint.items()}
    state["module.classifier.bias"] = torch.zeros(2)
    state["module.roberta.embeddings.LayerNorm.weight"] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    words = ["import", "cpt", str(tmp_path / "pytorch_model.bin"), "--model", str(folder), "--out", str(out)]
    words += ["--domains", "restaurant", "ai"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"placement {release.spec['mode']}, sizes 12 and 20, domains restaurant, ai (2 of the file's 3)" in told
    assert "no such weight (1): module.classifier.bias" in told
    assert "(1 differ" in told
    assert "roberta.embeddings.LayerNorm.weight" in told

    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["domains"], config["s_max"], config["base_model_name_or_path"]) == (
        ["restaurant", "ai"],
        400.0,
        str(folder),
    )
    model = RobertaForMaskedLM.from_pretrained(folder).eval()
    load_plugins(model, out)
    set_domain(model, "ai")
    torch.testing.assert_close(logits(model, release).double(), release.expected(1), atol=1e-4, rtol=0)

    assert main(words) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors[next(key for key in tensors if key.endswith(name))]

    return spoil


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


def spoil_one(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][1, 2] = value

    return spoil


FIRST = "roberta.encoder.layer.1.output.adapter_mask."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dict.clear, "has no CPT plug-in"),
        (drop("layer.0.output.adapter_mask.fc1.weight"), "no feed-forward plug-in in layer 0"),
        (
            drop("1.output.adapter_mask.efc2.weight"),
            r"missing encoder.layer.1.feed_forward_plugin.efc2.weight; unknown none",
        ),
        (put("roberta.encoder.layer.7.output.adapter_mask.fc1.bias", torch.ones(20)), "unknown encoder.layer.7.feed"),
        (put(FIRST + "fc1.weight", torch.ones(21, 32)), r"has shape \(21, 32\), needed is \(20, 32\)"),
        (put(FIRST + "efc1.weight", torch.ones(4, 20)), r"has shape \(4, 20\), needed is \(3, 20\)"),
        (put("other.encoder.layer.1.output.adapter_mask.fc1.bias", torch.ones(20)), "more than one model"),
        (put(FIRST + "efc1.weight", torch.tensor(1.0)), r"1.feed_forward_plugin.efc1.weight must .* has shape \(\)"),
        (spoil_one(FIRST + "fc2.weight", math.nan), "feed_forward_plugin.fc2.weight hold numbers that are not finite"),
        (spoil_one(FIRST + "efc2.weight", math.inf), "feed_forward_plugin.efc2.weight hold numbers that are not"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_stays(
    release: Release, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors, model = release.checkpoint, release.base()
    spoil(tensors)
    with pytest.raises(EunoeError, match=message):
        import_cpt(model, tensors, DOMAINS)
    assert not adapters(model)


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], []])
def test_no_more_domains_are_named_than_there_are(release: Release, names: list[str]) -> None:
    with pytest.raises(EunoeError, match="has masks of 3 domains"):
        import_cpt(release.base(), release.checkpoint, names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_base_weights_that_were_only_rounded_do_not_differ(release: Release, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in release.checkpoint.items()}
    tensors["roberta.embeddings.LayerNorm.weight"] += 1
    assert import_cpt(release.base().float(), tensors, DOMAINS).differs == ("roberta.embeddings.LayerNorm.weight",)
    assert import_cpt(release.base().float(), release.checkpoint, DOMAINS).differs == ()


@pytest.mark.parametrize("value", ["nan", "inf", "1"])
def test_a_temperature_that_is_no_number_above_1_is_refused_by_name(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "cpt", str(tmp_path / "pytorch_model.bin"), "--model", "m", "--out", str(tmp_path / "out")]
    assert main([*words, "--domains", "a", "--s-max", value]) == 2
    assert f"--s-max is {float(value)}; give a finite number above 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", [(), ("pytorch_model.bin",), ("model.safetensors", "pytorch_model.bin")])
def test_a_folder_given_as_file_names_the_weights_in_it(
    inside: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("training_args.bin", *inside):
        (folder / name).touch()
    words = ["import", "cpt", str(folder), "--model", "m", "--out", str(tmp_path / "out"), "--domains", "a"]
    assert main(words) == 2
    told = capsys.readouterr().err
    files = " or ".join(str(folder / name) for name in inside)
    give = files or "their pytorch_model.bin or .safetensors, of which none lies in it"
    assert f"{folder} is a folder, and FILE is one file of weights. Give {give}." in told


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_weights_are_read_and_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "good.safetensors")
    torch.save(tensors, tmp_path / "good.bin")
    for name in ("good.safetensors", "good.bin"):
        assert torch.equal(read_weights(tmp_path / name)["a"], tensors["a"])
    torch.save({"a": Evil()}, tmp_path / "evil.bin")
    (tmp_path / "junk.bin").write_bytes(b"junk")
    torch.save([1], tmp_path / "list.bin")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("evil.bin", "junk.bin", "junk.safetensors", "missing.bin", "list.bin"):
        with pytest.raises(EunoeError, match=name):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""
