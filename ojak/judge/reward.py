"""A reward model: any Hugging Face sequence-classification head with one output, through `transformers`.

Weights are read from safetensors alone, no code of the model's folder is run, and its chat template is rendered in
ojak's sandbox. One conversation at a time, as the Magpie paper does, so that a reward depends on nothing else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ojak.errors import InputRefused, UsageError
from ojak.judge.prompts import neutral
from ojak.model.hub import HUB_NAME

MOST_TOKENS = 4096
ENGINE = "reward"  # what the identity of a reward model says instead of an engine's name


class RewardModel:
    """Gives the head's raw output for a question and its answer.

    With a chat template the two are rendered as a conversation; without one they go in as a pair of texts. Texts of
    special tokens are broken up in both. `identity` says which model it is, as an engine's does.
    """

    def __init__(self, name: str) -> None:
        """`name`: a folder, or a name on the hub. Raises UsageError without transformers, or for what can be neither;
        InputRefused for a model that is no such head."""
        if not (Path(name).is_dir() or HUB_NAME.fullmatch(name)):
            raise UsageError(
                f"there is no reward model {name[:200]!r}",
                why="it is neither a folder nor a name on the hub",
                fix="give the folder of a sequence-classification model, or its name on the hub (org/name)",
            )
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
            from transformers.utils.import_utils import is_torch_cuda_available
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
        self._device = "cuda" if is_torch_cuda_available() else "cpu"
        self._model.eval().requires_grad_(False).to(self._device)
        self._special = tuple(map(str, self._tokenizer.all_special_tokens))
        self.identity: dict[str, Any] = {
            "engine": ENGINE,
            "model": Path(name).name,
            "model_sha256": _sha256(name, self._model),
        }

    def reward(self, instruction: str, response: str) -> float | None:
        """The reward of an answer; None where the model's output is no finite number."""
        texts = (neutral(text, self._special) for text in (instruction, response))
        found = float(self._model(**self._encoded(*texts)).logits[0, 0])
        return found if math.isfinite(found) else None

    def _encoded(self, instruction: str, response: str) -> Any:
        limits = {"truncation": True, "max_length": self._most_tokens(), "return_tensors": "pt"}
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            return self._tokenizer(instruction, response, **limits).to(self._device)
        text = self._rendered(template, instruction, response)
        return self._tokenizer(text, add_special_tokens=False, **limits).to(self._device)

    def _rendered(self, template: str, instruction: str, response: str) -> str:
        from ojak.chat import ChatTemplate

        turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
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
