"""Tests of demo.py against stand-ins for the two binaries: what it prints, restarts, refuses and leaves behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

DEMO = Path(__file__).resolve().parent / "demo.py"

# A server with two runs and an evaluation of the first, the second run in the state that the file `second` names; it
# starts a process, as the real one does Postgres.
SERVER = r'''
import http.server, json, os, pathlib, subprocess, sys
option = lambda name: sys.argv[sys.argv.index(name) + 1]
if sys.argv[1] == "submit":
    theta1 = [a for a in sys.argv if a.startswith("--set=weights.theta1.file=")]
    if theta1:
        assert pathlib.Path(theta1[0].split("=")[2]).read_bytes() == b"weights"
    print("\n".join(f"{run}  name  (about 1 min)" for run in ("e" if theta1 else "ab")))
    sys.exit()
state = pathlib.Path(option("--state"))
(state / "user.token").write_text("secret\n")
subprocess.Popen(["sleep", "600"])
spec = {"evaluation": {"datasets": [{"asset": "d"}], "k": [20], "alphas": [0, 1]}}
second = (state / "second").read_text()
runs = {id: {"id": id, "name": f"film seed {seed}", "state": second if id == "b" else "succeeded", "checkpoint": "c0de",
             "reason": "it broke", "phase": "train", "progress": None, "spec": spec} for seed, id in enumerate("abe")}
curves = {id: [{"dataset": {"name": "d", "title": "Digits", "role": "ood"}, "run_id": id, "run": run["name"],
                "protocol": "knn20-t0.07-direct98-cls-f32",
                "points": [{"alpha": a, "top1": 0.5 + a / 10, "n": 200} for a in (0, 1)]}] for id, run in runs.items()}

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        assert self.headers["Authorization"] == "Bearer secret"
        kind, id, *rest = self.path.removeprefix("/api/v1/").split("/")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"weights" if kind == "checkpoints" else
                         json.dumps({"curves": curves[id]} if rest else runs[id]).encode())

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
url = f"http://127.0.0.1:{server.server_port}"
(state / "server.json").write_text(json.dumps({"url": url, "sign_in_url": url + "/sign-in", "pid": os.getpid()}))
server.serve_forever()
'''
TRAINER = 'import subprocess, time\nsubprocess.Popen(["sleep", "600"], start_new_session=True)\ntime.sleep(600)\n'


class DemoTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state, self.bin = Path(folder.name, "state"), Path(folder.name, "bin")
        self.state.mkdir()
        self.bin.mkdir()
        for name, program in (("causeway", SERVER), ("causeway-trainer", TRAINER)):
            (self.bin / name).write_text(f"#!{sys.executable}\n{program}")
            (self.bin / name).chmod(0o755)

    def start(self, second, **environment):
        (self.state / "second").write_text(second)
        process = subprocess.Popen([sys.executable, DEMO, self.bin], text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=os.environ | {"STATE": str(self.state)} | environment)
        self.addCleanup(process.kill)
        return process

    def served(self, previous=None):
        """The server's process id, once it serves and is another than `previous`."""
        until = time.monotonic() + 15
        while time.monotonic() < until:
            if (self.state / "server.json").exists():
                pid = json.loads((self.state / "server.json").read_text() or '{"pid": null}')["pid"]
                if pid not in (None, previous):
                    return pid
            time.sleep(0.1)
        self.fail("no server in 15 s")

    def processes(self):
        """Everything whose environment names this test's state."""
        mark, found = f"STATE={self.state}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    found.append(path.parent.name)
            except OSError:
                pass
        return found

    def test_once_ends_with_the_table_and_a_line_of_json(self):
        process = self.start("succeeded", ONCE="1", STARTED=str(time.time() - 100))
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err), (0, ""))
        self.assertIn("Digits (ood): top-1 accuracy in percent over 200 images, k = 20", out)
        self.assertIn("film seed 1               50.0  60.0", out)
        last = json.loads(out.splitlines()[-1])
        self.assertEqual({key: last[key] for key in ("runs", "succeeded", "points")},
                         {"runs": 3, "succeeded": 3, "points": 6})
        self.assertGreater(last["seconds"], 100)
        self.assertEqual(self.processes(), [])

    def test_once_fails_with_the_reason_when_a_run_did(self):
        process = self.start("failed", ONCE="1")
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("film seed 1 failed: it broke", err)
        self.assertEqual(json.loads(out.splitlines()[-1])["succeeded"], 2)

    def test_a_killed_server_comes_back_a_second_demo_is_refused_and_ctrl_c_leaves_nothing(self):
        process = self.start("running")
        first = self.served()
        refused = self.start("running")
        self.assertIn("already running", refused.communicate(timeout=20)[1])
        self.assertEqual(refused.returncode, 1)
        os.kill(first, signal.SIGKILL)
        self.served(previous=first)
        time.sleep(1)  # the trainer follows the server to its new port
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertIn("the server ended (signal 9); starting it again in 1 s", out)
        self.assertEqual(self.processes(), [])


if __name__ == "__main__":
    unittest.main()
