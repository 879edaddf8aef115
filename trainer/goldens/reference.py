"""Numbers of the reference implementations that the trainer is tested against: torch 2.11.0, transformers.

    python reference.py BACKBONE MINILM > reference.json

BACKBONE and MINILM are the folders of the demo's two models. Inputs are made with SplitMix64 or by formula, so that
the tests can make them again.
"""

import json
import sys

import torch
import transformers

MASK = (1 << 64) - 1


def splitmix64(seed):
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def image(seed, height, width):
    """u8 [1, 3, height, width], the top byte of each draw."""
    draws = splitmix64(seed)
    values = [next(draws) >> 56 for _ in range(3 * height * width)]
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 3, height, width)


def adamw():
    """Ten clipped steps: a matrix with decay, a vector without, half a cosine after three steps of warm-up."""
    matrix = torch.tensor([[0.5, -0.25, 0.125], [1.0, -1.0, 0.0]], requires_grad=True)
    vector = torch.tensor([0.1, 0.2, -0.3], requires_grad=True)
    groups = [
        {"params": [matrix], "lr": 0.02, "weight_decay": 0.1},
        {"params": [vector], "lr": 0.005, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, foreach=False)
    peaks = [group["lr"] for group in groups]
    norms = []
    for step in range(10):
        matrix.grad = torch.tensor([((i * 7 + step * 5) % 11 - 5) / 10 for i in range(6)]).reshape(2, 3)
        vector.grad = torch.tensor([((i * 3 + step * 4) % 7 - 3) / 10 for i in range(3)])
        norms.append(torch.nn.utils.clip_grad_norm_([matrix, vector], 0.75).item())
        factor = (step + 1) / 3 if step < 3 else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - 3) / 7)).item())
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * factor
        optimizer.step()
    return {"matrix": matrix.flatten().tolist(), "vector": vector.tolist(), "norms": norms}


def contrastive():
    """Five pairs, the second and the fourth with equal captions; loss and gradients."""
    draws = splitmix64(31)
    values = [(next(draws) >> 40) / 2**24 - 0.5 for _ in range(40)]
    images = torch.tensor(values[:20]).reshape(5, 4).requires_grad_()
    texts = torch.tensor(values[20:]).reshape(5, 4)
    scale = torch.tensor(10.0, requires_grad=True)
    captions = torch.tensor([3, 1, 4, 1, 5])
    v = torch.nn.functional.normalize(images, dim=-1)
    t = torch.nn.functional.normalize(texts, dim=-1)
    equal = (captions[:, None] == captions[None, :]) & ~torch.eye(5, dtype=torch.bool)
    logits = (scale * v @ t.T).masked_fill(equal, float("-inf"))
    own = torch.arange(5)
    loss = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    loss.backward()
    return {"loss": loss.item(), "d_images": images.grad.flatten().tolist(), "d_scale": scale.grad.item()}


def features(folder):
    """Class token of Dinov2Model at 98 x 98 and at 70 x 126 px: two resized position tables."""
    model = transformers.Dinov2Model.from_pretrained(folder, attn_implementation="eager").eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    numbers = {}
    for seed, height, width in [(41, 98, 98), (42, 70, 126)]:
        pixels = (image(seed, height, width).float() / 255 - mean) / deviation
        with torch.no_grad():
            feature = model(pixels).last_hidden_state[0, 0]
        numbers[f"{height}x{width}"] = {"first": feature[:8].tolist(), "norm": feature.norm().item()}
    return numbers


CAPTIONS = ["A squirrel.", "a cat", "a kitten", "a lorry", "Two children fly a red kite over the dunes, naïvely."]


def sentences(folder):
    """Mean over the attention mask and L2 norm, as the sentence-transformers card of all-MiniLM-L6-v2 does it."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]")
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    unit = torch.nn.functional.normalize(mean, dim=-1)
    return {
        "captions": CAPTIONS,
        "first": [row[:6].tolist() for row in unit],
        "similarity": (unit @ unit.T).tolist(),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    backbone, minilm = sys.argv[1:]
    numbers = {
        "made_with": f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}",
        "adamw": adamw(),
        "contrastive": contrastive(),
        "features": features(backbone),
        "sentences": sentences(minilm),
    }
    print(json.dumps(numbers, indent=1))
