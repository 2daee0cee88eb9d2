"""Rewards of answers, and the reward difference: by how much an answer is better than a base model's.

The difference is that of the Magpie paper (Xu et al. 2024, arXiv 2406.08464): the reward of the row's answer minus that
of a base model's answer to the same instruction, by one reward model. Above 0, alignment has added something.
"""

from __future__ import annotations

from collections.abc import Sequence

from ojak.curate.base import BaseAnswers
from ojak.curate.scores import BASE, DIFFERENCE, REWARD, REWARD_MODEL
from ojak.curate.view import View
from ojak.judge.reward import RewardModel

DIGITS = 6


class Rewards:
    """`reward`: the reward model's output for the first question and its answer."""

    gives = (REWARD,)

    def __init__(self, model: RewardModel) -> None:
        self._model = model
        self.identity = model.identity

    def annotate(self, views: Sequence[View]) -> None:
        for view in views:
            reward = self._model.reward(view.instruction, view.response)
            if reward is None:
                continue
            if view.conversation.meta.get(REWARD_MODEL) != self.identity:
                view.scores.pop("reward_difference", None)  # of another model, which is named no more
            view.put(REWARD, round(reward, DIGITS))
            view.makers[REWARD_MODEL] = self.identity


class Differences:
    """`reward_difference` and `base_reward` of rows that have a reward. The base model's answer stays in the row's
    `meta`."""

    gives = (DIFFERENCE,)

    def __init__(self, model: RewardModel, base: BaseAnswers) -> None:
        self._model, self._base = model, base
        self.identity = {"reward": model.identity, "base": {**base.identity, **base.provenance}}

    def annotate(self, views: Sequence[View]) -> None:
        for view in views:
            view.scores.pop("reward_difference", None)
        rewarded = [view for view in views if view.makers.get(REWARD_MODEL) == self._model.identity]
        answers = self._base.answers([view.instruction for view in rewarded])
        for view, answer in zip(rewarded, answers, strict=True):
            reward = None if answer is None else self._model.reward(view.instruction, answer.text)
            if answer is None or reward is None:
                continue
            view.scores["base_reward"] = round(reward, DIGITS)
            view.put(DIFFERENCE, round(view.scores["reward"] - reward, DIGITS))
            view.makers[BASE] = {
                **self._base.identity,
                "response": answer.text,
                "finish_reason": answer.finish_reason,
            }
