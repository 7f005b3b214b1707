"""The distillation of benches/encoder.rs in PyTorch: time per optimizer step and peak memory, as one JSON object on stdout.

Teacher BERT-mini (4 blocks of 256), student DistilBERT of `--layers` blocks of the same width, batch 32, 64 tokens a row of which
`--shortest` to 64 are no padding, KL divergence at temperature 2, AdamW, loss read each step. `--attention eager|sdpa`.
"""

import argparse
import json
import resource
import time

import torch
import transformers
from torch.nn import functional as F

VOCAB = 30522


def batches(shortest):
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(4, VOCAB, (512, 64), generator=generator)
    lengths = torch.randint(shortest, 65, (512, 1), generator=generator)
    mask = (torch.arange(64)[None] < lengths).long()
    while True:
        order = torch.randperm(512)
        for i in range(0, 512, 32):
            rows = order[i : i + 32]
            width = int(lengths[rows].max())
            yield ids[rows, :width], mask[rows, :width]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="sdpa")
    parser.add_argument("--adamw", choices=["default", "fused"], default="fused")
    parser.add_argument("--shortest", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(7)
    sizes = dict(vocab_size=VOCAB, num_labels=4)
    teacher = transformers.BertForSequenceClassification._from_config(
        transformers.BertConfig(
            hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, **sizes
        ),
        attn_implementation=args.attention,
    ).eval()
    student = transformers.DistilBertForSequenceClassification._from_config(
        transformers.DistilBertConfig(
            dim=256, n_layers=args.layers, n_heads=4, hidden_dim=1024, dropout=args.dropout, attention_dropout=args.dropout,
            seq_classif_dropout=args.dropout, **sizes,
        ),
        attn_implementation=args.attention,
    ).train()
    decayed = [p for p in student.parameters() if p.dim() > 1]
    others = [p for p in student.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-4, fused=args.adamw == "fused"
    )
    t, log = 2.0, []
    for step, (ids, mask) in enumerate(batches(args.shortest)):
        if step == args.warmup:
            begin = time.perf_counter()
        if step == args.warmup + args.steps:
            break
        optimizer.zero_grad()
        with torch.no_grad():
            targets = teacher(input_ids=ids, attention_mask=mask).logits
        logits = student(input_ids=ids, attention_mask=mask).logits
        loss = t * t * F.kl_div(
            F.log_softmax(logits / t, dim=1), F.log_softmax(targets / t, dim=1), reduction="batchmean", log_target=True
        )
        loss.backward()
        optimizer.step()
        log.append(loss.item())
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "ms_per_step": 1e3 * seconds / args.steps,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "last_loss": log[-1],
            }
        )
    )


main()
