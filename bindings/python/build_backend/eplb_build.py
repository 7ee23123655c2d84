"""Builds the wheel: cargo makes the shared library, and it is packed with the Python files.

Needs nothing but Python and cargo. The wheel holds no compiled Python, so one serves every version of Python.
"""

import base64
import hashlib
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]


def version():
    """The version of the workspace."""
    text = (ROOT / "Cargo.toml").read_text()
    return re.search(r"\[workspace\.package\][^\[]*?^version = \"([^\"]+)\"", text, re.M | re.S).group(1)


def tag():
    """The wheel runs with any Python 3 on this machine's processor and its C library or a newer one."""
    if sys.platform != "linux":
        raise SystemExit(f"eplb runs on Linux; this is {sys.platform}")
    name, libc = platform.libc_ver()
    if name != "glibc":
        raise SystemExit("eplb's wheel needs the GNU C library")
    return "py3-none-manylinux_{}_{}".format(libc.replace(".", "_"), platform.machine())


def library():
    """Builds the shared library; returns its path."""
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run([cargo, "build", "--release", "--locked", "--quiet", "-p", "eplb-capi"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "libeplb.so"


def metadata():
    readme = (
        "Plans where the experts of a Mixture-of-Experts model and their replicas should live. "
        "`eplb.rebalance_experts` has the signature of DeepSeek's EPLB.\n"
    )
    fields = {
        "Metadata-Version": "2.1",
        "Name": "eplb",
        "Version": version(),
        "Summary": "Expert-parallel load balancing of Mixture-of-Experts inference",
        "License": "Apache-2.0",
        "Requires-Python": ">=3.9",
        "Description-Content-Type": "text/markdown",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n" + readme


def get_requires_for_build_wheel(config_settings=None):
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Writes the wheel; returns its file name (PEP 517)."""
    info = f"eplb-{version()}.dist-info"
    wheel = f"Wheel-Version: 1.0\nGenerator: eplb\nRoot-Is-Purelib: false\nTag: {tag()}\n"
    files = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in sorted((HERE / "eplb").rglob("*.py"))}
    files["eplb/py.typed"] = b""
    files["eplb/libeplb.so"] = library().read_bytes()
    files[f"{info}/METADATA"] = metadata().encode()
    files[f"{info}/WHEEL"] = wheel.encode()
    files[f"{info}/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    name = f"eplb-{version()}-{tag()}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            # A fixed time: the same files make the same wheel.
            member = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return name


def build_sdist(sdist_directory, config_settings=None):
    raise SystemExit("there is no source distribution of the Python package alone: it is built in the repository")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    target.mkdir(parents=True, exist_ok=True)
    print(target / build_wheel(target))
