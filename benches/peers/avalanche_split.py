"""Split MNIST with Avalanche: the peer of `benches/continual/against_avalanche.py`, which starts it.

    avalanche_split.py METHOD SCENARIO SEED [kept]

Same rows, network, optimizer and length as Limbeck's side: MLP 784-100-100-C, Adam 1e-3, batch 64, 16 epochs a task,
one thread. The optimizer's moments are cleared before each task, as Limbeck does; `kept` leaves them as Avalanche does. Prints the accuracies on the five tasks after the last one as JSON. Nothing is measured on the way: no
evaluation between tasks, no logger.
"""

import json
import os
import struct
import sys

import torch
from torch.utils.data import TensorDataset

from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import (
    AGEMPlugin, EvaluationPlugin, EWCPlugin, LwFPlugin, ReplayPlugin, SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ReservoirSamplingBuffer

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".cache", "mnist5k")


def idx(name):
    data = open(os.path.join(DATA, name), "rb").read()
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    return torch.frombuffer(bytearray(data[4 + 4 * data[3] :]), dtype=torch.uint8).reshape(shape)


class OneTask(AvalancheDataset):
    """LwF asks a dataset for its rows of each task; here all are of task 0."""

    @property
    def task_set(self):
        return {0: self}


def datasets(part, labels):
    images = idx(f"{part}-images.idx").reshape(-1, 784).float() / 255
    targets = idx(f"{part}-{labels}.idx").long()
    each = len(images) // 5
    out = []
    for task in range(5):
        rows = slice(each * task, each * (task + 1))
        y = targets[rows]
        out.append(OneTask(
            [TensorDataset(images[rows], y)],
            data_attributes=[DataAttribute(y.tolist(), "targets"), DataAttribute([0] * each, "targets_task_labels")],
            collate_fn=lambda batch: [
                torch.stack([b[0] for b in batch]), torch.tensor([int(b[1]) for b in batch]),
                torch.zeros(len(batch), dtype=torch.long),
            ],
        ))
    return out


class RowEwc(EWCPlugin):
    """Squares the gradient of each row, as the Fisher information asks, not that of each mini-batch."""

    def compute_importances(self, model, criterion, optimizer, dataset, device, batch_size, **more):
        return super().compute_importances(model, criterion, optimizer, dataset, device, 1, **more)


def cloned_weights(model, target, excluded_parameters):
    """On a CPU, Avalanche 0.6.0 keeps views of the weights, so every way is 0 and SI has no effect; here they are copies."""
    for name, param in SynapticIntelligencePlugin.allowed_parameters(model, excluded_parameters):
        target[name].data = param.detach().cpu().flatten().clone()


SynapticIntelligencePlugin.extract_weights = staticmethod(torch.no_grad()(cloned_weights))


def plugins(method):
    return {
        "none": lambda: [],
        "er": lambda: [ReplayPlugin(mem_size=200, batch_size=64, batch_size_mem=64,
                                    storage_policy=ReservoirSamplingBuffer(max_size=200))],
        "lwf": lambda: [LwFPlugin(alpha=1, temperature=2)],
        "ewc": lambda: [RowEwc(ewc_lambda=5000)],
        "ewc, mini-batches squared": lambda: [EWCPlugin(ewc_lambda=5000)],
        "si": lambda: [SynapticIntelligencePlugin(si_lambda=float(os.environ.get("SI_LAMBDA", "3e3")))],
        "agem": lambda: [AGEMPlugin(patterns_per_experience=40, sample_size=64)],
    }[method]()


def main(method, scenario, seed, moments="cleared"):
    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    labels, classes = ("parity", 2) if scenario == "domain" else ("labels", 10)
    benchmark = benchmark_from_datasets(train=datasets("train", labels), test=datasets("test", labels))
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU(), torch.nn.Linear(100, classes)
    )
    strategy = Naive(
        model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=64, train_epochs=16, eval_mb_size=256, plugins=plugins(method),
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        if moments == "cleared":
            strategy.optimizer.state.clear()
        strategy.train(experience, num_workers=0)
    model.eval()
    scores = []
    with torch.no_grad():
        for rows in datasets("test", labels):
            x, y, _ = rows.collate_fn([rows[i] for i in range(len(rows))])
            scores.append((model(x).argmax(1) == y).float().mean().item())
    print(json.dumps(scores))


main(*sys.argv[1:])
