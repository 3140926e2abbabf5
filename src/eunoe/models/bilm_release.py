"""Reads a biLM in the layout that ELMo was released in: ``options.json`` and one HDF5 file of weights.

The layout is bilm-tf's (https://github.com/allenai/bilm-tf, Apache-2.0). HDF5 holds numbers and names, no code; links that
lead out of the file are refused. Needs the package h5py (``pip install 'eunoe[elmo]'``): the format is nobody else's here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.models.bilm import ACTIVATIONS, BiLM, BiLMConfig

INSTALL = "pip install 'eunoe[elmo]'"
LARGEST = 2**30
"""Numbers that a released model may ask for; the largest one has a tenth of it."""


def load_release(options: Path, weights: Path) -> BiLM:
    """The released model in float32 and evaluation mode; raises ``EunoeError`` naming the file and what does not fit.

    >>> load_release(Path("options.json"), Path("lm_weights.hdf5"))  # doctest: +SKIP
    """
    if importlib.util.find_spec("h5py") is None:
        raise EunoeError(f"{visible(weights)} is an HDF5 file, which needs the package h5py. Install it: {INSTALL}")
    import h5py

    config = _config(options)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in BiLM(config).parameters())
    if numbers > LARGEST:
        raise EunoeError(f"{visible(options)} asks for {numbers:,} weights; the most that is read is {LARGEST:,}.")
    model = BiLM(config)
    named = dict(model.named_parameters())
    with reading(weights, "Is it the HDF5 file that belongs to these options?"), h5py.File(weights, "r") as file:
        for name, (source, change) in _places(config).items():
            value = change(torch.from_numpy(_dataset(h5py, file, source, weights)).float())
            if value.shape != named[name].shape:
                raise EunoeError(f"{visible(weights)} holds {source} for {tuple(value.shape)}, where {visible(options)} asks for "
                                 f"{tuple(named[name].shape)}. Do the two belong together?")  # fmt: skip
            with torch.no_grad():
                named[name].copy_(value)
    model.eval()
    return model


def _config(path: Path) -> BiLMConfig:
    """The options as this project's config."""
    with reading(path, "It should be the options.json of a released biLM."):
        options = json.loads(path.read_text(encoding="utf-8"))
        cnn, lstm = options["char_cnn"], options["lstm"]
        config = BiLMConfig(
            filters=[(int(span), int(count)) for span, count in cnn["filters"]],
            character_width=int(cnn["embedding"]["dim"]), longest_word=int(cnn["max_characters_per_token"]),
            activation=cnn["activation"], highways=int(cnn.get("n_highway") or 0), width=int(lstm["projection_dim"]),
            cells=int(lstm["dim"]), lstm_layers=int(lstm["n_layers"]), cell_clip=lstm.get("cell_clip"),
            projection_clip=lstm.get("proj_clip"), skip=bool(lstm.get("use_skip_connections")),
        )  # fmt: skip
        spans = [span for span, _ in config.filters]
        sizes = [config.character_width, config.width, config.cells, config.lstm_layers, *map(sum, config.filters)]
        if min(sizes) < 1 or config.longest_word < max(3, *spans) or config.activation not in ACTIVATIONS:
            raise ValueError(
                f"sizes {sizes}, words of {config.longest_word} characters, activation {config.activation}"
            )
    return config


Change = Callable[[Tensor], Tensor]


def _places(config: BiLMConfig) -> dict[str, tuple[str, Change]]:
    """Our name of each weight -> the file's name of it, and what makes ours of it."""

    def same(x: Tensor) -> Tensor:
        return x

    def turned(x: Tensor) -> Tensor:
        return x.T

    places: dict[str, tuple[str, Change]] = {
        # the release has no row for padding: it is put in front, and its character numbers count from 1
        "encoder.table.weight": ("char_embed", lambda x: torch.cat([torch.zeros_like(x[:1]), x])),
        "encoder.projection.weight": ("CNN_proj/W_proj", turned),
        "encoder.projection.bias": ("CNN_proj/b_proj", same),
    }
    for i in range(len(config.filters)):
        places[f"encoder.filters.{i}.weight"] = (f"CNN/W_cnn_{i}", lambda x: x[0].permute(2, 1, 0))
        places[f"encoder.filters.{i}.bias"] = (f"CNN/b_cnn_{i}", same)
    for i in range(config.highways):
        for ours in ("carry", "transform"):
            places[f"encoder.highways.{i}.{ours}.weight"] = (f"CNN_high_{i}/W_{ours}", turned)
            places[f"encoder.highways.{i}.{ours}.bias"] = (f"CNN_high_{i}/b_{ours}", same)
    for direction in (0, 1):
        for i in range(config.lstm_layers):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{i}/LSTMCell"
            ours = f"lstms.{direction}.{i}"
            places[f"{ours}.weight_input"] = (f"{cell}/W_0", lambda x: _gates(x.T)[:, : config.width])
            places[f"{ours}.weight_hidden"] = (f"{cell}/W_0", lambda x: _gates(x.T)[:, config.width :])
            places[f"{ours}.bias"] = (f"{cell}/B", _open)
            if config.width != config.cells:
                places[f"{ours}.projection"] = (f"{cell}/W_P_0", turned)
    return places


def _gates(x: Tensor) -> Tensor:
    """TensorFlow's order of the gates (input, candidate, forget, output) -> torch's (input, forget, candidate, output)."""
    i, g, f, o = x.chunk(4)
    return torch.cat([i, f, g, o])


def _open(x: Tensor) -> Tensor:
    """TensorFlow adds 1 to the forget gates when it computes them; here it stands in the bias."""
    i, f, g, o = _gates(x).chunk(4)
    return torch.cat([i, f + 1, g, o])


def _dataset(h5py: Any, file: Any, name: str, path: Path) -> Any:
    """The numbers at ``name``, which must lie in the file itself."""
    parts = name.split("/")
    for i in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:i]), getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise EunoeError(
                f"{visible(path)}: {name} is a link to another place. A released biLM has none; nothing was read."
            )
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        raise EunoeError(f"{visible(path)} lacks {name}. Is it the HDF5 file that belongs to these options?")
    if node.external or node.is_virtual or node.size > LARGEST or node.dtype.kind != "f":
        raise EunoeError(f"{visible(path)}: {name} is not a table of numbers inside the file; nothing was read.")
    return node[...]


__all__ = ["load_release"]
