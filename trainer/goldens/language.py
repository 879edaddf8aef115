"""Numbers of transformers that the text and language models are tested against: tiny models with seeded weights.

    python language.py GGUF > language.json     the committed numbers; GGUF is SmolLM2's file (packages gguf, accelerate)
    python language.py large FOLDER             GPT-2 124M and CLIP ViT-B/16's text tower with seeded weights, and what
                                                transformers computes with them, as safetensors

Every tensor draws from its own SplitMix64 stream, named by a seed and the tensor's name, so that the tests can make the
same weights: (top 24 bits / 2²⁴ − ½) · SCALE, with 1 added to the gains of norms.
"""

import hashlib
import json
import sys
from pathlib import Path

import gguf
import numpy
import torch
import transformers
from safetensors.torch import save_file

SCALE = 0.5
GAMMA = 0x9E3779B97F4A7C15


def draws(seed, name, count):
    """The first draws of the stream that `weights::initial::stream` makes of a seed and a name."""
    start = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(start) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(GAMMA)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return z ^ (z >> numpy.uint64(31))


def values(seed, name, shape, scale=SCALE):
    count = int(numpy.prod(shape))
    numbers = (draws(seed, name, count) >> numpy.uint64(40)).astype(numpy.float64) / 2**24 - 0.5
    return torch.from_numpy((numbers * scale).astype(numpy.float32)).reshape(tuple(shape))


def is_gain(name):
    return name.endswith("weight") and ("norm" in name or "ln_" in name)


def fill(model, seed, rename=lambda name: name, scale=SCALE):
    """Seeded weights for every tensor, drawn under the names that files have."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            name = rename(key)
            new = values(seed, name, tensor.shape, scale)
            tensor.copy_(new + 1 if is_gain(name) else new)
    return model.eval()


def clip_name(name):
    return name if name.startswith("text_projection") else "text_model." + name.removeprefix("text_model.")


def clip(activation):
    """The captions of the tests through a vocabulary of 18: letters, letters at the end of a word, start, end."""
    config = transformers.CLIPTextConfig(
        vocab_size=18, hidden_size=8, intermediate_size=16, projection_dim=6, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, hidden_act=activation, bos_token_id=16, eos_token_id=17, pad_token_id=0,
        attn_implementation="eager")
    model = fill(transformers.CLIPTextModelWithProjection(config), 7, clip_name)
    letters = "acdgot&."
    def ids(caption):
        words = [[letters.index(c) for c in word] for word in caption.split()]
        body = [i + 8 * (at == len(word) - 1) for word in words for at, i in enumerate(word)]
        return [16, *body[:10], 17]
    rows = [ids(caption) for caption in ["a cat", "", "a dog & a cat", "a cat", "a cat a dog a cat a dog a cat"]]
    padded = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(model(input_ids=padded).text_embeds, dim=-1)
        hidden = model.text_model(input_ids=torch.tensor(rows[:1])).last_hidden_state
    return {"ids": rows, "embeddings": embeddings.tolist(), "hidden": hidden.tolist()}


def caption_loss(model, prefix, captions, eos):
    """The mean over scored tokens, through the model's own labels: −100 under the prefix and behind the end."""
    prefix = prefix.clone().requires_grad_()
    longest = max(map(len, captions)) + 1
    rows = [caption + [eos] * (longest - len(caption)) for caption in captions]
    labels = [[-100] * prefix.shape[1] + caption + [eos] + [-100] * (longest - 1 - len(caption)) for caption in captions]
    embeddings = torch.cat([prefix, model.get_input_embeddings()(torch.tensor(rows))], 1)
    loss = model(inputs_embeds=embeddings, labels=torch.tensor(labels)).loss
    loss.backward()
    return {"loss": loss.item(), "d_prefix": prefix.grad.flatten().tolist()}


def language(model, dim, vocabulary):
    embeddings = values(11, "embeddings", (2, 5, dim), 2.0)
    keep = torch.tensor([[True] * 5, [True, True, False, True, True]])
    with torch.no_grad():
        numbers = {
            "logits": model(inputs_embeds=embeddings).logits.tolist(),
            # A dropped position's own logits mean nothing.
            "kept": model(inputs_embeds=embeddings, attention_mask=keep.long(),
                          position_ids=torch.arange(5)[None]).logits[keep].tolist(),
        }
    captions = [[3, 1, 4], [1, 5, 9, 2, 6], []]
    prefix = values(12, "prefix", (3, 2, dim), 2.0)
    return numbers | caption_loss(model, prefix, captions, vocabulary - 1)


def gpt2():
    config = transformers.GPT2Config(vocab_size=257, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_implementation="eager",
                                     bos_token_id=256, eos_token_id=256)
    rename = lambda name: name.removeprefix("transformer.")
    model = transformers.GPT2LMHeadModel(config)
    fill(model.transformer, 8, rename)
    return language(model.eval(), 8, 257)


def llama(own_head):
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, rope_theta=1000.0,
        tie_word_embeddings=not own_head, attn_implementation="eager", bos_token_id=256, eos_token_id=256)
    rename = lambda name: name.removeprefix("model.")
    model = transformers.LlamaForCausalLM(config)
    fill(model.model, 9, rename)
    if own_head:
        with torch.no_grad():
            model.lm_head.weight.copy_(values(9, "lm_head.weight", (257, 16)))
    return language(model.eval(), 16, 257)


def smollm2(path):
    """What the package gguf makes of the file's tensors, and transformers' logits after a prompt."""
    path = Path(path)
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    digest = hashlib.sha256()  # as weights::Tensors::digest
    for name in sorted(tensors, key=str.encode):
        values = tensors[name].astype("<f4")
        digest.update(f"{name}\0F32\0{list(values.shape)}\0".encode() + values.tobytes())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [504, 3575, 282, 4649, 314]  # The capital of France is
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return {"digest": digest.hexdigest(), "ids": ids, "first": logits[:12].tolist(), "norm": logits.double().norm().item()}


def thin(numbers):
    """Long lists cut to their first values, with the norm of all."""
    def cut(value):
        flat = torch.tensor(value).flatten()
        return {"first": flat[:12].tolist(), "norm": flat.double().norm().item()}
    return numbers | {name: cut(numbers[name]) for name in ("logits", "kept")}


def large(folder):
    folder = Path(folder)
    for name, model, rename, scale in [
        ("gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(attn_implementation="eager")),
         lambda name: name.removeprefix("transformer."), 0.1),
        ("clip", transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
            vocab_size=49408, hidden_size=512, intermediate_size=2048, projection_dim=512, num_hidden_layers=12,
            num_attention_heads=8, attn_implementation="eager")), clip_name, 0.1),
    ]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        model.eval()
        fill(model.transformer if name == "gpt2" else model, 10, rename, scale)
        keys = {rename(key): value.contiguous() for key, value in model.state_dict().items() if key != "lm_head.weight"}
        save_file(keys, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(model.config.to_json_string())
        with torch.no_grad():
            if name == "gpt2":
                embeddings = values(11, "embeddings", (2, 64, 768), 1.0)
                result = {"embeddings": embeddings, "logits": model(inputs_embeds=embeddings).logits}
            else:
                ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70,
                                    [49406, 320, 1929, 267, 2761, 275, 273, 3446, 256, 49407] + [0] * 67])
                embeds = model(input_ids=ids).text_embeds
                result = {"embeddings": torch.nn.functional.normalize(embeds, dim=-1),
                          "hidden": model.text_model(input_ids=ids[:1, :7]).last_hidden_state}
        save_file(result, folder / name / "reference.safetensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:2] == ["large"]:
        large(sys.argv[2])
        sys.exit()
    numbers = {
        "made_with": f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
        "clip": {activation: clip(activation) for activation in ("quick_gelu", "gelu")},
        "gpt2": thin(gpt2()),
        "llama": {"tied": thin(llama(False)), "untied": thin(llama(True))},
        "smollm2": smollm2(sys.argv[1]),
    }
    print(json.dumps(numbers, indent=1))
