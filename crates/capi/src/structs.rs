//! Structures that grow from version to version.

use crate::call::Failure;

/// A structure whose first field is its size as the caller knows it.
///
/// # Safety
/// `repr(C)`, first field `struct_size: usize`, and every bit pattern is a value of it.
pub(crate) unsafe trait Growing: Copy {
    /// The size of its first version.
    const LEAST: usize;
    /// The defaults; `struct_size` is the size known here.
    fn defaults() -> Self;
    /// Its `struct_size`.
    fn size(&self) -> usize {
        // SAFETY: the first field of every such structure is its size.
        unsafe { std::ptr::from_ref(self).cast::<usize>().read() }
    }
}

/// Reads a structure of the caller's: fields that it does not know have their defaults.
///
/// # Safety
/// `given` is null or points to a structure of which `struct_size` bytes can be read.
pub(crate) unsafe fn read<T: Growing>(given: *const T, name: &str) -> Result<T, Failure> {
    if given.is_null() || !given.is_aligned() {
        return Err(Failure::argument(format!("{name} is null or not aligned")));
    }
    // SAFETY: the first field of every such structure is its size, and at least that can be read.
    let size = unsafe { given.cast::<usize>().read() };
    check_size::<T>(size, name)?;
    let mut full = T::defaults();
    // SAFETY: `size` bytes can be read there, and fit in `full`; any bits are a value of `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut full).cast::<u8>(), size);
    }
    Ok(full)
}

/// Reads an array of structures of the caller's, which lie as far apart as each says that it is large.
///
/// # Safety
/// `given` is null or points to `count` structures in a row, all of one `struct_size`, which can be read.
pub(crate) unsafe fn read_all<T: Growing>(
    given: *const T,
    count: usize,
    name: &str,
) -> Result<Vec<T>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: as the caller promises; there is at least one.
    let size = unsafe { read(given, name) }?.size();
    if count.checked_mul(size).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(format!("{name}: {count} of {size} bytes are too many")));
    }
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        // SAFETY: as the caller promises, all of them have this size, which is a multiple of the alignment.
        let one = unsafe { read(given.byte_add(at * size), name) }?;
        if one.size() != size {
            return Err(Failure::argument(format!(
                "{name}[{at}]: struct_size is {}, that of the first is {size}: set the same in all of them",
                one.size()
            )));
        }
        all.push(one);
    }
    Ok(all)
}

/// Writes a structure to the caller's: as many fields as it knows.
///
/// # Safety
/// `out` is null or points to a structure whose `struct_size` is set, and of which as many bytes can be written.
pub(crate) unsafe fn write<T: Growing>(value: T, out: *mut T, name: &str) -> Result<(), Failure> {
    if out.is_null() || !out.is_aligned() {
        return Err(Failure::argument(format!("{name} is null or not aligned")));
    }
    // SAFETY: the first field of every such structure is its size, and it is set.
    let size = unsafe { out.cast::<usize>().read() };
    check_size::<T>(size, name)?;
    // SAFETY: `size` bytes can be written there, and `value` has as many.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), out.cast::<u8>(), size);
        out.cast::<usize>().write(size);
    }
    Ok(())
}

/// Checks a structure that a result will be written to, and that may be left out.
///
/// # Safety
/// `out` is null or points to a structure whose `struct_size` is set.
pub(crate) unsafe fn check_out<T: Growing>(out: *const T, name: &str) -> Result<(), Failure> {
    match out.is_null() {
        true => Ok(()),
        // SAFETY: as the caller promises: reading is no more than writing asks for.
        false => unsafe { read(out, name) }.map(drop),
    }
}

fn check_size<T: Growing>(size: usize, name: &str) -> Result<(), Failure> {
    // A size that is no multiple of the alignment is no version's, and would cut a field in two.
    if (T::LEAST..=size_of::<T>()).contains(&size) && size.is_multiple_of(align_of::<T>()) {
        return Ok(());
    }
    Err(Failure::argument(format!(
        "{name}: struct_size is {size}, expected {} to {}: set it to the size of the structure, and use the header of the \
         library that is loaded",
        T::LEAST,
        size_of::<T>()
    )))
}
