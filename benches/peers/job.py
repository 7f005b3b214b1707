"""The job of benches/pipelines/job.yaml in PyTorch and transformers: fine-tune, distil, evaluate both, export to `--out`.

Prints the two accuracies as JSON. Rows are tokenized once and padded to the longest of their batch.
"""

import argparse
import json
import os

import torch
import transformers
from torch.nn import functional as F

CACHE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".cache")
MINILM = os.path.join(CACHE, "minilm")
CLASSES = 8


def rows(tokenizer, name, limit):
    with open(os.path.join(CACHE, "r8", name)) as file:
        read = [json.loads(line) for line, _ in zip(file, range(limit))]
    ids = tokenizer([row["text"] for row in read], truncation=True, max_length=32)["input_ids"]
    return list(zip(ids, (row["label"] for row in read)))


def batch(tokenizer, chosen):
    padded = tokenizer.pad({"input_ids": [ids for ids, _ in chosen]}, return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"], torch.tensor([label for _, label in chosen])


def train(model, tokenizer, data, epochs, loss):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, fused=True)
    steps = epochs * len(data) // 16
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data)).tolist()
        for i in range(0, len(data), 16):
            ids, mask, labels = batch(tokenizer, [data[j] for j in order[i : i + 16]])
            loss(model(input_ids=ids, attention_mask=mask).logits, ids, mask, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def accuracy(model, tokenizer, data):
    right = 0
    for i in range(0, len(data), 16):
        ids, mask, labels = batch(tokenizer, data[i : i + 16])
        right += (model(input_ids=ids, attention_mask=mask).logits.argmax(1) == labels).sum().item()
    return right / len(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    torch.manual_seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    data, test = rows(tokenizer, "train.jsonl", 480), rows(tokenizer, "test.jsonl", 1000)
    teacher = transformers.BertForSequenceClassification.from_pretrained(MINILM, num_labels=CLASSES)
    train(teacher, tokenizer, data, 2, lambda logits, ids, mask, labels: F.cross_entropy(logits, labels))
    scores = {"teacher": accuracy(teacher, tokenizer, test)}
    config = transformers.DistilBertConfig(
        vocab_size=teacher.config.vocab_size, n_layers=2, n_heads=4, dim=384, hidden_dim=4 * 384, num_labels=CLASSES
    )
    student = transformers.DistilBertForSequenceClassification(config)

    def soft(logits, ids, mask, labels):
        with torch.no_grad():
            targets = F.softmax(teacher(input_ids=ids, attention_mask=mask).logits / 2.0, dim=1)
        return -(targets * F.log_softmax(logits / 2.0, dim=1)).sum(1).mean()

    train(student, tokenizer, data, 4, soft)
    scores["distilled"] = accuracy(student, tokenizer, test)
    student.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "accuracy": scores}))


main()
