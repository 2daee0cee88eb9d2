"""A reward model: any Hugging Face sequence-classification head with one output, through `transformers`.

Weights are read from safetensors alone, no code of the model's folder is run, and its chat template is rendered in
ojak's sandbox. One conversation at a time, as the paper does, so that a row's reward depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ojak.curate.scores import REWARD
from ojak.curate.view import View
from ojak.errors import InputRefused, UsageError

MOST_TOKENS = 4096


class Rewards:
    """Gives `reward`: the head's raw output for the first question and its answer.

    With a chat template the two are rendered as a conversation; without one they go in as a pair of texts.
    """

    gives = ("scores.reward",)

    def __init__(self, name: str) -> None:
        """`name`: a folder, or a name on the hub. Raises UsageError without transformers, InputRefused for a model
        that is no such head."""
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise UsageError(
                "a reward model needs the package transformers",
                why=str(error),
                fix="pip install 'ojak[reward]'",
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputRefused(f"{name} cannot be used as a reward model", why=str(error)[:500]) from error
        if self._model.config.num_labels != 1:
            raise InputRefused(
                f"{name} is no reward model",
                why=f"its head has {self._model.config.num_labels} outputs; a reward is one number",
            )
        self._model.eval().requires_grad_(False)
        self.identity = {
            "engine": "reward",
            "model": Path(name).name,
            "model_sha256": _sha256(name, self._model),
        }

    def annotate(self, views: Sequence[View]) -> None:
        for view in views:
            reward = float(self._model(**self._encoded(view)).logits[0, 0])
            if math.isfinite(reward):
                view.scores["reward"] = round(reward, 6)
                view.makers[REWARD] = self.identity

    def _encoded(self, view: View) -> Any:
        limits = {"truncation": True, "max_length": self._most_tokens(), "return_tensors": "pt"}
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            return self._tokenizer(view.instruction, view.response, **limits)
        return self._tokenizer(self._rendered(template, view), add_special_tokens=False, **limits)

    def _rendered(self, template: str, view: View) -> str:
        from ojak.chat import ChatTemplate

        turns = [
            {"role": "user", "content": view.instruction},
            {"role": "assistant", "content": view.response},
        ]
        tokens = self._tokenizer.bos_token, self._tokenizer.eos_token
        return ChatTemplate(template, *tokens).render([turns])[0]

    def _most_tokens(self) -> int:
        most = getattr(self._model.config, "max_position_embeddings", MOST_TOKENS)
        return min(MOST_TOKENS, most if isinstance(most, int) else MOST_TOKENS)


def _sha256(name: str, model: Any) -> str:
    """What names the weights: the hash of a folder's, or the commit on the hub."""
    import hashlib

    from ojak._files import sha256_file

    files = sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    told = (
        "".join(sha256_file(path) for path in files)
        or f"{name}@{getattr(model.config, '_commit_hash', None)}"
    )
    return hashlib.sha256(told.encode()).hexdigest()
