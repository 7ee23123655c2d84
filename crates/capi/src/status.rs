//! Status codes.

/// How a call ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It did what it says.
    Ok = 0,
    /// An argument is null, has another size than expected, or a value that means nothing.
    InvalidArgument = 1,
    /// The request contradicts itself or cannot be answered: bad loads, too few slots, ..
    Plan = 2,
    /// A file could not be read, or does not hold what it should.
    Trace = 3,
    /// A fault in the library itself; the handle that was used should be freed.
    Internal = 4,
    /// A store failed, is lost, or refuses.
    Store = 5,
    /// The time limit of the call was over first.
    Timeout = 6,
    /// Bytes between ranks could not be carried; the message names rank and cause.
    Transfer = 7,
    /// The engine cannot do this; the message says why.
    Engine = 8,
    /// The call does not fit the engine's state.
    State = 9,
    /// The forward pass must not run, and none until the ranks have formed a new epoch.
    MustNotRun = 10,
}
