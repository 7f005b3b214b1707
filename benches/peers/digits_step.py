"""The trainings of benches/pipelines/*.yaml in PyTorch: time per optimizer step, as one JSON object on stdout.

Same data, sizes, batch, optimizer settings and order of work as Limbeck's step: gather a batch, forward, loss, backward,
AdamW, and the loss value read back each step (Limbeck logs it). The two idioms that matter are both here:
`--loader tensor` indexes a tensor by a permutation, `--loader dataloader` is the usual DataLoader.
"""

import argparse
import gzip
import json
import pathlib
import time

started = time.perf_counter()
import numpy
import torch
from torch import nn
from torch.nn import functional as F

imported = time.perf_counter() - started
DATA = pathlib.Path(__file__).resolve().parents[2] / "pipelines/data/digits.csv.gz"
HIDDEN = {"student": [32], "teacher": [256, 256], "distill": [32]}


def digits():
    with gzip.open(DATA, "rt") as file:
        table = numpy.loadtxt(file, delimiter=",", dtype=numpy.float32)[:1437]
    return torch.from_numpy(table[:, :64] * 0.0625), torch.from_numpy(table[:, 64].astype(numpy.int64))


def mlp(hidden):
    sizes = [64, *hidden]
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def batches(x, y, loader):
    if loader == "dataloader":
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
        while True:
            yield from data
    while True:
        order = torch.randperm(len(x))
        for i in range(0, len(x), 32):
            rows = order[i : i + 32]
            yield x[rows], y[rows]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=HIDDEN, default="student")
    parser.add_argument("--loader", choices=["tensor", "dataloader"], default="tensor")
    parser.add_argument("--adamw", choices=["default", "fused"], default="default")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(7)
    x, y = digits()
    model = mlp(HIDDEN[args.case])
    teacher = mlp([256, 256]).eval() if args.case == "distill" else None
    fused = {"fused": True} if args.adamw == "fused" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, **fused)
    t, log = 8.0, []
    first_step = None
    for step, (inputs, labels) in enumerate(batches(x, y, args.loader)):
        if step == args.warmup:
            begin = time.perf_counter()
        if step == args.warmup + args.steps:
            break
        optimizer.zero_grad()
        logits = model(inputs)
        if teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad():
                targets = teacher(inputs)
            loss = t * t * F.kl_div(
                F.log_softmax(logits / t, dim=1), F.log_softmax(targets / t, dim=1), reduction="batchmean", log_target=True
            )
        loss.backward()
        optimizer.step()
        log.append(loss.item())
        if first_step is None:
            first_step = time.perf_counter() - started
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "case": args.case,
                "loader": args.loader,
                "adamw": args.adamw,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "steps": args.steps,
                "us_per_step": 1e6 * seconds / args.steps,
                "import_s": imported,
                "first_step_s": first_step,
                "last_loss": log[-1],
            }
        )
    )


main()
