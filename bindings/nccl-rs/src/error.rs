//! Errors of NCCL.

use std::time::Duration;

use crate::library::Version;

/// Why NCCL is not there or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// No library was found.
    #[error(
        "no NCCL found (tried {}); install libnccl2 or the Python package nvidia-nccl, or set EPLB_NCCL_SO to the \
         library's path",
        tried.join("; ")
    )]
    NotFound {
        /// Where it was looked for, and what was there instead.
        tried: Vec<String>,
    },
    /// The library is older than what is needed.
    #[error("{path} is NCCL {version}; 2.18 or later is needed")]
    TooOld {
        /// The library.
        path: String,
        /// Its version.
        version: Version,
    },
    /// The library lacks a function.
    #[error("{path} (NCCL {version}) has no {symbol}: a newer NCCL is needed for this")]
    Missing {
        /// The function.
        symbol: &'static str,
        /// The library.
        path: String,
        /// Its version.
        version: Version,
    },
    /// A call failed, or what it started did.
    #[error(
        "{call} failed{}: {name} ({code}): {detail}{}",
        rank.map(|rank| format!(" on rank {rank}")).unwrap_or_default(),
        advice(*code, detail)
    )]
    Call {
        /// The function, or the one whose work failed later.
        call: &'static str,
        /// Its result.
        code: u32,
        /// The result in NCCL's words.
        name: String,
        /// The last error that NCCL noted.
        detail: String,
        /// The rank of the communicator.
        rank: Option<usize>,
    },
    /// A communicator was not ready in time.
    #[error(
        "rank {rank} of {size}: {what} not done after {waited:?}: is every rank there, with the same NCCL ({version} here)?"
    )]
    Timeout {
        /// The rank.
        rank: usize,
        /// Ranks of the communicator.
        size: usize,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// The library here.
        version: Version,
    },
    /// A name with a nul in it.
    #[error("{0:?} cannot be passed to NCCL: it contains a nul")]
    Name(String),
}

/// What to do about a failure, where its cause is known.
fn advice(code: u32, detail: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| detail.to_ascii_lowercase().contains(word));
    if has(&["duplicate gpu"]) {
        "; two ranks use one device: give each rank its own, see CUDA_VISIBLE_DEVICES"
    } else if has(&["mismatch", "message size", "unexpected"]) && code != 4 {
        "; ranks seem to run different versions of NCCL: compare what each has loaded"
    } else if has(&["/dev/shm", "shared memory", "no space left"]) {
        "; /dev/shm is too small: start the container with --shm-size=1g or more, or set NCCL_SHM_DISABLE=1"
    } else if has(&["peer access", "p2p"]) {
        "; the devices cannot reach each other: check the topology, or set NCCL_P2P_DISABLE=1"
    } else if has(&["invalid device", "device ordinal", "no cuda-capable"]) {
        "; the wrong device is current: see CUDA_VISIBLE_DEVICES"
    } else if has(&["out of memory"]) {
        "; the device has too little free memory for NCCL's buffers: lower the CTA cap or NCCL_BUFFSIZE"
    } else if code == 6 {
        "; another rank died or aborted: look at its log, then make a new communicator"
    } else if code == 1 {
        "; run with NCCL_DEBUG=INFO to see the CUDA call"
    } else if code == 2 {
        "; run with NCCL_DEBUG=INFO to see the system call"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(code: u32, detail: &str) -> String {
        let (name, detail) = ("system error".into(), detail.into());
        NcclError::Call { call: "ncclSend", code, name, detail, rank: Some(3) }.to_string()
    }

    #[test]
    fn messages_name_the_call_the_rank_and_what_to_do() {
        let text = call(2, "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)");
        assert!(text.starts_with("ncclSend failed on rank 3: system error (2)"), "{text}");
        assert!(text.contains("--shm-size"), "{text}");
        assert!(call(5, "Duplicate GPU detected : rank 0 and rank 1").contains("its own"));
        assert!(call(3, "Message truncated: mismatch of sizes").contains("versions"));
        assert!(call(6, "").contains("another rank died"));
    }
}
