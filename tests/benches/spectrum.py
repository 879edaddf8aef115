"""weightwatcher on a file of weights, query, key and value apart: its seconds and its exponents as one line of JSON.

    python spectrum.py WEIGHTS

For a Python with weightwatcher 0.7.7, torch and safetensors, on a machine without a GPU.
"""

import contextlib
import io
import json
import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
import weightwatcher as ww
from safetensors.torch import load_file

state = {}
for name, tensor in load_file(sys.argv[1]).items():
    if name.endswith("attn.qkv.weight"):
        for part, rows in zip("qkv", tensor.chunk(3)):
            state[name.replace("qkv", part)] = rows.contiguous()
    else:
        state[name] = tensor
watcher = ww.WeightWatcher()
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    details = watcher.analyze(model=state, plot=False)
seconds = time.perf_counter() - start
alphas = [float(alpha) for alpha in details["alpha"]]
print(json.dumps({"version": f"weightwatcher {ww.__version__}", "seconds": seconds, "alphas": alphas}))
