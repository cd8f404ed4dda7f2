#!/usr/bin/env python3
"""Makes a data set of K x K classes from one of K: two grey images side by side, the class is the pair of theirs.

    talion data export fashion-mnist --split train -o train.safetensors
    pairs.py train.safetensors pairs/train 60000
    talion train classifier --data folder:pairs ...

The left image runs through the file in its order; the right one is drawn with a seed. Needs nothing beside Python.
"""

import argparse
import array
import json
import pathlib
import random
import shutil
import struct
import sys
import zlib


def tensors(path):
    """The tensors of a safetensors file: shape and flat values by name."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": "f", "I64": "q"}
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        values = array.array(kinds[entry["dtype"]], data[start:end])
        if sys.byteorder == "big":
            values.byteswap()
        found[name] = (entry["shape"], values)
    return found


def png(width, height, pixels):
    """A grey PNG file of these bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[row * width : (row + 1) * width] for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def side_by_side(left, right, width):
    """Two images of so many columns as one."""
    rows = range(0, len(left), width)
    return b"".join(left[row : row + width] + right[row : row + width] for row in rows)


def write(source, folder, count, seed):
    """Writes so many pairs into one folder a class."""
    found = tensors(source)
    shape, values = found["images"]
    (images, channels, height, width), (_, labels) = shape, found["labels"]
    if channels != 1:
        raise SystemExit(f"{source}: expected grey images, found {channels} channels")
    if folder.exists():
        raise SystemExit(f"{folder} is there already, and nothing is overwritten: name another folder")
    size = height * width
    draw = random.Random(seed)
    classes = max(labels) + 1
    unfinished = folder.with_name(folder.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    for place in range(classes * classes):
        (unfinished / f"{place:03}").mkdir(parents=True)

    def pixels(image):
        return bytes(round(value * 255) for value in values[image * size : (image + 1) * size])

    for place in range(count):
        left, right = place % images, draw.randrange(images)
        both = side_by_side(pixels(left), pixels(right), width)
        label = labels[left] * classes + labels[right]
        (unfinished / f"{label:03}" / f"{place:06}.png").write_bytes(png(2 * width, height, both))
    unfinished.rename(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path, help="what `talion data export -o` wrote")
    parser.add_argument("folder", type=pathlib.Path, help="where the pairs go")
    parser.add_argument("count", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    write(given.source, given.folder, given.count, given.seed)


if __name__ == "__main__":
    main()
