"""Takes vLLM's expert exchange out of its published wheel: the EPLB and pynccl files alone, into a folder that git ignores.

    python3 benches/peers/vllm_files.py [FOLDER] [--wheel FILE]

The wheel (340 MB) is downloaded without its dependencies unless one is given; PIP_* variables work as ever. Nothing of a server
is installed. What the files import of vLLM beside each other are the stand-ins of `vllm_standins.py`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import take

FILES = [
    "vllm/distributed/eplb/__init__.py",
    "vllm/distributed/eplb/eplb_communicator.py",
    "vllm/distributed/eplb/eplb_utils.py",
    "vllm/distributed/eplb/migration_scheduler.py",
    "vllm/distributed/eplb/rebalance_execute.py",
    "vllm/distributed/device_communicators/pynccl.py",
    "vllm/distributed/device_communicators/pynccl_wrapper.py",
]
FOLDER = Path(__file__).resolve().parents[2] / "target/peers/vllm"


def fetch(folder, wheel=None):
    """Fills `folder`; returns the version of the package."""
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
            if subprocess.run([*pip, "--only-binary", ":all:", "--dest", scratch, "vllm"]).returncode != 0:
                sys.exit("failed: pip download vllm")
            (wheel,) = Path(scratch).glob("*.whl")
        version = take(wheel, FILES, folder)
    (folder / "VERSION").write_text(version + "\n")
    return version


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--wheel", type=Path, help="a wheel that is here already")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"vllm {fetch(args.folder, args.wheel)} in {args.folder}")


if __name__ == "__main__":
    main()
