//! The connections of one rank with all others.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::net::IpAddr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crate::bindings::{
    EPLB_GLOO_FOREVER, EPLB_GLOO_SECRET_BYTES, EPLB_GLOO_TEXT_BYTES, Symbols, eplb_gloo_context,
    eplb_gloo_error, eplb_gloo_options, eplb_gloo_status, eplb_gloo_status_EPLB_GLOO_OK,
};
use crate::error::{GlooError, Kind};
use crate::library::Gloo;
use crate::store::{Rendezvous, Session};

/// Where a rank listens for the connections of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    /// An address of this host that the others can reach.
    Address(IpAddr),
    /// An interface by name, such as `"eth0"`.
    Interface(String),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Address(address) => write!(f, "address {address}"),
            Device::Interface(name) => write!(f, "interface {name:?}"),
        }
    }
}

/// What the ranks of a group know and nobody else.
pub type Secret = [u8; EPLB_GLOO_SECRET_BYTES as usize];

/// A full mesh of TCP connections. Cheap to clone: clones are one mesh, which is freed with the last of them and of its
/// buffers.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    symbols: &'static Symbols,
    handle: NonNull<eplb_gloo_context>,
    rank: usize,
    world_size: usize,
}

// SAFETY: the library allows its handles to be used from any thread (shim/eplb_gloo.h).
unsafe impl Send for Inner {}
// SAFETY: as above; Gloo locks inside.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the handle came from eplb_gloo_connect and is freed here only, by the last owner.
        unsafe { self.symbols.eplb_gloo_free(self.handle.as_ptr()) }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("rank", &self.inner.rank)
            .field("world_size", &self.inner.world_size)
            .finish_non_exhaustive()
    }
}

/// Runs a call that fills an error text, and gives its status or what it says.
pub(crate) fn call(
    name: &'static str,
    work: impl FnOnce(*mut eplb_gloo_error) -> eplb_gloo_status,
) -> Result<eplb_gloo_status, GlooError> {
    let mut error = eplb_gloo_error { text: [0; EPLB_GLOO_TEXT_BYTES as usize] };
    let status = work(&mut error);
    if status == eplb_gloo_status_EPLB_GLOO_OK
        || status == crate::bindings::eplb_gloo_status_EPLB_GLOO_CANCELLED
    {
        return Ok(status);
    }
    // SAFETY: the text has an end: it was all zero, and the library writes at most its size, the end included.
    let detail = unsafe { CStr::from_ptr(error.text.as_ptr()) }.to_string_lossy().into_owned();
    Err(GlooError { call: name, kind: Kind::of(status), detail })
}

pub(crate) fn millis(timeout: Option<Duration>) -> i64 {
    timeout.map_or(i64::from(EPLB_GLOO_FOREVER), |timeout| {
        i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1)
    })
}

impl Gloo {
    /// Connects this rank with all others; every rank calls it. Blocks: in the store as long as the store does, in each
    /// connection for at most `timeout`. `world_size` is at least 2.
    ///
    /// With a `secret`, which the ranks of the group know and nobody else, strangers on the ports are turned away. Without one, Gloo
    /// takes whoever connects first to a port for the peer, and a frame that it does not expect ends the process.
    ///
    /// # Errors
    /// The device does not exist, the store failed (with its own words), or a connection did not come up.
    pub fn connect(
        &self,
        rank: usize,
        world_size: usize,
        device: &Device,
        store: &mut dyn Rendezvous,
        timeout: Duration,
        secret: Option<&Secret>,
    ) -> Result<Context, GlooError> {
        let invalid = |detail: String| GlooError { call: "connectFullMesh", kind: Kind::Invalid, detail };
        let number = |n: usize| i32::try_from(n).map_err(|_| invalid(format!("{n} is no rank")));
        let (address, interface) = match device {
            Device::Address(address) => (Some(address.to_string()), None),
            Device::Interface(name) => (None, Some(name.clone())),
        };
        let c_text = |text: Option<String>| text.map(CString::new).transpose();
        let strings = (c_text(address), c_text(interface));
        let (Ok(address), Ok(interface)) = strings else {
            return Err(invalid(format!("{device} is no name")));
        };
        let pointer = |text: &Option<CString>| -> *const c_char {
            text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
        };
        let mut session = Session::new(store);
        let options = eplb_gloo_options {
            size: size_of::<eplb_gloo_options>(),
            rank: number(rank)?,
            world_size: number(world_size)?,
            address: pointer(&address),
            interface_name: pointer(&interface),
            connect_ms: millis(Some(timeout)),
            secret: secret.map_or(std::ptr::null(), |secret| secret.as_ptr()),
            store: session.callbacks(),
        };
        let mut handle = std::ptr::null_mut();
        let symbols = self.symbols();
        let connected = call("connectFullMesh", |error| {
            // SAFETY: the options, the strings, the secret and the session behind them live until the call returns, and nobody else
            // uses the session meanwhile; `handle` and `error` are valid for writes.
            unsafe { symbols.eplb_gloo_connect(&options, &mut handle, error) }
        });
        connected.map_err(|error| match session.failure.take() {
            Some(why) => GlooError { kind: Kind::Store, detail: why, ..error },
            None => error,
        })?;
        let handle = NonNull::new(handle).ok_or_else(|| invalid("no context was made".to_owned()))?;
        Ok(Context { inner: Arc::new(Inner { symbols, handle, rank, world_size }) })
    }
}

impl Context {
    /// This rank.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.inner.world_size
    }

    /// Closes every connection, here and so at the other ends. Operations under way fail.
    pub fn close(&self) {
        // SAFETY: the handle is live as long as `inner` is.
        unsafe { self.symbols().eplb_gloo_close(self.handle()) }
    }

    /// Returns when every rank has called it with the same tag. A timeout breaks the context.
    ///
    /// # Errors
    /// A connection broke, or the time ran out.
    pub fn barrier(&self, tag: u32, timeout: Duration) -> Result<(), GlooError> {
        call("barrier", |error| {
            // SAFETY: the handle is live, `error` valid for writes.
            unsafe { self.symbols().eplb_gloo_barrier(self.handle(), tag, millis(Some(timeout)), error) }
        })
        .map(drop)
    }

    /// Copies `bytes` of rank `root` over those of all others. Every rank gives as many. A timeout breaks the context.
    ///
    /// # Errors
    /// No bytes, no such root, a connection broke, or the time ran out.
    pub fn broadcast(
        &self,
        bytes: &mut [u8],
        root: usize,
        tag: u32,
        timeout: Duration,
    ) -> Result<(), GlooError> {
        let (base, length) = (bytes.as_mut_ptr().cast(), bytes.len());
        let root = i32::try_from(root).unwrap_or(-1);
        call("broadcast", |error| {
            // SAFETY: the handle is live; `base` is a mutable slice of `length` bytes, borrowed until the call returns, and
            // no operation of a collective is left over then (its buffers are freed inside); `error` is valid for writes.
            unsafe {
                let timeout = millis(Some(timeout));
                self.symbols().eplb_gloo_broadcast(self.handle(), base, length, root, tag, timeout, error)
            }
        })
        .map(drop)
    }

    /// Adds up the numbers of all ranks, element by element, wrapping; every rank gets the sums. A timeout breaks the context.
    ///
    /// # Errors
    /// No numbers, a connection broke, or the time ran out.
    pub fn all_reduce_sum(&self, numbers: &mut [u64], tag: u32, timeout: Duration) -> Result<(), GlooError> {
        let (base, count) = (numbers.as_mut_ptr(), numbers.len());
        call("allreduce", |error| {
            // SAFETY: as in `broadcast`, with `count` numbers.
            unsafe {
                let timeout = millis(Some(timeout));
                self.symbols().eplb_gloo_all_reduce_sum(self.handle(), base, count, tag, timeout, error)
            }
        })
        .map(drop)
    }

    pub(crate) fn symbols(&self) -> &'static Symbols {
        self.inner.symbols
    }

    pub(crate) fn handle(&self) -> *mut eplb_gloo_context {
        self.inner.handle.as_ptr()
    }
}
