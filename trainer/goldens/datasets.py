"""Tiny datasets in the official formats, and what must be read of them: Python 3.11, numpy 2.4.6, scipy 1.17.1,
pyarrow 26.0.1, Pillow 13.0.0 (libjpeg-turbo 3.2.0).

    python datasets.py

writes the folder `datasets/`: for every set the file or archive that its owner gives, and `expected.json` with classes,
labels and the digest of every image's pixels, as Pillow and numpy see them.
"""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import scipy.io
from PIL import Image

OUT = Path(__file__).parent / "datasets"
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake".split()
)
expected = {}


def picture(number, height=32, width=32):
    """[height, width, 3]: blocks that differ between rows and columns, channels and numbers, and that pack well."""
    y, x = numpy.mgrid[:height, :width]
    one = lambda channel: number * 23 + channel * 71 + (y * 3 // height) * 40 + (x * 5 // width) * 9
    return numpy.stack([one(channel) for channel in range(3)], axis=-1).astype(numpy.uint8)


def texture(seed, height, width):
    """Waves and noise: what makes decoders of JPEG differ."""
    y, x = numpy.mgrid[:height, :width].astype(float)
    noise = numpy.random.RandomState(seed).randint(-40, 40, (height, width, 3))
    waves = [120 + 90 * numpy.sin(x / (2 + c) + seed) * numpy.cos(y / (3 - c / 2) - seed) for c in range(3)]
    return numpy.clip(numpy.stack(waves, axis=-1) + noise, 0, 255).astype(numpy.uint8)


def pixel_sha256(pixels):
    """The first half of what `RgbImage::pixel_sha256` gives."""
    height, width, _ = pixels.shape
    return hashlib.sha256(struct.pack("<II", width, height) + pixels.tobytes()).hexdigest()[:32]


def expect(name, classes, bank, query):
    """bank and query are [(label, pixels)]."""
    told = lambda part: [[int(label), pixel_sha256(pixels)] for label, pixels in part]
    expected[name] = {"classes": classes, "bank": told(bank), "query": told(query)}


def tar_gz(name, members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (OUT / name).write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0))


def encoded(pixels, kind, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def decoded(data):
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Python2(pickle._Pickler):
    """As Python 2's cPickle wrote CIFAR: texts and bytes alike are strings without an encoding."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        short = len(data) < 256
        self.write((b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<I", len(data))) + data)
        self.memoize(text)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def python2(value):
    data = io.BytesIO()
    Python2(data, 2).dump(value)
    # numpy 1's name, as the official files have it.
    return data.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3(value):
    return pickle.dumps(value, protocol=2)


def rows(images):
    """[images, 3072]: red, green and blue planes."""
    return numpy.stack([image.transpose(2, 0, 1).reshape(-1) for image in images])


def planes(image):
    return image.transpose(2, 0, 1).tobytes()


def cifar10():
    labels = [[6, 9], [1, 4], [0, 7], [3, 5], [8, 2]]
    batches = [[picture(2 * at), picture(2 * at + 1)] for at in range(5)]
    test_labels, test = [3, 8], [picture(10), picture(11)]
    bank = [pair for some in zip(labels, batches) for pair in zip(*some)]
    expect("cifar10", CIFAR10, bank, list(zip(test_labels, test)))
    # Even batches as Python 2 wrote them, odd ones as Python 3 writes that protocol.
    dump = lambda at: python2 if at % 2 == 0 else python3
    batch = lambda at, labels, images: dump(at)(
        {
            "batch_label": f"training batch {at + 1} of 5",
            "labels": labels,
            "data": rows(images),
            "filenames": [f"a_{label}.png" for label in labels],
        }
    )
    folder = "cifar-10-batches-py/"
    members = [(folder + f"data_batch_{at + 1}", batch(at, labels[at], batches[at])) for at in range(5)]
    members += [(folder + "test_batch", batch(0, test_labels, test))]
    members += [(folder + "batches.meta", python2({"label_names": CIFAR10, "num_cases_per_batch": 2}))]
    tar_gz("cifar-10-python.tar.gz", members)
    record = lambda labels, images: b"".join(bytes([label]) + planes(image) for label, image in zip(labels, images))
    folder = "cifar-10-batches-bin/"
    members = [(folder + f"data_batch_{at + 1}.bin", record(labels[at], batches[at])) for at in range(5)]
    members += [(folder + "test_batch.bin", record(test_labels, test))]
    members += [(folder + "batches.meta.txt", "\n".join(CIFAR10 + [""]).encode())]
    tar_gz("cifar-10-binary.tar.gz", members)
    return bank, list(zip(test_labels, test))


def cifar100():
    fine_names = [f"fine {at:02}" for at in range(100)]
    coarse_names = [f"coarse {at:02}" for at in range(20)]
    fine, coarse = [at * 37 % 100 for at in range(100)], [at * 37 % 100 // 5 for at in range(100)]
    images = [picture(at) for at in range(100)]
    test_fine, test_coarse, test = [99, 1], [19, 0], [picture(101), picture(102)]
    expect("cifar100", fine_names, list(zip(fine, images)), list(zip(test_fine, test)))
    expect("cifar100-coarse", coarse_names, list(zip(coarse, images)), list(zip(test_coarse, test)))
    batch = lambda fine, coarse, images: {"fine_labels": fine, "coarse_labels": coarse, "data": rows(images)}
    folder = "cifar-100-python/"
    tar_gz(
        "cifar-100-python.tar.gz",
        [
            (folder + "train", python2(batch(fine, coarse, images))),
            (folder + "test", python2(batch(test_fine, test_coarse, test))),
            (folder + "meta", python2({"fine_label_names": fine_names, "coarse_label_names": coarse_names})),
        ],
    )
    record = lambda *parts: b"".join(bytes([coarse, fine]) + planes(image) for fine, coarse, image in zip(*parts))
    folder = "cifar-100-binary/"
    tar_gz(
        "cifar-100-binary.tar.gz",
        [
            (folder + "train.bin", record(fine, coarse, images)),
            (folder + "test.bin", record(test_fine, test_coarse, test)),
            (folder + "fine_label_names.txt", "\n".join(fine_names + [""]).encode()),
            (folder + "coarse_label_names.txt", "\n".join(coarse_names + [""]).encode()),
        ],
    )


def svhn():
    labels, images = [5, 10, 1, 2, 3, 4, 6, 7, 8, 9, 10], [picture(at + 30) for at in range(11)]
    test_labels, test = [10, 7], [picture(50), picture(51)]
    stack = lambda images: numpy.stack(images, axis=-1)
    save = lambda name, images, labels, packed: scipy.io.savemat(
        OUT / name, {"X": stack(images), "y": labels.reshape(-1, 1)}, do_compression=packed
    )
    save("train_32x32.mat", images, numpy.array(labels, numpy.uint8), True)
    # The labels of another class of numbers, and nothing packed.
    save("test_32x32.mat", test, numpy.array(test_labels, numpy.float64), False)
    for name in ["train_32x32.mat", "test_32x32.mat"]:  # scipy writes the time into the header
        path = OUT / name
        path.write_bytes(b"MATLAB 5.0 MAT-file, made by datasets.py".ljust(116) + path.read_bytes()[116:])
    digit = lambda labels: [label % 10 for label in labels]
    classes = [str(digit) for digit in range(10)]
    expect("svhn", classes, list(zip(digit(labels), images)), list(zip(digit(test_labels), test)))


def eurosat():
    files = [(c, f"{EUROSAT[c]}_{at}.jpg", picture(c * 5 + at, 16, 16)) for c in range(10) for at in range(1, 6)]
    files = {name: (c, encoded(image, "JPEG", quality=80, optimize=True)) for c, name, image in files}
    with zipfile.ZipFile(OUT / "EuroSAT.zip", "w") as archive:
        for at, (name, (c, data)) in enumerate(files.items()):
            info = zipfile.ZipInfo(f"2750/{EUROSAT[c]}/{name}")
            info.compress_type = zipfile.ZIP_DEFLATED if at % 2 else zipfile.ZIP_STORED
            archive.writestr(info, data)
    # Images 2, 4 and 1 of each class, then 3, then 5.
    lists = {"train": [2, 4, 1], "val": [3], "test": [5]}
    parts = {}
    for split, numbers in lists.items():
        names = [f"{EUROSAT[c]}_{number}.jpg" for number in numbers for c in range(10)]
        (OUT / f"eurosat-{split}.txt").write_text("".join(name + "\n" for name in names))
        parts[split] = [(files[name][0], decoded(files[name][1])) for name in names]
    expect("eurosat", EUROSAT, parts["train"], parts["test"])


def dtd():
    classes = ["banded", "blotchy", "zigzagged"]
    files = {
        f"{name}/{name}_{at:04}.jpg": (c, encoded(picture(c * 9 + at, 24, 20 + at), "JPEG", quality=80))
        for c, name in enumerate(classes)
        for at in range(1, 5)
    }
    members = [("dtd/images/" + name, data) for name, (_, data) in files.items()]
    parts = {}
    for partition in range(1, 11):
        for split, numbers in [("train", [3, 1]), ("val", [4]), ("test", [2])]:
            names = [f"{name}/{name}_{(at + partition) % 4 + 1:04}.jpg" for at in numbers for name in classes]
            members.append((f"dtd/labels/{split}{partition}.txt", "".join(name + "\n" for name in names).encode()))
            parts[split, partition] = [(files[name][0], decoded(files[name][1])) for name in names]
    tar_gz("dtd-r1.0.1.tar.gz", members)
    for name, partition in [("dtd", 1), ("dtd-3", 3)]:
        bank = parts["train", partition] + parts["val", partition]
        expect(name, classes, bank, parts["test", partition])


def parquet(bank, query):
    """As `datasets` writes them: uoft-cs/cifar10's columns and its description in the schema's metadata."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    told = {"features": {"img": {"_type": "Image"}, "label": {"names": CIFAR10, "_type": "ClassLabel"}}}
    metadata = {"huggingface": json.dumps({"info": told})}
    schema = pyarrow.schema([("img", image), ("label", pyarrow.int64())], metadata=metadata)

    def write(name, part, **options):
        images = [{"bytes": encoded(pixels, "PNG"), "path": None} for _, pixels in part]
        columns = [pyarrow.array(images, image), pyarrow.array([label for label, _ in part], pyarrow.int64())]
        table = pyarrow.Table.from_arrays(columns, schema=schema)
        pyarrow.parquet.write_table(table, OUT / name, **options)

    # Several groups of rows; with a dictionary and without; several pages of one group.
    write("train-00000-of-00002.parquet", bank[:7], row_group_size=3)
    write("train-00001-of-00002.parquet", bank[7:], use_dictionary=False, data_page_size=1, write_batch_size=1)
    write("test-00000-of-00001.parquet", query)

    features = {"label": "fine_label", "names": ["x", "y"], "coarse": ["z"]}
    told = {"fine_label": {"names": features["names"]}, "coarse_label": {"names": features["coarse"]}}
    columns = [("img", image), ("fine_label", pyarrow.int64()), ("coarse_label", pyarrow.int64())]
    metadata = {"huggingface": json.dumps({"info": {"features": told}})}
    images = [{"bytes": encoded(picture(at), "PNG"), "path": f"{at}.png"} for at in range(3)]
    arrays = [pyarrow.array(images, image), pyarrow.array([0, 1, 0], pyarrow.int64())]
    arrays.append(pyarrow.array([0, 0, 0], pyarrow.int64()))
    table = pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(columns, metadata=metadata))
    pyarrow.parquet.write_table(table, OUT / "two-labels.parquet")
    expect("two-labels", ["x", "y"], [(at % 2, picture(at)) for at in range(3)], [])
    expect("two-labels-coarse", ["z"], [(0, picture(at)) for at in range(3)], [])


def idx():
    classes = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
    for name, labels, base in [("train", [9, 0, 3, 2, 7, 5, 1, 4, 6, 8], 0), ("t10k", [2, 9], 60)]:
        images = numpy.stack([picture(base + at, 28, 28)[..., 0] for at in range(len(labels))])
        write = lambda path, data: (OUT / path).write_bytes(gzip.compress(data, 9, mtime=0))
        write(f"{name}-images-idx3-ubyte.gz", struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
        write(f"{name}-labels-idx1-ubyte.gz", struct.pack(">II", 2049, len(labels)) + bytes(labels))
        grey = [(label, numpy.repeat(image[..., None], 3, -1)) for label, image in zip(labels, images)]
        if name == "train":
            bank = grey
    expect("fashion-mnist", classes, bank, grey)


def jpeg():
    """Every way of halving the colours, sizes that fill no block, grey, progressive, restarts, CMYK aside."""
    forms = [
        (33, 25, dict(subsampling="4:4:4")),
        (31, 40, dict(subsampling="4:2:2")),
        (35, 29, dict(subsampling="4:2:0")),
        (17, 50, dict(subsampling="4:2:0", progressive=True)),
        (48, 48, dict(subsampling="4:2:0", quality=30, optimize=True)),
        (40, 33, dict(subsampling="4:1:1")),
        (24, 24, dict(subsampling="4:2:0", restart_marker_blocks=1)),
    ]
    files = [encoded(texture(at, h, w), "JPEG", **{"quality": 75, **form}) for at, (h, w, form) in enumerate(forms)]
    files.append(encoded(texture(9, 21, 22)[..., 0], "JPEG"))
    with zipfile.ZipFile(OUT / "jpeg.zip", "w") as archive:
        for at, data in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"a/{at}.jpg"), data)
    expect("jpeg", ["a"], [(0, decoded(data)) for data in files], [])


OUT.mkdir(exist_ok=True)
bank, query = cifar10()
cifar100()
svhn()
eurosat()
dtd()
parquet(bank, query)
idx()
jpeg()
(OUT / "expected.json").write_text(json.dumps(expected, separators=(",", ":")).replace('},"', '},\n"') + "\n")
