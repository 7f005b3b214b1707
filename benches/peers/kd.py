#!/usr/bin/env python3
"""The losses on a GPU: right, and how fast beside PyTorch and Liger, in one process on one stream.

    kd.py --library target/release/liblimbeck_losses.so [--only check|bench] [--small] [--rehearse]

Writes benches/results/kd-GPU-DATE.json. --small keeps to small shapes, for compute-sanitizer. --rehearse runs on a
machine without a GPU, with the emulated driver as libcuda.so.1 in LD_LIBRARY_PATH: it shows that this script
works, and its results are not kept.
"""
import argparse
import datetime
import itertools
import json
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time

import torch

import kd_check
import kd_reference as reference
from limbeck_abi import Instance, Library

ROOT = pathlib.Path(__file__).parents[2]
TEMPERATURE = 2.0


def environment(library):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    smi = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        gpu = ""
    return {
        "gpu": gpu, "commit": commit, "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "library": str(library), "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def timed(calls, seconds, samples):
    """Milliseconds of each call, interleaved in random order after a warm-up; events on the current stream."""
    for call in calls.values():
        start = time.perf_counter()
        for _ in range(20):
            call()
            if time.perf_counter() - start > 0.2:
                break
    torch.cuda.synchronize()
    found, start = {name: [] for name in calls}, time.perf_counter()
    while time.perf_counter() - start < seconds * len(calls) or len(found[next(iter(calls))]) < samples:
        order = list(calls)
        random.shuffle(order)
        for name in order:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            calls[name]()
            after.record()
            after.synchronize()
            found[name].append(before.elapsed_time(after))
    return found


def summary(samples):
    ordered = sorted(samples)
    at = lambda share: ordered[int(share * (len(ordered) - 1))]
    return {"median_ms": statistics.median(ordered), "p20_ms": at(0.2), "p80_ms": at(0.8), "samples": len(ordered)}


def ceilings():
    """Measured copy bandwidth, GB/s of reads and writes."""
    x = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda").normal_()
    y = torch.empty_like(x)
    ms = summary(timed({"copy": lambda: y.copy_(x)}, 1.0, 50)["copy"])["median_ms"]
    return {"copy_gb_s": 2 * x.numel() * x.element_size() / ms / 1e6}


class Sets:
    """Copies of the inputs beyond three L2 caches, taken in turn."""

    def __init__(self, make, bytes_each):
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        count = max(2, -(-3 * cache // bytes_each))
        free = torch.cuda.mem_get_info()[0] // 2
        self.sets = [make(k) for k in range(max(1, min(count, free // bytes_each)))]
        self.next = 0

    def take(self):
        self.next = (self.next + 1) % len(self.sets)
        return self.sets[self.next]


def ours(library, loss, config, sets, grad_name, normalizer, stream):
    """A call a set: inputs and gradient stay where they are."""
    instance = Instance(library, f"limbeck.{loss}", config, stream)
    prepared = itertools.cycle(
        [instance.prepare(inputs, {grad_name: grad}, normalizer) for inputs, grad in sets.sets]
    )
    return lambda: next(prepared)()


def torch_step(sets, rows, compile_with=None):
    """Loss and gradient by autograd; `compile_with` are torch.compile's arguments, None is eager."""
    total = lambda s, t: rows(s.float(), t.float()).sum()
    if compile_with is not None:
        total = torch.compile(total, **compile_with)

    def call():
        inputs, _ = sets.take()
        leaf = inputs["student.logits"].detach().requires_grad_(True)
        return torch.autograd.grad(total(leaf, inputs["teacher.logits"]), leaf)[0]

    return call


def liger(loss, sets):
    """Liger's kernels take log-probabilities: what makes them from logits is part of the work."""
    from liger_kernel.ops.jsd import LigerJSDFunction
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction
    from liger_kernel.ops.tvd import LigerTVDLossFunction

    def call():
        inputs, _ = sets.take()
        leaf = inputs["student.logits"].detach().requires_grad_(True)
        x = torch.log_softmax(leaf.float() / TEMPERATURE, -1)
        y = torch.log_softmax(inputs["teacher.logits"].float() / TEMPERATURE, -1)
        if loss == "kl":
            value = LigerKLDivLossFunction.apply(x, y, "sum", True)
        elif loss == "gjsd":
            value = LigerJSDFunction.apply(x, y, None, 0.5)
        else:
            value = LigerTVDLossFunction.apply(x.exp(), y.exp(), None, "sum")
        return torch.autograd.grad(value, leaf)[0]

    return call


def gradient_error(loss, inputs, grad, normalizer):
    """Relative error on 64 rows against float64."""
    s, t = inputs["student.logits"][:64].double(), inputs["teacher.logits"][:64].double()
    rows = lambda leaf: reference.dense(loss, leaf, t, TEMPERATURE, reference.parameter(loss))
    _, exact = reference.value_and_grad(rows, s, normalizer)
    return ((grad[:64].double() - exact).norm() / exact.norm()).item()


def bench_dense(library, loss, rows, width, seconds, copy, stream):
    def make(seed):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        s = 3 * torch.randn(rows, width, device="cuda", generator=generator)
        t = s + torch.randn(rows, width, device="cuda", generator=generator)
        s, t = s.bfloat16(), t.bfloat16()
        return {"student.logits": s, "teacher.logits": t}, torch.full_like(s, float("nan"))

    sets = Sets(make, 6 * rows * width)
    config = dict(reference.PARAMETERS[loss])
    if loss != "logit-mse":
        config["temperature"] = TEMPERATURE
    rows_of = lambda s, t: reference.dense(loss, s, t, TEMPERATURE, reference.parameter(loss))
    floor = 6 * rows * width
    calls, records = {"limbeck": ours(library, loss, config, sets, "student.logits", 1.0, stream)}, []
    peers = {
        "torch eager": lambda: torch_step(sets, rows_of),
        "torch.compile": lambda: torch_step(sets, rows_of, {}),
        "torch.compile max-autotune": lambda: torch_step(sets, rows_of, {"mode": "max-autotune-no-cudagraphs"}),
    }
    if loss in ("kl", "gjsd", "tvd"):
        peers["liger"] = lambda: liger(loss, sets)
    for name, make_peer in peers.items():
        try:
            calls[name] = make_peer()
            calls[name]()
        except Exception as failure:  # a peer that fails is a result
            calls.pop(name, None)
            records.append({"implementation": name, "failed": f"{type(failure).__name__}: {failure}"[:300]})
    for name, samples in timed(calls, seconds, 50).items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls[name]()
        torch.cuda.synchronize()
        record = {"implementation": name, **summary(samples), "extra_bytes": torch.cuda.max_memory_allocated() - before}
        record["gb_s"] = floor / record["median_ms"] / 1e6
        record["of_copy"] = record["gb_s"] / copy
        if name == "limbeck":
            inputs, grad = sets.sets[0]
            record["gradient_error"] = gradient_error(loss, inputs, grad, 1.0)
        records.append(record)
    return [{"mode": "logits", "loss": loss, "rows": rows, "width": width, "floor_bytes": floor, **r} for r in records]


def bench_sparse(library, rows, width, kept, seconds, copy, stream):
    def make(seed):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        s = 3 * torch.randn(rows, width, device="cuda", generator=generator)
        y = torch.log_softmax((s + torch.randn(rows, width, device="cuda", generator=generator)) / TEMPERATURE, -1)
        values, indices = y.topk(kept, -1)
        inputs = {
            "student.logits": s.bfloat16(), "teacher.topk.indices": indices.int(), "teacher.topk.values": values.bfloat16()
        }
        return inputs, torch.full_like(inputs["student.logits"], float("nan"))

    sets = Sets(make, 4 * rows * width)
    floor = 4 * rows * width + 6 * kept * rows
    calls = {"limbeck": ours(library, "topk-tail", {"temperature": TEMPERATURE}, sets, "student.logits", 1.0, stream)}
    record = summary(timed(calls, seconds, 50)["limbeck"])
    record["gb_s"] = floor / record["median_ms"] / 1e6
    fixed = {"mode": "sparse", "loss": "topk-tail", "kept": kept, "rows": rows, "width": width, "floor_bytes": floor}
    return [{**fixed, "implementation": "limbeck", **record, "of_copy": record["gb_s"] / copy}]


def liger_fused(inputs):
    """Liger's chunked JSD on states and heads: gradients of both, as its autograd function gives them."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, temperature=TEMPERATURE)
    labels = torch.zeros(inputs["student.hidden"].shape[0], dtype=torch.int64, device="cuda")
    if "row_mask" in inputs:
        labels[inputs["row_mask"].to("cuda") == 0] = -100

    def call():
        leaves = [inputs[name].detach().requires_grad_(True) for name in ("student.hidden", "student.head")]
        value = loss(leaves[0], leaves[1], inputs["teacher.hidden"], inputs["teacher.head"], labels)
        return torch.autograd.grad(value, leaves)

    return call


def torch_fused(inputs, loss):
    """Whole logits in f32, by autograd."""
    def call():
        leaves = [inputs[name].detach().requires_grad_(True) for name in ("student.hidden", "student.head")]
        teacher = (inputs["teacher.hidden"] @ inputs["teacher.head"].T).float()
        rows = reference.dense(loss, (leaves[0] @ leaves[1].T).float(), teacher, TEMPERATURE, reference.parameter(loss))
        return torch.autograd.grad(rows.sum(), leaves)

    return call


def fused_error(loss, inputs, grad):
    """Relative error of the states' gradient on 64 rows against float64."""
    few = {name: x[:64] if name.endswith("hidden") else x for name, x in inputs.items()}
    few["row_mask"] = inputs.get("row_mask", torch.ones(64))[:64]
    _, exact = reference.fused(loss, few, TEMPERATURE, 1.0)
    exact = exact["student.hidden"]
    return ((grad[:64].double() - exact).norm() / exact.norm()).item()


def bench_fused(library, shape, mode, seconds, stream):
    """Loss, gradient of the states and, unless the head is frozen, of the head: states and heads in bf16."""
    rows, width, depth, teacher_depth = shape
    normal = lambda *size: torch.randn(*size, device="cuda", dtype=torch.bfloat16)
    inputs = {
        "student.hidden": normal(rows, depth), "student.head": normal(width, depth) / depth**0.5,
        "teacher.hidden": normal(rows, teacher_depth), "teacher.head": normal(width, teacher_depth) / teacher_depth**0.5,
    }
    if mode == "half masked":
        inputs["row_mask"] = torch.arange(rows) % 2
    grads = {"student.hidden": torch.full_like(inputs["student.hidden"], float("nan"))}
    if mode != "frozen head":
        grads["student.head"] = torch.zeros(width, depth, device="cuda")
    records, calls = [], {}
    for loss in ("kl", "gjsd"):
        config = {"loss": loss, "with": {**reference.PARAMETERS[loss], "temperature": TEMPERATURE}}
        instance = Instance(library, "limbeck.fused-linear", config, stream)
        calls[f"limbeck {loss}"] = instance.prepare(inputs, grads, 1.0)
    peers = {"liger chunked gjsd": lambda: liger_fused(inputs), "torch eager kl": lambda: torch_fused(inputs, "kl")}
    for name, make_peer in peers.items() if mode != "frozen head" else ():
        try:
            calls[name] = make_peer()
            calls[name]()
        except Exception as failure:  # a peer that fails is a result
            calls.pop(name, None)
            torch.cuda.empty_cache()
            records.append({"implementation": name, "failed": f"{type(failure).__name__}: {failure}"[:300]})
    for name, samples in timed(calls, seconds, 20).items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calls[name]()
        torch.cuda.synchronize()
        record = {"implementation": name, **summary(samples), "extra_bytes": torch.cuda.max_memory_allocated() - before}
        if name.startswith("limbeck"):
            record["gradient_error"] = fused_error(name.split()[1], inputs, grads["student.hidden"])
        records.append(record)
    # Products of both sides, of the states' gradient and of the head's.
    per = 2 * rows * width * (1 if mode != "half masked" else 0.5)
    flops = per * (depth * (2 if mode == "frozen head" else 3) + teacher_depth)
    fixed = {"mode": f"fused, {mode}", "loss": "fused", "rows": rows, "width": width, "depths": [depth, teacher_depth]}
    for record in records:
        if "median_ms" in record:
            record["tflop_s"] = flops / record["median_ms"] / 1e9
    return [{**fixed, "flops": flops, **record} for record in records]


def bench(library, args, write):
    stream = torch.cuda.current_stream().cuda_stream
    found = {"ceilings": ceilings(), "records": []}
    copy = found["ceilings"]["copy_gb_s"]
    shapes = [(8192, 128256), (8192, 32000), (1024, 128256), (4096, 151936)]
    if args.small:
        shapes = [(256, 32000)]
    for rows, width in shapes:
        for loss in ("kl", "rkl", "gjsd", "tvd", "skl"):
            found["records"] += bench_dense(library, loss, rows, width, args.seconds, copy, stream)
            write(found)
        found["records"] += bench_sparse(library, rows, width, 64, args.seconds, copy, stream)
        write(found)
        torch.cuda.empty_cache()
    fused = [(256, 32000, 256, 512)] if args.small else [(8192, 128256, 2048, 4096), (8192, 128256, 4096, 4096)]
    for shape in fused:
        for mode in ("loss and gradients", "frozen head", "half masked"):
            found["records"] += bench_fused(library, shape, mode, args.seconds, stream)
            write(found)
            torch.cuda.empty_cache()
    for record in found["records"]:
        if "tflop_s" in record:
            print(
                f"{record['mode']:26} {record['rows']:5}x{record['width']:<7} {record['depths']} {record['implementation']:20}"
                f"{record['median_ms']:9.3f} ms {record['tflop_s']:6.0f} TFLOP/s"
            )
        elif "median_ms" in record:
            print(
                f"{record['loss']:10} {record['rows']:5}x{record['width']:<7} {record['implementation']:28}"
                f"{record['median_ms']:9.3f} ms {record['gb_s']:7.0f} GB/s {100 * record['of_copy']:5.1f} %"
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=pathlib.Path, default=ROOT / "target/release/liblimbeck_losses.so")
    parser.add_argument("--only", choices=["check", "bench"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.5, help="time an implementation and shape")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    device = torch.device("cpu" if args.rehearse else "cuda")
    if not args.rehearse:
        torch.zeros(1, device=device)  # makes the primary context current
    library = Library(str(args.library), (2, 0))
    result = {"environment": environment(args.library)}
    name = "rehearsal" if args.rehearse else torch.cuda.get_device_name(0).lower().replace(" ", "-")
    out = args.out or ROOT / f"benches/results/kd-{name}-{datetime.date.today()}.json"

    def write(part):
        out.write_text(json.dumps({**result, **part}, indent=1) + "\n")

    if args.only != "bench":
        result["checks"] = kd_check.run(library, device, args.small or args.rehearse)
        write({})
        print("passed", result["checks"]["passed"], "failed", len(result["checks"]["failures"]))
        print("\n".join(result["checks"]["failures"][:20]))
    if args.only != "check" and not args.rehearse:
        result |= bench(library, args, write)
    write({})
    print(out)
    sys.exit(bool(result.get("checks", {}).get("failures")))


if __name__ == "__main__":
    main()
