"""One training step of a ViT-S/14 in eager PyTorch, timed: what the trainer is compared with.

    python step.py METHOD DTYPE STEPS THREADS   ->  {"images_per_second": [...], "gemm_gflops": ...}

METHOD is full, adapter, lora, film or ladder, DTYPE f32 or bf16 (autocast). The same architecture, batch (32 at 98 px),
loss and optimiser as the trainer's own step: DINOv2's blocks with LayerScale; Adapter+ of rank 8, LoRA of rank 8 on
query and value, FiLM after both LayerNorms, or a side network of an eighth of the width; the symmetric contrastive loss,
clipped AdamW. Each is written as one usually writes it. The values are random: no time depends on them.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

DIM, DEPTH, HEADS, MLP, PATCH, IMAGE, BATCH, RANK, TEXT, JOINT = 384, 12, 6, 1536, 14, 98, 32, 8, 384, 256
SIDE = DIM // 8


class Block(nn.Module):
    def __init__(self, method, dim=DIM, heads=HEADS, layer_scale=True):
        super().__init__()
        self.method, self.heads = method, heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.ls1, self.ls2 = None, None
        if layer_scale:
            self.ls1, self.ls2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        if method == "full":
            return
        self.requires_grad_(False)
        if method == "adapter":
            self.down, self.up = nn.Linear(dim, RANK), nn.Linear(RANK, dim)
            self.scale = nn.Parameter(torch.ones(dim))
        elif method == "lora":
            pair = lambda: nn.Sequential(nn.Linear(dim, RANK, bias=False), nn.Linear(RANK, dim, bias=False))
            self.query, self.value = pair(), pair()
        elif method == "film":
            zeros = lambda: nn.Parameter(torch.zeros(dim))
            self.gamma1, self.beta1, self.gamma2, self.beta2 = zeros(), zeros(), zeros(), zeros()

    def forward(self, x):
        batch, tokens, dim = x.shape
        y = self.norm1(x)
        if self.method == "film":
            y = (1 + self.gamma1) * y + self.beta1
        qkv = self.qkv(y)
        if self.method == "lora":
            qkv[:, :, :dim] += self.query(y)
            qkv[:, :, -dim:] += self.value(y)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        x = x + (y if self.ls1 is None else y * self.ls1)
        y = self.norm2(x)
        if self.method == "film":
            y = (1 + self.gamma2) * y + self.beta2
        y = self.fc2(F.gelu(self.fc1(y)))
        x = x + (y if self.ls2 is None else y * self.ls2)
        if self.method == "adapter":
            x = x + self.scale * self.up(F.gelu(self.down(x)))
        return x


class Side(nn.Module):
    """Ladder side-tuning: reads the states of all blocks and adds to the last."""

    def __init__(self):
        super().__init__()
        self.downs = nn.ModuleList(nn.Linear(DIM, SIDE) for _ in range(DEPTH + 1))
        self.blocks = nn.ModuleList(Block("full", SIDE, 1, False) for _ in range(DEPTH))
        self.mix, self.gate = nn.Parameter(torch.zeros(DEPTH)), nn.Parameter(torch.zeros([]))
        self.norm, self.up = nn.LayerNorm(SIDE, eps=1e-6), nn.Linear(SIDE, DIM)

    def forward(self, states, last):
        side = self.downs[0](states[0])
        for at, block in enumerate(self.blocks):
            mix = torch.sigmoid(self.mix[at] / 0.1)
            side = block(mix * side + (1 - mix) * self.downs[at + 1](states[at + 1]))
        return last + self.gate * self.up(self.norm(side))


class Vit(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.positions = nn.Parameter(torch.zeros(1, 1 + 37 * 37, DIM))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        if method != "full":
            self.requires_grad_(False)
        self.blocks = nn.ModuleList(Block(method) for _ in range(DEPTH))
        self.side = Side() if method == "ladder" else None

    def forward(self, pixels):
        # A ladder sends no gradient into the backbone: nothing of it is kept for one.
        with torch.set_grad_enabled(self.side is None):
            states = self.states(pixels)
            last = self.norm(states[-1])
        return (last if self.side is None else self.side(states, last))[:, 0]

    def states(self, pixels):
        """What enters the first block and what leaves each."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        side = IMAGE // PATCH
        table = self.positions[:, 1:].reshape(1, 37, 37, DIM).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(side, side), mode="bicubic").permute(0, 2, 3, 1).reshape(1, side * side, DIM)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + torch.cat([self.positions[:, :1], table], 1)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


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
    vit = Vit(method)
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
