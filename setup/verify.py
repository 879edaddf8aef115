"""Run the project's checks and say, in the last line, how many tests passed and failed.

    python3 setup/verify.py lint | test | chaos     `make` calls it, with the environment that the build needs
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LINT = {
    "formatting": ["cargo", "fmt", "--all", "--check"],
    "clippy": ["cargo", "clippy", "--release", "--workspace", "--all-targets", "--features", "causeway-tests/slurm",
               "--", "-D", "warnings"],
    "type check": ["npm", "--prefix", "web", "run", "check"],
}
# The whole workspace in every step: another choice of packages is another choice of features, and builds much of it anew.
BUILD = {"build": ["cargo", "build", "--release", "--workspace", "--bins"]}
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
NEXTEST = shutil.which("cargo-nextest")
RUNNER = ["cargo", "nextest", "run", "--no-fail-fast"] if NEXTEST else ["cargo", "test", "--no-fail-fast"]

STEPS = {
    "lint": LINT,
    "test": LINT | BUILD | {
        "set-up's tests": [sys.executable, "-m", "unittest", "discover", "--start-directory", "setup"],
        "Rust tests": [*RUNNER, "--release", "--workspace"],
    },
    "chaos": BUILD | {
        "tests that kill": [*RUNNER, "--release", "--workspace", "kills"],
        # Reads FAULTS and SEED; its last line is JSON.
        "chaos": [str(BINARIES / "causeway-chaos")],
    },
}
SLURM = {"tests on a Slurm cluster": ["cargo", "test", "--release", "--workspace", "--features", "causeway-tests/slurm",
                                      "--test", "slurm", "--", "--test-threads", "1"]}
NO_SLURM = "the tests on a Slurm cluster are left out: they need root, and apt-get install munge slurmctld slurmd slurm-client"


def run(name, command):
    """Run one step, its output passed on; returns whether it succeeded and the counts that its runner printed."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    counts = [0, 0, 0]
    for line in process.stdout:
        print(line, end="", flush=True)
        counts = [have + new for have, new in zip(counts, count(line), strict=True)]
    process.wait()
    print(f"== {name}: {'passed' if process.returncode == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    return process.returncode == 0, counts


def count(line):
    """Passed, failed and skipped tests in a closing line of nextest, cargo test or unittest; zeros for another line."""
    def number(word):
        found = re.search(word, line)
        return int(found.group(1)) if found else 0

    if re.match(r"\s*Summary \[|test result: ", line):
        return number(r"(\d+) passed"), number(r"(\d+) failed"), number(r"(\d+) (?:skipped|ignored)")
    if ran := re.match(r"Ran (\d+) tests? in", line):
        return int(ran.group(1)), 0, 0
    if re.match(r"(OK|FAILED) \(", line):  # unittest's next line, which corrects the total
        failed, skipped = number(r"failures=(\d+)") + number(r"errors=(\d+)"), number(r"skipped=(\d+)")
        return -failed - skipped, failed, skipped
    return 0, 0, 0


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        sys.exit(__doc__)
    os.environ["CARGO_TERM_COLOR"] = "never"
    passed = failed = skipped = 0
    broken = []
    steps, left_out = STEPS[sys.argv[1]], ""
    if sys.argv[1] == "chaos":
        # A cluster of its own, started by the tests; no test is there that is not run.
        there = os.geteuid() == 0 and all(map(shutil.which, ["munged", "slurmctld", "slurmd", "squeue"]))
        steps, left_out = (steps | SLURM, "") if there else (steps, NO_SLURM)
    for name, command in steps.items():
        good, counts = run(name, command)
        passed, failed, skipped = (have + new for have, new in zip((passed, failed, skipped), counts, strict=True))
        if not good:
            broken.append(name)
            failed += counts[1] == 0  # a step without tests, or one that did not get as far as running them
    print(f"\nfailed: {', '.join(broken)}" if broken else "\nall steps passed")
    if left_out:
        print(left_out)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
