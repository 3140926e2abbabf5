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
from transformers import BertTokenizerFast, RobertaConfig, RobertaForMaskedLM

from eunoe.cli import main
from eunoe.errors import EunoeError
from eunoe.models.load import read_weights
from eunoe.plugins.cpt_release import import_cpt
from eunoe.plugins.files import load_plugins, save_plugins
from eunoe.plugins.inject import adapters, set_domain
from tests.conftest import shared
from tests.tiny import VOCABULARY

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


def tokenizer(size: int) -> BertTokenizerFast:
    """Of as many tokens as the authors' tiny model has rows."""
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(list(VOCABULARY)[:size])}, model_max_length=16)


def logits(model: RobertaForMaskedLM, release: Release) -> Tensor:
    with torch.no_grad():
        return model(input_ids=release.tensors["input_ids"]).logits


def test_imported_plug_ins_give_the_authors_numbers_in_a_fresh_model(release: Release, tmp_path: Path) -> None:
    model = release.base()
    plain = logits(model, release)
    imported = import_cpt(model, release.checkpoint, DOMAINS)
    assert (imported.placement, imported.rows, imported.differs, imported.unknown) == (release.spec["mode"], 3, (), ())
    assert imported.sizes == {"attention": 12, "feed_forward": 20}
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
    tokenizer(base.config.vocab_size).save_pretrained(folder)
    state = {f"module.{name}": value.float() for name, value in release.checkpoint.items()}
    state["module.classifier.bias"] = torch.zeros(2)
    state["module.roberta.embeddings.LayerNorm.weight"] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    words = ["import", "cpt", str(tmp_path / "pytorch_model.bin"), "--model", str(folder), "--out", str(out)]
    words += ["--domains", "restaurant", "ai"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"placement {release.spec['mode']}, sizes 12 and 20, domains restaurant, ai (2 of the file's 3)" in printed
    assert "no such weight (1): module.classifier.bias" in printed
    assert "(1 differ" in printed
    assert "roberta.embeddings.LayerNorm.weight" in printed

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


def change(end: str, how: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: how(t) for name, t in tensors.items() if name.endswith(end)})


def quantise(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


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
        (
            change(".fc2.weight", lambda t: t.to(torch.complex64) + 1j),
            r"adapter_mask.fc2.weight holds complex64, where a plug-in",
        ),
        (change("fc1.bias", torch.Tensor.int), "adapter_mask.fc1.bias holds int32, where a plug-in has float32"),
        (change("efc1.weight", lambda t: t > 0), "efc1.weight holds bool, where"),
        (
            change(".fc1.weight", torch.Tensor.to_sparse),
            "adapter_mask.fc1.weight is sparse or nested; numbers that lie whole",
        ),
        (change(".fc1.weight", lambda t: t.to_sparse_csr()), "adapter_mask.fc1.weight is sparse or nested"),
        (change("word_embeddings.weight", torch.Tensor.to_sparse), "word_embeddings.weight is sparse or nested"),
        (change(".fc2.weight", quantise), "adapter_mask.fc2.weight is quantised"),
        (
            change(".fc2.weight", lambda t: t.to("meta")),
            r"adapter_mask.fc2.weight is without its numbers \(device meta\)",
        ),
        (
            change("LayerNorm.weight", lambda t: t.to("meta")),
            r"LayerNorm.weight is without its numbers \(device meta\)",
        ),
        (
            change("0.output.adapter_mask.fc1.weight", lambda t: t[:1, :1].clone().expand(10**7, 32)),
            r"is of shape \(10000000, 32\), but the ",
        ),
        (
            change("output.adapter_mask.fc1.weight", lambda t: torch.zeros(10**11, 0)),
            r"shape \(100000000000, 0\), needed is",
        ),
        (change(".fc1.weight", lambda t: t + 1e300), "hold numbers that are not finite"),
        (
            put("x\x1b[31m.encoder.layer.1.output.adapter_mask.fc1.bias", torch.ones(20)),
            r"below roberta., x\\x1b\[31m.",
        ),
        (spoil_one(FIRST + "fc2.weight", math.nan), "feed_forward_plugin.fc2.weight hold numbers that are not finite"),
        (spoil_one(FIRST + "efc2.weight", math.inf), "feed_forward_plugin.efc2.weight hold numbers that are not"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_model_stays(
    release: Release, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors, model = release.checkpoint, release.base().float()
    spoil(tensors)
    with pytest.raises(EunoeError, match=message) as caught:
        import_cpt(model, tensors, DOMAINS)
    assert str(caught.value).isprintable()
    assert not adapters(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], []])
def test_no_more_domains_are_named_than_there_are(release: Release, names: list[str]) -> None:
    with pytest.raises(EunoeError, match="has masks of 3 domains"):
        import_cpt(release.base(), release.checkpoint, names)


@pytest.mark.parametrize("name", ["", "../../x", "a/b", "a b", "a\x1b[31m", "x" * 65, "general"])
def test_domains_have_names_that_a_recipe_may_give(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "'general' is not allowed for a domain" if name == "general" else "is not allowed: use 1 to 64 letters"
    words = ["import", "cpt", str(tmp_path / "pytorch_model.bin"), "--model", "m", "--out", str(tmp_path / "out")]
    assert main([*words, "--domains", "a", name]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.strip().isprintable()
    with pytest.raises(EunoeError, match=message):
        import_cpt(torch.nn.Linear(1, 1), {}, [name])


def test_base_weights_of_any_kind_are_compared_as_they_are(release: Release) -> None:
    """A complex weight differs though its real part is the same; so does one of another shape, however large it says it is."""
    norm, words = "roberta.embeddings.LayerNorm.weight", "roberta.embeddings.word_embeddings.weight"
    tensors = release.checkpoint
    tensors[norm] = tensors[norm] + 1j
    tensors[words] = tensors[words].float().to(torch.float8_e4m3fn)
    tensors["roberta.embeddings.LayerNorm.bias"] = torch.zeros(10**12, 0)
    imported = import_cpt(release.base(), tensors, DOMAINS)
    assert set(imported.differs) == {norm, "roberta.embeddings.LayerNorm.bias"}, "the words are only rounded"


def test_an_imported_model_is_frozen(release: Release) -> None:
    model = release.base()
    import_cpt(model, release.checkpoint, DOMAINS)
    assert not any(p.requires_grad for p in model.parameters())


def test_names_of_the_file_are_printed_escaped_and_the_models_folder_is_not_written_to(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "roberta", tmp_path / "pytorch_model.bin"
    base = release.base().float()
    base.save_pretrained(folder)
    tokenizer(base.config.vocab_size).save_pretrained(folder)
    torch.save({**release.checkpoint, "\x1b]0;owned\x07\nx": torch.zeros(1)}, file)
    words = ["import", "cpt", str(file), "--model", str(folder), "--domains", "a"]
    capsys.readouterr()
    (tmp_path / "link").symlink_to(folder)
    before = sorted(p.name for p in folder.iterdir())
    for out in (folder / "plugins", tmp_path / "link" / "deep" / "er", folder / "x" / ".." / "y"):
        assert main([*words, "--out", str(out)]) == 2
        assert f"--out {out} lies in the model's folder {folder}, which is only read" in capsys.readouterr().err
    assert sorted(p.name for p in folder.iterdir()) == before
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert r"no such weight (1): \x1b]0;owned\x07\nx" in printed
    assert all(line.isprintable() for line in printed.splitlines())


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
    printed = capsys.readouterr().err
    files = " or ".join(str(folder / name) for name in inside)
    give = files or "their pytorch_model.bin or .safetensors, of which none lies in it"
    assert f"{folder} is a folder, and FILE is one file of weights. Give {give}." in printed


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
