"""The files of a pretrained model: which ones there are, what their headers say, and all that can be refused by them alone.

Everything here happens before a model is built: no memory is taken that the files do not fill already, and no code of a
model is run. Foreign weights are safetensors, or torch's own format through its ``weights_only`` loader.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from eunoe import stop
from eunoe.atomic import write_bytes
from eunoe.data.encoding import LFS
from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What transformers looks for, in this order; each may be cut in parts that NAME.index.json lists."""
PATCH = "patch.safetensors"
"""Of a folder that a trained LM head lies in: the head, and the low-rank change of the model below it."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
"""What a tokenizer may be read from."""
MOST = 100_000
"""Parts of one kind (layers, labels, experts, ...) that a config.json may ask for at most."""

_LAYERS = re.compile(r"^(n|num)_((hidden|encoder|decoder)_)?layers?$")
"""Keys of a config.json that say how many layers are built. Each layer has a tensor or more in the weights."""
_COUNT = re.compile(r"(layers?|groups?|group_num|labels|experts|blocks)$")
"""Keys of a config.json that say how many modules, or entries of a list, are made: each takes memory before a weight does."""
_PACKED = re.compile(r"(U8|I8|I16|I32|U16|U32|F4|F8\w*)$")
"""Data types that hold quantised weights."""


@dataclass(frozen=True)
class Tensors:
    """What the headers of weight files say: ``names`` with data type and shape (empty for torch's own format), and an
    upper bound of how many numbers they hold."""

    names: Mapping[str, tuple[str, tuple[int, ...]]]
    numbers: int


class Origin:
    """The files that a model was loaded from, as they were then."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stamps = {file: stamp(file) for file in files}

    def unchanged(self) -> bool:
        """Whether every file still has the size and the time of change that it had when it was loaded."""
        return all(stamp(file) == was for file, was in self._stamps.items())

    @cached_property
    def identity(self) -> str:
        """SHA-256 over names and bytes of the files; where they lie does not matter. Read once, when it is asked for.

        Raises ``EunoeError`` if a file was replaced since the model was loaded.
        """
        total = hashlib.sha256()
        for file in sorted(self._stamps, key=lambda file: file.name):
            total.update(f"{file.name}\0{digest(file, self._stamps[file])}\n".encode())
        if not self.unchanged():
            digest.cache_clear()  # it may be of the new file, under the old one's stamp
            changed = next(file for file, was in self._stamps.items() if stamp(file) != was)
            raise EunoeError(
                f"{visible(changed)} was replaced while this process was using it. Start the command again."
            )
        return total.hexdigest()


@lru_cache(maxsize=64)
def digest(file: Path, _stamp: tuple[int, int] | None) -> str:
    """SHA-256 of a file, read once a process for as long as its ``stamp`` is the same."""
    with reading(file), open(file, "rb") as opened:
        return stop.digest(opened, f"reading {visible(file)}")


def stamp(file: Path) -> tuple[int, int] | None:
    """A file's size and time of change; None where it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


# -- a folder ---------------------------------------------------------------------------------------------------
def model_files(folder: Path) -> list[Path]:
    """The files of ``folder`` that make the model: config, tokenizer, and the weights that transformers would choose.

    Raises ``EunoeError`` if config or weights are missing, or if one of these files is a Git LFS pointer.
    """
    config, adapter = folder / "config.json", folder / "adapter_config.json"
    if adapter.is_file():  # transformers would load another model's weights, those that it names
        raise EunoeError(
            f"{visible(folder)} holds an adapter ({adapter.name}), not a model alone. Merge it into its model and give that "
            "folder (PEFT: model.merge_and_unload().save_pretrained(FOLDER)), or move the adapter's files elsewhere."
        )
    if not config.is_file():
        raise EunoeError(
            f"{visible(folder)} has no config.json, so it is not the folder of a model. Give the folder that "
            "save_pretrained wrote."
        )
    files = [config, *(folder / name for name in TOKENIZER if (folder / name).is_file())]
    _refuse_pointers(files)
    weights = _weights(folder)
    _refuse_pointers(weights)
    return files + weights


def weight_files(files: Iterable[Path]) -> list[Path]:
    """Those of ``model_files`` that hold tensors."""
    return [file for file in files if file.suffix in (".safetensors", ".bin", ".gguf")]


def _weights(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return [file]
        if index.is_file():
            _refuse_pointers([index])
            with reading(index, "Fetch the folder again."):
                parts = sorted(
                    {str(part) for part in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
                )
            lost = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
            if lost or not parts:
                raise EunoeError(
                    f"{visible(index)} names {len(parts)} files of weights, of which {len(lost)} are missing "
                    f"({visible(', '.join(lost[:3]))}). Fetch the folder again."
                )
            return [index, *(folder / part for part in parts)]
    raise EunoeError(
        f"{visible(folder)} has a config.json but no weights: neither {' nor '.join(WEIGHTS)}. Fetch them, or save "
        "the model again with save_pretrained."
    )


def _refuse_pointers(files: Iterable[Path]) -> None:
    for file in files:
        with reading(file), open(file, "rb") as opened:
            start = opened.read(len(LFS))
        if start == LFS.encode():
            raise EunoeError(
                f"{visible(file)} is a Git LFS pointer of a few lines, not the file itself. Fetch it: run `git lfs "
                f"pull` in {visible(file.parent)}."
            )


# -- what config.json asks for ----------------------------------------------------------------------------------
def check_config(file: Path, weights: Iterable[Path]) -> Tensors | None:
    """What the weights' headers say (None without ``weights``); raises ``EunoeError`` for a config.json that is damaged, describes
    quantised weights, or asks for more parts than the weights could fill."""
    with reading(file, "It must be the config.json that save_pretrained wrote."):
        config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise EunoeError(f"{visible(file)} holds {type(config).__name__}, not an object with the settings of a model.")
    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING:
        code = ", and brings Python code of its own (auto_map), which is never run" if "auto_map" in config else ""
        raise EunoeError(f"{visible(file)} is of type {visible(kind, 60)!r}, which transformers {transformers.__version__} does not know"
                         f"{code}. Name a model of a type that transformers has, or install a version that has this one: pip install -U "
                         "transformers.")  # fmt: skip
    for key, value in _entries(config):
        if key == "quantization_config" and isinstance(value, dict):
            bits = next((f", {n} bit" for n in (4, 8) if value.get(f"load_in_{n}bit") or value.get("bits") == n), "")
            raise _quantised(file, f"{visible(value.get('quant_method', 'quantization_config'), 60)}{bits}")
    stored = headers(weights)
    tensors = len(stored.names) if stored is not None and stored.names else MOST
    for key, value in _entries(config):
        most = min(tensors, MOST) if _LAYERS.search(key) else MOST
        if _COUNT.search(key) and isinstance(value, int | float) and value > most:
            limit = f"its weights hold {tensors} tensors" if most < MOST else f"{MOST} is the most"
            raise EunoeError(
                f"{visible(file)} asks for {visible(key, 60)}: {value}, but {limit}. Is it the config.json of these weights?"
            )
    for name, (dtype, shape) in stored.names.items() if stored is not None else ():
        if _PACKED.match(dtype) and len(shape) > 1 and "weight" in name.rsplit(".", 1)[-1]:
            raise _quantised(file, f"{visible(name, 100)} is {dtype}")
    return stored


def _quantised(file: Path, what: str) -> EunoeError:
    return EunoeError(
        f"the weights beside {visible(file)} are quantised ({what}), and quantised weights cannot be trained. Load "
        "the original model that they were made from, or turn them back: model.dequantize(), then save_pretrained."
    )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of nested configurations too."""
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _entries(value)


def headers(weights: Iterable[Path]) -> Tensors | None:
    """Names, types and shapes of the tensors in ``weights``, without reading one; None for no file."""
    names: dict[str, tuple[str, tuple[int, ...]]] = {}
    numbers, some = 0, False
    for file in weights:
        some = True
        if file.suffix != ".safetensors":
            numbers += file.stat().st_size  # no format packs two numbers into a byte but quantised ones
            continue
        with (
            reading(f"the weights of the model in {file}", "Fetch it again."),
            safe_open(file, framework="pt") as opened,
        ):
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                names[name] = (str(part.get_dtype()), tuple(part.get_shape()))
                numbers += torch.Size(names[name][1]).numel()
    return Tensors(names, numbers) if some else None


# -- tensors ----------------------------------------------------------------------------------------------------
def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a foreign weights file: safetensors, or torch's own format through its ``weights_only`` loader.

    Raises ``EunoeError`` if there is no such file, if it holds anything but tensors by name, or if a tensor is empty or claims
    more numbers than the file holds (a stride of 0), which would take memory out of nothing.
    """
    if not file.is_file():
        raise EunoeError(
            f"{visible(file)} does not exist. Give a file of weights: .safetensors, or .bin or .pt that torch wrote."
        )
    _refuse_pointers([file])
    with reading(f"{file} as weights", "Nothing of it was run."):
        if file.suffix == ".safetensors":
            loaded = dict(safetensors.torch.load_file(file))
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise EunoeError(
            f"{visible(file)} holds {type(loaded).__name__}, not tensors by name. Give the file of a state dict."
        )
    for name, value in loaded.items():
        if why := odd(value) or ("empty" if 0 in value.shape else None):
            raise EunoeError(
                f"{visible(file)}: {visible(name, 100)} is {why}. Save it again, whole and in memory: value.contiguous()."
            )
    return {str(name): value for name, value in loaded.items()}


def odd(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor from being plain numbers in memory, if anything: torch's files hold more kinds than weights need."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "sparse or nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type == "meta":
        return "without its numbers (device meta)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)}, but the file holds fewer numbers than that (a stride of 0)"
    return None


def write_patch(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the patch file of ``folder``, whole or not at all."""
    whole = {name: value.contiguous() for name, value in tensors.items()}
    write_bytes(folder / PATCH, safetensors.torch.save(whole))


def patch_file(folder: Path) -> Path:
    """The file of a patch folder; raises ``EunoeError`` if there is none."""
    file = folder / PATCH
    if not file.is_file():
        raise EunoeError(
            f"{visible(file)} does not exist. Make it: a recipe with model.head: train writes RUN/head/{PATCH}."
        )
    return file


__all__ = [
    "PATCH", "TOKENIZER", "WEIGHTS", "Origin", "Tensors", "check_config", "headers", "model_files", "odd", "patch_file", "read_weights",
    "weight_files", "write_patch",
]  # fmt: skip
