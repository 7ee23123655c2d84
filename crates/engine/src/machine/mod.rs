//! What this machine offers the engine, what it does not, and what to install or set.
//!
//! [`Found::look`] collects facts from files, nothing is started or changed; [`Found::advice`] and [`Found::backends`] judge them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::doctor::Facts;
use crate::process::{GlooTransport, HostId, PeerTransport};

mod backends;
mod libraries;

pub use backends::{Choice, Pair, Reason};
pub use libraries::Library;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `up`, `down` or what else the kernel says.
    pub state: String,
    /// Megabits per second, where the kernel says it.
    pub megabits: Option<u64>,
}

/// Where a resource has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// This much.
    At(u64),
    /// None.
    Unlimited,
}

/// Facts about the machine, as far as it tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The host, as ranks compare it.
    pub host: String,
    /// Models of GPUs, in the order of the driver.
    pub gpus: Vec<String>,
    /// Version of the NVIDIA kernel driver.
    pub driver: Option<String>,
    /// Libraries that are looked for, by their file names.
    pub libraries: Vec<Library>,
    /// Version of Gloo, or why it cannot be used.
    pub gloo: Result<String, String>,
    /// Whether processes of this host can share memory, tried out with a copy; or why not.
    pub sharing: Result<(), String>,
    /// Network interfaces, by name.
    pub interfaces: Vec<Interface>,
    /// Bytes of shared memory (`/dev/shm`): all, and free. `None`: there is none.
    pub shared_memory: Option<(u64, u64)>,
    /// Bytes of memory that can be had without swapping.
    pub free_memory: Option<u64>,
    /// Open files of this process.
    pub open_files: Option<Limit>,
    /// Bytes of memory that this process may pin.
    pub locked_memory: Option<Limit>,
    /// Processes and threads of this user.
    pub processes: Option<Limit>,
}

/// Where facts are read: the root of the file system, or of a made-up one in tests.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
    library_path: Option<String>,
    shared_memory: fn(&Path) -> Option<(u64, u64)>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self {
            root: PathBuf::from("/"),
            library_path: std::env::var("LD_LIBRARY_PATH").ok(),
            shared_memory: size_of_file_system,
        }
    }

    /// A made-up machine whose files lie under `root`.
    pub fn at(
        root: &Path,
        library_path: Option<&str>,
        shared_memory: fn(&Path) -> Option<(u64, u64)>,
    ) -> Self {
        Self { root: root.to_owned(), library_path: library_path.map(str::to_owned), shared_memory }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    fn read(&self, absolute: &str) -> Option<String> {
        fs::read_to_string(self.path(absolute)).ok()
    }

    fn folders(&self, absolute: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(absolute)).map(|entries| entries.flatten().collect::<Vec<_>>());
        let mut paths: Vec<PathBuf> =
            entries.unwrap_or_default().into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }
}

impl Found {
    /// Looks at a machine.
    pub fn look(machine: &Machine) -> Self {
        let limits = machine.read("/proc/self/limits").map(|text| limits(&text)).unwrap_or_default();
        Self {
            host: HostId::here().name().to_owned(),
            gpus: machine
                .folders("/proc/driver/nvidia/gpus")
                .iter()
                .filter_map(|gpu| fs::read_to_string(gpu.join("information")).ok())
                .map(|text| field(&text, "Model").unwrap_or("unknown").to_owned())
                .collect(),
            driver: machine.read("/proc/driver/nvidia/version").and_then(|text| driver_version(&text)),
            libraries: libraries::find(machine),
            gloo: GlooTransport::find_library().map_err(|error| error.to_string()),
            sharing: PeerTransport::try_out(),
            interfaces: machine.folders("/sys/class/net").iter().filter_map(|path| interface(path)).collect(),
            shared_memory: (machine.shared_memory)(&machine.path("/dev/shm")),
            free_memory: machine.read("/proc/meminfo").and_then(|text| {
                field(&text, "MemAvailable")?
                    .strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
                    .map(|kib| kib * 1024)
            }),
            open_files: limits.get("Max open files").copied(),
            locked_memory: limits.get("Max locked memory").copied(),
            processes: limits.get("Max processes").copied(),
        }
    }

    /// Takes in what was learnt by opening libraries, which goes before what their files' names say.
    pub fn with(mut self, facts: &Facts) -> Self {
        if let Ok((path, version)) = &facts.nccl {
            for library in self.libraries.iter_mut().filter(|library| library.name == "libnccl.so.2") {
                library.path = Some(PathBuf::from(path));
                library.version = Some(version.clone());
            }
        }
        self
    }

    /// A library by its file name.
    pub fn library(&self, name: &str) -> Option<&Library> {
        self.libraries.iter().find(|library| library.name == name)
    }

    /// What to install or set, most useful first; empty if nothing is missing.
    pub fn advice(&self) -> Vec<String> {
        const MIB: u64 = 1 << 20;
        let below = |limit: Option<Limit>, least: u64| matches!(limit, Some(Limit::At(at)) if at < least);
        let mut advice = Vec::new();
        let has = |name: &str| self.library(name).is_some_and(|library| library.path.is_some());
        if let Err(why) = &self.gloo {
            advice.push(format!("for ranks that are processes without NCCL: {why}"));
        }
        if !self.gpus.is_empty() {
            if !has("libcuda.so.1") {
                advice.push(
                    "the GPUs cannot be used: libcuda.so.1 is missing; install the driver's user-space libraries, or start the \
                     container with the NVIDIA runtime"
                        .into(),
                );
            }
            if !has("libnccl.so.2") {
                advice.push(
                    "libnccl.so.2 is missing: install libnccl2, or put the folder of the Python package nvidia-nccl into \
                     LD_LIBRARY_PATH"
                        .into(),
                );
            }
        }
        match self.shared_memory {
            None => advice.push(
                "there is no /dev/shm: ranks of one host cannot share memory; mount a tmpfs there".into(),
            ),
            Some((all, _)) if all < 256 * MIB => advice.push(format!(
                "/dev/shm has {} MiB only: start the container with --shm-size=1g or more",
                all / MIB
            )),
            Some(_) => {}
        }
        if below(self.open_files, 4096) {
            advice.push("fewer than 4096 open files are allowed: `ulimit -n 65536`; every rank takes a few per other rank".into());
        }
        if below(self.locked_memory, 1 << 30) && !self.gpus.is_empty() {
            advice.push("less than 1 GiB of memory may be pinned: `ulimit -l unlimited`".into());
        }
        if below(self.processes, 4096) {
            advice.push("fewer than 4096 processes and threads are allowed: `ulimit -u 65536`".into());
        }
        if !self.interfaces.iter().any(|interface| interface.name != "lo" && interface.state != "down") {
            advice.push(
                "no network interface but loopback is up: ranks of other hosts cannot be reached".into(),
            );
        }
        advice
    }
}

/// The value behind `name:` in a text of such lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':')).map(str::trim)
}

/// The first word of digits and dots behind "Module".
fn driver_version(text: &str) -> Option<String> {
    let numbers = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(numbers).map(str::to_owned)
}

fn interface(path: &Path) -> Option<Interface> {
    let read = |name: &str| fs::read_to_string(path.join(name)).ok().map(|text| text.trim().to_owned());
    let name = path.file_name().and_then(OsStr::to_str)?.to_owned();
    // A folder without a state is no interface.
    let state = read("operstate")?;
    // Loopback and virtual interfaces say unknown, or -1, or nothing.
    let megabits = read("speed").and_then(|text| text.parse().ok()).filter(|&megabits: &u64| megabits > 0);
    Some(Interface { name, state, megabits })
}

/// Soft limits of `/proc/self/limits` by name.
fn limits(text: &str) -> BTreeMap<String, Limit> {
    let soft = |line: &str| {
        // Columns of fixed width: name (26), soft limit (21), hard limit.
        let (name, rest) = line.split_at_checked(26)?;
        let limit = match rest.split_whitespace().next()? {
            "unlimited" => Limit::Unlimited,
            number => Limit::At(number.parse().ok()?),
        };
        Some((name.trim().to_owned(), limit))
    };
    text.lines().skip(1).filter_map(soft).collect()
}

/// Size of the file system that a folder is on, in bytes, and what of it is free: as `df` says it.
fn size_of_file_system(folder: &Path) -> Option<(u64, u64)> {
    let output =
        std::process::Command::new("df").args(["-B1", "--output=size,avail"]).arg(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.lines().nth(1)?.split_whitespace().map(|number| number.parse::<u64>().ok());
    Some((numbers.next()??, numbers.next()??))
}
