"""Turn scikit-learn's handwritten digits (a table of 8 x 8 images, values 0 to 16) into MNIST's idx format."""

import gzip
import struct
import zipfile
from pathlib import Path

MEMBER = "sklearn/datasets/data/digits.csv.gz"


def convert(wheel, folder):
    table = gzip.decompress(zipfile.ZipFile(wheel).read(MEMBER)).decode()
    rows = [[round(float(value)) for value in line.split(",")] for line in table.splitlines()]
    pixels = bytes(round(value * 255 / 16) for row in rows for value in row[:64])
    labels = bytes(row[64] for row in rows)
    folder = Path(folder)
    (folder / "images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, len(rows), 8, 8) + pixels)
    (folder / "labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(rows)) + labels)
