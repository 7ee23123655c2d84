//! Ranks as processes, with a TCP store: the conformance suite, and ranks that are killed and stopped.
//!
//! The program starts itself again for each rank; hence no test harness. Arguments choose checks by parts of their names.

mod alone;
mod child;
mod kills;
mod remote;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};

use eplb_comm::CommError;
use eplb_comm::conformance::{Options, Rank, Setup, run_all};
use eplb_comm::store::{ServerOptions, StoreServer};

fn conformance(_: SocketAddr) {
    let options = Options { ranks: 3, waves: 12, ..Options::default() };
    // Each group its own store: children of the last one may still be leaving theirs.
    let mut servers = Vec::new();
    let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
        let server = serve();
        let ranks = remote::ranks(setup, server.local_address());
        servers.push(server);
        Ok(ranks)
    };
    run_all(&mut backend, &options).unwrap();
}

fn serve() -> StoreServer {
    StoreServer::bind((Ipv4Addr::LOCALHOST, 0).into(), ServerOptions::default()).unwrap()
}

type Check = fn(SocketAddr);

// The first one counts threads and descriptors, while this process has only the store's server.
const CHECKS: &[(&str, Check)] = &[
    ("one_rank_alone_makes_nothing", alone::one_rank_alone_makes_nothing),
    ("conformance", conformance),
    ("a_rank_that_is_killed_is_named_by_all", kills::a_rank_that_is_killed_is_named_by_all),
    ("a_death_is_seen_while_idle", kills::a_death_is_seen_while_idle),
    ("a_rank_that_is_stopped_costs_a_deadline", kills::a_rank_that_is_stopped_costs_a_deadline),
];

fn main() {
    if std::env::var_os(remote::ROLE).is_some() {
        return child::live();
    }
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let chosen =
        |name: &str| arguments.is_empty() || arguments.iter().any(|part| name.contains(part.as_str()));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| chosen(name)).collect();
    println!("running {} checks with ranks as processes", checks.len());
    for (name, check) in checks {
        let server = serve();
        // A panic ends the program with an error, as it should.
        check(server.local_address());
        println!("check {name} ... ok");
    }
}
