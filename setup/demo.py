"""Run the demo: a server with its own Postgres, one trainer on this machine, the experiment of configs/demo.toml, and
then configs/evaluate.toml on one of its checkpoints.

    python3 setup/demo.py BINARIES      BINARIES: the folder that holds causeway and causeway-trainer

`make demo` calls it after set-up and build. It keeps the server and the trainer alive, starting either again when it
dies, and serves until Ctrl-C. From the environment: STATE, the folder of all state (default .state/ in the clone);
ONCE=1, end when the experiment is finished and print its curves; STARTED, when the whole command began (Unix seconds).
"""

import ctypes
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"
EXPERIMENT = ROOT / "configs" / "demo.toml"
EVALUATION = ROOT / "configs" / "evaluate.toml"
THETA0 = DEPS / "data" / "vit-s14-imgfocus" / "model.safetensors"
DEFAULT_PORT = 7411
TICK = 0.2  # seconds between two looks at the processes
POLL = 2.0  # … at the runs
PLAIN_LINE = 10.0  # … between two lines of progress where the output is not a terminal
PATIENCE = 5  # deaths in a row, none followed by a minute of life, before the demo gives up
GRACE = 20  # seconds between SIGTERM and SIGKILL
# One attempt a core, up to four: two side by side with a thread each get through a third more than one after the other.
DEVICES = ",".join(f"cpu:{core}" for core in range(min(len(os.sched_getaffinity(0)), 4)))
TABLE_K = 20  # the number of neighbours of the closing table
TERMINAL = ("succeeded", "failed", "cancelled", "lost")

# prctl(2). With the first a child gets SIGTERM when this process dies; with the second a descendant whose parent was
# killed becomes our child, so that none is left behind.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None)


class DemoError(Exception):
    """What went wrong, in words for the person who typed the command."""


class Stop(Exception):
    """Ctrl-C or SIGTERM."""


# --- processes -----------------------------------------------------------------------------------------------------

class Service:
    """A process that is started again when it dies: after 1 s, 2 s, 4 s … 30 s. A minute of life resets the delay."""

    def __init__(self, name, log):
        self.name, self.log = name, log
        self.process = None
        self.started = self.start_at = 0.0
        self.deaths = 0

    def running(self):
        return self.process is not None and self.process.poll() is None

    def keep(self, command):
        """Start the process when it is not running and its time has come."""
        now = time.monotonic()
        if self.running() or now < self.start_at:
            return
        if self.process:
            status, self.process = self.process.returncode, None
            self.deaths = 1 if now - self.started > 60 else self.deaths + 1
            if self.deaths >= PATIENCE:
                end = "\n".join("  " + line for line in self.log.read_text(errors="replace").splitlines()[-12:])
                raise DemoError(f"the {self.name} ended {self.deaths} times in a row; {self.log} ends with:\n{end}")
            delay = min(2 ** (self.deaths - 1), 30)
            self.start_at = now + delay
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            say(f"the {self.name} ended ({how}); starting it again in {delay} s")
            return
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}  # its own Postgres
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM))
        self.started = now

    def stop(self):
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


def children():
    """Process ids of all our children, adopted ones included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def reap(ours):
    """Collect adopted children that have ended: a zombie would look alive to those who watch it by its id."""
    for pid in children():
        if pid not in ours:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def end_leftovers():
    """End what is still there when server and trainer have stopped, such as a training process whose agent was killed."""
    for name, seconds in (("SIGTERM", GRACE), ("SIGKILL", 5)):
        for pid in children():
            os.kill(pid, signal.Signals[name])
        deadline = time.monotonic() + seconds
        while children() and time.monotonic() < deadline:
            reap(())
            time.sleep(0.05)


# --- the demo ------------------------------------------------------------------------------------------------------

class Demo:
    def __init__(self, binaries, state):
        self.binaries, self.state = binaries, state
        self.server = Service("server", state / "server.log")
        self.agent = Service("trainer", state / "trainer.log")
        self.url = self.agent_url = None
        self.stopping = False

    def run(self, once):
        """With `once`, returns the closing line's figures and whether all is well; otherwise serves until a signal."""
        self.wait_for(self.serving)
        say(f"open {self.served()['sign_in_url']}")
        runs = self.follow(self.submit(EXPERIMENT))
        good = [run for run in runs if run["state"] == "succeeded"]
        if good:
            theta1 = self.download(good[0])
            runs += self.follow(self.submit(EVALUATION, f"weights.theta0.file={THETA0}", f"weights.theta1.file={theta1}"))
        if once:
            return self.summary(runs)
        say(f"the experiment is finished: {self.url}/ (Ctrl-C stops the demo)")
        while True:
            self.tick()

    def follow(self, ids):
        """Show the runs until all have ended; returns them as the server gives them."""
        while True:
            runs = [self.get(f"/runs/{run}") for run in ids]
            screen.show(runs)
            if all(run["state"] in TERMINAL for run in runs):
                return runs
            self.sleep(POLL)

    def tick(self):
        """Keep both processes running. Called all the time, whatever else is waited for."""
        if self.stopping:
            raise Stop
        self.server.keep([
            self.binaries / "causeway", "serve", "--state", self.state, "--listen", f"127.0.0.1:{self.port()}",
            "--postgres-bin", DEPS / "postgres" / "bin"])
        if self.serving():
            if self.agent_url not in (None, self.url):  # the server came back on another port
                self.agent.stop()
            self.agent_url = self.url
            self.agent.keep([
                self.binaries / "causeway-trainer", "work", "--server", self.url,
                "--token-file", self.state / "worker.token", "--state", self.state / "worker",
                "--data", DEPS / "data", "--name", os.uname().nodename, "--devices", DEVICES])
        reap([service.process.pid for service in (self.server, self.agent) if service.process])
        time.sleep(TICK)

    def stop(self):
        self.agent.stop()
        self.server.stop()
        end_leftovers()

    def sleep(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tick()

    def wait_for(self, look):
        while not (found := look()):
            self.tick()
        return found

    # --- the server ------------------------------------------------------------------------------------------------

    def served(self):
        """What the server wrote down when it began to serve, maybe in an earlier life."""
        try:
            return json.loads((self.state / "server.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def serving(self):
        served = self.served()
        if self.server.running() and served and served["pid"] == self.server.process.pid:
            self.url = served["url"]
            return True
        return False

    def port(self):
        """The port of its last life, so that the pages people have open stay true."""
        served = self.served()
        return urllib.parse.urlsplit(served["url"]).port if served and self.server.deaths < 2 else DEFAULT_PORT

    def open(self, path):
        """GET from the server; one that is just starting again is waited for."""
        while True:
            self.wait_for(self.serving)
            token = (self.state / "user.token").read_text().strip()
            request = urllib.request.Request(f"{self.url}/api/v1{path}", headers={"Authorization": f"Bearer {token}"})
            try:
                return urllib.request.urlopen(request, timeout=10)
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise DemoError(f"the server answered {error.code} to {error.url}: {error.read().decode()}") from None
            except OSError:
                pass
            self.tick()

    def get(self, path):
        while True:
            try:
                with self.open(path) as response:
                    return json.load(response)
            except (OSError, http.client.HTTPException):  # it died while it answered
                self.tick()

    # --- the experiment --------------------------------------------------------------------------------------------

    def submit(self, spec, *settings):
        """Ids of the spec's runs. The key makes a repeated submission answer with the runs of the first."""
        key = "make-demo-" + hashlib.sha256(spec.read_bytes()).hexdigest()[:16]
        kept = self.state / f"{key}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        for _ in range(PATIENCE):
            self.wait_for(self.serving)
            done = subprocess.run(
                [self.binaries / "causeway", "submit", "--server", self.url, "--token-file", self.state / "user.token",
                 "--key", key, *(f"--set={setting}" for setting in settings), spec], capture_output=True, text=True)
            if done.returncode == 0:
                ids = [line.split()[0] for line in done.stdout.splitlines()]
                kept.write_text(json.dumps(ids))
                return ids
            self.sleep(POLL)
        raise DemoError(f"`causeway submit {spec}` failed:\n{done.stderr}")

    def download(self, run):
        """A file with the run's checkpoint, as a user would have one."""
        path = self.state / f"{run['checkpoint']}.safetensors"
        while not path.exists():
            try:
                part = path.with_suffix(".part")
                with self.open(f"/checkpoints/{run['checkpoint']}/file") as response, open(part, "wb") as file:
                    shutil.copyfileobj(response, file)
                part.rename(path)
            except (ConnectionError, http.client.HTTPException):
                self.tick()
        return path

    def summary(self, runs):
        """Print the curves and what is missing of them."""
        curves = [curve for run in runs for curve in self.get(f"/runs/{run['id']}/curves")["curves"]]
        print_table(curves)
        have = {
            (curve["run_id"], curve["dataset"]["name"], neighbours(curve), float(point["alpha"]))
            for curve in curves for point in curve["points"]
        }
        want = {
            (run["id"], dataset["asset"], k, float(alpha))
            for run in runs
            for dataset in run["spec"]["evaluation"]["datasets"]
            for k in run["spec"]["evaluation"]["k"]
            for alpha in run["spec"]["evaluation"]["alphas"]
        }
        names = {run["id"]: run["name"] for run in runs}
        for run in (run for run in runs if run["state"] != "succeeded"):
            print(f"{run['name']} {run['state']}: {run['reason'] or 'no reason given'}", file=sys.stderr)
        for run, dataset, k, alpha in sorted(want - have)[:20]:
            print(f"no point: {names[run]}, {dataset}, k = {k}, α = {alpha:g}", file=sys.stderr)
        succeeded = sum(run["state"] == "succeeded" for run in runs)
        figures = {"runs": len(runs), "succeeded": succeeded, "points": len(want & have)}
        return figures, succeeded == len(runs) and want <= have


# --- what is printed -----------------------------------------------------------------------------------------------

class Screen:
    """The runs: redrawn in place on a terminal, else a line every 10 s."""

    def __init__(self):
        self.height = 0
        self.last = 0.0

    def show(self, runs):
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
            print(f"\x1b[{self.height}F\x1b[J" if self.height else "", end="")
            for run in runs:
                print(describe(run)[:width - 1])
            sys.stdout.flush()
            self.height = len(runs)
        elif time.monotonic() - self.last >= PLAIN_LINE:
            self.last = time.monotonic()
            done = sum(run["state"] in TERMINAL for run in runs)
            active = "; ".join(" ".join(describe(run).split()) for run in runs if run["state"] == "running")
            say(f"{done} of {len(runs)} runs done" + (f"; {active}" if active else ""))


screen = Screen()


def describe(run):
    text = f"  {run['name']:<24} {run['state']:<10}"
    progress = run.get("progress")
    if run["state"] == "running" and progress:
        text += f" {run['phase']:<9} {progress['done'] / max(progress['total'], 1):>4.0%}  {progress['doing']}"
    elif run["state"] != "succeeded":
        text += f" {run['reason']}"
    return text


def neighbours(curve):
    """The k in the name of a curve's protocol, `knn20-…`."""
    return int(re.match(r"knn(\d+)-", curve["protocol"])[1])


def print_table(curves):
    """Per dataset, accuracy in percent: a line per run, a column per α."""
    curves = [curve for curve in curves if neighbours(curve) == TABLE_K]
    for name in dict.fromkeys(curve["dataset"]["name"] for curve in curves):
        rows = [curve for curve in curves if curve["dataset"]["name"] == name]
        dataset = rows[0]["dataset"]
        images = max(point["n"] for curve in rows for point in curve["points"])
        print(f"\n{dataset['title']} ({dataset['role']}): top-1 accuracy in percent over {images} images, k = {TABLE_K}")
        alphas = sorted({float(point["alpha"]) for curve in rows for point in curve["points"]})
        print(f"  {'α':<24}" + "".join(f"{alpha:>6g}" for alpha in alphas))
        for curve in rows:
            values = {float(point["alpha"]): point["top1"] for point in curve["points"]}
            cells = "".join(f"{100 * values[alpha]:>6.1f}" if alpha in values else "     ·" for alpha in alphas)
            print(f"  {curve['run']:<24}{cells}")
    print(flush=True)


def say(message):
    print(f"demo: {message}", flush=True)
    screen.height = 0  # what is above stays


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    began = float(os.environ.get("STARTED") or time.time())
    once = os.environ.get("ONCE", "") not in ("", "0")
    state = Path(os.environ.get("STATE") or ROOT / ".state").absolute()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)

    lock = open(state / "demo.lock", "w")  # held as long as this process lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        served = json.loads((state / "server.json").read_text()) if (state / "server.json").exists() else {}
        sys.exit(f"demo: a demo is already running on {state}: {served.get('sign_in_url', 'it is just starting')}")

    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    demo = Demo(Path(sys.argv[1]).absolute(), state)

    def on_signal(*_):
        demo.stopping = True

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    figures, good = None, False
    try:
        figures, good = demo.run(once)
    except Stop:
        good = not once
        say("stopping")
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
    finally:
        demo.stop()
    if figures:
        print(json.dumps(figures | {"seconds": round(time.time() - began, 1), "url": demo.url}), flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
