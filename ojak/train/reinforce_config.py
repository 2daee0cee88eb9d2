"""The settings of the `reinforce` objective."""

from __future__ import annotations

from pydantic import Field, field_validator

from ojak._settings import Settings, wrong_value

LR = 1e-6  # WARP (arXiv 2406.16768), appendix B; an adapter's is ten times that


class ReinforceConfig(Settings):
    """What is rewarded, and how answers are drawn.

    reward: `rules:SPEC`, see `ojak.train.rewards`. samples: answers to each prompt, each compared with the mean of the
    others. answer_tokens: the most of an answer. beta: weight of the log-ratio to the anchor, the moving mean of the
    weights since the first step, of which each step makes the share `mu` new (0: the anchor stays where the run began).
    The constants are those of WARP (arXiv 2406.16768, section 4).
    """

    reward: str = Field(min_length=1)
    samples: int = Field(default=4, ge=2, le=256)
    answer_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.9, gt=0, lt=100)
    beta: float = Field(default=0.1, ge=0, le=100)
    mu: float = Field(default=0.01, ge=0, le=1)

    @field_validator("reward")
    @classmethod
    def _reward_is_known(cls, text: str) -> str:
        from ojak.train.rewards import parse_reward

        with wrong_value():
            parse_reward(text)
        return text
