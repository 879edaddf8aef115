"""What weightwatcher says of known eigenvalues and matrices: the numbers that trainer/src/analysis must give.

    pip install weightwatcher==0.7.7 torch    # on a machine without a GPU: with one it decomposes in f16 and f32
    python trainer/goldens/spectrum.py

Run with weightwatcher 0.7.7, numpy 2.4.6, scipy 1.17.1. Everything is drawn from SplitMix64, so that the test draws the
same. The last part is linear CKA in the form of Kornblith et al. 2019 (arXiv 1905.00414) and without its bias, in the
form over features, which is not the one that the trainer computes.
"""

import contextlib
import io
import json
import logging
import os
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
import numpy as np
import torch
import weightwatcher as ww
from weightwatcher.WW_powerlaw import WWFit

MASK = (1 << 64) - 1


def splitmix(seed):
    state = seed & MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield ((z ^ (z >> 31)) >> 11) / (1 << 53)


def uniform(seed, *shape):
    draws = splitmix(seed)
    return np.array([next(draws) for _ in range(int(np.prod(shape)))]).reshape(shape)


def quietly(what):
    with contextlib.redirect_stdout(io.StringIO()):
        return what()


def fit(values):
    found = quietly(lambda: WWFit(np.array(values, dtype=np.float64)))
    return {
        "n": len(values),
        "alpha": float(found.alpha),
        "xmin": float(found.xmin),
        "D": float(found.D),
        "sigma": float(found.sigma),
        "argmin": int(np.argmin(found.Ds)),
    }


def pareto(draws, alpha, count):
    return [(1 - next(draws)) ** (-1 / (alpha - 1)) for _ in range(count)]


def quantiles(alpha, count):
    return [(1 - (i + 0.5) / count) ** (-1 / (alpha - 1)) for i in range(count)]


fits = {
    "quantiles_500": fit(quantiles(3.0, 500)),
    "quantiles_64": fit(quantiles(2.5, 64)),
    "pareto_768_seed1": fit(pareto(splitmix(1), 3.5, 768)),
}
two = splitmix(2)
bulk = [0.5 * next(two) for _ in range(500)] + [0.5 * x for x in pareto(two, 2.8, 268)]
fits["bulk_and_pareto_seed2"] = fit(bulk)
for count in (7, 8, 16, 19, 20):
    fits[f"few_{count}_seed3"] = fit(pareto(splitmix(3), 3.0, count))


def matrix(seed, rows, columns, spikes):
    """Uniform noise in f32, and some strong directions over it."""
    noise = 0.2 * (uniform(seed, rows, columns) - 0.5)
    left, right = uniform(seed + 100, rows, spikes) - 0.5, uniform(seed + 200, columns, spikes) - 0.5
    strength = np.array([(k + 1.0) ** -0.7 for k in range(spikes)])
    return (noise + (left * strength) @ right.T).astype(np.float32)


# Named so that the state dict's order is the trainer's.
tensors = {
    "a_tall.weight": matrix(11, 96, 64, 12),
    "b_wide.weight": matrix(12, 48, 80, 12),
    "c_patches.weight": matrix(13, 64, 3 * 4 * 4, 6).reshape(64, 3, 4, 4),
    "d_few.weight": matrix(14, 40, 12, 4),
    "e_too_few.weight": matrix(15, 40, 7, 3),
    "f_low_rank.weight": (uniform(16, 60, 10) @ uniform(17, 10, 40)).astype(np.float32),
}
state = {name: torch.from_numpy(value) for name, value in tensors.items()}
details = quietly(lambda: ww.WeightWatcher().analyze(model=state, plot=False))

layers = {}
fields = ["alpha", "D", "sigma", "xmin", "num_pl_spikes", "num_evals", "norm", "log_norm", "spectral_norm",
          "log_spectral_norm", "stable_rank", "alpha_weighted", "log_alpha_norm"]
for _, row in details.iterrows():
    name = row["longname"] if "longname" in row and isinstance(row["longname"], str) else row["name"]
    layers[name.split(".")[0]] = {field: float(row[field]) for field in fields} | {"warning": row["warning"]}


def linear_cka(x, y):
    """‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred features (Kornblith et al. 2019, equation 3 with linear kernels)."""
    x, y = x - x.mean(0), y - y.mean(0)
    product = lambda a, b: np.linalg.norm(a.T @ b) ** 2
    return product(x, y) / np.sqrt(product(x, x) * product(y, y))


def debiased_cka(x, y):
    """The same with Song et al.'s U-statistic in the place of HSIC, over features: no Gram matrix is formed."""
    x, y = x - x.mean(0), y - y.mean(0)
    n = x.shape[0]
    squares = lambda a: (a**2).sum(1)

    def hsic(a, b):
        sa, sb = squares(a), squares(b)
        trace = np.linalg.norm(a.T @ b) ** 2
        return trace - n / (n - 2.0) * sa @ sb + sa.sum() * sb.sum() / ((n - 1) * (n - 2))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


x = uniform(21, 24, 10)
y = x @ (uniform(22, 10, 6) - 0.5) + 0.3 * uniform(23, 24, 6)
z = uniform(24, 24, 10)
cka = {
    "related": {"plain": linear_cka(x, y), "debiased": debiased_cka(x, y)},
    "unrelated": {"plain": linear_cka(x, z), "debiased": debiased_cka(x, z)},
}
out = {"versions": {"weightwatcher": ww.__version__, "numpy": np.__version__}, "fits": fits, "layers": layers, "cka": cka}
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "spectrum.json"), "w") as file:
    json.dump(out, file, indent=1)
    file.write("\n")
