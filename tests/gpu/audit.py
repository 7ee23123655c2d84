"""Reads what `interpose.c` recorded of `eplb bench exchange` on the real driver, and names every call that a server would feel.

    audit.py calls.log            exit code 1 if there is one
    audit.py calls.log --planted  the same log with each kind of forbidden call put into it: all must be found

Start-up ends with our first copy from the host (slots are filled when everything is made), and nothing counts after the last copy to
it (the last check). In between: no wait for a whole device, no wait for a stream that is not ours, no wait of ours for a stream that
carries more than copies from and to the host, no memory taken or given back, no module loaded. No copy without a stream at any time, and no
stream of ours that waits for the default stream.
"""

import sys

TAKES = {
    "cuMemAlloc", "cuMemAllocAsync", "cuMemAllocPitch", "cuMemFree", "cuMemCreate", "cuMemRelease", "cuMemHostAlloc",
    "cuMemHostRegister", "cuMemFreeHost", "cuModuleLoadData",
}
NON_BLOCKING = "1"


def read(path):
    calls = []
    for line in open(path):
        words = line.split()
        if words:
            calls.append((words[0], dict(word.split("=", 1) for word in words[1:] if "=" in word)))
    return calls


def window(calls):
    """Numbers of our first copy from the host and of our last one to it; NCCL copies too, when it starts."""
    ours = [(at, name) for at, (name, facts) in enumerate(calls) if facts.get("by", "").startswith("eplb")]
    ups = [at for at, name in ours if name == "cuMemcpyHtoDAsync"]
    downs = [at for at, name in ours if name == "cuMemcpyDtoHAsync"]
    if not ups or not downs or downs[-1] < ups[0]:
        sys.exit("this is no log of a bench: no copies from and to the host")
    return ups[0], downs[-1]


def audit(calls):
    found = []
    begin, end = window(calls)
    ours = {facts["stream"] for name, facts in calls if name == "cuStreamCreate" and facts["by"].startswith("eplb")}
    busy = {facts["stream"] for name, facts in calls if name in ("cuMemcpyAsync", "cuMemcpyBatchAsync")}
    for at, (name, facts) in enumerate(calls):
        serving, mine = begin <= at <= end, facts.get("by", "").startswith("eplb")
        if name == "cuStreamCreate" and mine and facts["flags"] != NON_BLOCKING:
            found.append(f"a stream that waits for the default stream: {facts}")
        if mine and (name in ("cuMemcpy", "cuMemcpyHtoD", "cuMemcpyDtoH") or facts.get("stream") in ("(nil)", "0x0")):
            found.append(f"the default stream: {name} {facts}")
        if not serving:
            continue
        if name == "cuCtxSynchronize" or name == "cuEventSynchronize":
            found.append(f"{name} {facts}")
        elif name == "cuStreamSynchronize" and (facts["stream"] not in ours or facts["stream"] in busy or not mine):
            found.append(f"a wait for a stream at work, or not ours: {facts}")
        elif name in TAKES:
            found.append(f"memory while serving: {name} {facts}")
    return found


def planted(calls):
    """Kinds of forbidden calls that the audit does not find; none, if it is of use."""
    begin, end = window(calls)
    middle = (begin + end) // 2
    some = next(facts["stream"] for name, facts in calls if name == "cuStreamCreate")
    faults = [("cuCtxSynchronize", {}), ("cuEventSynchronize", {}), ("cuStreamSynchronize", {"stream": "0x1"}),
              ("cuStreamCreate", {"stream": "0x1", "flags": "0"}), ("cuMemcpy", {"bytes": "1"}),
              ("cuMemcpyAsync", {"stream": "(nil)", "bytes": "1"}), ("cuMemcpyBatchAsync", {"stream": "(nil)", "copies": "1"})]
    faults += [(name, {"bytes": "1"}) for name in sorted(TAKES)]
    missed = []
    for name, facts in faults:
        spoilt = calls[:middle] + [(name, {"by": "eplb", **facts})] + calls[middle:]
        if not audit(spoilt):
            missed.append(name)
    if not audit(calls[:middle] + [("cuStreamSynchronize", {"by": "libnccl.so.2", "stream": some})] + calls[middle:]):
        missed.append("a wait of another library")
    return missed


def main():
    calls = read(sys.argv[1])
    if "--planted" in sys.argv:
        missed = planted(calls)
        print(f"planted: {'all found' if not missed else 'NOT FOUND: ' + ', '.join(missed)}")
        sys.exit(bool(missed))
    begin, end = window(calls)
    found = audit(calls)
    counts = {}
    for name, facts in calls[begin : end + 1]:
        counts[name, facts.get("by")] = counts.get((name, facts.get("by")), 0) + 1
    print(f"{len(calls)} calls, {end - begin + 1} of them while serving: " + ", ".join(f"{n} {k} by {b}" for (k, b), n in sorted(counts.items())))
    for line in found[:20]:
        print(f"FORBIDDEN {line}")
    print(f"audit: {len(found)} forbidden calls")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
