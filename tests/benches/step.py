"""One training step of a ViT-S/14 in eager PyTorch, timed: what the trainer is compared with.

    python step.py METHOD DTYPE STEPS THREADS   ->  {"images_per_second": [...], "gemm_gflops": ...}

METHOD is full or adapter, DTYPE f32 or bf16 (autocast). The same architecture, batch (32 at 98 px), loss and optimiser
as the trainer's own step: DINOv2's blocks with LayerScale, Adapter+ of rank 8, the symmetric contrastive loss, clipped
AdamW. The values are random: no time depends on them.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

DIM, DEPTH, HEADS, MLP, PATCH, IMAGE, BATCH, RANK, TEXT, JOINT = 384, 12, 6, 1536, 14, 98, 32, 8, 384, 256


class Block(nn.Module):
    def __init__(self, adapter):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, MLP), nn.Linear(MLP, DIM)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.ones(DIM))
        self.adapter = None
        if adapter:
            self.requires_grad_(False)
            self.adapter = nn.ModuleDict({"down": nn.Linear(DIM, RANK), "up": nn.Linear(RANK, DIM)})
            self.scale = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, DIM)) * self.ls1
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.ls2
        if self.adapter is not None:
            x = x + self.scale * self.adapter["up"](F.gelu(self.adapter["down"](x)))
        return x


class Vit(nn.Module):
    def __init__(self, adapter):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.positions = nn.Parameter(torch.zeros(1, 1 + 37 * 37, DIM))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        if adapter:
            self.requires_grad_(False)
        self.blocks = nn.ModuleList(Block(adapter) for _ in range(DEPTH))

    def forward(self, pixels):
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        side = IMAGE // PATCH
        table = self.positions[:, 1:].reshape(1, 37, 37, DIM).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).reshape(1, side * side, DIM)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + torch.cat([self.positions[:, :1], table], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def gemm_gflops(dtype):
    """The machine's rate in the MLP's own product: [batch · tokens, dim] x [dim, mlp]."""
    rows = BATCH * (1 + (IMAGE // PATCH) ** 2)
    a, b = torch.randn(rows, DIM, dtype=dtype), torch.randn(DIM, MLP, dtype=dtype)
    best = 0.0
    for _ in range(30):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * rows * DIM * MLP / (time.perf_counter() - start) / 1e9)
    return best


def main():
    method, dtype, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vit = Vit(method == "adapter")
    image, text = nn.Linear(DIM, JOINT, bias=False), nn.Linear(TEXT, JOINT, bias=False)
    scale = nn.Parameter(torch.tensor(2.66))
    trained = [p for p in vit.parameters() if p.requires_grad] + [*image.parameters(), *text.parameters(), scale]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05)
    pixels, captions, own = torch.randn(BATCH, 3, IMAGE, IMAGE), torch.randn(BATCH, TEXT), torch.arange(BATCH)
    rates = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            feature = vit(pixels)
        v, t = F.normalize(image(feature.float()), dim=-1), F.normalize(text(captions), dim=-1)
        logits = scale.exp() * v @ t.T
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        loss.item()
        rates.append(BATCH / (time.perf_counter() - start))
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    print(json.dumps({"images_per_second": rates, "gemm_gflops": gemm_gflops(kind)}))


main()
