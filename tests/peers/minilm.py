"""The forward pass of all-MiniLM-L6-v2 through the program, beside Python transformers.

    bash pipelines/fetch.sh minilm && python tests/peers/minilm.py [LIMBECK]

Captures token states and mean-pooled features of five sentences, fine-tunes two steps, captures the logits and exports;
fails if a state or feature differs from transformers by more than 1e-5, if the first features are not those published in
2021 (to 4 digits), or if `export.py` finds fault with the export. Needs `requirements.txt` beside this file.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/minilm"
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "The stock market fell sharply today, and nobody on the trading floor could say why it had.",
    "Shares dropped on Wall Street.",
]
# Of the first sentence, mean-pooled and normalised.
KNOWN = [0.0332, 0.0044, -0.0063, 0.0484, -0.1387]
PIPELINE = f"""
version: 1
name: minilm
tokenizer: {{path: "{MODEL}", max_length: 64}}
datasets:
  rows: {{format: jsonl, path: texts.jsonl, text: text, label: label}}
data: {{train: rows, valid: rows}}
batch: {{size: 4}}
optimizer: {{kind: adamw, lr: 1e-4}}
stages:
  - name: encoder
    kind: capture
    teacher: {{uses: limbeck.hf, with: {{path: "{MODEL}"}}}}
    data: rows
    batch: {{size: 4}}
    outputs: [features, hidden.6]
  - name: student
    kind: train
    student: {{uses: limbeck.bert, with: {{classes: 2, init: {{path: "{MODEL}"}}}}}}
    loss: [{{uses: limbeck.ce}}]
    steps: 2
  - {{name: logits, kind: capture, teacher: {{from: student}}, data: rows, batch: {{size: 4}}, outputs: [logits]}}
  - {{name: export, kind: export, model: {{from: student}}, format: hf}}
"""


def captured(cache):
    manifest = json.loads((cache / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    with safe_open(cache / shard["file"], "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def main(program):
    folder = pathlib.Path(tempfile.mkdtemp())
    rows = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "p.yaml").write_text(PIPELINE)
    subprocess.run([program, "-q", "run", folder / "p.yaml", "--runs", folder / "runs"], check=True)
    (stages,) = folder.glob("runs/*/*/stages")
    found = captured(stages / "01-encoder/out")

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModel.from_pretrained(MODEL).eval()
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()
    features = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    # A cache keeps the tokens that are there, row after row, in the order of its own batches.
    order = found["rows"].tolist()
    tokens = torch.cat([states[i][mask[i]] for i in order])
    worst = {
        "features": (found["features"] - features[order]).abs().max().item(),
        "hidden.6": (found["hidden.6"].reshape(-1, tokens.shape[-1]) - tokens).abs().max().item(),
    }
    first = found["features"][order.index(0)]
    known = (first[: len(KNOWN)] / first.norm() - torch.tensor(KNOWN)).abs().max().item()
    print("largest differences:", worst, f"published components: {known:.1e}")
    if max(worst.values()) > 1e-5 or known > 6e-5:
        raise SystemExit("the forward pass differs")
    arguments = [stages / "04-export/out", stages / "03-logits/out", folder / "texts.jsonl", "64"]
    subprocess.run([sys.executable, ROOT / "tests/peers/export.py", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/limbeck")
