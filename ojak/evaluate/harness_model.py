"""ojak's engine behind the interface that lm-evaluation-harness asks its models through.

What is tokenized, cut off and counted follows lm-eval's own interface to transformers (`lm_eval.models.huggingface`,
0.4.13), so that figures are the same: a context and its continuation are tokenized together and parted after the
context's tokens; what is too long loses its beginning; a text as a whole is read in windows that do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ojak.chat import encode_prompt
from ojak.engines.base import Scored
from ojak.engines.native import NativeEngine, row_seed
from ojak.errors import InputRefused
from ojak.model.request import GREEDY, Request, Sampling

MOST_TOKENS = 256  # of an answer, where the task says nothing; lm-eval's own
MOST_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # what was asked, the ids read, the ids scored


class HarnessModel(TemplateLM):
    """A model of ojak's, as lm-eval sees it. Texts go in as they are: no chat template is added."""

    def __init__(self, engine: NativeEngine) -> None:
        super().__init__()
        self.engine = engine
        self.encoder = engine.model.tokenizer
        if self.encoder.eos_id is None and self.encoder.bos_id is None:
            raise InputRefused(
                f"{engine.model.name} cannot be asked by lm-eval",
                why="it has neither a first nor a last token, before which a text could begin",
            )

    @property
    def eot_token_id(self) -> int:
        found = self.encoder.eos_id if self.encoder.eos_id is not None else self.encoder.bos_id
        assert found is not None
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        return self.encoder.bos_id if self.encoder.bos_id is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.engine.model.config.max_position_embeddings

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids; with the BOS of a model that was trained with one, unless `add_special_tokens` is False."""
        plain = self.encoder.encode(string)
        return plain if add_special_tokens is False else encode_prompt(self.encoder, string)

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        texts = (self._cut(before, after) for _, before, after in requests)
        return [
            (sum(value for value, _ in tokens), all(best for _, best in tokens))
            for tokens in self.engine.score_greedy(texts)
        ]

    def _cut(self, before: Sequence[int], after: Sequence[int]) -> Scored:
        """Without the beginning that the model cannot read; the last token is looked up, not read."""
        room = self.max_length + 1 - len(after)
        return Scored(tuple(before[-room:] if room > 0 else ()), tuple(after))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text."""
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
            context_len=1,
        )  # fmt: skip
        pairs: list[Pair] = [(None, *make_disjoint_window(window)) for window in windows]
        return sum(value for value, _ in self._loglikelihood_tokens(pairs))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the task's stops."""
        asked = [self._request(number, *request.args) for number, request in enumerate(requests)]
        longest = max((len(each.prompt) + each.max_tokens for each in asked), default=1)
        found = {
            done.request.tag: _until(done.text, done.request.stop_strings)
            for done in self.engine.generate(iter(asked), longest=longest)
        }
        return [found[number] for number in range(len(asked))]

    def _request(self, number: int, context: str, options: dict[str, Any]) -> Request:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(next((options[name] for name in MOST_NAMES if options.get(name)), MOST_TOKENS))
        room = self.max_length - most
        if room < 1:
            raise InputRefused(
                f"the task asks for answers of {most} tokens",
                why=f"{self.engine.model.name} reads and writes {self.max_length} tokens in all",
                fix="lower max_gen_toks in the task's generation_kwargs",
            )
        return Request(
            prompt=tuple(self.tok_encode(context)[-room:]),
            max_tokens=most,
            sampling=_sampling(options),
            seed=row_seed("harness", number),
            stop_ids=self.engine.stop_ids,
            stop_strings=tuple(stop for stop in stops if stop),
            tag=number,
        )


def _sampling(options: dict[str, Any]) -> Sampling:
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0) or not temperature:
        return GREEDY
    return Sampling(
        temperature=temperature, top_p=float(options.get("top_p", 1.0)), top_k=int(options.get("top_k", 0))
    )


def _until(text: str, stops: Iterable[str]) -> str:
    """The text before the first stop in it."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
