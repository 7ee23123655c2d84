//! Ranks that are processes of one host, each with its device.

use std::error::Error;
#[cfg(unix)]
use std::sync::Arc;

#[cfg(unix)]
use eplb_comm::store::{FileStore, Limits};
#[cfg(unix)]
use eplb_core::NodeId;
#[cfg(unix)]
use eplb_engine::machine::Reason;
#[cfg(unix)]
use eplb_engine::process::{HostId, hosts};
use eplb_trace::Trace;

use super::options::Options;
#[cfg(unix)]
use super::{mail, serve, server, tell::tell, wire};

/// Starts a process for each rank, with and without balancing; or is one of them.
#[cfg(unix)]
pub(crate) fn processes(options: &Options, trace: &Trace) -> Result<(), Box<dyn Error>> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let number = |name: &str| std::env::var(name)?.parse::<usize>().map_err(Box::<dyn Error>::from);
        let (rank, balancing) = (number(RANK)?, number(BALANCING)? > 0);
        let folder = std::path::PathBuf::from(folder);
        let mail = wire::Wire::open(&folder, rank, options.ranks)?;
        let deadline = std::time::Instant::now() + mail::LONGEST;
        let store = FileStore::open(&folder.join("store"), Limits::default(), deadline)?;
        let server = server(options, trace, Box::new(mail))?;
        // A process that sees one device alone was given its own; ranks share devices where they are more.
        let device = rank % eplb_cuda::context::device_count()?.max(1);
        let transport = options.transport()?;
        let served =
            serve(options, &server, (rank, device), (Arc::new(store), transport.clone()), balancing)?;
        let wrong = tell(options, balancing, &[served]);
        for line in Reason::lines(&transport.reasons()) {
            println!("{line}");
        }
        return if wrong > 0 {
            Err(format!("rank {rank}: {wrong} outputs are wrong").into())
        } else {
            Ok(())
        };
    }
    if options.gpu.is_none() {
        return Err("--processes is for ranks on devices: give --gpu too".into());
    }
    for balancing in ["0", "1"] {
        let folder = std::env::temp_dir().join(format!("eplb-serve-{}-{balancing}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let start = |rank: usize| {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(std::env::args_os().skip(1)).env(FOLDER, &folder).env(BALANCING, balancing);
            if options.nodes > 1 {
                let node = NodeId::at(rank * options.nodes / options.ranks);
                command.env(hosts::VARIABLE, HostId::here().pretended(node).name());
            }
            if rank > 0 {
                command.stdout(std::process::Stdio::null());
            }
            command.env(RANK, rank.to_string()).spawn()
        };
        let children: Vec<_> = (0..options.ranks).map(start).collect();
        let mut failed = Vec::new();
        for (rank, child) in children.into_iter().enumerate() {
            if !child.and_then(|mut child| child.wait())?.success() {
                failed.push(rank);
            }
        }
        std::fs::remove_dir_all(&folder)?;
        if !failed.is_empty() {
            return Err(format!("ranks {failed:?} failed").into());
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn processes(_: &Options, _: &Trace) -> Result<(), Box<dyn Error>> {
    Err("--processes needs Unix sockets".into())
}

/// Variables that tell a process which rank it is, where the others are, and whether it balances.
#[cfg(unix)]
const RANK: &str = "EPLB_SERVE_RANK";
#[cfg(unix)]
const FOLDER: &str = "EPLB_SERVE_FOLDER";
#[cfg(unix)]
const BALANCING: &str = "EPLB_SERVE_BALANCING";
