//! World size 1, counted in a process of its own: what other tests start must not be counted.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use eplb_core::{Placement, Topology};
use eplb_engine::cluster::{Settings, Verify, weights};
use eplb_engine::process::{Alone, Flags, Join, MadeUp};
use ndarray::{Array2, array};

/// Threads and sockets of this process.
fn threads_and_sockets() -> (usize, usize) {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let socket = |path: &Path| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    (threads, open.filter(|entry| socket(&entry.path())).count())
}

const CHILD: &str = "EPLB_TEST_ALONE";

#[test]
fn a_rank_that_is_alone_starts_no_thread_and_opens_no_socket() {
    if std::env::var_os(CHILD).is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "alone::a_rank_that_is_alone_starts_no_thread_and_opens_no_socket";
        let output =
            Command::new(this).args(["--exact", name, "--test-threads=1"]).env(CHILD, "1").output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && out.contains("1 passed"),
            "{out}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let before = threads_and_sockets();
    let flags = Flags { rank: Some(0), world_size: Some(1), store: None };
    assert_eq!(Join::find(&flags, |_| None).unwrap().unwrap().store, None);
    let topology = Topology::uniform(1, 5).unwrap();
    let layout = weights::layout(2, 700).unwrap();
    let settings = Settings::new(&layout, &topology);
    let start = Placement::new(4, array![[0, 1, 2, 3, -1], [3, 2, 1, 0, 0]]).unwrap();
    let limits = eplb_exchange::Limits { exact_slots: true, ..settings.limits };
    let mut alone = Alone::start(&topology, Arc::new(layout), start, limits, &MadeUp).unwrap();
    let new = Placement::new(4, array![[3, 0, 1, 2, -1], [0, 1, 2, 3, -1]]).unwrap();
    let (waves, totals) = alone.rebalance(&new, &Array2::from_elem((2, 4), 1.0)).unwrap();
    assert!(waves > 0 && totals.local_copies > 0 && totals.moves == 0, "{waves} waves, {totals:?}");
    assert_eq!((alone.placement(), alone.check(Verify::Full).unwrap()), (&new, 0));
    assert_eq!(threads_and_sockets(), before);
    // The count sees a thread and a socket.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_err());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(threads_and_sockets(), (before.0 + 1, before.1 + 1));
    drop((stop, socket));
    assert!(thread.join().unwrap(), "nothing was sent");
}
