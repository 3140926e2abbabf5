"""AWD-LSTM and its tokenizer, as Hugging Face knows models: ``register()`` puts them into the Auto classes.

``eunoe.models.load`` registers them by itself; a plain script calls ``register()`` once before ``AutoModel...from_pretrained``.
"""

from __future__ import annotations


def register() -> None:
    """Make transformers' Auto classes know ``awd_lstm``; a second call does nothing."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from eunoe.models.awd.classifier import AwdLstmForSequenceClassification
    from eunoe.models.awd.config import AwdLstmConfig
    from eunoe.models.awd.model import AwdLstmForCausalLM, AwdLstmModel
    from eunoe.models.awd.tokenizer import AwdLstmTokenizer

    AutoConfig.register(AwdLstmConfig.model_type, AwdLstmConfig, exist_ok=True)
    AutoModel.register(AwdLstmConfig, AwdLstmModel, exist_ok=True)
    AutoModelForCausalLM.register(AwdLstmConfig, AwdLstmForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(AwdLstmConfig, AwdLstmForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(AwdLstmConfig, slow_tokenizer_class=AwdLstmTokenizer, exist_ok=True)


__all__ = ["register"]
