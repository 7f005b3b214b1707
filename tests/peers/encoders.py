"""Tiny encoders with fixed weights, and what PyTorch makes of them: outputs, gradients, twenty steps of AdamW.

`python encoders.py` compares a fresh run with the committed files under `plugins/models/tests/encoders`;
`python encoders.py --write` replaces them. Needs `requirements.txt` beside this file.

A folder per case: `config.json` and `model.safetensors` as transformers writes them (or as old releases did), `golden.safetensors`
with inputs (`in.*`), outputs (`out.*`), gradients of Σ logits·wave (`grad.*`) and parameters after training (`after.*`), `golden.json`
with the loss of each step.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

HERE = pathlib.Path(__file__).resolve().parent
COMMITTED = HERE.parents[1] / "plugins/models/tests/encoders"
VOCAB, DIM, LAYERS, HEADS, INNER, POSITIONS, CLASSES = 40, 16, 3, 2, 24, 20, 3
PAD = 1
BERT = dict(
    vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER,
    max_position_embeddings=POSITIONS, type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=PAD,
)
DISTILBERT = dict(
    vocab_size=VOCAB, dim=DIM, n_layers=LAYERS, n_heads=HEADS, hidden_dim=INNER, max_position_embeddings=POSITIONS,
    dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, pad_token_id=PAD,
)
# Name, class, settings, dtype of the file.
CASES = {
    "bert-classification": (transformers.BertForSequenceClassification, transformers.BertConfig, BERT, torch.float32),
    "bert-tokens-gelu-new": (transformers.BertForTokenClassification, transformers.BertConfig, {**BERT, "hidden_act": "gelu_new"}, torch.float32),
    "bert-bare": (transformers.BertModel, transformers.BertConfig, BERT, torch.float32),
    "distilbert-classification": (transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig, DISTILBERT, torch.float32),
    "distilbert-masked-lm": (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig, DISTILBERT, torch.float32),
    "bert-masked-lm": (transformers.BertForMaskedLM, transformers.BertConfig, BERT, torch.bfloat16),
    "roberta-classification": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, {**BERT, "type_vocab_size": 1}, torch.float16),
}
TRAINED = {"bert-classification", "distilbert-classification"}


def batch():
    generator = numpy.random.default_rng(5)
    ids = generator.integers(2, VOCAB, (6, 12))
    lengths = [12, 3, 9, 1, 7, 12]
    mask = numpy.arange(12)[None] < numpy.array(lengths)[:, None]
    ids = numpy.where(mask, ids, PAD)
    types = numpy.where(numpy.arange(12)[None] >= 4, 1, 0) * mask
    labels = generator.integers(0, CLASSES, 6)
    return [torch.from_numpy(numpy.ascontiguousarray(a).astype(numpy.int64)) for a in (ids, mask, types, labels)]


def build(case):
    model_class, config_class, settings, dtype = CASES[case]
    labels = {} if "LM" in model_class.__name__ or model_class.__name__.endswith("Model") else {"num_labels": CLASSES}
    model = model_class._from_config(config_class(**settings, **labels), attn_implementation="eager")
    generator = numpy.random.default_rng(sorted(CASES).index(case))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = generator.standard_normal(tuple(parameter.shape)) * (0.3 if parameter.dim() > 1 else 0.1)
            is_scale = parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight")
            # Rounded first, so that a file of half precision holds these very values.
            parameter.copy_((torch.from_numpy(values) + float(is_scale)).to(dtype).float())
    return model.eval(), dtype


def wave(shape):
    count = int(numpy.prod(shape))
    return torch.from_numpy(numpy.sin(1 + 2.399963 * numpy.arange(count)).reshape(shape).astype(numpy.float32))


def forward(model, inputs):
    kinds = {} if isinstance(model, transformers.DistilBertPreTrainedModel) else {"token_type_ids": inputs["token_type_ids"]}
    if model.config.model_type == "roberta":
        kinds = {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    return model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True, output_attentions=True, **kinds
    )


def golden(model, inputs, mask):
    found = forward(model, inputs)
    out = {f"out.hidden.{i}": h for i, h in enumerate(found.hidden_states)}
    out |= {f"out.probabilities.{i + 1}": a for i, a in enumerate(found.attentions)}
    if getattr(found, "logits", None) is not None:
        out["out.logits"] = found.logits
        objective = (found.logits * wave(found.logits.shape)).sum()
    else:
        weights = mask.unsqueeze(-1).float()
        mean = (found.last_hidden_state * weights).sum(1) / weights.sum(1)
        out["out.features"] = mean
        objective = (mean * wave(mean.shape)).sum()
    objective.backward()
    names = dict(model.named_parameters())
    grads = {f"grad.{n}": p.grad if p.grad is not None else torch.zeros_like(p) for n, p in names.items()}
    return {k: v.detach().float().contiguous().clone() for k, v in {**out, **grads}.items()}


def train(model, inputs, labels):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(model, inputs).logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {f"after.{n}": p.detach().clone() for n, p in model.named_parameters()}


def old_style(path):
    """As releases of 2019 wrote a bare model: `gamma` and `beta`, and constants among the tensors."""
    tensors = load_file(path)
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in tensors.items()}
    renamed["embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(renamed, path, metadata={"format": "pt"})


def write(folder):
    ids, mask, types, labels = batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    for case in CASES:
        model, dtype = build(case)
        to = folder / case
        to.mkdir(parents=True)
        model.to(dtype).save_pretrained(to)
        (to / "generation_config.json").unlink(missing_ok=True)
        model, _ = build(case)
        if case == "bert-bare":
            old_style(to / "model.safetensors")
        tensors = {f"in.{k}": v.clone() for k, v in inputs.items()} | {"in.labels": labels.clone()}
        tensors |= golden(model, inputs, mask)
        losses = None
        if case in TRAINED:
            losses, after = train(model, inputs, labels)
            tensors |= after
        save_file(tensors, to / "golden.safetensors")
        (to / "golden.json").write_text(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "losses": losses}) + "\n")


def compare(fresh, committed):
    worst = 0.0
    for case in CASES:
        for name in ("model.safetensors", "golden.safetensors"):
            ours, theirs = load_file(fresh / case / name), load_file(committed / case / name)
            if ours.keys() != theirs.keys():
                sys.exit(f"{case}/{name}: other tensors: {sorted(ours.keys() ^ theirs.keys())}")
            for key in ours:
                difference = (ours[key].double() - theirs[key].double()).abs().max().item()
                worst = max(worst, difference)
                if difference > 1e-5:
                    sys.exit(f"{case}/{name}: `{key}` differs by {difference}")
    print(f"{len(CASES)} cases agree, largest difference {worst:.1e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="replace the committed files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if args.write:
        shutil.rmtree(COMMITTED, ignore_errors=True)
        write(COMMITTED)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        compare(pathlib.Path(folder), COMMITTED)


main()
