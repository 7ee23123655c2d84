"""Converts dumps of SGLang's expert distribution recorder to the `.npz` form that `eplb` reads.

    python -m eplb.convert dump.pt [more.pt ..] out.npz

Needs neither torch nor numpy, and runs nothing that is in a dump.

| dump | what it holds | arrays of `out.npz` |
|---|---|---|
| modes `stat`, `stat_approx` | `rank`, `logical_count [T, L, E]`, `average_utilization_rate_over_window` | `logical_count [T, L, E]`, `rank`, `average_utilization_rate_over_window` if it is known |
| modes `per_pass`, `per_token`: one file per rank | `records`, each with `forward_pass_id`, `rank`, `gatherer_key`, `global_physical_count [L, P]`; `last_physical_to_logical_map [L, P]` | `physical_count [T, L, P]`, summed over the ranks; `physical_to_logical_map [L, P]`; `forward_pass_id [T]` |

Give the files of all ranks of a detailed dump at once: a rank counts its own tokens only.
"""

import struct
import sys

from eplb import npz, torch_file
from eplb.torch_file import DumpError, Tensor

_USAGE = "usage: python -m eplb.convert dump.pt [more.pt ..] out.npz"

# The recorder also keeps records of single gatherers; those of the whole pass have this key.
_WHOLE_PASS = "primary"


def convert(dumps, out):
    """Converts the dumps (one, or one per rank of a detailed recording) to `out`; returns the shape of the counts.

    Raises `DumpError` with a message that names file and field, or `OSError`.
    """
    loaded = [(path, torch_file.load(path)) for path in dumps]
    for path, dump in loaded:
        if not isinstance(dump, dict):
            raise DumpError(f"{path}: holds a {type(dump).__name__}, expected a dictionary of the recorder")
    if all("records" in dump for _, dump in loaded):
        arrays, name = _detailed(loaded), "physical_count"
    elif len(loaded) == 1:
        arrays, name = _summed(*loaded[0]), "logical_count"
    else:
        path = next(path for path, dump in loaded if "records" not in dump)
        raise DumpError(f"{path}: no field records; only dumps of modes per_pass and per_token are put together")
    npz.write(out, arrays)
    return arrays[name][1]


def _summed(path, dump):
    counts = _counts(path, "logical_count", dump, "[steps, layers, experts]", 3)
    arrays = {"logical_count": counts}
    rank = dump.get("rank")
    if isinstance(rank, int):
        arrays["rank"] = "<i8", (), struct.pack("<q", rank)
    rate = dump.get("average_utilization_rate_over_window")
    if isinstance(rate, (int, float)):
        arrays["average_utilization_rate_over_window"] = "<f8", (), struct.pack("<d", rate)
    return arrays


def _detailed(loaded):
    """Sums the counts of a pass over the ranks; passes are in the order of their ids."""
    passes, seen, shape, first_map = {}, {}, None, None
    for path, dump in loaded:
        own_map = _counts(path, "last_physical_to_logical_map", dump, "[layers, slots]", 2)
        first_map = first_map or own_map
        if own_map != first_map:
            raise DumpError(f"{path}: last_physical_to_logical_map differs from that of {loaded[0][0]}")
        if not isinstance(dump["records"], list):
            raise DumpError(f"{path}: records is a {type(dump['records']).__name__}, expected a list")
        for index, record in enumerate(dump["records"]):
            where = f"records[{index}]"
            if not isinstance(record, dict):
                raise DumpError(f"{path}: {where} is a {type(record).__name__}, expected a dictionary")
            if record.get("gatherer_key", _WHOLE_PASS) != _WHOLE_PASS:
                continue
            for field in ("forward_pass_id", "rank"):
                if type(record.get(field)) is not int:
                    raise DumpError(f"{path}: {where} has no whole number {field}")
            step, rank = record["forward_pass_id"], record["rank"]
            if (step, rank) in seen:
                raise DumpError(f"{path}: {where} is pass {step} of rank {rank}, which {seen[step, rank]} has as well")
            seen[step, rank] = path
            field = "global_physical_count"
            dtype, own_shape, data = _counts(path, field, record, "[layers, slots]", 2, f"{where}.")
            shape = shape or own_shape
            if own_shape != shape or own_shape != first_map[1]:
                raise DumpError(
                    f"{path}: {where}.{field} has shape {own_shape}, expected {first_map[1]} as "
                    "last_physical_to_logical_map has"
                )
            values = torch_file.numbers(data, dtype[1:])
            if values is None or values.typecode in "fd":
                raise DumpError(f"{path}: {where}.{field} has dtype {dtype}, expected whole numbers")
            total = passes.get(step)
            passes[step] = list(values) if total is None else [a + b for a, b in zip(total, values)]
    if not passes:
        raise DumpError(f"{loaded[0][0]}: records holds no pass")
    steps = sorted(passes)
    data = b"".join(struct.pack(f"<{len(passes[step])}q", *passes[step]) for step in steps)
    return {
        "physical_count": ("<i8", (len(steps), *shape), data),
        "physical_to_logical_map": first_map,
        "forward_pass_id": ("<i8", (len(steps),), struct.pack(f"<{len(steps)}q", *steps)),
    }


def _counts(path, field, holder, expected, axes, where=""):
    """A tensor of a dump as (dtype, shape, bytes), checked: shape, and no number below 0 but -1 in maps."""
    name = f"{path}: {where}{field}"
    if field not in holder:
        fields = ", ".join(str(key) for key in holder) or "none"
        raise DumpError(f"{name} is missing; the fields are: {fields:.200}")
    tensor = holder[field]
    if not isinstance(tensor, Tensor):
        raise DumpError(f"{name} is a {type(tensor).__name__}, expected a tensor {expected}")
    if len(tensor.shape) != axes or 0 in tensor.shape:
        raise DumpError(f"{name} has shape {list(tensor.shape)}, expected {expected} with none of them 0")
    try:
        dtype, data = tensor.dtype, tensor.bytes()
    except DumpError as error:
        raise DumpError(f"{name}: {error}") from None
    if dtype == "bf16":
        # The upper half of a float32.
        dtype, data = "f4", b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    values = torch_file.numbers(data, dtype)
    least = -1 if field.endswith("map") else 0
    if values is not None and not all(least <= value < float("inf") for value in values):
        at = next(i for i, value in enumerate(values) if not least <= value < float("inf"))
        place = []
        for n in reversed(tensor.shape):
            at, index = divmod(at, n)
            place.insert(0, index)
        raise DumpError(f"{name}{place} is {values[_flat(place, tensor.shape)]}; counts are finite, 0 or more")
    code = {"b1": "|b1", "u1": "|u1", "i1": "|i1"}.get(dtype, f"<{dtype}")
    return code, tensor.shape, data


def _flat(place, shape):
    index = 0
    for i, n in zip(place, shape):
        index = index * n + i
    return index


def main(arguments=None):
    """The command; returns its exit code: 0 done, 1 could not read or write, 2 bad input or usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0] in ("-h", "--help"):
        print(f"{_USAGE}\n{__doc__}")
        return 0
    if len(arguments) < 2 or arguments[0].startswith("-") or not arguments[-1].endswith(".npz"):
        print(_USAGE, file=sys.stderr)
        return 2
    *dumps, out = arguments
    try:
        shape = convert(dumps, out)
    except DumpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{out}: {' x '.join(map(str, shape))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
