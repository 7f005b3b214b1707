"""Losses in PyTorch, eager and compiled, timed on request: a JSON object a line on stdin, one back on stdout.

Loss and gradient of student logits, f32, formulas as people write them; the compiled form is the same function under
`torch.compile`. The error is that of the f32 gradient against the same formula in f64, on the first rows.
"""

import json
import math
import sys
import time

import torch
from torch.nn import functional as F

T = 2.0


def logs(s, t):
    return F.log_softmax(s / T, dim=-1), F.log_softmax(t / T, dim=-1)


def kl(s, t, labels, k):
    q, p = logs(s, t)
    return T * T * F.kl_div(q, p, reduction="sum", log_target=True)


def rkl(s, t, labels, k):
    q, p = logs(s, t)
    return T * T * F.kl_div(p, q, reduction="sum", log_target=True)


def jsd(s, t, labels, k):
    q, p = logs(s, t)
    half = math.log(0.5)
    m = torch.logaddexp(p + half, q + half)
    both = F.kl_div(m, p, reduction="sum", log_target=True) + F.kl_div(m, q, reduction="sum", log_target=True)
    return T * T * 0.5 * both


def tvd(s, t, labels, k):
    return T * T * 0.5 * (F.softmax(s / T, dim=-1) - F.softmax(t / T, dim=-1)).abs().sum()


def ce(s, t, labels, k):
    return F.cross_entropy(s, labels, reduction="sum")


def topk(s, t, labels, k):
    indices, log_p = k
    log_q = F.log_softmax(s / T, dim=-1)
    kept = log_q.gather(-1, indices)
    rest_p = torch.log1p(-log_p.exp().sum(-1))
    rest_q = torch.log1p(-kept.exp().sum(-1))
    return T * T * ((log_p.exp() * (log_p - kept)).sum() + (rest_p.exp() * (rest_p - rest_q)).sum())


LOSSES = {f.__name__: f for f in (kl, rkl, jsd, tvd, ce, topk)}
COMPILED = {}


def compiled(name, width):
    key = (name, width)
    if key not in COMPILED:
        torch._dynamo.reset()
        COMPILED[key] = torch.compile(LOSSES[name], dynamic=False)
    return COMPILED[key]


def data(rows, width, kept):
    generator = torch.Generator().manual_seed(7)
    t = 2.0 * torch.randn(rows, width, generator=generator)
    s = t + torch.randn(rows, width, generator=generator)
    labels = torch.randint(width, (rows,), generator=generator)
    log_p, indices = F.log_softmax(t / T, dim=-1).topk(kept, dim=-1)
    return s.requires_grad_(), t, labels, (indices, log_p)


def gradient(function, s, t, labels, k):
    loss = function(s, t, labels, k)
    return torch.autograd.grad(loss, s)[0], loss


def error(function, s, t, labels, k, rows=4):
    cut = lambda x: x[:rows].detach()
    wide = lambda x: cut(x).double()
    args = cut(t), cut(labels), (cut(k[0]), cut(k[1]))
    found = gradient(function, cut(s).requires_grad_(), *args)[0].double()
    exact = (wide(t), cut(labels), (cut(k[0]), wide(k[1])))
    exact = gradient(function, wide(s).requires_grad_(), *exact)[0]
    return ((found - exact).norm() / exact.norm()).item()


def main():
    for line in sys.stdin:
        ask = json.loads(line)
        torch.set_num_threads(ask["threads"])
        name, rows, width = ask["loss"], ask["rows"], ask["width"]
        args = data(rows, width, ask["kept"])
        answer = {"torch": torch.__version__}
        for variant in ask["variants"]:
            try:
                function = LOSSES[name] if variant == "eager" else compiled(name, width)
                for _ in range(ask["warmup"]):
                    gradient(function, *args)
                seconds = []
                for _ in range(ask["samples"]):
                    begin = time.perf_counter()
                    gradient(function, *args)[1].item()
                    seconds.append(time.perf_counter() - begin)
                answer[variant] = min(seconds)
            except Exception as problem:
                answer[variant] = None
                answer[variant + "_failed"] = f"{type(problem).__name__}: {problem}"[:200]
        if ask["error"]:
            answer["gradient_error"] = error(LOSSES[name], *args)
        print(json.dumps(answer), flush=True)


main()
