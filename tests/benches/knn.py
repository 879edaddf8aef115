"""k-NN by faiss, timed beside ours.

    python knn.py FILE DIM BANK QUERIES K THREADS

FILE holds bank and queries, f32 [BANK + QUERIES, DIM]. For each line on stdin one search: building the flat index of
inner products over normalised rows, and asking it; the answer is a JSON line with its seconds. After the last line the
places that were found come as one line more.
"""

import json
import sys
import time

import faiss
import numpy

DIM, BANK, QUERIES, K, THREADS = (int(value) for value in sys.argv[2:7])
faiss.omp_set_num_threads(THREADS)
values = numpy.fromfile(sys.argv[1], dtype=numpy.float32).reshape(BANK + QUERIES, DIM)
print(json.dumps({"faiss": faiss.__version__}), flush=True)
places = None
for _ in sys.stdin:
    start = time.perf_counter()
    rows = values / numpy.linalg.norm(values, axis=1, keepdims=True)
    prepared = time.perf_counter()
    index = faiss.IndexFlatIP(DIM)
    index.add(rows[:BANK])
    asked = time.perf_counter()
    _, places = index.search(rows[BANK:], K)
    end = time.perf_counter()
    print(json.dumps({"normalise": prepared - start, "add": asked - prepared, "search": end - asked}), flush=True)
print(json.dumps(places.tolist()), flush=True)
