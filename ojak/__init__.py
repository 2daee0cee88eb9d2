"""ojak: from a model that follows instructions, or from raw text, to a small model of your own that follows
them.

The public names are loaded when they are first used: `import ojak` alone is quick and loads neither torch nor
pyarrow.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ojak._api import chat_prefix, train_model
    from ojak.artifact import Artifact, publish, read, verify
    from ojak.augment.config import AugmentConfig
    from ojak.augment.lift import LiftConfig, lift_data
    from ojak.augment.run import augment_data
    from ojak.chat import ChatPrefix
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus
    from ojak.curate.config import CurateConfig
    from ojak.curate.explain import explain_row
    from ojak.curate.pairs import PairsConfig, make_pairs
    from ojak.curate.run import curate_data
    from ojak.curate.split import SplitConfig, split
    from ojak.engines.native import generate
    from ojak.errors import OjakError
    from ojak.evaluate.config import EvaluateConfig
    from ojak.evaluate.run import evaluate_model
    from ojak.evaluate.window import sweep_windows
    from ojak.evaluate.window_config import WindowConfig
    from ojak.export.model import export_model
    from ojak.export.push import plan_push, push
    from ojak.formats import export, load
    from ojak.merge.config import MergeConfig
    from ojak.merge.run import MergeResult, merge_models
    from ojak.model.load import Model, load_model
    from ojak.model.request import Completion
    from ojak.model.shrink import shrink_model
    from ojak.records import Conversation, Document, Preference, Rejected
    from ojak.report import write_report
    from ojak.report.compare import write_comparison
    from ojak.rules.contamination import Contamination
    from ojak.rules.privacy import find_personal_data
    from ojak.rules.secrets import find_secrets
    from ojak.similarity.embedding import Embedder
    from ojak.similarity.minhash import near_duplicates
    from ojak.synthesize.config import MagpieConfig, PersonasConfig
    from ojak.synthesize.personas import synthesize_personas
    from ojak.synthesize.run import synthesize_magpie
    from ojak.train.config import TrainConfig
    from ojak.train.distil_config import DistilCacheConfig, DistilConfig
    from ojak.train.distil_make import cache_teacher
    from ojak.train.mix import make_mix
    from ojak.train.mix_config import MixConfig
    from ojak.train.prefer_config import PreferConfig
    from ojak.train.run import TrainResult
    from ojak.train.tokenizer import train_tokenizer

__all__ = [
    "Artifact",
    "AugmentConfig",
    "ChatPrefix",
    "Completion",
    "Contamination",
    "Conversation",
    "CorpusConfig",
    "CurateConfig",
    "DistilCacheConfig",
    "DistilConfig",
    "Document",
    "Embedder",
    "EvaluateConfig",
    "LiftConfig",
    "MagpieConfig",
    "MergeConfig",
    "MergeResult",
    "MixConfig",
    "Model",
    "OjakError",
    "PairsConfig",
    "PersonasConfig",
    "PreferConfig",
    "Preference",
    "Rejected",
    "SplitConfig",
    "TrainConfig",
    "TrainResult",
    "WindowConfig",
    "__version__",
    "augment_data",
    "cache_teacher",
    "chat_prefix",
    "curate_data",
    "evaluate_model",
    "explain_row",
    "export",
    "export_model",
    "find_personal_data",
    "find_secrets",
    "generate",
    "lift_data",
    "load",
    "load_model",
    "make_corpus",
    "make_mix",
    "make_pairs",
    "merge_models",
    "near_duplicates",
    "plan_push",
    "publish",
    "push",
    "read",
    "shrink_model",
    "split",
    "sweep_windows",
    "synthesize_magpie",
    "synthesize_personas",
    "train_model",
    "train_tokenizer",
    "verify",
    "write_comparison",
    "write_report",
]

__version__: str

# Where each public name lives; the same list as above, for the running program.
_NAMES = {
    "ojak._api": ("chat_prefix", "train_model"),
    "ojak.artifact": ("Artifact", "publish", "read", "verify"),
    "ojak.augment.config": ("AugmentConfig",),
    "ojak.augment.lift": ("LiftConfig", "lift_data"),
    "ojak.augment.run": ("augment_data",),
    "ojak.chat": ("ChatPrefix",),
    "ojak.corpus.config": ("CorpusConfig",),
    "ojak.corpus.run": ("make_corpus",),
    "ojak.curate.pairs": ("PairsConfig", "make_pairs"),
    "ojak.curate.config": ("CurateConfig",),
    "ojak.curate.explain": ("explain_row",),
    "ojak.curate.run": ("curate_data",),
    "ojak.curate.split": ("SplitConfig", "split"),
    "ojak.engines.native": ("generate",),
    "ojak.errors": ("OjakError",),
    "ojak.export.push": ("plan_push", "push"),
    "ojak.evaluate.config": ("EvaluateConfig",),
    "ojak.evaluate.run": ("evaluate_model",),
    "ojak.evaluate.window": ("sweep_windows",),
    "ojak.evaluate.window_config": ("WindowConfig",),
    "ojak.export.model": ("export_model",),
    "ojak.formats": ("export", "load"),
    "ojak.merge.config": ("MergeConfig",),
    "ojak.merge.run": ("MergeResult", "merge_models"),
    "ojak.model.load": ("Model", "load_model"),
    "ojak.model.request": ("Completion",),
    "ojak.model.shrink": ("shrink_model",),
    "ojak.records": ("Conversation", "Document", "Preference", "Rejected"),
    "ojak.report": ("write_report",),
    "ojak.report.compare": ("write_comparison",),
    "ojak.rules.contamination": ("Contamination",),
    "ojak.rules.privacy": ("find_personal_data",),
    "ojak.rules.secrets": ("find_secrets",),
    "ojak.similarity.embedding": ("Embedder",),
    "ojak.similarity.minhash": ("near_duplicates",),
    "ojak.synthesize.config": ("MagpieConfig", "PersonasConfig"),
    "ojak.synthesize.personas": ("synthesize_personas",),
    "ojak.synthesize.run": ("synthesize_magpie",),
    "ojak.train.config": ("TrainConfig",),
    "ojak.train.distil_config": ("DistilCacheConfig", "DistilConfig"),
    "ojak.train.distil_make": ("cache_teacher",),
    "ojak.train.mix": ("make_mix",),
    "ojak.train.mix_config": ("MixConfig",),
    "ojak.train.prefer_config": ("PreferConfig",),
    "ojak.train.run": ("TrainResult",),
    "ojak.train.tokenizer": ("train_tokenizer",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


class _Names(ModuleType):
    """This module: a folder in it with the name of a public function, once imported, does not take its place.

    The import system sets every submodule as an attribute here, `ojak/export/` among them.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Names


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ojak._code import version

        value: Any = version()
    elif name in _MODULE_OF:
        from importlib import import_module

        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'ojak' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
