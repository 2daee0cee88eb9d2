"""Reward models of a few thousand parameters, made with transformers: one of random weights, one whose rewards are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("<unk>", "<pad>", "<s>", "see", "the", "cat", "user", "assistant", "sat", ".", "dog")
TEMPLATE = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"


def random_head(folder: Path, labels: int = 1) -> Path:
    """A head on a Llama of random weights, with a chat template."""
    _tokenizer(TEMPLATE).save_pretrained(folder)
    _model(labels).save_pretrained(folder)
    return folder


def last_word_head(folder: Path, rewards: dict[str, float]) -> Path:
    """A head that looks at a text's last word alone: its reward is that in `rewards`, 0 for any other word."""
    import torch

    model = _model(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        # One direction for each word that counts and one for the others; the norm makes each as long as the root of 8.
        embeddings = model.model.embed_tokens.weight
        embeddings[:, 0] = 1.0
        for place, (word, reward) in enumerate(rewards.items(), 1):
            embeddings[WORDS.index(word)] = torch.nn.functional.one_hot(torch.tensor(place), 8)
            model.score.weight[0, place] = reward / 8**0.5
    _tokenizer(None).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _tokenizer(template: str | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>"
    )
    fast.chat_template = template
    return fast


def _model(labels: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=1,
    )  # fmt: skip
    config.num_labels = labels
    return LlamaForSequenceClassification(config)
