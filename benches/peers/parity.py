"""Values and gradients of PyTorch, TRL, Liger and torchdistill on small inputs, in f64 on the CPU.

    python benches/peers/parity.py --write    # plugins/losses/tests/golden/peers.json
    python benches/peers/parity.py            # computes again and compares with the committed file

Each case names a loss of Limbeck with its settings; `agrees: false` stands where the peer computes something else, with
the reason in `note`. The Rust test `peers` holds the plugins to this file. Needs requirements.txt and
parity-requirements.txt.
"""

import ast
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import sys

import torch
from torch.nn import functional as F

FILE = pathlib.Path(__file__).resolve().parents[2] / "plugins/losses/tests/golden/peers.json"
CASES = []


def wave(shape, scale, start, step, function=math.sin):
    count = math.prod(shape)
    return torch.tensor([scale * function(start + step * k) for k in range(count)], dtype=torch.float64).reshape(shape)


S, Q = wave([6, 8], 2.0, 1.0, 0.83), wave([6, 8], 2.5, 2.0, 1.37, math.cos)
H, G = wave([5, 4], 1.5, 0.4, 1.1), wave([5, 4], 1.2, 0.9, 0.7, math.cos)
FLAT, OTHER = wave([2, 3, 6], 1.1, 0.2, 0.9), wave([2, 3, 6], 1.3, 0.6, 1.3, math.cos)
FLAT2, OTHER2 = wave([2, 5, 6], 0.9, 0.1, 0.6), wave([2, 5, 6], 1.2, 0.8, 0.4, math.cos)
LABELS = torch.tensor([0, 3, -100, 1, 4, -100])
CLASSES = torch.tensor([0, 3, 5, 1, 4, 7])


def case(peer, loss, params, inputs, normalizer, value, agrees=True, note=""):
    """`value` of the inputs; gradients of those named `student.`."""
    leaves = {k: v.clone().requires_grad_() if k.startswith("student.") else v for k, v in inputs.items()}
    out = value(leaves)
    trained = [k for k in leaves if k.startswith("student.")]
    grads = torch.autograd.grad(out, [leaves[k] for k in trained])
    flat = lambda x: {"shape": list(x.shape), "data": x.detach().flatten().tolist()}
    CASES.append({
        "peer": peer, "version": importlib.metadata.version(peer), "loss": loss, "params": params, "agrees": agrees,
        "note": note, "normalizer": normalizer, "inputs": {k: flat(v) for k, v in inputs.items()},
        "value": out.item(), "grads": {k: g.flatten().tolist() for k, g in zip(trained, grads)},
    })


def logits(labels=None):
    inputs = {"student.logits": S, "teacher.logits": Q}
    return inputs if labels is None else inputs | {"labels": labels}


def pair(x, t=1.0):
    return F.log_softmax(x["student.logits"] / t, -1), F.log_softmax(x["teacher.logits"] / t, -1)


def torch_cases():
    def kl(t, forward=True, factor=None):
        def value(x):
            q, p = pair(x, t)
            q, p = (q, p) if forward else (p, q)
            return F.kl_div(q, p, reduction="batchmean", log_target=True) * (t * t if factor is None else factor)
        return value

    for t in (1.0, 2.0):
        case("torch", "fkl", {"temperature": t}, logits(), 6, kl(t))
        case("torch", "rkl", {"temperature": t}, logits(), 6, kl(t, forward=False))
    case("torch", "fkl", {"temperature": 4.0, "t2": False}, logits(), 6, kl(4.0, factor=1.0))
    soft = lambda x: F.cross_entropy(x["student.logits"], F.softmax(x["teacher.logits"], -1))
    case("torch", "soft_ce", {}, logits(), 6, soft)
    for smoothing in (0.0, 0.1):
        hard = lambda x: F.cross_entropy(x["student.logits"], x["labels"], label_smoothing=smoothing)
        inputs = {"student.logits": S, "labels": LABELS}
        case("torch", "ce", {"label_smoothing": smoothing}, inputs, 4, hard)
    case("torch", "logit_mse", {}, logits(), 6, lambda x: F.mse_loss(x["student.logits"], x["teacher.logits"]))
    bce = lambda x: F.binary_cross_entropy_with_logits(x["student.logits"], torch.sigmoid(x["teacher.logits"]))
    case("torch", "bce_kd", {}, logits(), 6, bce)
    states = {"student.hidden": H, "teacher.hidden": G}
    case("torch", "hidden_mse", {}, states, 5, lambda x: F.mse_loss(x["student.hidden"], x["teacher.hidden"]))
    ones = torch.ones(5)
    cosine = lambda x: F.cosine_embedding_loss(x["student.hidden"], x["teacher.hidden"], ones)
    case("torch", "cosine", {}, states, 5, cosine)


def trl_cases():
    """The function out of the trainer's file: importing the trainer needs packages that it does not."""
    folder = pathlib.Path(importlib.util.find_spec("trl").submodule_search_locations[0])
    tree = ast.parse((folder / "experimental/gkd/gkd_trainer.py").read_text())
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "generalized_jsd_loss")
    found.decorator_list = []
    scope = {"torch": torch, "F": F}
    exec(compile(ast.Module([found], []), "gkd_trainer.py", "exec"), scope)
    jsd = scope["generalized_jsd_loss"]

    def value(beta, t):
        return lambda x: jsd(x["student.logits"][None], x["teacher.logits"][None], x["labels"][None], beta, t)

    for beta in (0.0, 0.3, 0.5, 1.0):
        params = {"beta": beta, "temperature": 2.0, "t2": False}
        case("trl", "gjsd", params, logits(LABELS), 4, value(beta, 2.0))
    params = {"beta": 0.5, "temperature": 2.0}
    case("trl", "gjsd", params, logits(LABELS), 4, value(0.5, 2.0), False, "no factor of the temperature squared")


def liger_cases():
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    eye = torch.eye(8, dtype=torch.float64)

    def value(beta, t):
        loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, temperature=t, compiled=False)
        return lambda x: loss(x["student.logits"], eye, x["teacher.logits"], eye, x["labels"])

    # It divides by all labels that are not ignored, and lets ignored rows into the soft loss: all rows count here.
    for beta, t in ((0.5, 1.0), (0.3, 2.0)):
        params = {"beta": beta, "temperature": t, "t2": False}
        case("liger-kernel", "gjsd", params, logits(CLASSES), 6, value(beta, t))


def torchdistill_cases():
    from torchdistill.losses import mid_level as m

    out = lambda x: {"m": {"output": x}}
    both = lambda x, port: (out(x["student." + port]), out(x["teacher." + port]))
    args = ("m", "output", "m", "output")
    kd = m.KDLoss(*args, temperature=4.0, alpha=0.4)

    def soft(x):
        hard = F.cross_entropy(x["student.logits"], CLASSES)
        return (kd(*both(x, "logits"), targets=CLASSES) - 0.4 * hard) / 0.6

    case("torchdistill", "fkl", {"temperature": 4.0}, logits(), 6, soft)
    bare = m.KDLoss(*args, temperature=4.0, alpha=0.0)
    note = "with alpha = 0 the factor of the temperature squared is dropped"
    case("torchdistill", "fkl", {"temperature": 4.0}, logits(), 6, lambda x: bare(*both(x, "logits")), False, note)
    dist = m.DISTLoss(*args, beta=1.0, gamma=2.0, tau=2.0)
    params = {"beta": 1.0, "gamma": 2.0, "temperature": 2.0}
    case("torchdistill", "dist", params, logits(), 6, lambda x: dist(*both(x, "logits")))
    standard = m.LogitStdKDLoss(*args, temperature=2.0, alpha=0.0, eps=0.0)
    params = {"temperature": 2.0, "t2": False}
    case("torchdistill", "logit_std", params, logits(), 6, lambda x: standard(*both(x, "logits")))
    states = {"student.hidden": H, "teacher.hidden": G}
    rkd = lambda d, a: (lambda x: m.RKDLoss("m", "m", d, a, "mean")(*both(x, "hidden")))
    case("torchdistill", "rkd_d", {}, states, 5, rkd(1.0, 0.0))
    case("torchdistill", "rkd_a", {}, states, 5, rkd(0.0, 1.0))
    sp = m.SPKDLoss("m", "m", "batchmean")
    case("torchdistill", "sp", {}, states, 5, lambda x: sp(*both(x, "hidden")), False, "rows have L1 norm 1, not L2")
    names = ("student_first", "student_second", "teacher_first", "teacher_second")
    pairs = {"p": {name: {"io": "output", "path": name} for name in names}}
    fsp = m.FSPLoss(pairs)

    def flow(x):
        square = lambda f: out(f.reshape(*f.shape[:2], 2, 3))["m"]
        maps = [square(x[p]) for p in ("student.map", "student.map2", "teacher.map", "teacher.map2")]
        student = {"student_first": maps[0], "student_second": maps[1]}
        return fsp(student, {"teacher_first": maps[2], "teacher_second": maps[3]})

    maps = {"student.map": FLAT, "teacher.map": OTHER, "student.map2": FLAT2, "teacher.map2": OTHER2}
    case("torchdistill", "fsp", {}, maps, 2, flow, False, "sum of column norms, not the squared norm")


def numbers(found):
    if isinstance(found, dict):
        return [n for k in sorted(found) for n in numbers(found[k])]
    if isinstance(found, list):
        return [n for x in found for n in numbers(x)]
    return [found]


def main():
    for cases in (torch_cases, trl_cases, liger_cases, torchdistill_cases):
        cases()
    if "--write" in sys.argv:
        FILE.write_text("[\n" + ",\n".join(json.dumps(c) for c in CASES) + "\n]\n")
        return
    committed = json.loads(FILE.read_text())
    assert len(committed) == len(CASES), f"{len(committed)} cases committed, {len(CASES)} computed"
    for old, new in zip(committed, CASES):
        for a, b in zip(numbers(old), numbers(new), strict=True):
            same = abs(a - b) <= 1e-12 * (1 + abs(a)) if isinstance(a, float) else a == b
            assert same, f"{new['peer']} {new['loss']}: committed {a}, computed {b}"
    print(f"{len(CASES)} cases as committed")


main()
