//! Memory that is sent or received into.

use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use crate::bindings::{eplb_gloo_buffer, eplb_gloo_status_EPLB_GLOO_CANCELLED};
use crate::context::{Context, call, millis};
use crate::error::GlooError;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a wait that was cancelled has not seen its operation end"]
pub enum Wait {
    /// The operation is complete.
    Complete,
    /// The wait was cancelled; the operation goes on.
    Cancelled,
}

/// Bytes that are sent, or received into: one operation at a time. Dropping it ends the operation: no byte is touched after that.
pub struct Buffer {
    context: Context,
    handle: NonNull<eplb_gloo_buffer>,
    bytes: usize,
}

// SAFETY: the library allows its handles to be used from any thread (shim/eplb_gloo.h); who made the buffer keeps its memory
// valid wherever it goes.
unsafe impl Send for Buffer {}
// SAFETY: as above; Gloo locks inside.
unsafe impl Sync for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the handle came from eplb_gloo_buffer_new and is freed here only; the context is still held.
        unsafe { self.context.symbols().eplb_gloo_buffer_free(self.handle.as_ptr()) }
    }
}

impl Context {
    /// Makes memory known for one operation after another.
    ///
    /// # Errors
    /// No bytes, or no memory for the handle.
    ///
    /// # Safety
    /// Until the buffer is dropped, `base` is valid for reads of `bytes` bytes while a send is under way, and for writes,
    /// by nobody else touched, while a receive is. An operation is under way from its start to a wait that found it
    /// complete, or to the drop of the buffer.
    pub unsafe fn buffer(&self, base: NonNull<u8>, bytes: usize) -> Result<Buffer, GlooError> {
        let mut handle = std::ptr::null_mut();
        call("createUnboundBuffer", |error| {
            // SAFETY: the context is live, `handle` and `error` are valid for writes; the memory is only remembered.
            unsafe {
                let base = base.as_ptr().cast();
                self.symbols().eplb_gloo_buffer_new(self.handle(), base, bytes, &mut handle, error)
            }
        })?;
        let made = NonNull::new(handle).map(|handle| Buffer { context: self.clone(), handle, bytes });
        made.ok_or_else(|| GlooError {
            call: "createUnboundBuffer",
            kind: crate::Kind::Internal,
            detail: "no buffer was made".into(),
        })
    }
}

impl Buffer {
    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Starts to send all of it; it goes to the receive of the same slot at rank `to`, which must have as many bytes.
    ///
    /// # Errors
    /// No such rank, or its connection is broken.
    pub fn send(&self, to: usize, slot: u64) -> Result<(), GlooError> {
        let to = i32::try_from(to).unwrap_or(-1);
        call("send", |error| {
            // SAFETY: the handle is live; its memory is valid by the contract of `Context::buffer`.
            unsafe { self.context.symbols().eplb_gloo_send(self.handle.as_ptr(), to, slot, error) }
        })
        .map(drop)
    }

    /// Starts to receive all of it from rank `from`.
    ///
    /// # Errors
    /// No such rank, or its connection is broken.
    pub fn recv(&self, from: usize, slot: u64) -> Result<(), GlooError> {
        let from = i32::try_from(from).unwrap_or(-1);
        call("recv", |error| {
            // SAFETY: the handle is live; its memory is valid by the contract of `Context::buffer`.
            unsafe { self.context.symbols().eplb_gloo_recv(self.handle.as_ptr(), from, slot, error) }
        })
        .map(drop)
    }

    /// Waits for the send; without a timeout until it is complete, broken or cancelled. A timeout breaks every connection of the
    /// context.
    ///
    /// # Errors
    /// The connection broke, or the time ran out.
    pub fn wait_send(&self, timeout: Option<Duration>) -> Result<Wait, GlooError> {
        let status = call("waitSend", |error| {
            // SAFETY: the handle is live, `error` valid for writes.
            unsafe {
                self.context.symbols().eplb_gloo_wait_send(self.handle.as_ptr(), millis(timeout), error)
            }
        });
        status.map(ended)
    }

    /// Waits for the receive, as [`Buffer::wait_send`] for the send.
    ///
    /// # Errors
    /// The connection broke, or the time ran out.
    pub fn wait_recv(&self, timeout: Option<Duration>) -> Result<Wait, GlooError> {
        let status = call("waitRecv", |error| {
            // SAFETY: the handle is live, `error` valid for writes.
            unsafe {
                self.context.symbols().eplb_gloo_wait_recv(self.handle.as_ptr(), millis(timeout), error)
            }
        });
        status.map(ended)
    }

    /// Makes the wait for the send, under way or the next one, return [`Wait::Cancelled`].
    pub fn cancel_send(&self) {
        // SAFETY: the handle is live.
        unsafe { self.context.symbols().eplb_gloo_cancel_send(self.handle.as_ptr()) }
    }

    /// Makes the wait for the receive, under way or the next one, return [`Wait::Cancelled`].
    pub fn cancel_recv(&self) {
        // SAFETY: the handle is live.
        unsafe { self.context.symbols().eplb_gloo_cancel_recv(self.handle.as_ptr()) }
    }
}

fn ended(status: crate::bindings::eplb_gloo_status) -> Wait {
    match status == eplb_gloo_status_EPLB_GLOO_CANCELLED {
        true => Wait::Cancelled,
        false => Wait::Complete,
    }
}
