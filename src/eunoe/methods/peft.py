"""Adapters of the PEFT library in post-training: a frozen model with small trainable weights inside its linear layers.

``lora`` (methods/lora.py) is this with LoRA's own settings; ``peft`` takes any tuner of ``TUNERS`` by its name in the
library. Both learn one domain after another in one of two ways:

- ``merge: never``: one adapter learns all domains in turn (SeqLoRA). The pretrained weights stay as they are, so taking the
  adapter away gives the pretrained model back; earlier domains are forgotten inside the adapter.
- ``merge: each``: when a domain ends, its adapter is added to the weights it stands beside, W <- W + dW, and the next domain
  starts a fresh one (IncLoRA). The sum of several adapters has a higher rank than one; the pretrained weights are lost.

The adapter's modules are put into the model itself, not around it, so every hook and name of the project stays right
(``plain_name`` takes ``base_layer`` out of a name). The library is an optional dependency: ``pip install "eunoe[peft]"``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eunoe.errors import EunoeError
from eunoe.foreign import first_line
from eunoe.lookup import lookup
from eunoe.methods.base import Method, Stage, freeze
from eunoe.models.anatomy import anatomy

TUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {}), "loha": ("LoHaConfig", {}), "lokr": ("LoKrConfig", {}), "ia3": ("IA3Config", {}),
    "oft": ("OFTConfig", {}), "hra": ("HRAConfig", {}), "miss": ("MissConfig", {}), "delora": ("DeloraConfig", {}),
    "fourierft": ("FourierFTConfig", {"init_weights": True}),  # the library's default does not start from the model as it is
}  # fmt: skip
"""Tuners that train like LoRA (weights beside a linear layer, a gradient, a merge): the class of their settings, and defaults of ours."""

REFUSED: dict[str, str] = {
    "adalora": "it shares out its rank anew in every step, which only a loop of its own does",
    "prompt_tuning": "its prompts need the library's own model around this one; the method prompt-one has prompts",
    "p_tuning": "its prompts need the library's own model around this one; the method prompt-one has prompts",
    "prefix_tuning": "its prefixes are a cache of keys and values, which a masked language model does not read",
    "adaption_prompt": "it replaces the attention of some model families with one of its own",
    "multitask_prompt_tuning": "it needs the number of the task in every batch",
    "vera": "its random matrices are shared by all layers and need the library's own model around this one",
    "xlora": "it mixes adapters that were trained before; the method merge joins learnt domains",
    "poly": "it needs the number of the task in every batch",
    "ln_tuning": "it has nothing to merge: it trains the norms themselves",
    "trainable_tokens": "it trains rows of the embeddings only, which a language model's head is tied to",
    "cpt": "the library calls another method so (context-aware prompt tuning); the method cpt of this project is Ke et al.'s",
}
"""Tuners that cannot be used so, and why."""

NAME = "default"


@dataclass(kw_only=True)
class PeftSettings:
    """A tuner of the PEFT library and its options."""

    tuner: str = "lora"
    """Which tuner: ``lora``, ``loha``, ``lokr``, ``ia3``, ``oft``, ``hra``, ``miss``, ``delora`` or ``fourierft``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options by the library's names, as ``{r: 8, use_dora: true}``; the rest has the library's defaults."""
    targets: Literal["layers", "attention"] = "layers"
    """Which linear layers get one: all of the model's ``layers``, or those of their ``attention`` alone."""
    merge: Literal["never", "each"] = "never"
    """``never``: one adapter learns all domains; ``each``: merge it into the weights after each domain and start a fresh one."""


class Peft(Method):
    """Learn each domain with an adapter of the PEFT library beside the frozen linear layers.

    ``weights()`` are the adapter's, and with ``merge: each`` those it was merged into. ``publish`` writes the library's own layout
    (``adapter_config.json``, ``adapter_model.safetensors``), which ``peft.PeftModel.from_pretrained`` reads; with ``merge: each``
    the weights are all there is. Raises ``EunoeError`` where the library is missing or does not take the options.
    """

    trains = "own"
    returns = True

    def __init__(self, model: nn.Module, settings: Any, domains: Sequence[str]) -> None:
        super().__init__(model, settings, domains)
        config = self.config()
        freeze(model)
        self.config_used = with_targets(config, linear_layers(model, settings.targets))
        inject(self.config_used, model)

    def config(self) -> Any:
        """The library's settings object for these settings, without the layers that get an adapter."""
        tuner = self.settings.tuner
        if tuner in REFUSED:
            raise EunoeError(
                f"the tuner {tuner!r} of PEFT cannot be used here: {REFUSED[tuner]}. Allowed: {', '.join(TUNERS)}."
            )
        name, defaults = lookup(TUNERS, tuner, "tuner")
        return make_config(name, defaults | self.settings.options, f"the tuner {tuner}")

    def end(self, stage: Stage) -> None:
        if self.settings.merge == "never":
            return
        with torch.no_grad():
            for layer in adapted(self.model):
                layer.merge(adapter_names=[NAME])
                layer.merged_adapters.clear()  # what was merged is the layer's own from now on
                layer.delete_adapter(NAME)
        inject(self.config_used, self.model, seed=stage.seed)

    # -- state -------------------------------------------------------------------------------------------------
    def weights(self) -> dict[str, Tensor]:
        kept = super().weights()
        if self.settings.merge == "each":
            kept |= {n: p.detach() for n, p in self.model.named_parameters() if ".base_layer." in n}
        return kept

    # -- use ---------------------------------------------------------------------------------------------------
    def for_end_task(self, model: nn.Module, domain: str | None, freeze: str | None = None) -> dict[str, float]:
        """Everything trains; with ``freeze="backbone"`` the head and the adapter."""
        rates = super().for_end_task(model, domain, freeze)
        train_adapters(model)
        return rates

    def publish(self, folder: Path) -> None:
        if self.settings.merge == "never":
            save_adapter(self.model, self.config_used, folder)


# -- what the library does ---------------------------------------------------------------------------------------------
def library() -> Any:
    """The PEFT library; raises ``EunoeError`` that says how to install it."""
    try:
        import peft
    except ImportError as error:
        raise EunoeError(
            f'this method needs the peft library, which cannot be imported ({first_line(error)}): pip install "eunoe[peft]".'
        ) from None
    return peft


def make_config(name: str, options: Mapping[str, Any], what: str) -> Any:
    """An object of the library's class ``name`` with these options; raises ``EunoeError`` for those it does not take."""
    peft = library()
    if not hasattr(peft, name):
        raise EunoeError(
            f"{what}: the installed peft {peft.__version__} has no {name}. Install a newer one: pip install -U peft."
        )
    ours = {
        "target_modules",
        "modules_to_save",
        "inference_mode",
        "feedforward_modules",
        "task_type",
        "layers_to_transform",
    }
    if wrong := sorted(ours & set(options)):
        raise EunoeError(f"{what}: {', '.join(wrong)} cannot be given here. Which layers get an adapter is the method's option "
                         "targets, and only the adapter trains.")  # fmt: skip
    try:
        return getattr(peft, name)(**options)
    except (TypeError, ValueError, AttributeError) as error:
        raise EunoeError(f"{what} does not take the options {dict(options)!r}: {first_line(error)}") from None


def linear_layers(model: nn.Module, targets: str) -> dict[str, nn.Module]:
    """The linear layers inside the model's layers, by name: all (``layers``), or those of the attention alone (``attention``).

    In every family those of the attention come first, the last of them being its output projection. GPT-2's ``Conv1D`` is one too.
    """
    from transformers.pytorch_utils import Conv1D

    chosen: set[int] = set()
    for layer in anatomy(model).layers:
        linear = [m for m in layer.module.modules() if isinstance(m, (nn.Linear, Conv1D))]
        last = linear.index(layer.attention_proj) if targets == "attention" else len(linear) - 1
        chosen.update(map(id, linear[: last + 1]))
    if not chosen:
        raise EunoeError(f"the layers of {type(model).__name__} hold no linear layers, so there is nothing for an adapter to stand beside. "
                         "Choose a method that trains the model's own weights: ncl, ewc, kd, replay (`eunoe list methods`).")  # fmt: skip
    return {name: m for name, m in model.named_modules() if id(m) in chosen}


def with_targets(config: Any, layers: Mapping[str, nn.Module]) -> Any:
    """``config`` for an adapter beside each of ``layers``."""
    config = copy.deepcopy(config)
    config.target_modules = sorted(layers)
    if hasattr(config, "feedforward_modules"):  # IA3 scales these layers' input; we let it scale every layer's output
        config.feedforward_modules = []
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = any(not isinstance(layer, nn.Linear) for layer in layers.values())
    return config


def inject(config: Any, model: nn.Module, name: str = NAME, seed: int | None = None) -> None:
    """Put an adapter called ``name`` beside the layers that ``config`` names; only it trains from now on.

    ``seed``: its first weights are drawn by it; None: by torch's generator as it is. Raises ``EunoeError`` for layers that the
    library's tuner does not take.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None), warnings.catch_warnings():
        if seed is not None:
            torch.manual_seed(seed)
        warnings.simplefilter("ignore")  # that a model has an adapter already, and what it set for itself
        try:
            library().inject_adapter_in_model(copy.deepcopy(config), model, adapter_name=name)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise EunoeError(f"PEFT cannot put its {config.peft_type.value} adapter into {type(model).__name__}: "
                             f"{first_line(error)}") from None  # fmt: skip


def adapted(model: nn.Module) -> list[Any]:
    """The layers of ``model`` that have adapters beside them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def train_adapters(model: nn.Module) -> None:
    """Let every weight of an active adapter train."""
    for layer in adapted(model):
        layer.set_adapter(layer.active_adapters)


def save_adapter(model: nn.Module, config: Any, folder: Path, name: str = NAME) -> None:
    """Write adapter ``name`` as ``PeftModel.save_pretrained`` does: settings as JSON, weights as safetensors."""
    peft = library()
    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.deepcopy(config)
    saved.inference_mode = True
    saved.base_model_name_or_path = anatomy(model).base.config._name_or_path or None
    saved.save_pretrained(str(folder))
    tensors = peft.get_peft_model_state_dict(model, adapter_name=name)
    save_file(
        {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )


__all__ = ["REFUSED", "TUNERS", "Peft", "PeftSettings"]
