"""fastai's AWD-LSTM weights, in both directions: its published language models load, and ours can go back.

fastai stores the trunk under ``0.`` and the decoder under ``1.``; in its classifier the trunk is inside a ``module`` and the head's
layers are numbered. It keeps the embedding twice and the hidden-to-hidden matrix under ``weight_hh_l0_raw``. Published files
(``wt103-fwd``, ``wt103-bwd``) are torch's pickles; they are read with ``weights_only=True``, which runs nothing of them. The pickled
vocabulary beside them is not read at all, as reading a pickle runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eunoe.errors import EunoeError
from eunoe.foreign import reading, visible
from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
from eunoe.models.awd.config import CLASSIFIER_RATES, AwdLstmConfig
from eunoe.models.awd.model import AwdLstmForCausalLM

_LAYER = re.compile(r"rnns\.(\d+)\.(?:module\.)?(weight_hh_l0_raw|weight_hh_l0|weight_ih_l0|bias_ih_l0|bias_hh_l0)")
_HEAD = {"0.0": "norm_in", "0.2": "linear_in", "1.0": "norm_out", "1.2": "linear_out"}
"""fastai's number of a layer in the classifier's head -> ours."""


def from_fastai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fastai state dict (language model or classifier) under our names. Raises ``EunoeError`` for names that it does not know.

    >>> sorted(from_fastai({"0.encoder.weight": torch.ones(3, 2), "1.decoder.bias": torch.ones(3)}))
    ['lm_head.bias', 'transformer.embeddings.weight']
    """
    mapped: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _ours(name)
        if ours is None:
            raise EunoeError(f"{visible(name)} is no weight of a fastai AWD-LSTM. Expected 0.encoder.weight, 0.rnns.0..., 1.decoder... "
                             "(language model) or 1.layers... (classifier).")  # fmt: skip
        if ours in mapped and not torch.equal(mapped[ours], value):
            raise EunoeError(
                f"the fastai weights hold two different tensors for {ours} (the second is {visible(name)}): are they damaged?"
            )
        mapped[ours] = value
    return mapped


def _ours(name: str) -> str | None:
    part, _, rest = name.partition(".")
    rest = rest.removeprefix("module.")
    if part == "0":
        if rest in ("encoder.weight", "encoder_dp.emb.weight"):
            return "transformer.embeddings.weight"
        match = _LAYER.fullmatch(rest)
        if match is not None:
            return f"transformer.layers.{match[1]}.{match[2].removesuffix('_raw').removesuffix('_l0')}"
    if part == "1":
        if rest == "decoder.weight":
            return "transformer.embeddings.weight"  # tied; two that differ are refused
        if rest == "decoder.bias":
            return "lm_head.bias"
        number, _, kind = rest.removeprefix("layers.").rpartition(".")
        if rest.startswith("layers.") and number in _HEAD:
            return f"head.{_HEAD[number]}.{kind}"
    return None


def to_fastai(model: AwdLstmForCausalLM | AwdLstmForSequenceClassification) -> dict[str, Tensor]:
    """The state dict that fastai's ``get_language_model`` or ``get_text_classifier`` loads with ``strict=True``."""
    classifier = isinstance(model, AwdLstmForSequenceClassification)
    inside = "0.module." if classifier else "0."
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        if name == "transformer.embeddings.weight":
            out[f"{inside}encoder.weight"] = out[f"{inside}encoder_dp.emb.weight"] = value
        elif name.startswith("transformer.layers."):
            _, _, number, kind = name.split(".")
            raw = f"{inside}rnns.{number}.weight_hh_l0_raw"
            out[raw if kind == "weight_hh" else f"{inside}rnns.{number}.module.{kind}_l0"] = value
            if kind == "weight_hh":  # a copy that fastai overwrites in each forward call, but asks for when loading
                out[f"{inside}rnns.{number}.module.weight_hh_l0"] = value
        elif name.startswith("lm_head."):
            out[f"1.decoder.{name.removeprefix('lm_head.')}"] = value
        else:
            _, layer, kind = name.split(".")
            number = next(n for n, ours in _HEAD.items() if ours == layer)
            out[f"1.layers.{number}.{kind}"] = value
    return out


def config_of(state: Mapping[str, Tensor], **change: Any) -> AwdLstmConfig:
    """The configuration that weights under our names fit; ``change`` adds what no shape says (``backward``, dropouts, ...)."""
    words, width = state["transformer.embeddings.weight"].shape
    layers = {int(name.split(".")[2]) for name in state if name.startswith("transformer.layers.")}
    if not layers:
        raise EunoeError("the weights have an embedding but no LSTM layers: they are not those of an AWD-LSTM.")
    inner = state["transformer.layers.0.weight_hh"].shape[1]
    shapes: dict[str, Any] = {
        "vocab_size": words, "hidden_size": width, "cell_size": inner, "num_hidden_layers": max(layers) + 1,
    }  # fmt: skip
    if "head.linear_out.weight" in state:
        shapes |= {
            "num_labels": state["head.linear_out.weight"].shape[0],
            "head_size": state["head.linear_in.weight"].shape[0],
        }
        shapes |= CLASSIFIER_RATES
    else:
        shapes["output_bias"] = "lm_head.bias" in state
    return AwdLstmConfig(**{**shapes, **change})


def load_fastai(weights: str | Path, **change: Any) -> AwdLstmForCausalLM | AwdLstmForSequenceClassification:
    """A model with the weights of a fastai file (``.pth`` of ``learn.save`` or ``save_encoder``'s whole model, or ``.safetensors``).

    ``change``: what no weight says, for ``AwdLstmConfig`` (``backward=True``). The vocabulary is read apart, from JSON:
    ``AwdLstmTokenizer("vocab.json")``. Raises ``EunoeError`` for files that are no fastai AWD-LSTM, are damaged, or hold more
    than tensors.
    """
    path = Path(weights)
    advice = "Is it the .pth file of a fastai AWD-LSTM?"
    with reading(f"the fastai weights {path}", advice):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(
        state.get("model"), Mapping
    ):  # learn.save puts the optimizer beside it
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise EunoeError(f"{visible(path)} does not hold named tensors. {advice}")
    return model_from(from_fastai(state), **change)


def model_from(state: Mapping[str, Tensor], **change: Any) -> AwdLstmForCausalLM | AwdLstmForSequenceClassification:
    """A model in evaluation mode with weights under our names. Raises ``EunoeError`` where they do not fit ``change``."""
    if "transformer.embeddings.weight" not in state:
        raise EunoeError("the weights have no embedding (0.encoder.weight): they are not those of a fastai AWD-LSTM.")
    config = config_of(state, **change)
    kind = AwdLstmForSequenceClassification if "head.linear_out.weight" in state else AwdLstmForCausalLM
    model = kind(config)
    wanted = model.state_dict()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    lacking = sorted(set(wanted) - set(state) - tied)
    other = sorted(n for n, v in state.items() if n in wanted and wanted[n].shape != v.shape)
    if lacking or other or set(state) - set(wanted):
        what = [f"{n} {tuple(state[n].shape)} where {tuple(wanted[n].shape)} is expected" for n in other[:3]]
        what += [f"no {n}" for n in lacking[:3]] + [
            f"{n}, for which there is no place" for n in sorted(set(state) - set(wanted))[:3]
        ]
        raise EunoeError(
            f"the weights do not fit the configuration: {'; '.join(what)}. Leave out settings that the weights' shapes give."
        )
    with torch.no_grad():
        for name, value in state.items():
            wanted[name].copy_(value)
    model.eval()
    return model


def read_vocabulary(path: str | Path) -> list[str]:
    """Tokens in the order of their rows, from a JSON list. A pickle (fastai's ``itos.pkl``, ``vocab.pkl``) is refused."""
    file = Path(path)
    if file.suffix in (".pkl", ".pickle"):
        raise EunoeError(
            f"{visible(file)} is a pickle: reading one runs what is in it, so it is not read. Where you trust it, turn it into JSON once: "
            f"python -c \"import json, pickle; json.dump(list(pickle.load(open('{visible(file.name)}', 'rb'))), open('vocab.json', 'w'))\""
        )
    with reading(f"the vocabulary {file}", "Expected: a JSON list of tokens."):
        tokens = json.loads(file.read_text("utf-8"))
    if isinstance(tokens, dict) and all(isinstance(i, int) for i in tokens.values()):
        tokens = [token for token, _ in sorted(tokens.items(), key=lambda item: item[1])]
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise EunoeError(f"{visible(file)} is not a JSON list of tokens, in the order of their rows.")
    return tokens


__all__ = ["config_of", "from_fastai", "load_fastai", "model_from", "read_vocabulary", "to_fastai"]
