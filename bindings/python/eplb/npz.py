"""Writes arrays as `.npz` without numpy: a zip archive of `.npy` version 1.0 members, little-endian, C order."""

import os
import tempfile
import zipfile


def write(path, arrays):
    """Writes `arrays`, a dictionary of name -> (dtype such as `<i4`, shape, bytes), whole or not at all."""
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    handle, part = tempfile.mkstemp(dir=folder, prefix=".npz-")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (dtype, shape, data) in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    member.write(_header(dtype, shape))
                    member.write(data)
        # Private until it is whole; then what any new file would be.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _header(dtype, shape):
    text = repr({"descr": dtype, "fortran_order": False, "shape": tuple(shape)}).encode("latin1")
    # Magic, version, length, text and newline fill a multiple of 64 bytes.
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
