//! One rank's communicator.

use std::ffi::c_void;
use std::time::{Duration, Instant};

use crate::UniqueId;
use crate::config::Config;
use crate::error::NcclError;
use crate::group::Group;
use crate::library::{Library, call};
use crate::sys;

/// One rank's end of a group of ranks. It never blocks: making it, sending and receiving only begin something, and
/// [`Comm::is_ready`] says whether that has been handed to the device. Used by one thread at a time.
///
/// Dropped, it is aborted: what it had enqueued may then fail, on other ranks too. [`Comm::finalize`] first for a clean end.
#[derive(Debug)]
pub struct Comm {
    library: Library,
    raw: sys::ncclComm_t,
    rank: usize,
    size: usize,
    owned: bool,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; `&mut self` and the lack of `Sync` see to that.
unsafe impl Send for Comm {}

fn number(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl Comm {
    /// Begins to make rank `rank` of `size`, on the device whose context is current. All ranks call this with one `id`.
    ///
    /// # Errors
    /// NCCL refused. That other ranks do not come is found by [`Comm::wait`].
    pub fn begin(
        library: &Library,
        id: UniqueId,
        rank: usize,
        size: usize,
        config: &Config,
    ) -> Result<Self, NcclError> {
        let mut config = config.raw()?;
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as std::os::raw::c_char) };
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle; the configuration and its strings live through the call, which copies them.
        let code = unsafe {
            call!(library, ncclCommInitRankConfig(&mut raw, number(size), id, number(rank), &mut config.raw))
        };
        library.check("ncclCommInitRankConfig", code, Some(rank), raw)?;
        Ok(Self { library: library.clone(), raw, rank, size, owned: true })
    }

    /// A communicator that someone else keeps. It is never aborted, split or destroyed here.
    ///
    /// # Errors
    /// It is no communicator.
    ///
    /// # Safety
    /// `raw` is a communicator of this library that lives while the result does, and nobody uses it during a call on the
    /// result: its owner calls us on its own thread.
    pub unsafe fn borrow(library: &Library, raw: *mut c_void) -> Result<Self, NcclError> {
        let raw: sys::ncclComm_t = raw.cast();
        let (mut rank, mut size) = (0, 0);
        // SAFETY: writes one integer; the caller says that the communicator lives.
        let code = unsafe { call!(library, ncclCommUserRank(raw, &mut rank)) };
        library.check("ncclCommUserRank", code, None, raw)?;
        // SAFETY: as above.
        let code = unsafe { call!(library, ncclCommCount(raw, &mut size)) };
        library.check("ncclCommCount", code, None, raw)?;
        let index = |value: i32| usize::try_from(value).unwrap_or(0);
        Ok(Self { library: library.clone(), raw, rank: index(rank), size: index(size), owned: false })
    }

    /// Whether it was made here, and is not someone else's.
    pub fn is_owned(&self) -> bool {
        self.owned
    }

    /// The handle, for others to borrow.
    pub fn as_raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Number of its device.
    ///
    /// # Errors
    /// NCCL refused.
    pub fn device(&self) -> Result<usize, NcclError> {
        let mut device = 0;
        // SAFETY: writes one integer; the communicator lives.
        let code = unsafe { call!(self.library, ncclCommCuDevice(self.raw, &mut device)) };
        self.check("ncclCommCuDevice", code)?;
        Ok(usize::try_from(device).unwrap_or(0))
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The library that it belongs to.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Whether everything begun has been done, or, for operations, been handed to the device.
    ///
    /// # Errors
    /// It failed, here or on another rank: the communicator is of no more use.
    pub fn is_ready(&self) -> Result<bool, NcclError> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator lives; writes one integer.
        let code = unsafe { call!(self.library, ncclCommGetAsyncError(self.raw, &mut state)) };
        self.check("ncclCommGetAsyncError", code)?;
        self.check("an operation of the communicator", state)?;
        Ok(state != sys::ncclResult_t::ncclInProgress)
    }

    /// Waits until [`Comm::is_ready`].
    ///
    /// # Errors
    /// As there, or the deadline passed.
    pub fn wait(&self, what: &'static str, deadline: Instant) -> Result<(), NcclError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        while !self.is_ready()? {
            if Instant::now() >= deadline {
                let (rank, size, version) = (self.rank, self.size, self.library.version());
                return Err(NcclError::Timeout { rank, size, what, waited: start.elapsed(), version });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Adds a message to rank `peer` to a group.
    ///
    /// # Errors
    /// NCCL refused.
    ///
    /// # Safety
    /// `from` is `bytes` bytes of device memory that stay as they are until the operation has run on `stream`, which is a
    /// live `CUstream` of the communicator's device.
    pub unsafe fn send(
        &mut self,
        _group: &Group<'_>,
        from: u64,
        bytes: usize,
        peer: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (bytes_type, peer) = (sys::ncclDataType_t::ncclUint8, number(peer));
        // SAFETY: passed on to the caller.
        let code = unsafe {
            call!(
                self.library,
                ncclSend(from as *const c_void, bytes, bytes_type, peer, self.raw, stream.cast())
            )
        };
        self.check("ncclSend", code)
    }

    /// Adds a message from rank `peer` to a group.
    ///
    /// # Errors
    /// NCCL refused.
    ///
    /// # Safety
    /// `to` is `bytes` bytes of device memory that nobody else uses until the operation has run on `stream`, which is a live
    /// `CUstream` of the communicator's device.
    pub unsafe fn recv(
        &mut self,
        _group: &Group<'_>,
        to: u64,
        bytes: usize,
        peer: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (bytes_type, peer) = (sys::ncclDataType_t::ncclUint8, number(peer));
        // SAFETY: passed on to the caller.
        let code = unsafe {
            call!(self.library, ncclRecv(to as *mut c_void, bytes, bytes_type, peer, self.raw, stream.cast()))
        };
        self.check("ncclRecv", code)
    }

    /// Sums `floats` 32-bit floats over all ranks, in place, on every rank.
    ///
    /// # Errors
    /// NCCL refused.
    ///
    /// # Safety
    /// `at` is device memory of `floats` floats that nobody else uses until the operation has run on `stream`, which is a live
    /// `CUstream` of the communicator's device.
    pub unsafe fn all_reduce(
        &mut self,
        at: u64,
        floats: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
        // SAFETY: passed on to the caller.
        let code = unsafe {
            call!(
                self.library,
                ncclAllReduce(
                    at as *const c_void,
                    at as *mut c_void,
                    floats,
                    kind,
                    sum,
                    self.raw,
                    stream.cast()
                )
            )
        };
        self.check("ncclAllReduce", code)
    }

    /// Begins to make a communicator of the ranks that give the same `color`, in the order of `key`. All ranks call it.
    /// `None` for a rank that gives no color.
    ///
    /// # Errors
    /// NCCL refused, or the communicator is borrowed.
    pub fn split(
        &mut self,
        color: Option<u32>,
        key: usize,
        config: &Config,
    ) -> Result<Option<Self>, NcclError> {
        const NO_COLOR: i32 = -1;
        let mut config = config.raw()?;
        let mut raw = std::ptr::null_mut();
        let color_number = color.map_or(NO_COLOR, |color| i32::try_from(color).unwrap_or(i32::MAX));
        // SAFETY: writes one handle; the configuration lives through the call, which copies it.
        let code = unsafe {
            call!(self.library, ncclCommSplit(self.raw, color_number, number(key), &mut raw, &mut config.raw))
        };
        self.check("ncclCommSplit", code)?;
        if color.is_none() {
            return Ok(None);
        }
        // Rank and size are known when it is ready: `Comm::settle`.
        Ok(Some(Self { library: self.library.clone(), raw, rank: key, size: 0, owned: true }))
    }

    /// Waits until a communicator made by [`Comm::split`] is ready, and learns its rank and size.
    ///
    /// # Errors
    /// As [`Comm::wait`].
    pub fn settle(&mut self, deadline: Instant) -> Result<(), NcclError> {
        self.wait("splitting the communicator", deadline)?;
        // SAFETY: the communicator lives.
        let known = unsafe { Self::borrow(&self.library, self.raw.cast()) }?;
        (self.rank, self.size) = (known.rank, known.size);
        Ok(())
    }

    /// Ends the communicator in good order, with the other ranks: waits until all operations are over, then destroys it.
    ///
    /// # Errors
    /// As [`Comm::wait`]; it is aborted then.
    pub fn finalize(mut self, deadline: Instant) -> Result<(), NcclError> {
        if !self.owned {
            return Ok(());
        }
        // SAFETY: the communicator lives and is ours.
        let code = unsafe { call!(self.library, ncclCommFinalize(self.raw)) };
        self.check("ncclCommFinalize", code)?;
        self.wait("finalizing", deadline)?;
        let Ok(destroy) = &self.library.api().ncclCommDestroy else {
            return Err(self.library.missing("ncclCommDestroy"));
        };
        self.owned = false;
        // SAFETY: ours, finalized, and never used again.
        let code = unsafe { destroy(self.raw) };
        self.library.check("ncclCommDestroy", code, Some(self.rank), std::ptr::null_mut())
    }

    /// Gives the communicator up: operations under way end without finishing, here and after a while on other ranks.
    pub fn abort(self) {
        drop(self);
    }

    fn check(&self, call: &'static str, code: sys::ncclResult_t) -> Result<(), NcclError> {
        self.library.check(call, code, Some(self.rank), self.raw)
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if self.owned
            && !self.raw.is_null()
            && let Ok(abort) = &self.library.api().ncclCommAbort
        {
            // SAFETY: ours, live, and never used again. Its outcome helps nobody.
            let _ = unsafe { abort(self.raw) };
        }
    }
}
