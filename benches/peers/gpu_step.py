"""The distillation step of benches/gpu_models.py in PyTorch, bf16 autocast on a GPU: one JSON object on stdout.

BERT teacher in evaluation, DistilBERT student in training, KL divergence at temperature 2, fused AdamW, loss read each step.
"""

import argparse
import contextlib
import json
import time

import torch
import transformers
from torch.nn import functional as F

parser = argparse.ArgumentParser()
for name in ["batch", "length", "dim", "teacher", "student", "heads", "vocab", "steps", "warmup"]:
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--mode", choices=["eager", "compile"], required=True)
parser.add_argument("--device", required=True)
args = parser.parse_args()
on_gpu = args.device != "cpu"
torch.manual_seed(7)
sizes = {"vocab_size": args.vocab, "num_labels": 2, "max_position_embeddings": args.length}
teacher = transformers.BertForSequenceClassification._from_config(
    transformers.BertConfig(
        hidden_size=args.dim, num_hidden_layers=args.teacher, num_attention_heads=args.heads, intermediate_size=4 * args.dim, **sizes
    ),
    attn_implementation="sdpa",
).eval()
student = transformers.DistilBertForSequenceClassification._from_config(
    transformers.DistilBertConfig(
        dim=args.dim, n_layers=args.student, n_heads=args.heads, hidden_dim=4 * args.dim, dropout=0.1, attention_dropout=0.1,
        seq_classif_dropout=0.1, **sizes,
    ),
    attn_implementation="sdpa",
).train()
teacher, student = teacher.to(args.device), student.to(args.device)
if args.mode == "compile":
    teacher, student = torch.compile(teacher), torch.compile(student)
decayed = [p for p in student.parameters() if p.dim() > 1]
others = [p for p in student.parameters() if p.dim() <= 1]
optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-4, fused=True)
generator = torch.Generator().manual_seed(7)
ids = torch.randint(1, args.vocab, (16 * args.batch, args.length), generator=generator)
mask = torch.ones_like(ids)
if on_gpu:
    ids, mask = ids.pin_memory(), mask.pin_memory()
autocast = torch.autocast(args.device, torch.bfloat16) if on_gpu else contextlib.nullcontext()
times, t = [time.perf_counter()], 2.0
for step in range(args.warmup + args.steps):
    at = step % 16 * args.batch
    rows = {
        "input_ids": ids[at : at + args.batch].to(args.device, non_blocking=True),
        "attention_mask": mask[at : at + args.batch].to(args.device, non_blocking=True),
    }
    optimizer.zero_grad()
    with autocast:
        with torch.no_grad():
            targets = teacher(**rows).logits
        logits = student(**rows).logits
    log = [F.log_softmax(x.float() / t, dim=1) for x in (logits, targets)]
    loss = t * t * F.kl_div(log[0], log[1], reduction="batchmean", log_target=True)
    loss.backward()
    optimizer.step()
    loss.item()
    times.append(time.perf_counter())
print(
    json.dumps(
        {
            "shown": True, "torch": torch.__version__, "ms_per_step": 1e3 * (times[-1] - times[args.warmup]) / args.steps,
            "samples": args.steps,
            "peak_mib": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,
        }
    )
)
