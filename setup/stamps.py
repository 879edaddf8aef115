"""Choose and split the Tux Paint stamps of the demo: writes configs/assets/stamps.jsonl and the digests that follow.

    python3 setup/stamps.py STAMPS      STAMPS: usr/share/tuxpaint/stamps of the unpacked Debian package

Run it only to change the choice; what it wrote is committed, and set-up checks every image against it.
"""

import hashlib
import json
import re
import sys
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "configs" / "assets"
MANIFEST = ASSETS / "stamps.jsonl"
CLASSES = ["animals", "food", "household", "plants", "town", "vehicles"]
PARTS = {"captions": "tux-captions", "evaluation": "tux-held-out"}
CAPTIONS_SHARE = 0.45

# Photographs are kept and flat drawings left out. Shaded drawings of buildings and vehicles stay: without them these
# two classes would be too small to measure.
LEFT_OUT = [
    "*_mirror.png",  # the same stamp turned round, without a caption of its own
    "animals/*cartoon/*", "food/*cartoon/*", "household/*cartoon/*",
    "animals/insects/bee.png", "animals/mammals/echidna.png", "animals/mammals/hedgehog.png",
    "food/pizza.png", "household/arttools/highlighter.png",
    "town/flags/*", "town/monuments/inukshuk-outline.png", "town/monuments/cartoon/eiffel_tower.png",
    "town/roadsigns/arrow.png", "town/roadsigns/crossroads.png", "town/roadsigns/hospital.png",
    "town/roadsigns/roundabout.png", "town/roadsigns/stop*.png", "town/roadsigns/t-junction.png",
    "town/roadsigns/yield.png",
    "vehicles/7spoke256.png", "vehicles/emergency/sedan_police.png", "vehicles/locomotive/cartoon/trainSign.png",
]


def choose(stamps):
    """Every photo-like stamp: file, digest, English caption and class (its top folder)."""
    rows = []
    for path in sorted(stamps.rglob("*.png")):
        file = path.relative_to(stamps).as_posix()
        if file.split("/")[0] in CLASSES and not any(fnmatch(file, pattern) for pattern in LEFT_OUT):
            rows.append({
                "file": file,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "caption": path.with_suffix(".txt").read_text(encoding="utf-8").split("\n")[0].strip(),
                "class": file.split("/")[0],
            })
    return rows


def group(rows):
    """Lists of rows that must stay together: equal captions, equal files, or one folder's `frog` and `frog-1`."""
    leader = list(range(len(rows)))

    def find(index):
        while leader[index] != index:
            index = leader[index]
        return index

    first = {}
    for index, row in enumerate(rows):
        stem = re.sub(r"[-_]?\d+$", "", row["file"].removesuffix(".png").lower())
        for key in (("caption", row["caption"].lower()), ("digest", row["sha256"]), ("stem", stem)):
            leader[find(index)] = find(first.setdefault(key, index))
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        groups[find(index)].append(row)
    return list(groups.values())


def split(rows):
    """Give each row its part: in each class, groups in the order of their hash until 45 % are captions to train on."""
    by_class = defaultdict(list)
    for members in group(rows):
        by_class[members[0]["class"]].append(members)
    for groups in by_class.values():
        wanted = CAPTIONS_SHARE * sum(map(len, groups))
        taken = 0
        for members in sorted(groups, key=lambda g: hashlib.sha256(min(r["caption"] for r in g).encode()).digest()):
            part = "captions" if taken + len(members) / 2 <= wanted else "evaluation"
            taken += len(members) if part == "captions" else 0
            for row in members:
                row["part"] = part
    return rows


def image_list(rows, part):
    """The images.jsonl of one part, as the asset's folder holds it."""
    return "".join(
        json.dumps({
            "image": f"images/{row['file']}",
            "sha256": row["sha256"],
            "caption": row["caption"],
            "class": row["class"],
        }, ensure_ascii=False) + "\n"
        for row in rows if row["part"] == part
    ).encode()


def read_manifest():
    return [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1], "animals").is_dir():
        sys.exit(__doc__)
    rows = split(choose(Path(sys.argv[1])))
    MANIFEST.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    for part, asset in PARTS.items():
        data = image_list(rows, part)
        manifest = ASSETS / f"{asset}.toml"
        pinned = re.sub(r'sha256 = ".*"', f'sha256 = "{hashlib.sha256(data).hexdigest()}"', manifest.read_text())
        manifest.write_text(re.sub(r"bytes = \d+", f"bytes = {len(data)}", pinned))
        print(f"{asset}: {len(data.splitlines())} stamps")


if __name__ == "__main__":
    main()
