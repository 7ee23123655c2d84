"""The converter on dumps made by hand, byte by byte: neither torch nor numpy is needed.

    PYTHONPATH=bindings/python python3 -m unittest discover -s bindings/python/tests
"""

import contextlib
import io
import pickle
import struct
import tempfile
import unittest
import zipfile
from pathlib import Path

from eplb import convert, torch_file
from eplb.torch_file import DumpError


class Global:
    """Pickles as a name in a module, as classes and functions do, without the module being there."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Reference:
    """Pickles as what a persistent id refers to, as storages do."""

    def __init__(self, *parts):
        self.parts = parts


class Call:
    """Pickles as a call of a `Global`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Writer(pickle._Pickler):
    """The pickler that is written in Python, told how to write the three above."""

    def persistent_id(self, thing):
        return thing.parts if isinstance(thing, Reference) else None

    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, Global):
            self.write(f"c{thing.module}\n{thing.name}\n".encode())
        elif isinstance(thing, Call):
            self.save(thing.function)
            self.save(thing.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(thing, save_persistent_id)


def tensor(key, shape, stride=None, offset=0, storage="IntStorage", numel=0):
    """A tensor as `torch.save` pickles it."""
    if stride is None:
        stride = tuple(struct_product(shape[axis + 1 :]) for axis in range(len(shape)))
    reference = Reference("storage", Global("torch", storage), key, "cuda:0", numel)
    function = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(function, reference, offset, tuple(shape), stride, False, Call(Global("collections", "OrderedDict")))


def struct_product(numbers):
    product = 1
    for number in numbers:
        product *= number
    return product


def archive(path, content, storages, byteorder=b"little", root="dump/"):
    """Writes a file as `torch.save` does."""
    data = io.BytesIO()
    Writer(data, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(root + "data.pkl", data.getvalue())
        file.writestr(root + "byteorder", byteorder)
        for key, stored in storages.items():
            file.writestr(f"{root}data/{key}", stored)
    return path


def npy(path, name):
    """dtype, shape and bytes of an array of an .npz file."""
    with zipfile.ZipFile(path) as file:
        data = file.read(f"{name}.npy")
    assert data[:8] == b"\x93NUMPY\x01\x00"
    length = int.from_bytes(data[8:10], "little")
    assert (10 + length) % 64 == 0
    header = eval(data[10 : 10 + length], {"__builtins__": {}})
    assert not header["fortran_order"]
    return header["descr"], header["shape"], data[10 + length :]


class Convert(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out.npz"

    def summed(self, shape=(2, 1, 3), numbers=range(6), **content):
        """A dump of mode `stat`, with other content if asked for."""
        content = {
            "rank": 0,
            "logical_count": tensor("0", shape),
            "average_utilization_rate_over_window": 0.75,
        } | content
        return archive(self.folder / "dump.pt", content, {"0": struct.pack(f"<{len(numbers)}i", *numbers)})

    def refused(self, *dumps):
        with self.assertRaises(DumpError) as caught:
            convert.convert(dumps, self.out)
        self.assertFalse(self.out.exists(), "a refused dump leaves no file")
        self.assertEqual([p.name for p in self.folder.iterdir() if p.name.startswith(".npz")], [])
        message = str(caught.exception)
        self.assertIn("dump", message.split(":")[0], "the file is named")
        return message

    def test_counts_keep_dtype_shape_and_values(self):
        self.assertEqual(convert.convert([self.summed()], self.out), (2, 1, 3))
        self.assertEqual(npy(self.out, "logical_count"), ("<i4", (2, 1, 3), struct.pack("<6i", *range(6))))
        self.assertEqual(npy(self.out, "rank"), ("<i8", (), struct.pack("<q", 0)))
        rate = npy(self.out, "average_utilization_rate_over_window")
        self.assertEqual(rate, ("<f8", (), struct.pack("<d", 0.75)))

    def test_a_rate_that_is_not_known_is_left_out(self):
        convert.convert([self.summed(average_utilization_rate_over_window=None)], self.out)
        with zipfile.ZipFile(self.out) as file:
            self.assertEqual(file.namelist(), ["logical_count.npy", "rank.npy"])

    def test_strides_and_offsets(self):
        # [2, 2, 3] of 0..11 after one number that is skipped, with the last two axes swapped.
        dump = archive(
            self.folder / "dump.pt",
            {"logical_count": tensor("0", (2, 3, 2), (6, 1, 3), 1)},
            {"0": struct.pack("<13i", 99, *range(12))},
        )
        convert.convert([dump], self.out)
        _, shape, data = npy(self.out, "logical_count")
        self.assertEqual(shape, (2, 3, 2))
        self.assertEqual(struct.unpack("<12i", data), (0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11))

    def test_big_endian_and_other_dtypes(self):
        for storage, code, written, descr in [
            ("IntStorage", ">i", (1, 70000), "<i4"),
            ("LongStorage", ">q", (1, 1 << 40), "<i8"),
            ("FloatStorage", ">f", (0.5, 3.0), "<f4"),
        ]:
            content = {"logical_count": tensor("0", (1, 1, 2), storage=storage)}
            stored = b"".join(struct.pack(code, value) for value in written)
            dump = archive(self.folder / "dump.pt", content, {"0": stored}, b"big")
            convert.convert([dump], self.out)
            found, _, data = npy(self.out, "logical_count")
            self.assertEqual(found, descr)
            self.assertEqual(struct.unpack(f"<2{code[1]}", data), written)

    def test_bfloat16_becomes_float32(self):
        content = {"logical_count": tensor("0", (1, 1, 2), storage="BFloat16Storage")}
        dump = archive(self.folder / "dump.pt", content, {"0": struct.pack("<f", 1.5)[2:] + struct.pack("<f", 4.0)[2:]})
        convert.convert([dump], self.out)
        self.assertEqual(npy(self.out, "logical_count"), ("<f4", (1, 1, 2), struct.pack("<2f", 1.5, 4.0)))

    def test_a_detailed_dump_is_summed_over_the_ranks(self):
        def of_rank(rank, passes):
            records = [
                {
                    "forward_pass_id": step,
                    "rank": rank,
                    "gatherer_key": key,
                    "global_physical_count": tensor(str(index), (1, 4)),
                }
                for index, (step, key, _) in enumerate(passes)
            ]
            content = {"records": records, "last_physical_to_logical_map": tensor("m", (1, 4), storage="LongStorage")}
            storages = {str(i): struct.pack("<4i", *counts) for i, (_, _, counts) in enumerate(passes)}
            storages["m"] = struct.pack("<4q", 0, 1, 2, 0)
            return archive(self.folder / f"dump{rank}.pt", content, storages)

        first = of_rank(0, [(9, "primary", (1, 2, 3, 4)), (4, "primary", (5, 0, 0, 0)), (9, "other", (7, 7, 7, 7))])
        second = of_rank(1, [(4, "primary", (0, 0, 0, 8)), (9, "primary", (1, 1, 1, 1))])
        self.assertEqual(convert.convert([first, second], self.out), (2, 1, 4))
        _, _, data = npy(self.out, "physical_count")
        self.assertEqual(struct.unpack("<8q", data), (5, 0, 0, 8, 2, 3, 4, 5))
        self.assertEqual(npy(self.out, "physical_to_logical_map")[:2], ("<i8", (1, 4)))
        self.assertEqual(struct.unpack("<2q", npy(self.out, "forward_pass_id")[2]), (4, 9))
        self.out.unlink()
        self.assertIn("pass 9 of rank 0, which", self.refused(first, first))
        self.assertIn("no field records", self.refused(first, self.summed()))

    def test_a_trace_reads_dumps_as_they_are(self):
        import eplb

        trace = eplb.Trace(self.summed())
        self.assertEqual((trace.shape, trace.loads()), ((2, 1, 3), [[[0, 1, 2]], [[3, 4, 5]]]))
        with self.assertRaisesRegex(DumpError, "dump.pt: no field records"):
            eplb.Trace([self.summed(), self.summed()])
        convert.convert([self.summed()], self.out)
        self.assertEqual(eplb.Trace([self.out]).shape, (2, 1, 3))
        with self.assertRaisesRegex(eplb.EplbError, "nowhere.npz"):
            eplb.Trace(self.folder / "nowhere.npz")

    def test_bad_fields_are_named(self):
        for content, *words in [
            ({"logical_count": 3}, "logical_count is a int", "[steps, layers, experts]"),
            ({"logical_count": tensor("0", (2, 3))}, "logical_count has shape [2, 3]"),
            ({"logical_count": tensor("0", (0, 1, 3))}, "logical_count has shape [0, 1, 3]"),
            ({"logical_count": tensor("0", (2, 1, 4))}, "logical_count: data/0 holds 24 bytes", "needs 32"),
            ({"logical_count": tensor("0", (2, 1, 3), offset=1)}, "logical_count: data/0 holds 24 bytes"),
            ({"logical_count": tensor("0", (1 << 24, 1 << 20, 3), (0, 0, 1))}, "logical_count: data/0 holds 24 bytes"),
            ({"logical_count": tensor("7", (2, 1, 3))}, "logical_count: truncated: data/7"),
            ({"logical_count": tensor("0", (2, 1, 3), (-3, 3, 1))}, "stride (-3, 3, 1)"),
            ({"logical_count": tensor("0", (1 << 40, 1 << 40, 3), (0, 0, 0))}, "a tensor claims shape"),
            ({"logical_count": tensor("0", (2, 1, 3), storage="QInt8Storage")}, "torch.QInt8Storage"),
        ]:
            message = self.refused(self.summed(**content))
            for word in words:
                self.assertIn(word, message)
        message = self.refused(archive(self.folder / "dump.pt", {"rank": 0, "other": 1}, {}))
        self.assertIn("logical_count is missing; the fields are: rank, other", message)
        message = self.refused(archive(self.folder / "dump.pt", [1], {}))
        self.assertIn("holds a list", message)
        message = self.refused(self.summed(numbers=[0, 1, 2, 3, -5, 5]))
        self.assertIn("logical_count[1, 0, 1] is -5", message)

    def test_a_dump_cannot_run_code(self):
        hit = self.folder / "hit"
        call = Call(Global("pathlib", "Path.touch"), Call(Global("pathlib", "Path"), str(hit)))
        self.assertIn("pathlib.Path", self.refused(self.summed(rank=call)))
        self.assertIn("builtins.eval", self.refused(self.summed(rank=Call(Global("builtins", "eval"), "1"))))
        self.assertFalse(hit.exists())

    def test_truncated_or_changed_bytes_never_pass_as_other_counts(self):
        dump = self.summed()
        whole = dump.read_bytes()
        good = struct.pack("<6i", *range(6))
        refused = 0
        for cut in range(0, len(whole), 7):
            dump.write_bytes(whole[:cut])
            self.refused(dump)
        for at in range(0, len(whole), 3):
            dump.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                convert.convert([dump], self.out)
            except DumpError as error:
                refused += 1
                self.assertIn("dump.pt", str(error))
                continue
            # What the zip archive does not protect is dates and the like; counts have a checksum.
            self.assertEqual(npy(self.out, "logical_count")[2], good)
        self.assertGreater(refused, 100)

    def test_other_files_are_refused(self):
        dump = self.folder / "dump.pt"
        for content, word in [
            (b"", "empty"),
            (b"layer_id,expert_id,count\n", "not a file of torch.save"),
            (pickle.dumps({"logical_count": 1}), "save it again"),
        ]:
            dump.write_bytes(content)
            self.assertIn(word, self.refused(dump))
        with zipfile.ZipFile(dump, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("dump/data.pkl", bytes(1 << 20))
        self.assertIn("data.pkl is compressed", self.refused(dump))
        with zipfile.ZipFile(dump, "w") as file:
            file.writestr("counts.npy", b"")
        self.assertIn("no data.pkl", self.refused(dump))

    def test_the_command(self):
        dump = str(self.summed())
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.assertEqual(convert.main([dump, str(self.out)]), 0)
            self.assertEqual(convert.main([dump]), 2)
            self.assertEqual(convert.main([dump, "out.csv"]), 2)
            self.assertEqual(convert.main([str(self.folder / "none.pt"), str(self.out)]), 1)
            self.assertEqual(convert.main([dump, str(self.folder / "none" / "out.npz")]), 1)
            Path(dump).write_bytes(b"PK\3\4")
            self.assertEqual(convert.main([dump, str(self.out)]), 2)
        self.assertIn("2 x 1 x 3", out.getvalue())
        self.assertIn("dump.pt: truncated", err.getvalue())
        self.assertIn("none.pt: No such file", err.getvalue())

    def test_the_reader_gives_numbers_and_strings_as_they_are(self):
        dump = archive(self.folder / "dump.pt", {"a": [1, 2.5, None], "b": "x"}, {})
        self.assertEqual(torch_file.load(dump), {"a": [1, 2.5, None], "b": "x"})


if __name__ == "__main__":
    unittest.main()
