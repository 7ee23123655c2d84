//! Groups of operations that start together.

use std::marker::PhantomData;

use crate::error::NcclError;
use crate::library::{Library, call};

/// An open group of this thread. It is closed when it goes out of scope, whatever happened inside: an open group would
/// swallow every later operation of the thread.
#[derive(Debug)]
pub struct Group<'a> {
    library: &'a Library,
    open: bool,
    // Not Send: a group belongs to the thread that opened it.
    _thread: PhantomData<*const ()>,
}

impl<'a> Group<'a> {
    /// Opens a group.
    ///
    /// # Errors
    /// NCCL refused.
    pub fn start(library: &'a Library) -> Result<Self, NcclError> {
        // SAFETY: no arguments.
        let code = unsafe { call!(library, ncclGroupStart()) };
        library.check("ncclGroupStart", code, None, std::ptr::null_mut())?;
        Ok(Self { library, open: true, _thread: PhantomData })
    }

    /// Closes the group and starts its operations. With communicators that do not block, they may still be on their way
    /// to the stream afterwards: ask [`crate::Comm::is_ready`].
    ///
    /// # Errors
    /// One of the operations cannot be started.
    pub fn end(mut self) -> Result<(), NcclError> {
        self.open = false;
        // SAFETY: no arguments; a group of this thread is open.
        let code = unsafe { call!(self.library, ncclGroupEnd()) };
        self.library.check("ncclGroupEnd", code, None, std::ptr::null_mut())
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if self.open
            && let Ok(end) = &self.library.api().ncclGroupEnd
        {
            // SAFETY: a group of this thread is open. What the operations inside say has been reported before.
            let _ = unsafe { end() };
        }
    }
}
