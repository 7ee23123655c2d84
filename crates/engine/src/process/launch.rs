//! Starts the ranks of one machine as processes, and serves their store itself, so that any of them may die.

use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_comm::store::{ServerOptions, StoreAddress, StoreServer};
use eplb_core::RankId;

use crate::error::EngineError;

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How a rank's process ended.
#[derive(Debug)]
pub struct RankEnd {
    /// The rank.
    pub rank: RankId,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl fmt::Display for RankEnd {
    /// The rank's own last words, or what ended it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.stderr.lines().rev().find(|line| !line.trim().is_empty());
        let words = last.map(|line| line.strip_prefix("error: ").unwrap_or(line));
        match (signal(self.status), words) {
            (Some(signal), _) => write!(f, "{} was ended by signal {signal}", self.rank),
            // Most errors of a rank begin with its name.
            (None, Some(words)) if words.starts_with(&self.rank.to_string()) => f.write_str(words),
            (None, Some(words)) => write!(f, "{}: {words}", self.rank),
            (None, None) => write!(f, "{} ended with {} and said nothing", self.rank, self.status),
        }
    }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_status: ExitStatus) -> Option<i32> {
    None
}

/// Ranks as processes of this machine, and the store that this process serves for them.
#[derive(Debug)]
pub struct Launch {
    // Dropped after the ranks: who still runs finds the store until then.
    ranks: Vec<(RankId, Running)>,
    server: StoreServer,
}

/// A process and what reads its output. Dropping it ends the process.
#[derive(Debug)]
struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Launch {
    /// Serves a store on the loopback address and starts `ranks` processes; `command` makes the command of each, to which
    /// the store's address is given. Their stdin is closed, their output is kept.
    ///
    /// # Errors
    /// The store cannot be served, or a process not be started; those that were are ended.
    pub fn start(
        ranks: usize,
        command: impl Fn(RankId, &StoreAddress) -> Command,
    ) -> Result<Self, EngineError> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = StoreServer::bind(any, ServerOptions::default())?;
        let store = StoreAddress::Tcp(server.local_address().to_string());
        let mut launch = Self { ranks: Vec::new(), server };
        for rank in (0..ranks).map(RankId::at) {
            let mut command = command(rank, &store);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let refused = |error: std::io::Error| EngineError::RankLost {
                rank,
                detail: format!("its process cannot be started: {error}"),
            };
            let child = command.spawn().map_err(refused)?;
            let mut running = Running { child, stdout: None, stderr: None };
            let stdout = running.child.stdout.take().map(|pipe| keep(rank, pipe)).transpose();
            let stderr = running.child.stderr.take().map(|pipe| keep(rank, pipe)).transpose();
            (running.stdout, running.stderr) = (stdout.map_err(refused)?, stderr.map_err(refused)?);
            launch.ranks.push((rank, running));
        }
        Ok(launch)
    }

    /// Process ids, in the order of the ranks.
    pub fn ids(&self) -> Vec<u32> {
        self.ranks.iter().map(|(_, running)| running.child.id()).collect()
    }

    /// Where the ranks find their store.
    pub fn store(&self) -> StoreAddress {
        StoreAddress::Tcp(self.server.local_address().to_string())
    }

    /// Ends a rank's process as SIGKILL does, without its knowing.
    ///
    /// # Errors
    /// There is no such rank, or the system refuses.
    pub fn kill(&mut self, rank: RankId) -> Result<(), EngineError> {
        let lost = |detail: String| EngineError::RankLost { rank, detail };
        let running = self.ranks.iter_mut().find(|(other, _)| *other == rank);
        let (_, running) = running.ok_or_else(|| lost("it was not started here".into()))?;
        running.child.kill().map_err(|error| lost(format!("it cannot be killed: {error}")))
    }

    /// Stops a rank (`SIGSTOP`), or lets it run on (`SIGCONT`).
    ///
    /// # Errors
    /// There is no such rank, or it has ended.
    #[cfg(target_os = "linux")]
    pub fn hold(&mut self, rank: RankId, stopped: bool) -> Result<(), EngineError> {
        let lost = |detail: String| EngineError::RankLost { rank, detail };
        let running = self.ranks.iter().find(|(other, _)| *other == rank);
        let (_, running) = running.ok_or_else(|| lost("it was not started here".into()))?;
        let signal = if stopped { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        let id = i32::try_from(running.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.ok_or_else(|| lost("it has no number".into()))?;
        // Not waited for yet, so the number is still its own.
        rustix::process::kill_process(id, signal)
            .map_err(|error| lost(format!("it cannot be stopped: {error}")))
    }

    /// Waits for all ranks, each of which has deadlines of its own.
    ///
    /// # Errors
    /// The system does not say how a process ended.
    pub fn wait(self) -> Result<Vec<RankEnd>, EngineError> {
        let all = self.ranks.len();
        self.wait_for(all, Duration::ZERO)
    }

    /// Waits for the first `ranks` processes, and after that for the others, which depend on them, for `grace`; those
    /// that still run then are ended.
    ///
    /// # Errors
    /// The system does not say how a process ended.
    pub fn wait_for(mut self, ranks: usize, grace: Duration) -> Result<Vec<RankEnd>, EngineError> {
        let mut ends = Vec::new();
        let mut deadline = None;
        for (rank, running) in &mut self.ranks {
            let lost =
                |error: std::io::Error| EngineError::RankLost { rank: *rank, detail: error.to_string() };
            if rank.index() >= ranks {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + grace);
                while running.child.try_wait().map_err(lost)?.is_none() {
                    if Instant::now() > deadline {
                        running.child.kill().map_err(lost)?;
                        break;
                    }
                    std::thread::sleep(LOOK);
                }
            }
            let status = running.child.wait().map_err(lost)?;
            let text = |reader: Option<JoinHandle<String>>| {
                reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
            };
            let (stdout, stderr) = (text(running.stdout.take()), text(running.stderr.take()));
            ends.push(RankEnd { rank: *rank, status, stdout, stderr });
        }
        Ok(ends)
    }
}

/// Reads a pipe to its end on a thread of its own, so that its writer never waits.
fn keep(rank: RankId, mut pipe: impl Read + Send + 'static) -> std::io::Result<JoinHandle<String>> {
    std::thread::Builder::new().name(format!("rank-{}-out", rank.0)).spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        // A process that has ended has been waited for, and cannot be killed any more; there is nobody to tell of another error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn ranks_are_started_with_their_number_and_the_store_and_end_each_in_its_own_way() {
        let launch = Launch::start(5, |rank, store| {
            shell(match rank.0 {
                0 => "echo \"$0\"; echo over",
                1 => "echo 'error: rank 1, planning: no' >&2; exit 1",
                2 => "kill -KILL $$",
                3 => "exit 3",
                _ => "echo error: hm >&2; exit 1",
            })
            .also(store)
        })
        .unwrap();
        assert_eq!(launch.ids().len(), 5);
        let store = launch.store().to_string();
        let ends = launch.wait().unwrap();
        assert!(ends[0].status.success());
        assert_eq!(ends[0].stdout, format!("{store}\nover\n"));
        let said: Vec<String> = ends[1..].iter().map(ToString::to_string).collect();
        assert_eq!(said[0], "rank 1, planning: no");
        assert_eq!(said[1], "rank 2 was ended by signal 9");
        assert!(said[2].starts_with("rank 3 ended with") && said[2].contains('3'), "{}", said[2]);
        assert_eq!(said[3], "rank 4: hm");
    }

    trait Also {
        fn also(self, store: &StoreAddress) -> Command;
    }

    impl Also for Command {
        fn also(mut self, store: &StoreAddress) -> Command {
            self.arg(store.to_string());
            self
        }
    }

    #[test]
    fn one_rank_can_be_killed() {
        let mut launch = Launch::start(2, |rank, _| match rank.0 {
            0 => shell("echo over"),
            _ => shell("exec sleep 1000"),
        })
        .unwrap();
        launch.kill(RankId(1)).unwrap();
        assert!(launch.kill(RankId(2)).unwrap_err().to_string().contains("rank 2"));
        let ends = launch.wait().unwrap();
        assert!(ends[0].status.success());
        assert_eq!(ends[1].to_string(), "rank 1 was ended by signal 9");
    }

    #[test]
    fn who_depends_on_others_is_ended_after_them() {
        let launch = Launch::start(3, |rank, _| {
            shell(match rank.0 {
                0 => "echo done",
                1 => "exec sleep 1000",
                _ => "echo soon",
            })
        });
        // The time of the last counts from the end of the first, however long a start takes on a busy machine.
        let ends = launch.unwrap().wait_for(1, Duration::from_secs(3)).unwrap();
        assert_eq!(ends[0].stdout, "done\n");
        assert_eq!(ends[1].to_string(), "rank 1 was ended by signal 9");
        assert_eq!(ends[2].stdout, "soon\n");
    }

    #[test]
    fn a_launch_that_is_given_up_ends_its_processes() {
        let launch = Launch::start(1, |_, _| shell("sleep 1000")).unwrap();
        let id = launch.ids()[0];
        let alive = || std::path::Path::new(&format!("/proc/{id}")).exists();
        assert!(alive());
        drop(launch);
        assert!(!alive());
        let missing = Launch::start(2, |_, _| Command::new("/no/such/program")).unwrap_err().to_string();
        assert!(missing.contains("rank 0") && missing.contains("cannot be started"), "{missing}");
    }
}
