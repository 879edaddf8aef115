"""Numbers that the vision models are tested against: torch 2.11.0, timm 1.0.31, open_clip 3.3.0, transformers 5.23.0.

    python vision.py > vision.json

Small encoders whose weights come from SplitMix64 streams named by the tensors' names, as `models/golden.rs` makes them
again.
"""

import hashlib
import json

import numpy
import open_clip
import timm
import torch
import torch.nn.functional as F
import transformers

SCALE = 0.25


def stream(label, count):
    """The first draws of the stream that `weights/initial.rs` names "0/label", in [-0.5, 0.5), 24 bits each."""
    seed = int.from_bytes(hashlib.sha256(f"0/{label}".encode()).digest()[:8], "big")
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    return (z >> numpy.uint64(40)).astype(numpy.float32) / numpy.float32(2**24) - numpy.float32(0.5)


def seeded(name, shape, scale=SCALE):
    values = torch.from_numpy(stream(name, int(numpy.prod(shape)))).reshape(shape) * scale
    gain = "norm" in name and name.endswith("weight") or name.endswith("gamma")
    return values + 1 if gain else values


def fill(model, canonical):
    """Sets every tensor of a model; `canonical` gives the canonical names of its own."""
    state = {}
    for own, tensor in model.state_dict().items():
        name = canonical(own)
        if isinstance(name, tuple):  # a third of the fused query, key and value
            name, third = name
            rows = seeded(name, (3 * tensor.shape[0], *tensor.shape[1:]))
            state[own] = rows.chunk(3)[third]
        elif own.endswith("visual.proj") or own == "proj":
            state[own] = seeded(name, tensor.T.shape).T
        else:
            state[own] = seeded(name, tensor.shape)
    model.load_state_dict(state)
    return model.eval()


def summary(values):
    return {"first": values.flatten()[:6].tolist(), "norm": values.norm().item()}


def pixels(label, height, width, batch=1):
    return seeded(label, (batch, 3, height, width), 4.0)


def vit(size):
    """timm's VisionTransformer, as it makes DINO's: 128 wide, two heads, two blocks, 14 px patches."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=14, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2, num_classes=0,
        dynamic_img_size=size == 56,
    )
    return model


def dino():
    """Features at the table's own size and at another under each rule for the positions."""
    native = fill(vit(56), lambda own: own)
    table = native.pos_embed.detach()
    grid = table[:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    rules = {
        "hf_size": F.interpolate(grid, size=(3, 5), mode="bicubic", align_corners=False),
        # DINO's interpolate_pos_encoding.
        "dino_scale_offset": F.interpolate(grid, scale_factor=(3.1 / 4, 5.1 / 4), mode="bicubic"),
    }
    other = pixels("pixels 42x70", 42, 70)
    numbers = {"native": summary(native(pixels("pixels 56x56", 56, 56)))}
    numbers["tokens"] = summary(native.forward_features(pixels("pixels 56x56", 56, 56))[0, 5:])
    numbers["timm_antialias"] = summary(native(other))
    for rule, resized in rules.items():
        assert resized.shape == (1, 128, 3, 5)
        model = fill(vit((42, 70)), lambda own: own)
        model.pos_embed.data = torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, 15, 128)], 1)
        numbers[rule] = summary(model(other))
    return numbers


OPEN_CLIP = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "proj": "proj.weight",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
}
RESBLOCK = [
    ("transformer.resblocks.", "blocks."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
]


def from_open_clip(own):
    for begin, canonical in OPEN_CLIP.items():
        if own.startswith(begin):
            return canonical + own[len(begin):]
    for part, canonical in RESBLOCK:
        own = own.replace(part, canonical)
    return own


def clip():
    """open_clip's image tower with OpenAI's activation and with the usual one, projected to 32; and the latter for
    images of another size, its table resized as open_clip does when it loads a checkpoint."""
    numbers = {}
    for name, activation in [("quick_gelu", open_clip.transformer.QuickGELU), ("gelu", torch.nn.GELU)]:
        model = open_clip.transformer.VisionTransformer(
            image_size=56, patch_size=14, width=128, layers=2, heads=2, mlp_ratio=2, output_dim=32,
            act_layer=activation,
        )
        numbers[name] = summary(fill(model, from_open_clip)(pixels("pixels 56x56", 56, 56)))
    state = {f"visual.{own}": tensor for own, tensor in model.state_dict().items()}
    other = torch.nn.Module()
    other.visual = open_clip.transformer.VisionTransformer(
        image_size=(42, 70), patch_size=14, width=128, layers=2, heads=2, mlp_ratio=2, output_dim=32,
    )
    open_clip.model.resize_pos_embed(state, other)
    other.load_state_dict(state)
    numbers["resized"] = summary(other.eval().visual(pixels("pixels 42x70", 42, 70)))
    return numbers


HF = [
    ("vit.", ""),
    ("decoder.", ""),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("decoder_layers.", "decoder_blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("layernorm.", "norm."),
]


def from_hugging_face(own):
    for part, canonical in HF:
        own = own.replace(part, canonical)
    if own.startswith("layers."):
        own = f"blocks.{own[len('layers.'):]}"
    for third, name in enumerate(["q_proj", "k_proj", "v_proj"]):
        if f"attention.{name}" in own:
            return own.replace(f"attention.{name}", "attn.qkv"), third
    return own


def mae():
    """ViTMAEForPreTraining on two images, 12 of 16 patches removed; the gradient is that of the decoder's output."""
    numbers = {}
    for name, norm_pix in [("pixels", False), ("normalised", True)]:
        config = transformers.ViTMAEConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128, layer_norm_eps=1e-6,
            image_size=32, patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=2,
            decoder_num_attention_heads=16, decoder_intermediate_size=128, norm_pix_loss=norm_pix, mask_ratio=0.75,
        )
        model = fill(transformers.ViTMAEForPreTraining(config), from_hugging_face)
        out = model(pixels("pixels 32x32", 32, 32, batch=2), noise=seeded("noise", (2, 16)))
        out.logits.retain_grad()
        out.loss.backward()
        removed = out.mask[0].nonzero()[0].item()
        numbers[name] = {
            "loss": out.loss.item(),
            "prediction": summary(out.logits.detach()),
            "gradient": {"first": out.logits.grad[0, removed, :6].tolist(), "norm": out.logits.grad.norm().item()},
            "first_removed": removed,
        }
    with torch.no_grad():
        seen = model.vit(
            pixels("pixels 24x40", 24, 40, batch=2), noise=seeded("noise 15", (2, 15)), interpolate_pos_encoding=True
        )
    numbers["resized"] = summary(seen.last_hidden_state)
    return numbers


if __name__ == "__main__":
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        numbers = {"dino": dino(), "clip": clip()}
    numbers = {
        "made_with": f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}, "
        f"open_clip {open_clip.__version__}, transformers {transformers.__version__}",
        **numbers,
        "mae": mae(),
    }
    print(json.dumps(numbers, indent=1))
