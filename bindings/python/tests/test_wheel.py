"""What the wheel says of itself. That it installs and plans, `make test-integrations` tries."""

import ast
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "build_backend"))
import eplb_build  # noqa: E402


class Wheel(unittest.TestCase):
    def test_the_name_says_any_python_and_this_machine(self):
        self.assertRegex(eplb_build.tag(), r"^py3-none-manylinux_\d+_\d+_\w+$")

    def test_the_version_is_the_workspaces(self):
        text = (eplb_build.ROOT / "Cargo.toml").read_text()
        self.assertIn(f'version = "{eplb_build.version()}"', text)
        self.assertIn(f"Version: {eplb_build.version()}\n", eplb_build.metadata())

    def test_every_file_is_written_for_the_oldest_python(self):
        oldest = tuple(map(int, eplb_build.metadata().split("Requires-Python: >=")[1].split("\n")[0].split(".")))
        files = sorted((eplb_build.HERE / "eplb").rglob("*.py"))
        self.assertGreater(len(files), 15)
        for file in files:
            with self.subTest(file.name):
                ast.parse(file.read_text(), feature_version=oldest)
        with self.assertRaises(SyntaxError):
            ast.parse("match 1:\n    case 1:\n        pass\n", feature_version=oldest)


if __name__ == "__main__":
    unittest.main()
