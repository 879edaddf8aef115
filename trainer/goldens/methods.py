"""Loss and gradients of every method, which `methods/golden_tests.rs` is compared with: torch 2.11.0.

    python methods.py > methods.json

The encoder is `models/vit.rs::tiny(true)`, the values are those of `weights/initial.rs`, made again here from SHA-256 and
SplitMix64. What each method adds is written from its equations: one function that runs the whole encoder, with the
methods' places in it, and autograd for the rest. Values are rounded to f32 as the trainer rounds them, and everything
after that is f64.
"""

import hashlib
import json
import math

import numpy
import torch
import torch.nn.functional as F

DIM, DEPTH, MLP, PATCH, GRID, SIDE = 64, 2, 128, 14, 4, 28
TEXT, WORD = 32, 24
EPS = 1e-6
# Seeds: of the run, of the noise that moves what is trained, of what is given from other models.
RUN, MOVED, GIVEN = 7, 11, 13


# ---- values -------------------------------------------------------------------------------------------------------


def uniforms(seed, label, count):
    """The first uniform draws of the stream that `weights/initial.rs` gives to `label` under `seed`."""
    state = int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:8], "big")
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(state) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    return (z >> numpy.uint64(11)).astype(numpy.float64) / float(2**53)


def shaped(values, shape):
    return torch.from_numpy(values.astype(numpy.float32)).reshape(shape)


def standard_normals(seed, label, count):
    draws = uniforms(seed, label, 2 * count)
    return numpy.sqrt(-2 * numpy.log(1 - draws[0::2])) * numpy.cos(2 * math.pi * draws[1::2])


def normal(seed, name, shape, sigma):
    return shaped(sigma * standard_normals(seed, name, math.prod(shape)), shape)


def truncated_normal(seed, name, shape, sigma):
    count = math.prod(shape)
    draws = standard_normals(seed, name, 2 * count + 100)
    return shaped(sigma * draws[numpy.abs(draws) <= 2][:count], shape)


def uniform(seed, name, shape, bound):
    return shaped((2 * uniforms(seed, name, math.prod(shape)) - 1) * bound, shape)


def block_shapes(dim, mlp):
    """Names and shapes of a block's tensors, LayerScale left out."""
    return {
        "norm1.weight": [dim], "norm1.bias": [dim], "attn.qkv.weight": [3 * dim, dim], "attn.qkv.bias": [3 * dim],
        "attn.proj.weight": [dim, dim], "attn.proj.bias": [dim], "norm2.weight": [dim], "norm2.bias": [dim],
        "mlp.fc1.weight": [mlp, dim], "mlp.fc1.bias": [mlp], "mlp.fc2.weight": [dim, mlp], "mlp.fc2.bias": [dim],
    }


def backbone():
    shapes = {
        "cls_token": [1, 1, DIM], "pos_embed": [1, 1 + GRID**2, DIM],
        "patch_embed.proj.weight": [DIM, 3, PATCH, PATCH], "patch_embed.proj.bias": [DIM],
        "norm.weight": [DIM], "norm.bias": [DIM],
    }
    for b in range(DEPTH):
        own = {**block_shapes(DIM, MLP), "ls1.gamma": [DIM], "ls2.gamma": [DIM]}
        shapes.update({f"blocks.{b}.{leaf}": shape for leaf, shape in own.items()})

    def value(name, shape):
        gain = "norm" in name and name.endswith("weight") or name.endswith("gamma")
        noise = normal(0, name, shape, 0.1)
        return noise + 1 if gain else noise

    return {name: value(name, shape) for name, shape in shapes.items()}


# ---- what a method adds -------------------------------------------------------------------------------------------


def own_blocks(spec):
    return spec.get("blocks", range(DEPTH))


def adapter_tensors(t, name, rank, init="zero", scale=False, norm=False):
    down = f"{name}.down.weight"
    t[down] = uniform(RUN, down, [rank, DIM], DIM**-0.5) if init == "lora" else \
        truncated_normal(RUN, down, [rank, DIM], 0.01)
    up = f"{name}.up.weight"
    t[up] = truncated_normal(RUN, up, [DIM, rank], 0.01) if init == "houlsby" else torch.zeros(DIM, rank)
    t[f"{name}.down.bias"], t[f"{name}.up.bias"] = torch.zeros(rank), torch.zeros(DIM)
    if scale:
        t[f"{name}.scale"] = torch.ones(DIM)
    if norm:
        t[f"{name}.norm.weight"], t[f"{name}.norm.bias"] = torch.ones(DIM), torch.zeros(DIM)


def added(spec):
    """Start values of what the method adds, under the run's seed, and what it is given."""
    kind, t, given = spec["kind"], {}, {}
    rank = spec.get("rank", 8)

    def draw(name, shape, fan_in):
        t[name] = normal(RUN, name, shape, fan_in**-0.5)

    if kind == "block_expansion":
        group = DEPTH // spec["copies"]
        for b in range(group - 1, DEPTH, group):
            for name, value in backbone().items():
                if name.startswith(f"blocks.{b}."):
                    leaf = name[len(f"blocks.{b}."):]
                    last = leaf.startswith("attn.proj") or leaf.startswith("mlp.fc2")
                    t[f"blocks.{b}.copy.{leaf}"] = torch.zeros_like(value) if last else value
    elif kind == "adapter":
        form = spec.get("form", "adapter_plus")
        modules = ["adapter_attn", "adapter_mlp"] if form == "houlsby" else ["adapter"]
        for b in own_blocks(spec):
            for module in modules:
                adapter_tensors(t, f"blocks.{b}.{module}", rank, spec.get("init", "zero"),
                                spec.get("learned_scale", form == "adapter_plus"), form == "pfeiffer")
    elif kind == "lora":
        sizes = {"query": (DIM, DIM), "key": (DIM, DIM), "value": (DIM, DIM), "proj": (DIM, DIM),
                 "fc1": (DIM, MLP), "fc2": (MLP, DIM)}
        for b in own_blocks(spec):
            for target in spec.get("targets", ["query", "value"]):
                wide, out = sizes[target]
                a = f"blocks.{b}.lora.{target}.a"
                t[a] = uniform(RUN, a, [rank, wide], wide**-0.5)
                t[f"blocks.{b}.lora.{target}.b"] = torch.zeros(out, rank)
    elif kind == "film" and "generator" not in spec:
        for b in own_blocks(spec):
            for site in (1, 2):
                for leaf in ("delta_gamma", "beta"):
                    t[f"blocks.{b}.film{site}.{leaf}"] = torch.zeros(DIM)
    elif kind == "film":
        hidden = spec["generator"].get("hidden", 64)
        draw("film.hidden.weight", [hidden, TEXT], 1)
        t["film.hidden.bias"] = torch.zeros(hidden)
        if spec["generator"].get("null_text", "learned") == "learned":
            draw("film.null", [1, TEXT], TEXT)
        for b in own_blocks(spec):
            for site in (1, 2):
                t[f"blocks.{b}.film{site}.generator.weight"] = torch.zeros(2 * DIM, hidden)
                t[f"blocks.{b}.film{site}.generator.bias"] = torch.zeros(2 * DIM)
    elif kind == "fusion":
        draw("fusion.text.weight", [DIM, TEXT], TEXT)
        if spec.get("null_text", "learned") == "learned":
            draw("fusion.null", [1, TEXT], TEXT)
        attention, blocks = spec.get("attention", "merged"), list(own_blocks(spec))
        for b in blocks:
            at = f"blocks.{b}.fusion."
            t[f"{at}gate"] = torch.zeros([])
            if attention == "joint":
                draw(f"{at}down.weight", [rank, DIM], DIM)
                for leaf in ("query", "key", "value"):
                    draw(f"{at}{leaf}.weight", [rank, rank], rank)
                draw(f"{at}up.weight", [DIM, rank], rank)
                continue
            sets = ["", "text_"] if attention == "co_attention" and b != blocks[-1] else [""]
            for prefix in sets:
                for leaf in ("query", "key", "value"):
                    draw(f"{at}{prefix}{leaf}.weight", [rank, DIM], DIM)
                draw(f"{at}{prefix}out.weight", [DIM, rank], rank)
                t[f"{at}{prefix}gate"] = torch.zeros([])
    elif kind == "token_replay":
        reading = spec.get("reading", "a")
        if reading == "a":
            memory = spec.get("memory", 16)
            draw("replay.text.weight", [DIM, TEXT], TEXT)
            given["replay.memory"] = normal(GIVEN, "replay.memory", [memory, TEXT], 1.0)
        for b in own_blocks(spec):
            at = f"blocks.{b}.replay."
            if reading == "a":
                for leaf in ("query", "key", "value"):
                    draw(f"{at}{leaf}.weight", [rank, DIM], DIM)
                draw(f"{at}out.weight", [DIM, rank], rank)
                t[f"{at}gate"] = torch.zeros([])
            elif reading == "b":
                t[f"{at}down.weight"] = truncated_normal(RUN, f"{at}down.weight", [rank, 2 * DIM], 0.01)
                t[f"{at}down.bias"] = torch.zeros(rank)
                t[f"{at}up.weight"], t[f"{at}up.bias"] = torch.zeros(DIM, rank), torch.zeros(DIM)
            else:
                adapter_tensors(t, f"blocks.{b}.adapter", rank, scale=True)
    elif kind == "ladder":
        wide = DIM // spec.get("reduction", 8)
        shapes = {f"ladder.down.{i}.{leaf}": shape for i in range(DEPTH + 1)
                  for leaf, shape in (("weight", [wide, DIM]), ("bias", [wide]))}
        for i in range(DEPTH):
            shapes[f"ladder.mix.{i}"] = []
            shapes.update({f"ladder.blocks.{i}.{leaf}": s for leaf, s in block_shapes(wide, 4 * wide).items()})
        shapes |= {"ladder.norm.weight": [wide], "ladder.norm.bias": [wide], "ladder.up.weight": [DIM, wide],
                   "ladder.up.bias": [DIM], "ladder.gate": []}
        for name, shape in shapes.items():
            gain = "norm" in name and name.endswith("weight")
            t[name] = truncated_normal(RUN, name, shape, 0.02) if len(shape) == 2 else torch.full(shape, float(gain))
    elif kind == "reprogram":
        t["program"] = torch.zeros(1, 3, SIDE, SIDE)
    elif kind == "cross_modal":
        words = spec["words"]
        table = normal(GIVEN, "words.table", [words, WORD], 1.0)
        given["words.table"] = table / table.norm(dim=1, keepdim=True)
        draw("words.query.weight", [rank, DIM], DIM)
        draw("words.key.weight", [rank, WORD], WORD)
        t["words.out.weight"] = torch.zeros(DIM, WORD)
        for b in range(DEPTH):
            adapter_tensors(t, f"blocks.{b}.adapter", rank, scale=True)
    return t, given


def trained(spec, own):
    """Which tensors are trained: the backbone's for `full`, a block's for `selective`, else what is added."""
    if spec["kind"] == "full":
        return list(backbone())
    if spec["kind"] == "selective":
        last = [f"blocks.{DEPTH - 1 - i}." for i in range(spec["k"])]
        return [name for name in backbone() if any(name.startswith(begin) for begin in last)]
    return list(own)


# ---- the encoder, with the methods' places in it --------------------------------------------------------------------


def plain_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def attend(query, keys, values, real=None):
    """One head, scale r^-1/2. Where no key is real the output is 0."""
    scores = query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5  # [batch, queries, keys]
    if real is None:
        return scores.softmax(-1) @ values
    mask = real[:, None, :]
    weights = scores.masked_fill(~mask, -1e30).softmax(-1) * mask
    return weights @ values


def adapt(t, name, x, act=F.gelu):
    """s ⊙ Up(act(Down x))"""
    hidden = act(F.linear(x, t[f"{name}.down.weight"], t[f"{name}.down.bias"]))
    y = F.linear(hidden, t[f"{name}.up.weight"], t[f"{name}.up.bias"])
    return y * t[f"{name}.scale"] if f"{name}.scale" in t else y


def side_block(t, name, x):
    """A pre-LN block of one head without LayerScale."""
    at = lambda leaf: t[f"{name}.{leaf}"]
    y = F.layer_norm(x, x.shape[-1:], at("norm1.weight"), at("norm1.bias"), EPS)
    query, key, value = F.linear(y, at("attn.qkv.weight"), at("attn.qkv.bias")).chunk(3, -1)
    x = x + F.linear(attend(query, key, value), at("attn.proj.weight"), at("attn.proj.bias"))
    y = F.layer_norm(x, x.shape[-1:], at("norm2.weight"), at("norm2.bias"), EPS)
    y = F.gelu(F.linear(y, at("mlp.fc1.weight"), at("mlp.fc1.bias")))
    return x + F.linear(y, at("mlp.fc2.weight"), at("mlp.fc2.bias"))


def captions(spec, t, text, batch):
    """The captions with what stands in for the missing ones: tokens [batch, m, TEXT] and which are real."""
    null = next((t[name] for name in ("film.null", "fusion.null", "replay.memory") if name in t), None)
    if text is None:
        text = (torch.zeros(batch, 1, TEXT, dtype=torch.float64), torch.zeros(batch, 1, dtype=torch.bool))
    rows, marks = [], []
    longest = max(text[0].shape[1], 0 if null is None else null.shape[0])
    for tokens, real in zip(*text):
        if not real.any() and null is not None:
            tokens, real = null, torch.ones(null.shape[0], dtype=torch.bool)
        missing = longest - tokens.shape[0]
        rows.append(F.pad(tokens, (0, 0, 0, missing)))
        marks.append(F.pad(real, (0, missing)))
    return torch.stack(rows), torch.stack(marks)


def fuse(t, at, attention, v, c, real):
    """Image tokens v and caption tokens c after a block."""
    weight = lambda leaf: t[f"{at}{leaf}.weight"]
    gate = lambda leaf: torch.tanh(t[f"{at}{leaf}"])
    image, words = plain_norm(v), plain_norm(c)
    if attention in ("merged", "joint"):
        x = torch.cat([v, c], 1)
        inside = torch.cat([torch.ones(v.shape[:2], dtype=torch.bool), real], 1)
        y = plain_norm(x)
        if attention == "joint":
            y = F.gelu(y @ weight("down").T)
        y = attend(y @ weight("query").T, y @ weight("key").T, y @ weight("value").T, inside)
        x = x + gate("gate") * (y @ weight("up" if attention == "joint" else "out").T)
        return x[:, : v.shape[1]], x[:, v.shape[1]:]
    y = attend(image @ weight("query").T, words @ weight("key").T, words @ weight("value").T, real)
    new = v + gate("gate") * (y @ weight("out").T)
    if attention == "co_attention" and f"{at}text_gate" in t:
        y = attend(words @ weight("text_query").T, image @ weight("text_key").T, image @ weight("text_value").T)
        c = c + gate("text_gate") * (y @ weight("text_out").T)
    return new, c


def encoder_block(spec, t, b, name, x, film):
    """A block of one head with LayerScale; the methods that act inside act here."""
    kind, form = spec["kind"], spec.get("form", "adapter_plus")
    acts = kind == "adapter" and b in own_blocks(spec) and name == f"blocks.{b}"
    module = f"{name}.adapter"
    at = lambda leaf: t[f"{name}.{leaf}"]

    def linear(x, leaf, targets):
        y = F.linear(x, at(f"{leaf}.weight"), at(f"{leaf}.bias"))
        for place, target in enumerate(targets):
            lora = f"{name}.lora.{target}"
            if f"{lora}.a" in t:
                factor = spec.get("alpha", spec.get("rank", 8)) / spec.get("rank", 8)
                update = F.linear(F.linear(x, t[f"{lora}.a"]), t[f"{lora}.b"]) * factor
                wide = update.shape[-1]
                y = y + F.pad(update, (place * wide, y.shape[-1] - (place + 1) * wide))
        return y

    def norm(x, site):
        y = F.layer_norm(x, [DIM], at(f"norm{site}.weight"), at(f"norm{site}.bias"), EPS)
        if (b, site) in film:
            gamma, beta = film[b, site]
            y = (1 + gamma) * y + beta
        return y

    qkv = linear(norm(x, 1), "attn.qkv", ["query", "key", "value"])
    y = linear(attend(*qkv.chunk(3, -1)), "attn.proj", ["proj"])
    if acts and form == "houlsby":
        y = y + adapt(t, f"{name}.adapter_attn", y)
    middle = x + at("ls1.gamma") * y
    if acts and form == "pre":
        middle = middle + adapt(t, module, middle)
    y = linear(F.gelu(linear(norm(middle, 2), "mlp.fc1", ["fc1"])), "mlp.fc2", ["fc2"])
    if acts and form == "houlsby":
        y = y + adapt(t, f"{name}.adapter_mlp", y)
    if acts and form == "intermediate":
        y = y + adapt(t, module, y)
    x = middle + at("ls2.gamma") * y
    if acts and form == "parallel":
        x = x + spec.get("scale", 0.1) * adapt(t, module, middle, F.relu)
    if acts and form == "pfeiffer":
        x = x + adapt(t, module, F.layer_norm(x, [DIM], t[f"{module}.norm.weight"], t[f"{module}.norm.bias"], EPS))
    if acts and form == "adapter_plus":
        x = x + adapt(t, module, x)
    return x


def tokens(spec, t, pixels, text):
    """All tokens after the final LayerNorm. [batch, 3, 28, 28] → [batch, 5, DIM]"""
    kind = spec["kind"]
    if kind == "reprogram" and spec.get("program", "additive") == "additive":
        pixels = pixels + torch.tanh(t["program"])
    elif kind == "reprogram":
        inner = spec["inner"]
        edge = (SIDE - inner) // 2
        small = F.interpolate(pixels, size=(inner, inner), mode="bilinear", antialias=True)
        rest = SIDE - inner - edge
        mask = F.pad(torch.zeros(inner, inner, dtype=torch.float64), (edge, rest, edge, rest), value=1.0)
        pixels = F.pad(small, (edge, rest, edge, rest)) + torch.tanh(t["program"] * mask)

    x = F.conv2d(pixels, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH)
    rows, columns = x.shape[2:]
    x = torch.cat([t["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    table = t["pos_embed"][:, 1:].reshape(1, GRID, GRID, DIM).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
    x = x + torch.cat([t["pos_embed"][:, :1], table.flatten(2).transpose(1, 2)], 1)

    if kind == "cross_modal":
        keys = F.linear(t["words.table"], t["words.key.weight"])
        visual = x[:, 1:]
        scores = F.linear(visual, t["words.query.weight"]) @ keys.T
        scores = scores * spec.get("rank", 8) ** -0.5 / spec.get("temperature", 1.0)
        best = scores.topk(spec["sparsity"], -1)
        weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1))
        x = torch.cat([x[:, :1], visual + F.linear(weights @ t["words.table"], t["words.out.weight"])], 1)

    film, c, real = {}, None, None
    if kind == "film" and "generator" in spec:
        c, real = captions(spec, t, text, len(x))
        hidden = F.gelu(F.linear(c, t["film.hidden.weight"], t["film.hidden.bias"]))  # [batch, 1, hidden]
    for b in own_blocks(spec) if kind == "film" else []:
        for site in (1, 2):
            at = f"blocks.{b}.film{site}."
            if "generator" in spec:
                both = F.linear(hidden, t[f"{at}generator.weight"], t[f"{at}generator.bias"]) * real[..., None]
                film[b, site] = both.chunk(2, -1)
            else:
                film[b, site] = t[f"{at}delta_gamma"], t[f"{at}beta"]
    if kind == "fusion" or kind == "token_replay" and spec.get("reading", "a") == "a":
        c, real = captions(spec, t, text, len(x))
        c = F.linear(c, t["fusion.text.weight" if kind == "fusion" else "replay.text.weight"])

    first, side = x, None
    if kind == "ladder":
        side = F.linear(x, t["ladder.down.0.weight"], t["ladder.down.0.bias"])
    for b in range(DEPTH):
        x = encoder_block(spec, t, b, f"blocks.{b}", x, film)
        if f"blocks.{b}.copy.norm1.weight" in t:
            x = encoder_block(spec, t, b, f"blocks.{b}.copy", x, film)
        if kind == "fusion" and b in own_blocks(spec):
            x, c = fuse(t, f"blocks.{b}.fusion.", spec.get("attention", "merged"), x, c, real)
        if kind == "token_replay" and b in own_blocks(spec):
            if spec.get("reading", "a") == "a":
                x, _ = fuse(t, f"blocks.{b}.replay.", "asymmetric", x, c, real)
            elif spec["reading"] == "b":
                x = x + adapt(t, f"blocks.{b}.replay", torch.cat([x, first], -1))
            else:
                x = x + adapt(t, f"blocks.{b}.adapter", x)
        if kind == "cross_modal":
            x = x + adapt(t, f"blocks.{b}.adapter", x)
        if kind == "ladder":
            mix = torch.sigmoid(t[f"ladder.mix.{b}"] / 0.1)
            seen = F.linear(x, t[f"ladder.down.{b + 1}.weight"], t[f"ladder.down.{b + 1}.bias"])
            side = side_block(t, f"ladder.blocks.{b}", mix * side + (1 - mix) * seen)
    x = F.layer_norm(x, [DIM], t["norm.weight"], t["norm.bias"], EPS)
    if kind == "ladder":
        side = F.layer_norm(side, side.shape[-1:], t["ladder.norm.weight"], t["ladder.norm.bias"], EPS)
        x = x + t["ladder.gate"] * F.linear(side, t["ladder.up.weight"], t["ladder.up.bias"])
    return x


# ---- the cases ------------------------------------------------------------------------------------------------------

CASES = [
    {"kind": "full"},
    {"kind": "selective", "k": 1},
    {"kind": "block_expansion", "copies": 1},
    {"kind": "block_expansion", "copies": 2},
    {"kind": "adapter"},
    {"kind": "adapter", "rank": 3, "learned_scale": False, "blocks": [1]},
    {"kind": "adapter", "init": "houlsby"},
    {"kind": "adapter", "form": "pre"},
    {"kind": "adapter", "form": "intermediate"},
    {"kind": "adapter", "form": "houlsby", "learned_scale": True},
    {"kind": "adapter", "form": "pfeiffer"},
    {"kind": "adapter", "form": "parallel", "init": "lora"},
    {"kind": "lora"},
    {"kind": "lora", "rank": 4, "alpha": 8.0, "targets": ["query", "key", "value", "proj", "fc1", "fc2"]},
    {"kind": "film"},
    {"kind": "film", "generator": {"hidden": 16}},
    {"kind": "fusion"},
    {"kind": "fusion", "null_text": "drop"},
    {"kind": "fusion", "attention": "co_attention"},
    {"kind": "fusion", "attention": "asymmetric"},
    {"kind": "fusion", "attention": "joint"},
    {"kind": "token_replay"},
    {"kind": "token_replay", "reading": "b"},
    {"kind": "token_replay", "reading": "c", "buffer": {"dataset": "d"}},
    {"kind": "ladder", "reduction": 4},
    {"kind": "reprogram"},
    {"kind": "reprogram", "program": "border", "inner": 14},
    {"kind": "cross_modal", "language_model": "m", "words": 12, "sparsity": 3, "rank": 4},
]


def caption_lengths(spec):
    """Tokens of the three captions, the second of which is missing; nothing for a method that reads none."""
    if spec["kind"] == "film" and "generator" in spec:
        return [1, 0, 1]
    reads = spec["kind"] == "fusion" or spec["kind"] == "token_replay" and spec.get("reading", "a") == "a"
    return [3, 0, 2] if reads else None


def rounded(number):
    return float(f"{number:.7g}")


def summary(loss, names, leaves):
    gradients = {}
    for name, gradient in zip(names, torch.autograd.grad(loss, leaves, allow_unused=True)):
        gradients[name] = None if gradient is None else \
            [rounded(value) for value in (gradient.norm().item(), *gradient.flatten()[:3].tolist())]
    return {"loss": rounded(loss.item()), "gradients": gradients}


def case(spec):
    own, given = added(spec)
    t = {**backbone(), **own, **given}
    names = sorted(trained(spec, own))
    for name in names:
        t[name] = t[name] + normal(MOVED, name, list(t[name].shape), 0.1)
    t = {name: value.double() for name, value in t.items()}
    leaves = [t[name].requires_grad_() for name in names]
    pixels = normal(1, "pixels", [3, 3, SIDE, SIDE], 1.0).double()
    found = {"method": spec}
    found["features"] = summary(tokens(spec, t, pixels, None)[:, 0].square().sum(), names, leaves)
    lengths = caption_lengths(spec)
    if lengths:
        words = normal(1, "text", [3, max(lengths), TEXT], 1.0).double()
        real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        loss = tokens(spec, t, pixels, (words, real)).square().sum()
        found["captioned"] = {"lengths": lengths, **summary(loss, names, leaves)}
    return found


def written(value, indent=0):
    """JSON with a line for each gradient."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(" " * (indent + 1) + written(item, indent + 1) for item in value) + "]"
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()) and "kind" not in value:
        lines = (" " * (indent + 1) + json.dumps(name) + ": " + written(item, indent + 1) for name, item in value.items())
        return "{\n" + ",\n".join(lines) + "}"
    return json.dumps(value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    made_with = f"torch {torch.__version__.split('+')[0]}, numpy {numpy.__version__}"
    print(written({"made_with": made_with, "cases": [case(spec) for spec in CASES]}))
