"""A process of its own that runs llama.cpp: continues token ids greedily, with the likeliest tokens at each place.

    python llama_cpp_greedy.py MODEL.gguf WORK_FOLDER < prompts.json > answers.json

The model's values are first written as an F32 GGUF, since on quantised files llama.cpp rounds activations, too.
prompts.json: {"prompts": [[id, ...], ...], "tokens": N}. answers.json: for each prompt [{"id", "top": [[id, logprob],
...]}, ...].
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_f32(source: Path, target: Path) -> None:
    """The same model with every tensor dequantised, by the gguf package alone."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, str(architecture), use_temp_file=False)
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in own:
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.float32), int(np.prod(shape)) * 4, gguf.GGMLQuantizationType.F32
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.close()


def serve(path: Path, context: int) -> Any:
    import xllamacpp.xllamacpp as xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = context, 1, False
    # One thread: two would spin at each barrier while other tests hold the second core.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(0)  # F32; half precision is its default
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


def complete(server: Any, ids: list[int], tokens: int) -> list[dict[str, Any]]:
    asked = {
        "prompt": ids,
        "n_predict": tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "n_probs": 3,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(asked).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)["completion_probabilities"]
    return [{"id": e["id"], "top": [[t["id"], t["logprob"]] for t in e["top_logprobs"]]} for e in found]


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    asked = json.load(sys.stdin)
    target = folder / "f32.gguf"
    write_f32(source, target)
    longest = max(len(ids) for ids in asked["prompts"]) + asked["tokens"]
    server = serve(target, -(-longest // 256) * 256)
    answers = [complete(server, ids, asked["tokens"]) for ids in asked["prompts"]]
    target.unlink()
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
