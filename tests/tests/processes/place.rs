//! Where a case takes place: its store, the machine of each rank, and how store, disk or link fail and are mended.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use eplb_comm::store::{ServerOptions, StoreServer, Token};

use crate::case::{Case, Fault, deadlines};

/// What stands in the way of a case: this machine, or something that is wrong.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The machine does not allow it.
    NotPossible(String),
    /// All was right but the time that it took.
    Late(String),
    Wrong(String),
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

impl From<&str> for Trouble {
    fn from(text: &str) -> Self {
        Self::Wrong(text.to_owned())
    }
}

/// Shared by the ranks of two hosts.
const TOKEN: &str = "a secret of these tests, long enough";

#[derive(Debug)]
pub(crate) enum Place {
    /// One host and a TCP store, served by the driver.
    Loopback(Option<StoreServer>),
    /// Two hosts with a link between them; the store is on the first, with half of the ranks.
    Hosts { server: StoreServer, second: SecondHost },
    /// One host and a file store on a small disk.
    Disk(SmallDisk),
}

impl Place {
    pub(crate) fn new(case: &Case) -> Result<Self, Trouble> {
        match case.fault {
            Fault::CutLink => {
                let second = SecondHost::new().map_err(Trouble::NotPossible)?;
                Ok(Self::Hosts { server: serve(second.address())?, second })
            }
            Fault::DiskFull => SmallDisk::new().map(Self::Disk).map_err(Trouble::NotPossible),
            _ => Ok(Self::Loopback(Some(serve(Ipv4Addr::LOCALHOST)?))),
        }
    }

    /// Address of the store.
    pub(crate) fn store(&self) -> String {
        match self {
            Self::Loopback(Some(server)) | Self::Hosts { server, .. } => {
                format!("tcp://{}", server.local_address())
            }
            // Until it is mended nobody asks.
            Self::Loopback(None) => String::new(),
            Self::Disk(disk) => format!("file://{}", disk.folder.display()),
        }
    }

    /// Port of the store, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Loopback(Some(server)) | Self::Hosts { server, .. } => Some(server.local_address().port()),
            Self::Loopback(None) | Self::Disk(_) => None,
        }
    }

    /// Starts this program on the machine of a rank.
    pub(crate) fn command(&self, rank: usize) -> Result<Command, String> {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let Self::Hosts { second, .. } = self else { return Ok(Command::new(this)) };
        let mut command = if second.has(rank) {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &second.name]).arg(this);
            command
        } else {
            Command::new(this)
        };
        command.env(Token::VARIABLE, TOKEN);
        Ok(command)
    }

    /// The store goes, the disk fills up, the link is cut.
    pub(crate) fn strike(&mut self) -> Result<(), String> {
        match self {
            Self::Loopback(server) => {
                *server = None;
                Ok(())
            }
            Self::Hosts { second, .. } => second.link("down"),
            Self::Disk(disk) => disk.fill(),
        }
    }

    /// All is well again; what ranks are told to do.
    pub(crate) fn mend(&mut self) -> Result<String, String> {
        match self {
            Self::Loopback(Some(_)) => return Ok("go".to_owned()),
            Self::Loopback(server) => *server = Some(serve(Ipv4Addr::LOCALHOST)?),
            Self::Hosts { second, .. } => second.link("up")?,
            Self::Disk(disk) => {
                disk.empty()?;
                return Ok("go".to_owned());
            }
        }
        Ok(format!("go {}", self.store()))
    }
}

fn serve(address: Ipv4Addr) -> Result<StoreServer, String> {
    let token =
        (!address.is_loopback()).then(|| Token::new(TOKEN.as_bytes()).map_err(|error| error.to_string()));
    let options =
        ServerOptions { deadlines: deadlines().store, token: token.transpose()?, ..ServerOptions::default() };
    StoreServer::bind(SocketAddr::from((address, 0)), options).map_err(|error| error.to_string())
}

/// Runs a program; what it says if it fails.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), said.trim()))
}

/// A number that no other place of any test has now.
fn number() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    (std::process::id() as usize * 8 + COUNT.fetch_add(1, Ordering::Relaxed)) % 65536
}

/// A network namespace, joined with the machine's own by a pair of virtual interfaces. Dropping it removes all three.
#[derive(Debug)]
pub(crate) struct SecondHost {
    name: String,
    /// Interfaces: ours, and that of the second host.
    ours: String,
    theirs: String,
    subnet: (u8, u8),
}

impl SecondHost {
    fn new() -> Result<Self, String> {
        let number = number();
        let name = format!("eplb{number}");
        let subnet = ((number >> 6) as u8, (number % 64 * 4) as u8);
        let host = Self { ours: format!("{name}a"), theirs: format!("{name}b"), name, subnet };
        run("ip", &["netns", "add", &host.name])?;
        let Self { name, ours, theirs, .. } = &host;
        run("ip", &["link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name])?;
        run("ip", &["addr", "add", &format!("{}/30", host.at(1)), "dev", ours])?;
        run("ip", &["-n", name, "addr", "add", &format!("{}/30", host.at(2)), "dev", theirs])?;
        run("ip", &["link", "set", ours, "up"])?;
        run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        host.link("up")?;
        Ok(host)
    }

    fn at(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet.0, self.subnet.1 + last)
    }

    /// Of the first host on the link.
    fn address(&self) -> Ipv4Addr {
        self.at(1)
    }

    fn has(&self, rank: usize) -> bool {
        rank >= crate::driver::RANKS / 2
    }

    /// The second host's end goes down: the first host's packets are lost in silence, and the second has no way any more.
    fn link(&self, state: &str) -> Result<(), String> {
        run("ip", &["-n", &self.name, "link", "set", &self.theirs, state])
    }
}

impl Drop for SecondHost {
    fn drop(&mut self) {
        // The pair of interfaces goes with one of its ends. What cannot be removed now was never made.
        let _ = run("ip", &["link", "del", &self.ours]);
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// A file system in memory that can be filled to the last byte. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    folder: PathBuf,
    filler: Option<Filler>,
}

/// Fills a disk until it is over.
#[derive(Debug)]
struct Filler {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl SmallDisk {
    fn new() -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("eplb-small-disk-{}", number()));
        std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let disk = Self { folder, filler: None };
        let path = disk.folder.to_string_lossy();
        run("mount", &["-t", "tmpfs", "-o", "size=4m", "none", &path])?;
        Ok(disk)
    }

    /// Fills it, and whatever a rank frees that was about to replace a file by another.
    fn fill(&mut self) -> Result<(), String> {
        let filler = self.folder.join("filler");
        fill(&filler)?;
        let over = Arc::new(AtomicBool::new(false));
        let goes_on = over.clone();
        let thread = std::thread::spawn(move || {
            while !goes_on.load(Ordering::Relaxed) {
                fill(&filler)?;
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(())
        });
        self.filler = Some(Filler { over, thread });
        Ok(())
    }

    fn empty(&mut self) -> Result<(), String> {
        self.end_filling()?;
        std::fs::remove_file(self.folder.join("filler")).map_err(|error| error.to_string())
    }

    fn end_filling(&mut self) -> Result<(), String> {
        let Some(Filler { over, thread }) = self.filler.take() else { return Ok(()) };
        over.store(true, Ordering::Relaxed);
        thread.join().map_err(|_| "the filler of the disk panicked")?
    }
}

/// Appends to a file what its disk has room for, the last page, too.
fn fill(filler: &Path) -> Result<(), String> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(filler);
    let file = file.as_mut().map_err(|error| error.to_string())?;
    let mut size = 8 << 20;
    while size >= 4096 {
        if std::io::Write::write_all(file, &vec![0; size]).is_err() {
            size /= 2;
        }
    }
    Ok(())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.end_filling();
        // What cannot be removed now was never made.
        let _ = run("umount", &["-l", &self.folder.to_string_lossy()]);
        let _ = std::fs::remove_dir(&self.folder);
    }
}
