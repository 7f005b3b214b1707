"""Correctness of the losses on a device, against float64 on the same rounded inputs and against the golden cases."""
import json
import math
import pathlib

import torch

import kd_reference as reference
from limbeck_abi import Failed, Instance

GOLDEN = pathlib.Path(__file__).parents[2] / "plugins/losses/tests/golden/losses.json"
ID = {"fkl": "kl", "lwf": "lwf-kl"}
# Half a unit in the last place of every entry; the usual error where there are many.
NARROW = {torch.float32: (0.0, 0.0), torch.bfloat16: (1 / 256, 2.5e-3), torch.float16: (1 / 2048, 4e-4)}


def number(x):
    return float(x)


def generate(spec, earlier):
    """An input of a golden case."""
    shape, kind = spec.get("shape", []), spec["gen"]
    count = math.prod(shape)
    if kind == "grid":
        f = getattr(math, spec["fn"])
        at = lambda k: spec["a"] * f((spec["b"] + spec["c"] * (k // shape[1])) + spec["d"] * (k % shape[1]))
        data = [at(k) for k in range(count)]
    elif kind == "flat":
        data = [spec["a"] * getattr(math, spec["fn"])(spec["b"] + spec["c"] * k) for k in range(count)]
    elif kind == "list":
        data = [number(x) for x in spec["data"]]
    elif kind == "fill":
        data = [number(spec["value"])] * count
    else:
        shape, data = list(earlier[spec["of"]].shape), earlier[spec["of"]].flatten().tolist()
    if spec.get("add") is not None:
        data = [x + number(spec["add"]) for x in data]
    for place, x in spec.get("set", []):
        data[place] = number(x)
    return torch.tensor(data, dtype=torch.float64).reshape(shape)


def inputs_of(case):
    made = {}
    for like in (False, True):
        for name, spec in case["inputs"].items():
            if (spec["gen"] == "like") == like:
                made[name] = generate(spec, made)
    return made


def is_integer(name):
    return name in ("labels", "row_mask", "class_mask", "targets") or name.endswith("indices")


class Checks:
    """Runs checks and counts them; a failure is recorded, not raised."""

    def __init__(self, library, device):
        self.library, self.device = library, device
        self.passed, self.failures = {}, []

    def run(self, group, what, check):
        try:
            check()
            self.passed[group] = self.passed.get(group, 0) + 1
        except (AssertionError, Failed) as failure:
            self.failures.append(f"{group}: {what}: {failure}")

    def compute(self, loss, config, inputs, grad_of, grad_type=None, normalizer=2.0, accumulate=None, stream=None):
        """Value, metrics and gradient; the gradient starts as NaN, or as `accumulate`."""
        instance = Instance(self.library, f"limbeck.{loss}", config, stream)
        try:
            like = inputs[grad_of]
            grad = torch.full_like(like, math.nan if accumulate is None else accumulate, dtype=grad_type or like.dtype)
            scalars = instance.prepare(inputs, {grad_of: grad}, normalizer, accumulate=accumulate is not None)()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return scalars, grad
        finally:
            instance.close()

    def golden(self):
        file = json.loads(GOLDEN.read_text())
        for case in file["cases"]:
            loss, expect = case["loss"], case["expect"]
            if "error" in expect or loss == "terms" or "grad" not in expect:
                continue
            loss = ID.get(loss, loss.replace("_", "-"))
            try:
                Instance(self.library, f"limbeck.{loss}", case.get("params", {})).close()
            except Failed:
                continue  # no kernel
            self.run("golden", case["id"], lambda: self.golden_case(file, case, loss))

    def golden_case(self, file, case, loss):
        inputs = {
            name: (x.to(torch.int64) if is_integer(name) else x.to(torch.float32)).to(self.device)
            for name, x in inputs_of(case).items()
        }
        tolerance = (case.get("tol") or {}).get("f32") or file["tolerance"]["f32"]
        rtol, atol = number(tolerance["rtol"]), number(tolerance.get("atol", file["tolerance"]["f32"]["atol"]))
        for name, wanted in case["expect"]["grad"].items():
            if name not in inputs:
                continue
            scalars, grad = self.compute(loss, case.get("params", {}), inputs, name, normalizer=case["normalizer"])
            value, exact = scalars[0].item(), number(case["expect"]["value"])
            if math.isfinite(exact):
                assert abs(value - exact) <= rtol * abs(exact) + atol, f"value {value}, expected {exact}"
            else:
                assert value == exact, f"value {value}, expected {exact}"
            flat, norm = grad.double().flatten().cpu(), number(wanted["norm"])
            for place, exact in list(enumerate(wanted["first"])):
                found = flat[place].item()
                assert abs(found - number(exact)) <= rtol * norm + atol, f"{name}[{place}] {found}, expected {exact}"
            assert abs(flat.norm().item() - norm) <= rtol * norm + atol, f"{name}: norm"

    def random(self, rows, width, dtype, gap=0, shift=0, seed=0):
        """Student and teacher rows: correlated, `gap` elements between rows, `shift` elements in; NaN between."""
        generator = torch.Generator().manual_seed(seed + width)
        s = 3 * torch.randn(rows, width, generator=generator)
        t = s + torch.randn(rows, width, generator=generator)

        def place(x):
            memory = torch.full((rows * (width + gap) + shift + 8,), math.nan, dtype=dtype, device=self.device)
            view = memory.as_strided((rows, width), (width + gap, 1), shift)
            view.copy_(x)
            return view

        return place(s), place(t)

    def dense_case(self, loss, rows, width, dtype, grad_type, gap=0, shift=0, temperature=2.0):
        s, t = self.random(rows, width, dtype, gap, shift)
        config = dict(reference.PARAMETERS[loss])
        if loss != "logit-mse":
            config["temperature"] = temperature
        scalars, grad = self.compute(loss, config, {"student.logits": s, "teacher.logits": t}, "student.logits", grad_type)
        of = lambda leaf: reference.dense(loss, leaf, t.double(), temperature, reference.parameter(loss))
        value, exact = reference.value_and_grad(of, s.double(), 2.0)
        assert abs(scalars[0].item() - value.item()) <= 1e-5 * abs(value.item()) + 2e-7, f"value {scalars[0]}, {value}"
        error, norm = (grad.double() - exact).norm().item(), exact.norm().item()
        bound = (5e-6 + NARROW[grad.dtype][grad.numel() >= 1000]) * norm
        if grad.dtype == torch.float16:
            bound += 3e-8 * math.sqrt(exact.numel())
        assert error <= bound, f"gradient error {error:.3e}, at most {bound:.3e}"

    def shapes(self, widths, rows):
        for loss in reference.PARAMETERS:
            for width in widths:
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    for grad_type, gap, shift in ((dtype, 0, 0), (torch.float32, 1, 0), (torch.bfloat16, 0, 3)):
                        what = f"{loss} {rows}x{width} {dtype} {grad_type} gap {gap} shift {shift}"
                        case = lambda: self.dense_case(loss, rows, width, dtype, grad_type, gap, shift)
                        self.run("shapes", what, case)

    def determinism(self, width, repeats):
        def check(loss):
            s, t = self.random(5, width, torch.bfloat16)
            inputs = {"student.logits": s, "teacher.logits": t}
            first = self.compute(loss, reference.PARAMETERS[loss], inputs, "student.logits")
            for k in range(repeats - 1):
                stream = torch.cuda.Stream() if self.device.type == "cuda" and k % 2 else None
                again = self.compute(
                    loss, reference.PARAMETERS[loss], inputs, "student.logits", stream=stream and stream.cuda_stream
                )
                assert torch.equal(first[1], again[1]) and torch.equal(first[0], again[0]), f"call {k + 2} differs"
            alone = self.compute(loss, reference.PARAMETERS[loss], {n: x[4:] for n, x in inputs.items()}, "student.logits")
            assert torch.equal(alone[1], first[1][4:]), "a row's bits depend on the batch"

        for loss in reference.PARAMETERS:
            self.run("determinism", f"{loss} {width}", lambda: check(loss))

    def extremes(self, width):
        inf = math.inf

        def finite_elsewhere(loss, edit):
            s, t = self.random(3, width, torch.float32)
            edit(s, t)
            _, grad = self.compute(loss, reference.PARAMETERS[loss], {"student.logits": s, "teacher.logits": t}, "student.logits")
            assert torch.isfinite(grad[1:]).all(), "another row is touched"

        def set_student(x):
            return lambda s, t: s[0].fill_(x) if x == -inf else s[0, 1:2].fill_(x)

        for loss in reference.PARAMETERS:
            for x in (math.nan, inf, -inf, 3e4, 1e30):
                self.run("extremes", f"{loss} {x}", lambda: finite_elsewhere(loss, set_student(x)))

    def accumulate(self, width):
        def check(loss):
            s, t = self.random(3, width, torch.float32)
            inputs = {"student.logits": s, "teacher.logits": t}
            _, plain = self.compute(loss, reference.PARAMETERS[loss], inputs, "student.logits")
            _, added = self.compute(loss, reference.PARAMETERS[loss], inputs, "student.logits", accumulate=1.0)
            assert torch.equal(added, 1.0 + plain)

        for loss in reference.PARAMETERS:
            self.run("accumulate", loss, lambda: check(loss))

    def fused_case(self, loss, rows, width, dtype, chunk):
        """Hidden states times a head: value and both gradients, every fifth row ignored, against float64."""
        generator = torch.Generator().manual_seed(width)
        normal = lambda *shape: torch.randn(*shape, generator=generator).to(dtype).to(self.device)
        inputs = {
            "student.hidden": normal(rows, 64), "student.head": normal(width, 64) / 4,
            "teacher.hidden": normal(rows, 96), "teacher.head": normal(width, 96) / 4,
            "row_mask": torch.tensor([int(n % 5 != 3) for n in range(rows)]),
        }
        config = {"loss": loss, "chunk": chunk, "with": {**reference.PARAMETERS[loss], "temperature": 2.0}}
        grads = {
            name: torch.full(inputs[name].shape, math.nan, dtype=torch.float32, device=self.device)
            for name in ("student.hidden", "student.head")
        }
        instance = Instance(self.library, "limbeck.fused-linear", config)
        try:
            scalars = instance.prepare(inputs, grads, 2.0)()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            instance.close()
        value, exact = reference.fused(loss, inputs, 2.0, 2.0)
        assert abs(scalars[0].item() - value.item()) <= 1e-5 * abs(value.item()) + 2e-7, f"value {scalars[0]}, {value}"
        bound = 4e-3 if dtype == torch.bfloat16 else 2e-5
        for name, wanted in exact.items():
            error, norm = (grads[name].double() - wanted).norm().item(), wanted.norm().item()
            assert error <= bound * norm, f"{name}: gradient error {error:.3e} of {norm:.3e}"

    def fused(self, widths):
        for width in widths:
            for dtype in (torch.float32, torch.bfloat16):
                for loss, chunk in (("kl", 0), ("gjsd", 64), ("tvd", 33), ("rkl", 7)):
                    case = lambda: self.fused_case(loss, 97, width, dtype, chunk)
                    self.run("fused", f"{loss} {width} {dtype} chunk {chunk}", case)

    def others(self, width):
        """Labels and a sparse teacher."""
        s, t = self.random(3, width, torch.float32)
        labels = torch.tensor([0, width - 1, width // 2], device=self.device)

        def compare(loss, config, inputs, rows):
            scalars, grad = self.compute(loss, config, inputs, "student.logits")
            value, exact = reference.value_and_grad(rows, s.double(), 2.0)
            assert abs(scalars[0].item() - value.item()) <= 1e-5 * abs(value.item()) + 2e-7, f"{scalars[0]}, {value}"
            error, norm = (grad.double() - exact).norm().item(), exact.norm().item()
            assert error <= 5e-6 * norm, f"gradient error {error:.3e} of {norm:.3e}"

        for smoothing in (0.0, 0.1):
            inputs = {"student.logits": s, "labels": labels}
            rows = lambda leaf: reference.cross_entropy(leaf, labels, smoothing)
            self.run("labels", f"{smoothing}", lambda: compare("ce", {"label_smoothing": smoothing}, inputs, rows))
        values, indices = torch.log_softmax(t.double() / 2, -1).topk(min(64, width - 1), -1)
        values = values.float()
        inputs = {"student.logits": s, "teacher.topk.indices": indices, "teacher.topk.values": values}
        rows = lambda leaf: reference.sparse_tail(leaf, indices, values.double(), 2.0)
        self.run("sparse", f"{width}", lambda: compare("topk-tail", {"temperature": 2.0}, inputs, rows))


def run(library, device, small):
    """All checks; `small` for a sanitizer or an emulated device."""
    checks = Checks(library, device)
    checks.golden()
    widths = [1, 7, 1032] if small else [
        1, 2, 7, 8, 9, 31, 1000, 1024, 1025, 4095, 16383, 16384, 16385, 32000, 50257, 65537, 128256, 151936, 262144,
    ]
    checks.shapes(widths, 3)
    for width in widths[1:]:
        checks.others(width)
    checks.fused([7, 1032] if small else [7, 1001, 1024, 32000, 50257, 128256, 151936])
    wide = widths[-1] if small else 128256
    checks.determinism(wide, 3 if small else 20)
    checks.extremes(wide if small else 32000)
    checks.accumulate(wide if small else 32000)
    return {"passed": checks.passed, "failures": checks.failures}
