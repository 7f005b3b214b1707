"""The losses in plain PyTorch: the float64 reference of the checks and the eager and compiled peers of the bench."""
import math

import torch
import torch.nn.functional as F


def dense(loss, s, t, temperature=1.0, parameter=None):
    """Loss of every row, F = T² included where the loss has it. Differentiable in s."""
    if loss == "logit-mse":
        return ((s - t) ** 2).mean(-1)
    x, y = F.log_softmax(s / temperature, -1), F.log_softmax(t / temperature, -1)
    q, p = x.exp(), y.exp()
    factor = temperature * temperature
    if loss == "soft-ce":
        return -(p * x).sum(-1)
    if loss == "kl":
        return factor * (p * (y - x)).sum(-1)
    if loss == "rkl":
        return factor * (q * (x - y)).sum(-1)
    if loss == "sym-kl":
        return factor * (parameter * (p * (y - x)).sum(-1) + (1 - parameter) * (q * (x - y)).sum(-1))
    if loss == "tvd":
        return factor * 0.5 * (p - q).abs().sum(-1)
    if loss == "gjsd":
        m = mixture(y, x, parameter)
        return factor * (parameter * (p * (y - m)).sum(-1) + (1 - parameter) * (q * (x - m)).sum(-1))
    if loss == "skl":
        return factor * (p * (y - mixture(y, x, parameter))).sum(-1)
    if loss == "srkl":
        return factor * (q * (x - mixture(y, x, 1 - parameter))).sum(-1)
    raise ValueError(loss)


def mixture(y, x, share):
    return torch.logaddexp(y + math.log(share), x + math.log1p(-share))


def sparse_tail(s, indices, log_p, temperature):
    """Top-k teacher with one bucket for the rest."""
    x = F.log_softmax(s / temperature, -1)
    kept = x.gather(-1, indices)
    p = log_p.exp()
    rest = torch.log1p(-p.sum(-1))
    outside = x.scatter(-1, indices, float("-inf")).logsumexp(-1)
    return temperature**2 * ((p * (log_p - kept)).sum(-1) + rest.exp() * (rest - outside))


def cross_entropy(s, labels, smoothing):
    return F.cross_entropy(s, labels, reduction="none", label_smoothing=smoothing)


def value_and_grad(rows, s, normalizer):
    """Value and gradient in the type of s of a function of s that gives a loss a row."""
    leaf = s.detach().clone().requires_grad_(True)
    value = rows(leaf).sum() / normalizer
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad


def fused(loss, inputs, temperature, normalizer):
    """Value and gradients of a loss on hidden states times a head, in float64; `row_mask` 0: ignored."""
    names = ("student.hidden", "student.head")
    leaves = [inputs[name].double().requires_grad_(True) for name in names]
    teacher = inputs["teacher.hidden"].double() @ inputs["teacher.head"].double().T
    counted = inputs["row_mask"].to(teacher.device) != 0
    rows = dense(loss, (leaves[0] @ leaves[1].T)[counted], teacher[counted], temperature, parameter(loss))
    value = rows.sum() / normalizer
    return value.detach(), dict(zip(names, torch.autograd.grad(value, leaves)))


PARAMETERS = {
    "kl": {}, "soft-ce": {}, "rkl": {}, "tvd": {}, "logit-mse": {},
    "sym-kl": {"lambda": 0.3}, "gjsd": {"beta": 0.5}, "skl": {"alpha": 0.1}, "srkl": {"alpha": 0.1},
}


def parameter(loss):
    return next(iter(PARAMETERS[loss].values()), None)
