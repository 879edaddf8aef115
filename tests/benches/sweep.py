"""A sweep of θ_α = (1 − α)·θ0 + α·θ1 in eager PyTorch, the usual way: what the trainer's sweep is compared with.

    python sweep.py sweep JSON    ->  {"hits": ..., "margins": ..., "seconds": ...}
    python sweep.py parts THREADS BATCH  ->  {"f32": {"gemm": seconds, ...}, "bf16": ..., "rates": ...}

For every α the weights are mixed and loaded, every image is read, decoded and resized by Pillow, and passes through every
block; the next batch is read in a thread while one is computed, as a DataLoader does. Then k-NN as DINO's eval_knn.py
does it. "parts" times each operation of a block alone, at a batch's shapes: the products as `linear` does them (MKL in f32)
and by oneDNN.
"""

import gzip
import json
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

DIM, DEPTH, HEADS, MLP, PATCH, GRID = 384, 12, 6, 1536, 14, 37
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim)) * self.ls1
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.ls2


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.positions = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, DIM))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, pixels):
        side = pixels.shape[-1] // PATCH
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        table = self.positions[:, 1:].reshape(1, GRID, GRID, DIM).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, DIM)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + torch.cat([self.positions[:, :1], table], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def named(tensors):
    """Hugging Face's Dinov2 names as the names above."""
    out = {}
    simple = {
        "embeddings.cls_token": "cls",
        "embeddings.position_embeddings": "positions",
        "embeddings.patch_embeddings.projection.weight": "patch.weight",
        "embeddings.patch_embeddings.projection.bias": "patch.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    inner = {
        "attention.output.dense": "proj",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    for theirs, ours in simple.items():
        out[ours] = tensors[theirs].float()
    for block in range(DEPTH):
        layer = lambda name: tensors[f"encoder.layer.{block}.{name}"].float()
        for leaf in ("weight", "bias"):
            parts = [layer(f"attention.attention.{part}.{leaf}") for part in ("query", "key", "value")]
            out[f"blocks.{block}.qkv.{leaf}"] = torch.cat(parts)
            for theirs, ours in inner.items():
                out[f"blocks.{block}.{ours}.{leaf}"] = layer(f"{theirs}.{leaf}")
        for at in (1, 2):
            out[f"blocks.{block}.ls{at}"] = layer(f"layer_scale{at}.lambda1")
    return out


def samples(part):
    """(what makes the image, label) of each image of a bank or of queries."""
    if part["format"] == "cifar10-binary":
        records = numpy.fromfile(part["path"], dtype=numpy.uint8).reshape(-1, 3073)
        image = lambda record: lambda: Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        return [(image(record), int(record[0])) for record in records]
    if part["format"] == "idx":
        unpacked = lambda path: numpy.frombuffer(gzip.decompress(pathlib.Path(path).read_bytes()), dtype=numpy.uint8)
        images, labels = unpacked(part["path"])[16:].reshape(-1, 28, 28), unpacked(part["labels"])[8:]
        image = lambda grey: lambda: Image.fromarray(grey).convert("RGB")
        return [(image(grey), int(label)) for grey, label in zip(images, labels)]
    folders = sorted(path for path in pathlib.Path(part["path"]).iterdir() if path.is_dir())
    image = lambda path: lambda: Image.open(path).convert("RGB")
    return [(image(path), label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]


def features(vit, images, batch, size):
    def read(begin):
        rows = []
        for image in images[begin : begin + batch]:
            pixels = image().resize((size, size), Image.BICUBIC)
            pixels = torch.from_numpy(numpy.array(pixels)).permute(2, 0, 1).contiguous().float().div(255)
            rows.append((pixels - MEAN) / DEVIATION)
        return torch.stack(rows)

    out = []
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(read, 0)
        for begin in range(0, len(images), batch):
            pixels = following.result()
            if begin + batch < len(images):
                following = reader.submit(read, begin + batch)
            out.append(vit(pixels))
    return torch.cat(out)


def knn(bank, bank_labels, queries, labels, k, temperature):
    """Who is right, and by how much of the best score the first class leads the second."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    similarity, places = (queries @ bank.T).topk(min(k, len(bank)), largest=True, sorted=True)
    classes = int(max(bank_labels.max(), labels.max())) + 1
    votes = F.one_hot(bank_labels[places], classes) * (similarity / temperature).exp().unsqueeze(-1)
    scores, order = votes.sum(1).sort(1, descending=True)
    lead = (scores[:, 0] - scores[:, 1]) / scores[:, 0]
    return order[:, 0].eq(labels), lead


def sweep(config):
    start = time.perf_counter()
    torch.set_num_threads(config["threads"])
    theta0, theta1 = named(load_file(config["theta0"])), named(load_file(config["theta1"]))
    vit = Vit().eval()
    hits, leads = [], []
    with torch.no_grad():
        for alpha in config["alphas"]:
            vit.load_state_dict({name: (1 - alpha) * theta0[name] + alpha * theta1[name] for name in theta0})
            for dataset in config["datasets"]:
                bank, queries = samples(dataset["bank"]), samples(dataset["query"])
                every = features(vit, [image for image, _ in bank + queries], config["batch"], config["size"])
                labels = [torch.tensor([label for _, label in part]) for part in (bank, queries)]
                for k in config["k"]:
                    right, lead = knn(every[: len(bank)], labels[0], every[len(bank) :], labels[1], k, config["temperature"])
                    hits.append(right.tolist())
                    leads.append(lead.tolist())
    return {"hits": hits, "leads": leads, "seconds": time.perf_counter() - start}


def timed(work, times):
    """The middle time of one call, in seconds of this process's processors and on the clock."""
    work()
    clocks, processors = [], []
    for _ in range(times):
        begin = (time.perf_counter(), time.process_time())
        work()
        clocks.append(time.perf_counter() - begin[0])
        processors.append(time.process_time() - begin[1])
    return min(clocks)


def onednn(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def parts(threads, batch, times=15):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokens, out = 50, {}
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        random = lambda *shape: torch.randn(*shape).to(kind)
        x, hidden, gain = random(batch, tokens, DIM), random(batch, tokens, MLP), random(DIM)
        qkv = random(batch, tokens, 3, HEADS, DIM // HEADS)
        weights = {(o, i): (random(o, i), random(o)) for o, i in ((3 * DIM, DIM), (DIM, DIM), (MLP, DIM), (DIM, MLP))}

        def attention():
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, DIM)

        with torch.no_grad():
            gemms = {
                name: {shape: timed(lambda: product(hidden if shape[1] == MLP else x, *weights[shape]), times) for shape in weights}
                for name, product in (("gemm", F.linear), ("gemm_onednn", onednn))
            }
            block = {
                **{name: sum(seconds.values()) for name, seconds in gemms.items()},
                "attention": timed(attention, times),
                "norm": 2 * timed(lambda: F.layer_norm(x, (DIM,), gain, gain, 1e-6), times),
                "gelu": timed(lambda: F.gelu(hidden), times),
                "residual": 2 * timed(lambda: torch.addcmul(x, x, gain), times),
            }
        out[name] = {part: seconds / batch for part, seconds in block.items()}
        for product, seconds in gemms.items():
            out[name][f"{product}_gflops"] = 2 * batch * tokens * DIM * MLP / seconds[(MLP, DIM)] / 1e9
    return out


if sys.argv[1] == "sweep":
    print(json.dumps(sweep(json.loads(pathlib.Path(sys.argv[2]).read_text()))))
else:
    print(json.dumps(parts(int(sys.argv[2]), int(sys.argv[3]))))
