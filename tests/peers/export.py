"""Loads an exported folder with Python transformers and compares its logits with those that a capture stage wrote.

    export.py FOLDER CACHE TEXTS MAX_LENGTH [PAIR]

FOLDER: an export of a classifier. CACHE: a capture of the same student's logits on the rows of TEXTS (JSON Lines with
`text`, and a key PAIR if given). Fails on any warning of the loader, on a missing or surplus tensor, and on a logit that
differs by more than 1e-5. Needs torch, transformers and safetensors as pinned in requirements.txt.
"""

import json
import logging
import sys

import torch
import transformers
from safetensors import safe_open


class Refuse(logging.Handler):
    """Turns a warning of the loader into a failure."""

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            raise SystemExit(f"transformers says: {record.getMessage()}")


def main(folder, cache, texts, max_length, pair=None):
    transformers.logging.get_logger().addHandler(Refuse())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    wrong = {key: list(names) for key, names in info.items() if names}
    if wrong:
        raise SystemExit(f"not loaded as written: {wrong}")
    model.eval()
    with open(texts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with open(f"{cache}/manifest.json", encoding="utf-8") as file:
        shards = json.load(file)["shards"]
    worst, compared = 0.0, 0
    for shard in shards:
        with safe_open(f"{cache}/{shard['file']}", "pt") as file:
            places, ours = file.get_tensor("rows").tolist(), file.get_tensor("logits")
        for place, expected in zip(places, ours):
            row = rows[place]
            second = row[pair] if pair else None
            given = tokenizer(row["text"], second, truncation=True, max_length=int(max_length), padding=False, return_tensors="pt")
            given = {key: given[key] for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                found = model(**given).logits[0]
            worst = max(worst, (found - expected).abs().max().item())
            compared += 1
    print(f"{compared} rows, {type(model).__name__}: largest difference of a logit {worst:.3g}")
    if worst > 1e-5 or compared == 0:
        raise SystemExit("more than 1e-5")


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
