"""The one table of methods: command line, recipes, tests, docs and reports all read it.

A new method is one file, one row here, one test file. An installed package adds its own by an entry point (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from eunoe.choices import choose
from eunoe.errors import EunoeError
from eunoe.methods.adapter import AdapterOnly
from eunoe.methods.adapter_ncl import AdapterNcl
from eunoe.methods.adapter_one import AdapterOne
from eunoe.methods.base import Method
from eunoe.methods.bcl import Bcl, BclSettings
from eunoe.methods.classic import Classic, ClassicSettings
from eunoe.methods.cpt import Cpt, CptSettings
from eunoe.methods.das import Das, DasSettings
from eunoe.methods.demix import Demix, DemixSettings
from eunoe.methods.derpp import Derpp, DerSettings
from eunoe.methods.ewc import Ewc, EwcSettings
from eunoe.methods.hat import Hat, HatSettings
from eunoe.methods.joint import Joint, JointSettings
from eunoe.methods.kd import Kd, KdSettings
from eunoe.methods.l2 import L2, L2Settings
from eunoe.methods.lora import Lora, LoraSettings
from eunoe.methods.merge import Merge, MergeSettings
from eunoe.methods.ncl import Ncl, NclSettings
from eunoe.methods.none import NoMethod, NoneSettings
from eunoe.methods.olora import OLora, OLoraSettings
from eunoe.methods.one import One, OneSettings
from eunoe.methods.peft import Peft, PeftSettings
from eunoe.methods.prompt_one import PromptOne, PromptSettings
from eunoe.methods.recadam import AnnealedPull, AnnealedSettings
from eunoe.methods.replay import Replay, ReplaySettings
from eunoe.methods.table import Entry, Table
from eunoe.methods.together import Together, refuse_kinds
from eunoe.methods.wise import Wise, WiseSettings
from eunoe.plugins.bottleneck import AdapterSettings

_OWN: dict[str, Entry] = {
    "none": Entry(
        NoMethod, NoneSettings, "the pretrained model as it is; learns no stage",
        keeps="all of the pretrained model", arithmetic=0.0, memory="no training",
    ),
    "adapter": Entry(
        AdapterOnly, AdapterSettings, "no post-training; fresh adapters on the frozen model in each end task; learns no stage",
        paper="Houlsby et al. 2019, arXiv 1902.00751", keeps="all of the pretrained model", arithmetic=0.0, memory="no training",
    ),
    "one": Entry(
        One, OneSettings, "a model of its own for each domain, learnt from the pretrained one; forgets nothing",
        paper="a baseline of Ke et al. 2022, arXiv 2210.05549", keeps="a model of each domain", arithmetic=1.0,
        memory="as ncl; on the CPU + 1 model and 1 of each domain where several are read",
    ),
    "adapter-ncl": Entry(
        AdapterNcl, AdapterSettings, "one set of adapters learns all domains in turn on the frozen model; forgets",
        paper="Houlsby et al. 2019, arXiv 1902.00751", keeps="the pretrained model", arithmetic=0.75, memory="- 3 models + adapters",
    ),
    "adapter-one": Entry(
        AdapterOne, AdapterSettings, "adapters of its own for each domain on the frozen model; forgets nothing",
        paper="Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247", keeps="adapters of each domain",
        arithmetic=0.75, memory="- 3 models + adapters",
    ),
    "prompt-one": Entry(
        PromptOne, PromptSettings, "a soft prompt of its own for each domain before the frozen model's text; forgets nothing",
        paper="Lester et al. 2021, arXiv 2104.08691", keeps="a prompt of each domain", arithmetic=1.3, memory="- 3 models + a prompt",
    ),
    "demix": Entry(
        Demix, DemixSettings, "an expert for each domain, started from the nearest; mixed where no domain is given; forgets nothing",
        paper="Gururangan et al. 2022, arXiv 2108.05036", keeps="an expert of each domain", arithmetic=0.75,
        memory="- 3 models + an expert; those of earlier domains on the CPU",
    ),
    "joint": Entry(
        Joint, JointSettings, "all weights learn the text of all domains at once, in one stage; the upper bound",
        keeps="the text of all domains", arithmetic=1.0, memory="as ncl",
    ),
    "ncl": Entry(
        Ncl, NclSettings, "train all weights on each domain in turn and protect nothing; forgets",
        keeps="nothing", arithmetic=1.0, memory="weights, gradients, two moments: 4 models",
        drafted="ncl   # trains all weights and protects nothing: how much is forgotten",
    ),
    "cpt": Entry(
        Cpt, CptSettings, "plug-ins with hard masks per domain on a frozen model; forgets nothing (EMNLP 2022)",
        paper="Ke et al. 2022, arXiv 2210.05549", keeps="a mask and plug-ins of each domain", memory="- 3 models + plug-ins",
        drafted="{name: cpt, training: {lr: 1.0e-3}}   # plug-ins that forget nothing; fresh ones need a higher learning rate",
    ),
    "kd": Entry(
        Kd, KdSettings, "all weights, held to what the model of before the domain answers on the same text",
        paper="Li and Hoiem 2016, arXiv 1606.09282", keeps="nothing", arithmetic=2.3, memory="+ 1 model (teacher)",
    ),
    "ewc": Entry(
        Ewc, EwcSettings, "all weights, each held to where it was as firmly as earlier domains need it (Fisher)",
        paper="Kirkpatrick et al. 2017, arXiv 1612.00796", keeps="one Fisher of them all", memory="+ 2 models (Fisher, anchor)",
    ),
    "der++": Entry(
        Derpp, DerSettings, "all weights, a buffer of old text, and what the model answered to it",
        paper="Buzzega et al. 2020, arXiv 2004.07211", keeps="500 of their blocks with logits", arithmetic=3.0,
        memory="+ the buffer",
    ),
    "replay": Entry(
        Replay, ReplaySettings, "all weights, and a share of earlier or general text in each batch",
        reads=frozenset({"earlier", "general"}), paper="Scialom et al. 2022, arXiv 2205.12393", keeps="their text", arithmetic=1.33,
        memory="as ncl",
    ),
    "l2": Entry(
        L2, L2Settings, "all weights, all held alike to where they were",
        paper="Li et al. 2018, arXiv 1802.01483", keeps="nothing", memory="+ 1 model (anchor)",
    ),
    "recadam": Entry(
        AnnealedPull, AnnealedSettings, "all weights, under a pull to where they were that fades while a domain is learnt",
        paper="Chen et al. 2020, arXiv 2004.12651", keeps="nothing", memory="+ 1 model (anchor)",
    ),
    "wise": Entry(
        Wise, WiseSettings, "all weights, then a part of the way back to those of before the domain",
        reads=frozenset({"earlier"}), paper="Wortsman et al. 2022, arXiv 2109.01903", keeps="nothing", memory="+ 2 models (old, new)",
    ),
    "merge": Entry(
        Merge, MergeSettings, "a full model per domain from the pretrained one, all merged: average, task arithmetic or TIES",
        paper="Yadav et al. 2023, arXiv 2306.01708", keeps="what each changed", memory="+ 2 models (ties: 1 and 1 a domain)",
    ),
    "lora": Entry(
        Lora, LoraSettings, "LoRA beside frozen linear layers: one for all domains, or merged after each; forgets less",
        paper="Hu et al. 2021, arXiv 2106.09685", keeps="nothing", memory="- 3 models + matrices of rank r",
    ),
    "o-lora": Entry(
        OLora, OLoraSettings, "a LoRA per domain in a subspace orthogonal to the earlier ones, all active; forgets less",
        paper="Wang et al. 2023, arXiv 2310.14152", keeps="a LoRA of each domain", arithmetic=1.1,
        memory="- 3 models + matrices of rank r a domain",
    ),
    "peft": Entry(
        Peft, PeftSettings, "any tuner of the PEFT library that trains like LoRA (loha, lokr, ia3, oft, ...)",
        keeps="nothing", memory="- 3 models + the tuner's weights",
    ),
    "hat": Entry(
        Hat, HatSettings, "adapters with soft masks per domain on a frozen model, few units each; forgets a little (ICML 2018)",
        paper="Serra et al. 2018, arXiv 1801.01423", keeps="a soft mask and adapters of each domain", memory="- 3 models + adapters",
    ),
    "bcl": Entry(
        Bcl, BclSettings, "hat with capsules of all domains so far, which vote on each token; forgets (NAACL 2021)",
        paper="Ke et al. 2021, NAACL 2021", keeps="a soft mask, adapters and capsules of each domain", arithmetic=1.3,
        memory="- 3 models + adapters + a capsule of each domain",
    ),
    "classic": Entry(
        Classic, ClassicSettings, "hat with a contrast between a text's state and all domains' views of it; forgets a little (EMNLP 2021)",
        paper="Ke et al. 2021, EMNLP 2021", keeps="a soft mask and adapters of each domain", arithmetic=2.0, memory="- 3 models + adapters",
    ),
    "das": Entry(
        Das, DasSettings, "all weights; gradients damped where units matter to earlier knowledge, and a contrast (ICLR 2023)",
        paper="Ke et al. 2023, arXiv 2302.03241", keeps="the importance of their units", arithmetic=2.8,
        memory="+ the activations of two more passes",
    ),
}  # fmt: skip
METHODS = Table(_OWN)


@dataclass(frozen=True)
class Chosen:
    """A method as a recipe chose it: one row of METHODS with its typed settings, or several that go together."""

    names: tuple[str, ...]
    rows: tuple[Entry, ...]
    settings: tuple[Any, ...]

    @property
    def name(self) -> str:
        """``ncl``, or ``replay-ewc`` for several."""
        return "-".join(self.names)

    @property
    def forgets(self) -> bool:
        return all(row.method.forgets for row in self.rows)

    @property
    def needs_domain(self) -> bool:
        """Is text read under the masks, prompts or expert of its domain?"""
        return any(row.method.needs_domain for row in self.rows)

    @property
    def starts_from(self) -> str:
        return self.rows[0].method.starts_from

    @property
    def returns(self) -> bool:
        """May an order name a domain again?"""
        return all(row.method.returns for row in self.rows)

    @property
    def reads(self) -> frozenset[str]:
        """Which old text it reads again."""
        each = zip(self.rows, self.settings, strict=True)
        return frozenset(what for row, own in each for what in row.reads & row.method.reads_again(own))

    def stages(self, domains: Sequence[str]) -> list[tuple[str, ...]]:
        """The domains of each stage."""
        proposed = [
            row.method.stages(domains, settings) for row, settings in zip(self.rows, self.settings, strict=True)
        ]
        if any(stages != proposed[0] for stages in proposed):
            raise EunoeError(
                f"the methods {' and '.join(self.names)} cannot be combined: they cut the domains into other stages."
            )
        return proposed[0]

    def sources(self) -> list[Path]:
        """Files that the method starts from, besides the model."""
        return [file for row, own in zip(self.rows, self.settings, strict=True) for file in row.method.sources(own)]

    def build(self, model: nn.Module, domains: Sequence[str]) -> Method:
        """The method around ``model``, which it may change."""
        parts = [row.method(model, own, list(domains)) for row, own in zip(self.rows, self.settings, strict=True)]
        return parts[0] if len(parts) == 1 else Together(parts, self.names)

    def written_out(self) -> dict[str, Any]:
        """The choice with every option written out, as ``recipe.yaml`` holds it."""
        if len(self.names) == 1:
            return {"name": self.names[0], **asdict(self.settings[0])}
        return {"name": list(self.names), **{n: asdict(s) for n, s in zip(self.names, self.settings, strict=True)}}


def choose_method(choice: Any, where: str) -> Chosen:
    """A recipe's choice of a method: ``cpt``, ``{name: cpt, ffn_size: 64}`` or ``{name: [replay, ewc], ewc: {...}}``.

    Raises ``EunoeError`` for unknown names and options.
    """
    if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), list):
        name, row, settings = choose(METHODS, choice, where, "method")
        return Chosen((name,), (row,), (settings,))
    names, options = choice["name"], {key: value for key, value in choice.items() if key != "name"}
    if len(names) < 2 or len(set(map(str, names))) < len(names):
        raise EunoeError(f"{where}.name: give two or more methods, each once; received {names!r}.")
    chosen = [
        choose(METHODS, {"name": name, **_options(options, name, where)}, f"{where}.{name}", "method") for name in names
    ]
    if unread := sorted(set(options) - set(names)):
        raise EunoeError(f"{where}: {', '.join(unread)} is read by none of the methods {', '.join(names)}; options of several stand below "
                         f"their names, as in `{names[0]}: {{{unread[0]}: ...}}`.")  # fmt: skip
    refuse_kinds(names, [row.method for _, row, _ in chosen])
    return Chosen(tuple(names), tuple(row for _, row, _ in chosen), tuple(settings for *_, settings in chosen))


def _options(options: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    own = options.get(name, {})
    if not isinstance(own, Mapping):
        raise EunoeError(f"{where}.{name}: expected options with values, received {own!r}.")
    return own


__all__ = ["METHODS", "Chosen", "Entry", "Method", "Together", "choose_method"]
