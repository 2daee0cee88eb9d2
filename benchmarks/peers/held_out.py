"""The loss of trained models on rows that none was trained on, by transformers: `held_out.py ROWS FOLDER...`.

One JSON line: folder -> mean loss of an answer's token, in float32. One measure for every contender's model.
"""

import json
import pathlib
import sys

import common
import sft


def loss(folder: str, rows: sft.Rows) -> float:
    """The mean over all tokens that answers consist of, their end included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(common.hf_dir())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            made = sft.encoded(tokenizer, row, 1024)
            ids, labels = torch.tensor([made["input_ids"]]), torch.tensor([made["labels"]])
            learnt = int((labels[:, 1:] != sft.IGNORED).sum())
            total, count = total + float(model(ids, labels=labels).loss) * learnt, count + learnt
    return total / count


if __name__ == "__main__":
    held_out = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps({folder: round(loss(folder, held_out), 4) for folder in sys.argv[2:]}))
