"""Writes the shipped Q4_1 model in another format: `convert.py hf|litgpt|f32|f16|bf16|q8_0 TARGET`."""

import pathlib
import sys

import common


def convert_gguf(kind: str, target: pathlib.Path) -> None:
    """A GGUF with every matrix stored as `kind`; norms stay float32, metadata stay but for the file type."""
    import gguf

    reader = gguf.GGUFReader(common.shipped_gguf())
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(common.FILE_TYPES[kind])
    quant = getattr(gguf.GGMLQuantizationType, kind.upper())
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert_hf(target: pathlib.Path) -> None:
    """A Hugging Face folder with bf16 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = common.shipped_gguf()
    folder, name = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)


def convert_litgpt(target: pathlib.Path) -> None:
    """LitGPT's checkpoint, from the Hugging Face folder."""
    import shutil

    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    shutil.copytree(common.hf_dir(), target, dirs_exist_ok=True)
    convert_hf_checkpoint(target, model_name="SmolLM2-135M-Instruct")
    (target / "model.safetensors").unlink()


def main(kind: str, target: pathlib.Path) -> None:
    part = target.with_name(
        target.name + ".part"
    )  # renamed when whole: a conversion cut short leaves no target
    if kind == "hf":
        convert_hf(part)
    elif kind == "litgpt":
        convert_litgpt(part)
    else:
        convert_gguf(kind, part)
    part.rename(target)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
