//! Errors of the CUDA driver.

use eplb_comm::CommError;
use eplb_core::RankId;

/// Why something of CUDA is not there or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver, or one that is too old.
    #[error("no CUDA here: {0}")]
    Absent(String),
    /// A device that this process does not see.
    #[error("there is no device {ordinal}: this process sees {count}; look at CUDA_VISIBLE_DEVICES")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Number of devices.
        count: usize,
    },
    /// A call into the driver failed.
    #[error("{call} failed: {name} ({code}){}", advice(*code))]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        code: u32,
        /// Name of the code.
        name: String,
    },
    /// Memory that other processes cannot open.
    #[error("{0}")]
    NotShareable(String),
    /// Streams that passes cannot run on.
    #[error("streams of a pass: {0}")]
    Streams(String),
    /// An address that is not what it was said to be.
    #[error("{0}")]
    Address(String),
    /// Memory or a layout that cannot be used.
    #[error(transparent)]
    Comm(#[from] CommError),
}

/// What to do about a code, where that is known.
fn advice(code: u32) -> &'static str {
    match code {
        2 => "; the device has too little free memory: lower the staging budget or the number of slots",
        46 => "; another process owns the device exclusively: see its compute mode in nvidia-smi",
        100 => "; no device is visible: look at CUDA_VISIBLE_DEVICES",
        101 => {
            "; the device that the memory is on is not visible to this process: give all processes the same CUDA_VISIBLE_DEVICES"
        }
        209 => "; the kernels were built for another architecture",
        304 => {
            "; the system refused: containers need a common IPC namespace (--ipc=host), and processes the same user"
        }
        217 => "; the two devices cannot reach each other's memory",
        700 | 719 => "; an earlier kernel or copy broke this context: the process must be started again",
        800 => {
            "; the driver does not permit it: fabric handles need NVIDIA's IMEX service and a channel of it in this container"
        }
        801 => "; this device or driver has no such handles (devices that are split by MIG reach no other)",
        803 | 804 => "; the driver is older than what this program needs",
        _ => "",
    }
}

impl CudaError {
    /// The same as an error of a rank's communicator, stream or memory.
    pub fn at(self, rank: RankId) -> CommError {
        match self {
            CudaError::Comm(error) => error,
            CudaError::Call { call, code, .. } => CommError::Foreign {
                rank,
                call: call.into(),
                code: i64::from(code),
                detail: self.to_string(),
            },
            CudaError::NotShareable(detail) => {
                CommError::Foreign { rank, call: "opening memory between processes".into(), code: -1, detail }
            }
            CudaError::Absent(_) | CudaError::NoDevice { .. } => {
                CommError::Foreign { rank, call: "cuInit".into(), code: -1, detail: self.to_string() }
            }
            CudaError::Streams(_) | CudaError::Address(_) => CommError::Foreign {
                rank,
                call: "using what the server gave".into(),
                code: -1,
                detail: self.to_string(),
            },
        }
    }
}
