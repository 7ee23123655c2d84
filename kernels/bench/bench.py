"""Times the kernels on a GPU against the fewest bytes they must move, and against PyTorch.

    python3 kernels/bench/bench.py --fatbins target/kernel-check [--json FILE] [--quick]

Needs torch and a GPU. Loads the fatbins through the driver into PyTorch's context. Every figure is a median over repeats;
launches that are short are captured in a graph, so that what is timed is the device and not Python. Results are compared with
PyTorch's before they are timed.
"""

import argparse
import ctypes
import json
import statistics
import sys

import torch

U64 = ctypes.c_uint64
U32 = ctypes.c_uint32
PTR = ctypes.c_void_p


class Choices(ctypes.Structure):
    _fields_ = [("ids", PTR), ("row_stride", U64), ("valid", PTR), ("mask", PTR), ("tokens", U32), ("k", U32)]


class Counts(ctypes.Structure):
    _fields_ = [("loads", PTR), ("tag_stride", U64), ("tag", PTR), ("faults", PTR), ("phy2log", PTR),
                ("tags", U32), ("experts", U32), ("slots", U32), ("unused", U32)]


class Maps(ctypes.Structure):
    _fields_ = [("log2phy", PTR), ("logcnt", PTR), ("share", PTR), ("salt", PTR), ("out", PTR), ("out_stride", U64),
                ("columns", U32), ("slots", U32), ("layer", U32), ("unused", U32)]


class Driver:
    """The few calls of libcuda that are needed."""

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(text))
            sys.exit(f"{name}: {code} {text.value}")

    def kernel(self, image, name):
        module, function = PTR(), PTR()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(self, function, grid, shared, *args, threads=256):
        pointers = (PTR * len(args))(*(ctypes.cast(ctypes.pointer(arg), PTR) for arg in args))
        stream = PTR(torch.cuda.current_stream().cuda_stream)
        self.call("cuLaunchKernel", function, grid, 1, 1, threads, 1, 1, shared, stream, pointers, None)


def graphed(calls):
    """The calls as one graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def seconds(call, per_call=1, repeats=15):
    """Median time of one of the `per_call` things that a call does."""
    times = []
    for round_ in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if round_ >= 3:
            times.append(begin.elapsed_time(end) / 1e3 / per_call)
    return statistics.median(times)


def copy_rate():
    """Bytes per second, read plus written, of a large copy: the ceiling."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def read_rate():
    """Bytes per second of a large sum: the ceiling of what only reads."""
    source = torch.randn(1 << 30, device="cuda")
    return 4 * source.numel() / seconds(lambda: torch.sum(source))


class Recording:
    """Load recording and dispatch, 256 experts of which 64 have a second replica, top 8."""

    EXPERTS, SLOTS, K, COLUMNS = 256, 320, 8, 4

    def __init__(self, driver, fatbins):
        self.driver = driver
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count
        image = open(f"{fatbins}/dispatch.fatbin", "rb").read()
        self.kernels = {(what, bits): driver.kernel(image, f"eplb_{what}_i{bits}")
                        for what in ("record", "dispatch") for bits in (32, 64)}
        cuda = dict(device="cuda")
        self.loads = torch.zeros(self.EXPERTS, dtype=torch.int64, **cuda)
        self.faults = torch.zeros(2, dtype=torch.int64, **cuda)
        log2phy = torch.full((self.EXPERTS, self.COLUMNS), -1, dtype=torch.int32)
        log2phy[:, 0] = torch.arange(self.EXPERTS)
        log2phy[:64, 1] = torch.arange(256, 320)
        share = torch.ones(self.SLOTS)
        share[:64], share[256:] = 0.5, 0.5
        self.maps = [log2phy.cuda(), (log2phy >= 0).sum(1, dtype=torch.int32).cuda(), share.cuda()]
        self.salt = torch.zeros(1, dtype=torch.int64, **cuda)

    def launch(self, what, ids, out=None, shape=(1024, 1, 2)):
        """One launch of blocks of shape[0] threads, as many as give every thread shape[1] groups of four choices, and at most
        shape[2] per multiprocessor."""
        threads, groups, most = shape
        blocks = -(-ids.shape[0] * self.K // (4 * threads * groups))
        blocks = max(1, min(most * self.sms, blocks))
        bits = 8 * ids.element_size()
        tokens = ids.shape[0]
        choices = Choices(ids.data_ptr(), self.K, None, None, tokens, self.K)
        counts = Counts(self.loads.data_ptr(), self.EXPERTS, None, self.faults.data_ptr(), None, 1, self.EXPERTS, self.SLOTS, 0)
        args = [choices, counts]
        if what == "dispatch":
            log2phy, logcnt, share = self.maps
            args.append(Maps(log2phy.data_ptr(), logcnt.data_ptr(), share.data_ptr(), self.salt.data_ptr(), out.data_ptr(),
                             self.K, self.COLUMNS, self.SLOTS, 3, 0))
        self.driver.launch(self.kernels[what, bits], blocks, 4 * self.EXPERTS, *args, threads=threads)

    def check(self, ids):
        self.loads.zero_()
        out = torch.full_like(ids, -7)
        self.launch("dispatch", ids, out)
        assert torch.equal(self.loads, torch.bincount(ids.flatten(), minlength=self.EXPERTS)), "counts"
        back = torch.where(out < 256, out, out - 256)
        assert torch.equal(back, ids) and int(self.faults.sum()) == 0, "slots"
        self.loads.zero_()
        self.launch("record", ids)
        assert torch.equal(self.loads, torch.bincount(ids.flatten(), minlength=self.EXPERTS)), "counts"

    def draw(self, tokens, dtype):
        weight = 1.0 / torch.arange(1, self.EXPERTS + 1, device="cuda") ** 0.8
        part = 1 << 16
        rows = [torch.multinomial(weight.expand(min(part, tokens - at), -1), self.K) for at in range(0, tokens, part)]
        return torch.cat(rows).to(dtype)

    def figures(self, ceiling, tokens, dtype):
        # Enough different inputs that they do not stay in the cache, where they would not in a server.
        size = tokens * self.K * (4 if dtype == torch.int32 else 8)
        sets = max(2, min(64, (256 << 20) // size))
        drawn = self.draw(tokens, dtype)
        inputs = [drawn] + [drawn[torch.randperm(tokens, device="cuda")] for _ in range(sets - 1)]
        self.check(inputs[0])
        outs = [torch.empty_like(i) for i in inputs[:8]]
        ones = torch.ones(tokens * self.K, dtype=torch.int64, device="cuda")
        count = torch.zeros(self.EXPERTS, dtype=torch.int64, device="cuda")
        wide = [i.flatten().long() for i in inputs[:8]]
        row = {"tokens": tokens, "ids": str(dtype).replace("torch.", ""), "floor_us": size / ceiling * 1e6}
        timed = lambda calls: seconds(graphed(calls), len(calls)) * 1e6
        for shape in ((256, 1, 8), (512, 1, 4), (1024, 1, 2), (1024, 2, 1)):
            name = "x".join(map(str, shape))
            row[f"record_{name}"] = timed([lambda i=i: self.launch("record", i, shape=shape) for i in inputs])
        for shape in ((256, 1, 8), (1024, 1, 2)):
            name = "x".join(map(str, shape))
            row[f"dispatch_{name}"] = timed([lambda i=i, n=n: self.launch("dispatch", i, outs[n % len(outs)], shape)
                                             for n, i in enumerate(inputs)])
        row["scatter_add_us"] = timed([lambda i=i: count.scatter_add_(0, i, ones) for i in wide])
        # bincount waits for the host, so no graph takes it.
        row["bincount_us"] = seconds(lambda: [torch.bincount(i, minlength=self.EXPERTS) for i in wide], len(wide)) * 1e6
        return row


def as_device(numbers):
    return torch.tensor(numbers, dtype=torch.int64).cuda()


class Moving:
    """Commits and checksums of experts of four tensors (44 MB, as a large model has them)."""

    TENSORS = [29360128, 14680064, 7168, 3584]
    COPY_UNIT, CHECKSUM_UNIT = 4 << 10, 8 << 10

    def __init__(self, driver, fatbins):
        self.driver = driver
        rows, checksum = (open(f"{fatbins}/{name}.fatbin", "rb").read() for name in ("rows", "checksum"))
        self.copy = driver.kernel(rows, "eplb_copy_rows")
        self.commit = driver.kernel(rows, "eplb_commit")
        self.checksum = driver.kernel(checksum, "eplb_checksum_parts")
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    def copies(self, source, dest, experts, pitch_gap=0, row=7168):
        """A list of copies of whole experts, tensor by tensor; with a gap, rows of `row` bytes are pitched at the source."""
        numbers, units, at, to = [], 0, source.data_ptr(), dest.data_ptr()
        for _ in range(experts):
            for size in self.TENSORS:
                rows, row_bytes = (size // row, row) if pitch_gap and size % row == 0 else (1, size)
                pitch = row_bytes + (pitch_gap if rows > 1 else 0)
                numbers += [at, to, rows, row_bytes, pitch, row_bytes, units, 0]
                units += -(-size // self.COPY_UNIT)
                at, to = at + rows * pitch, to + size
        return as_device(numbers), len(numbers) // 8, units

    def commits(self, experts, ceiling):
        total = experts * sum(self.TENSORS)
        source = torch.randint(0, 255, (total,), dtype=torch.uint8, device="cuda")
        dest = torch.zeros_like(source)
        entries, count, units = self.copies(source, dest, experts)
        maps = torch.zeros(4096, dtype=torch.int32, device="cuda")
        words = [number for i in range(2000) for number in (maps.data_ptr() + 8 * i, i + 1)]
        words = as_device(words)
        row = {"experts": experts, "bytes": total, "floor_us": 2 * total / ceiling * 1e6}
        for factor in (1, 2, 3, 6):
            run = lambda: self.driver.launch(self.commit, factor * self.sms, 0, PTR(entries.data_ptr()), U32(count), U64(units),
                                             PTR(words.data_ptr()), U32(2000))
            dest.zero_()
            run()
            assert torch.equal(source, dest) and maps[0] == 1 and maps[3998] == 2000 and maps[1] == 0, "commit"
            row[f"commit_us_{factor}x"] = seconds(run) * 1e6
        row["copy_us"] = seconds(lambda: dest.copy_(source)) * 1e6
        run = lambda: self.driver.launch(self.commit, 8, 0, PTR(0), U32(0), U64(0), PTR(words.data_ptr()), U32(2000))
        row["words_only_us"] = seconds(graphed([run] * 20), 20) * 1e6
        return row

    def pitched(self, experts, ceiling, gap):
        total = experts * sum(self.TENSORS)
        source = torch.randint(0, 255, (total + total // 64,), dtype=torch.uint8, device="cuda")
        dest = torch.zeros(total, dtype=torch.uint8, device="cuda")
        entries, count, units = self.copies(source, dest, experts, pitch_gap=gap)
        run = lambda: self.driver.launch(self.copy, 3 * self.sms, 0, PTR(entries.data_ptr()), U32(count), U64(units))
        run()
        first = source[: (7168 + gap) * 4].view(4, -1)[:, :7168].flatten()
        assert torch.equal(dest[: first.numel()], first), "pitched copy"
        return {"experts": experts, "gap": gap, "floor_us": 2 * total / ceiling * 1e6, "gather_us": seconds(run) * 1e6}

    def checksums(self, experts, ceiling):
        total = experts * sum(self.TENSORS)
        memory = torch.randint(0, 255, (total,), dtype=torch.uint8, device="cuda")
        sums = torch.zeros(experts, dtype=torch.int64, device="cuda")
        numbers, units, at = [], 0, memory.data_ptr()
        for expert in range(experts):
            for tensor, size in enumerate(self.TENSORS):
                numbers += [at, 1, size, size, units, tensor | expert << 32]
                units += -(-size // self.CHECKSUM_UNIT)
                at += size
        parts = as_device(numbers)
        row = {"experts": experts, "bytes": total, "floor_us": total / ceiling * 1e6}
        seen = set()
        for factor in (1, 2, 4):
            run = lambda: self.driver.launch(self.checksum, factor * self.sms, 0, PTR(parts.data_ptr()), U32(len(numbers) // 6),
                                             U64(units), PTR(sums.data_ptr()))
            sums.zero_()
            run()
            seen.add(tuple(sums.tolist()))
            row[f"checksum_us_{factor}x"] = seconds(run) * 1e6
        assert len(seen) == 1 and len(set(next(iter(seen)))) == experts, "sums depend on the grid, or not on the bytes"
        return row


def table(title, rows):
    print(f"\n{title}")
    names = list(rows[0])
    cells = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]
    for line in [names] + cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fatbins", required=True)
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="few sizes")
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    driver = Driver()
    copy, read = copy_rate(), read_rate()
    torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e12:.2f} TB/s read and written, sums {read / 1e12:.2f} TB/s")
    recording, moving = Recording(driver, args.fatbins), Moving(driver, args.fatbins)
    sizes = [64, 8192] if args.quick else [64, 1024, 8192, 65536, 1 << 20]
    result = {"device": torch.cuda.get_device_name(), "copy_bytes_per_s": copy, "read_bytes_per_s": read}
    result["recording"] = [recording.figures(read, n, t) for n in sizes for t in (torch.int32, torch.int64)]
    table("load recording, us per launch (256 experts, top 8; AxBxC: threads of a block, groups of 4 choices per thread, most blocks per multiprocessor)", result["recording"])
    result["commit"] = [moving.commits(n, copy) for n in ([1] if args.quick else [1, 4, 32])]
    table("commit of experts of 44 MB and 2000 words, us (Nx: N blocks per multiprocessor)", result["commit"])
    result["gather"] = [moving.pitched(4, copy, gap) for gap in (1024, 16, 8, 4)]
    table("gather of pitched rows of 7168 bytes, us", result["gather"])
    result["checksum"] = [moving.checksums(n, read) for n in ([1] if args.quick else [1, 4, 32])]
    table("checksum of experts of 44 MB, us", result["checksum"])
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
