"""Files as torch writes them, for the tests of `weights/torch.rs`: torch 2.11.0.

    python make.py

Values are small whole numbers, exact in every dtype.
"""

import argparse
import collections
import os
import zipfile

import torch


def save(value, name, **options):
    torch.save(value, f"{name}.pth", **options)


def flat():
    """One tensor for each way of lying in a storage, one for each dtype."""
    base = torch.arange(24, dtype=torch.float32)
    weights = collections.OrderedDict()
    weights["rows"] = base[:6].reshape(2, 3)
    weights["columns"] = base[:6].reshape(2, 3).T
    weights["offset"] = base[5:21].reshape(4, 4)[::2, 1:3]
    weights["scalar"] = torch.tensor(7.0)
    weights["empty"] = torch.zeros(0, 3)
    weights["repeated"] = torch.tensor([3.0]).expand(4)
    weights["parameter"] = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    for dtype in ["float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]:
        weights[dtype] = torch.tensor([0, 1, 2, 100]).to(getattr(torch, dtype))
    return weights


def training():
    """The shape of DINO's full checkpoint: two models, an optimiser, a Namespace."""
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 1), "head": torch.nn.Linear(1, 1, bias=False)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    for parameter, value in zip(model.parameters(), range(1, 4)):
        torch.nn.init.constant_(parameter, value)
        parameter.grad = torch.ones_like(parameter)
    teacher = {f"module.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.step()
    return {
        "student": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "teacher": teacher,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_tiny", lr=0.25, out_dim=None, use_fp16=False),
    }


class Tower(torch.nn.Module):
    """Modules in modules, a parameter, a buffer and a flag, as OpenAI's archives of CLIP have them."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("resolution", torch.tensor(224))
        self.layers = 2
        for at, parameter in enumerate(self.visual.parameters()):
            torch.nn.init.constant_(parameter, at)

    def forward(self, x):
        return self.visual(x) * self.scale


def without_debug_information(name):
    """The archive again, half as long."""
    os.rename(name, f"{name}.whole")
    with zipfile.ZipFile(f"{name}.whole") as whole, zipfile.ZipFile(name, "w") as archive:
        for entry in whole.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                archive.writestr(zipfile.ZipInfo(entry.filename), whole.read(entry))
    os.remove(f"{name}.whole")


if __name__ == "__main__":
    save(flat(), "flat")
    save(training(), "training")
    save(torch.nn.Linear(1, 1), "module")
    save({"w": torch.ones(2)}, "legacy", _use_new_zipfile_serialization=False)
    save({"epoch": 3, "history": [1.0, 2.0]}, "no_weights")
    torch.jit.script(Tower().half().eval()).save("script.pt")
    without_debug_information("script.pt")
