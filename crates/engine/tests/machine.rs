//! Made-up machines, and this one.

use std::fs;
use std::path::Path;

use eplb_cuda::Probe;
use eplb_engine::doctor::Facts;
use eplb_engine::machine::{Found, Limit, Machine, Pair};
use tempfile::TempDir;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     \n\
Max processes             1024                 1024                 processes \n\
Max open files            1024                 524288               files     \n\
Max locked memory         8388608              8388608              bytes     \n\
Max address space         unlimited            unlimited            bytes     \n";

/// Two GPUs, NCCL in a folder of LD_LIBRARY_PATH, little shared memory.
fn server() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    for gpu in ["0000:19:00.0", "0000:3b:00.0"] {
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 113\nGPU UUID: \t GPU-0\n";
        write(at, &format!("/proc/driver/nvidia/gpus/{gpu}/information"), text);
    }
    let version =
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 2025\nGCC version: 12\n";
    write(at, "/proc/driver/nvidia/version", version);
    write(at, "/opt/nccl/libnccl.so.2.27.3", "");
    std::os::unix::fs::symlink("libnccl.so.2.27.3", at.join("opt/nccl/libnccl.so.2")).unwrap();
    write(at, "/vendor/libcuda.so.1", "");
    write(at, "/etc/ld.so.conf.d/vendor.conf", "# a comment\n/vendor\n");
    write(at, "/sys/class/net/lo/operstate", "unknown\n");
    write(at, "/sys/class/net/eth0/operstate", "up\n");
    write(at, "/sys/class/net/eth0/speed", "200000\n");
    write(at, "/sys/class/net/bonding_masters", "\n");
    write(at, "/proc/self/limits", LIMITS);
    write(at, "/proc/meminfo", "MemTotal:       100 kB\nMemAvailable:    2048 kB\n");
    root
}

#[test]
fn a_server_with_gpus_is_seen_and_told_what_to_set() {
    let root = server();
    let machine = Machine::at(root.path(), Some("/nowhere:/opt/nccl"), |_| Some((64 << 20, 60 << 20)));
    let found = Found::look(&machine);
    assert_eq!(found.gpus, ["NVIDIA H200", "NVIDIA H200"]);
    assert_eq!(found.driver.as_deref(), Some("580.95.05"));
    let nccl = found.library("libnccl.so.2").unwrap();
    assert_eq!((nccl.path.is_some(), nccl.version.as_deref()), (true, Some("2.27.3")));
    assert!(found.library("libcuda.so.1").unwrap().path.is_some(), "its folder is named in ld.so.conf.d");
    let names: Vec<_> =
        found.interfaces.iter().map(|i| (i.name.as_str(), i.state.as_str(), i.megabits)).collect();
    assert_eq!(names, [("eth0", "up", Some(200_000)), ("lo", "unknown", None)]);
    assert_eq!((found.open_files, found.locked_memory), (Some(Limit::At(1024)), Some(Limit::At(8 << 20))));
    assert_eq!(found.free_memory, Some(2 << 20));
    let advice = found.advice().join("\n");
    for word in ["/dev/shm has 64 MiB", "--shm-size", "ulimit -n", "ulimit -l", "ulimit -u"] {
        assert!(advice.contains(word), "{word} in {advice}");
    }
    assert!(!advice.contains("libnccl") && !advice.contains("network"), "{advice}");
    // Without the library path NCCL is not found, and that is said.
    let found = Found::look(&Machine::at(root.path(), None, |_| None));
    let advice = found.advice().join("\n");
    assert!(advice.contains("libnccl.so.2 is missing") && advice.contains("no /dev/shm"), "{advice}");
}

#[test]
fn an_empty_machine_says_little_and_breaks_nothing() {
    let root = tempfile::tempdir().unwrap();
    let found = Found::look(&Machine::at(root.path(), None, |_| Some((1 << 30, 1 << 30))));
    assert_eq!((found.gpus.len(), &found.driver, found.interfaces.len()), (0, &None, 0));
    assert_eq!((found.open_files, found.free_memory), (None, None));
    let advice = found.advice().join("\n");
    assert!(advice.contains("loopback") && !advice.contains("GPU") && !advice.contains("ulimit"), "{advice}");
}

#[test]
fn backends_are_chosen_by_pair_and_every_one_has_a_reason() {
    let root = server();
    let mut found = Found::look(&Machine::at(root.path(), Some("/opt/nccl"), |_| None));
    found.gloo = Ok("1".into());
    let names = |pair| {
        let choice = found.backends(pair);
        assert!(choice.reasons.iter().all(|reason| !reason.why.is_empty()));
        assert_eq!(choice.reasons.last().map(|reason| reason.backend), choice.backend);
        choice.reasons.iter().map(|reason| reason.backend).collect::<Vec<_>>()
    };
    assert_eq!(names(Pair::Same), ["copy"]);
    assert_eq!(names(Pair::Threads), ["local"]);
    assert_eq!(names(Pair::Host), ["peer (host memory)"]);
    assert_eq!(names(Pair::Hosts), ["peer (host memory)", "nccl", "gloo"]);
    assert!(found.backends(Pair::Hosts).reasons[0].why.contains("different hosts"));
    found.sharing = Err("memfd_create was refused".into());
    let choice = found.backends(Pair::Host);
    assert_eq!(choice.backend, Some("gloo"));
    assert!(choice.reasons[0].why.contains("memfd_create"));
    found.gloo = Err("gloo is not built in: install it".into());
    let none = found.backends(Pair::Host);
    assert_eq!((none.backend, none.reasons.len()), (None, 3));
    assert!(none.reasons[2].why.contains("install"));
    found.gpus.clear();
    assert!(found.backends(Pair::Host).reasons[1].why.contains("no GPU"));
}

#[test]
fn this_machine_can_be_looked_at() {
    let found = Found::look(&Machine::here());
    assert!(!found.host.is_empty() && found.open_files.is_some());
    assert!(found.shared_memory.is_none_or(|(all, free)| all >= free));
}

#[test]
fn on_gpus_the_paths_and_nccl_decide_and_every_backend_has_a_reason() {
    let mut found = Found::look(&Machine::at(tempfile::tempdir().unwrap().path(), None, |_| None));
    found.gloo = Ok("1.1".into());
    let facts = |access: [[bool; 2]; 2], nccl: Result<(&str, &str), &str>| Facts {
        cuda: Ok(Probe {
            driver_version: 13_000,
            devices: Vec::new(),
            peer_access: access.map(Vec::from).into(),
        }),
        nccl: nccl.map(|(path, version)| (path.into(), version.into())).map_err(str::to_owned),
        variables: Vec::new(),
    };
    let there = Ok(("/lib/libnccl.so.2", "2.28.9"));
    let chosen_of = |found: &Found, facts: &Facts, pair| {
        let choice = found.backends_of_devices(facts, pair);
        let words: Vec<String> =
            choice.reasons.into_iter().map(|one| format!("{}: {}", one.backend, one.why)).collect();
        (choice.backend, words.join(" | "))
    };
    let chosen = |facts: &Facts, pair| chosen_of(&found, facts, pair);
    let all = facts([[false, true], [true, false]], there);
    assert_eq!(
        [Pair::Same, Pair::Threads, Pair::Host].map(|pair| chosen(&all, pair).0),
        [Some("copy"), Some("peer"), Some("peer")]
    );
    assert!(chosen(&all, Pair::Host).1.contains("--ipc=host"));
    let (backend, words) = chosen(&all, Pair::Hosts);
    assert!(
        backend == Some("nccl") && words.contains("different hosts") && words.contains("2.28.9"),
        "{words}"
    );
    let apart = facts([[false, true], [false, false]], there);
    let (backend, words) = chosen(&apart, Pair::Host);
    assert!(backend == Some("nccl") && words.contains("GPU 1 does not reach GPU 0"), "{words}");
    let missing = facts([[false; 2]; 2], Err("install libnccl2"));
    let (backend, words) = chosen(&missing, Pair::Threads);
    for word in [
        "GPU 0 does not reach GPU 1",
        "install libnccl2",
        "gloo: TCP through pinned host memory, version 1.1",
    ] {
        assert!(backend == Some("gloo") && words.contains(word), "{words}");
    }
    let mut without = found.clone();
    without.gloo = Err("install libgloo".into());
    let (backend, words) = chosen_of(&without, &missing, Pair::Threads);
    assert!(
        backend.is_none() && words.ends_with("nccl: install libnccl2 | gloo: install libgloo"),
        "{words}"
    );
    let none = Facts { cuda: Err("libcuda.so.1 is missing".into()), ..all };
    let (backend, words) = chosen(&none, Pair::Host);
    assert!(backend.is_none() && words.contains("libcuda.so.1 is missing"), "{words}");
}
