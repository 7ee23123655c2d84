//! What a bench of exchanges measured.

use eplb_comm_nccl::Served;

use super::{Crowded, Table};
use crate::machine::Reason;

/// What was measured. Milliseconds run from the submission to the commit on the slowest rank, agreement included.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangeReport {
    /// What carried experts.
    pub backend: &'static str,
    /// With `auto`, what was looked at and why, what was taken last.
    pub reasons: Vec<Reason>,
    /// Bytes that each backend carried over links in all exchanges.
    pub carried_bytes: Vec<(&'static str, u64)>,
    /// Bytes that had to be carried.
    pub planned_bytes: u64,
    /// The first exchange of all.
    pub ms_first: f64,
    /// Median of the measured ones.
    pub ms_median: f64,
    /// Least of the measured ones.
    pub ms_min: f64,
    /// Each measured one.
    pub ms: Vec<f64>,
    /// Bytes over links into the rank that gets most, in the last exchange.
    pub bytes_worst_rank: u64,
    /// The same per second of the median, in 10^9 bytes.
    pub gbps_worst_rank: f64,
    /// Staging per rank.
    pub staging_bytes: usize,
    /// Waves of the last exchange.
    pub waves: usize,
    /// Transfers over links of the last exchange, and those of them that passed through staging.
    pub moves: usize,
    /// Of them through staging.
    pub staged: usize,
    /// Whether every byte of every slot was right after the first and the last exchange.
    pub verified: bool,
    /// Bytes found wrong.
    pub bytes_wrong: u64,
    /// Plain copies between the same pairs, all at once, one for each tensor: bytes into the worst rank per second, 10^9. `None` if they could not
    /// be measured.
    pub link_gbps: Option<f64>,
    /// The same with the tensors of each expert as one batch, if the driver makes batches.
    pub batched_gbps: Option<f64>,
    /// Each order and device that was tried, of which the two above are the best; empty if they could not be measured.
    pub link_manners: Vec<(&'static str, f64)>,
    /// Bytes over links through the busiest port, either way, in the last exchange.
    pub bytes_busiest_port: u64,
    /// What a port gives each way while every rank copies from one neighbour, 10^9 bytes per second. `None` as above.
    pub port_gbps: Option<f64>,
    /// The same by plain sends of NCCL in messages as the exchange has them, over a communicator with the same options. `None` unless
    /// they were asked for, or are all that there is.
    pub sends_gbps: Option<f64>,
    /// Steps of the slowest measured exchange.
    pub steps: u64,
    /// Steps from the largest begun on any rank to the one proposed for a commit.
    pub margin: u64,
    /// How often all was measured anew with a larger margin, because a proposal had come too late.
    pub again: usize,
    /// Longest call of `step()`, microseconds.
    pub stall_us_max: f64,
    /// Bytes that the largest commit of the last exchange copies on one rank, from staging or from another slot.
    pub commit_bytes_worst: u64,
    /// What a copy inside a device reads and writes per second, in 10^9. `None` on host memory, on ranks but the first, and where no steps run.
    pub copy_gbps: Option<f64>,
    /// Bytes of device memory that starting the communicators took, NCCL's own included and staging not, on the rank where it
    /// was most; `None` on host memory.
    pub device_bytes: Option<u64>,
    /// Bytes of device memory beside slots and staging that are our own, where messages are gathered and lists of copies stand, on the rank
    /// that has most; `None` on host memory.
    pub pool_bytes: Option<u64>,
    /// Bytes of pinned host memory of the communicator that has most.
    pub pinned_bytes: u64,
    /// What the server beside did, by rank; empty without one.
    pub served: Vec<Served>,
    /// What cooperative kernels beside did, by rank; empty without them.
    pub crowded: Vec<Crowded>,
    /// After how many exchanges every byte was checked.
    pub checks: usize,
    /// Processor time that a rank's thread for pulls took while exchanges ran, over their time; and over the time of a rest after them.
    /// `None` where there are no such threads.
    pub pull_cpu: Option<(f64, f64)>,
    /// Where the time of the last exchange went, on the ranks of this process; `None` if it was not recorded.
    pub times: Option<Table>,
}

impl ExchangeReport {
    /// The least time that the largest commit takes on its device, in microseconds: its bytes, read and written, over what a copy there does.
    pub fn commit_us_least(&self) -> Option<f64> {
        self.copy_gbps.map(|gbps| 2.0 * self.commit_bytes_worst as f64 / gbps / 1e3)
    }

    /// The least time in which ports could have carried the last exchange, in milliseconds: the busiest one's bytes over what a port gives.
    pub fn ms_bound(&self) -> Option<f64> {
        self.port_gbps.map(|gbps| self.bytes_busiest_port as f64 / gbps / 1e6)
    }
}
