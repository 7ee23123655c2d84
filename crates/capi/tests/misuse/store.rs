//! Stores, also of a host, and messages between ranks.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use eplb::*;

use super::{is, said};

/// A store for threads, and a corner of it.
pub(crate) fn stores() -> (*mut Store, *mut Store) {
    let (mut store, mut corner) = (null_mut(), null_mut());
    // SAFETY: room for pointers; a live handle.
    unsafe {
        assert_eq!(eplb_store_in_process(&mut store), Status::Ok);
        assert_eq!(eplb_store_prefix(store, c"a".as_ptr(), &mut corner), Status::Ok);
    }
    (store, corner)
}

#[test]
fn stores_take_and_give_values_and_name_what_is_wrong() {
    let (store, corner) = stores();
    let (mut bytes, mut len, mut swapped) = ([7u8; 4], 0, 7u8);
    // SAFETY: live handles, arrays with the room stated, or null.
    unsafe {
        assert_eq!(eplb_store_set(corner, c"k".as_ptr(), b"value".as_ptr(), 5, 1000), Status::Ok);
        // Seen through the whole store under its full name; longer than the room: only its length is told.
        assert_eq!(
            eplb_store_wait(store, c"a/k".as_ptr(), bytes.as_mut_ptr(), 4, &mut len, 1000),
            Status::Ok
        );
        assert_eq!((bytes, len), ([7; 4], 5));
        let swap = |expected: &[u8], new: &[u8], swapped: *mut u8| {
            let (base, wanted) = (expected.as_ptr(), expected.len());
            eplb_store_compare_and_set(
                corner,
                c"k".as_ptr(),
                base,
                wanted,
                new.as_ptr(),
                new.len(),
                1000,
                swapped,
            )
        };
        assert_eq!((swap(b"other", b"new", &mut swapped), swapped), (Status::Ok, 0));
        assert_eq!((swap(b"value", b"new", &mut swapped), swapped), (Status::Ok, 1));
        assert_eq!(eplb_store_wait(corner, c"k".as_ptr(), bytes.as_mut_ptr(), 4, &mut len, 1000), Status::Ok);
        assert_eq!((&bytes[..3], len), (&b"new"[..], 3));
        // Freed before its corner.
        eplb_store_free(store);
        is(eplb_store_wait(corner, c"none".as_ptr(), null_mut(), 0, &mut len, 20), Status::Timeout, "none");
        is(
            eplb_store_wait(corner, c"k".as_ptr(), null_mut(), 3, &mut len, 1000),
            Status::InvalidArgument,
            "bytes",
        );
        is(swap(b"new", b"", null_mut()), Status::InvalidArgument, "swapped is null");
        is(eplb_store_set(null(), c"k".as_ptr(), null(), 0, 1), Status::InvalidArgument, "store is null");
        is(eplb_store_set(corner, null(), null(), 0, 1), Status::InvalidArgument, "key is null");
        is(eplb_store_set(corner, c"k".as_ptr(), null(), 3, 1), Status::InvalidArgument, "bytes is null");
        is(eplb_store_set(corner, c"".as_ptr(), null(), 0, 1), Status::Store, "key");
        is(eplb_store_in_process(null_mut()), Status::InvalidArgument, "store is null");
        let (mut other, mut server) = (null_mut(), null_mut());
        is(eplb_store_open(c"nowhere".as_ptr(), 1, &mut other), Status::InvalidArgument, "tcp://host:port");
        is(eplb_store_open(null(), 1, &mut other), Status::InvalidArgument, "address is null");
        is(eplb_store_serve(c"127.0.0.1".as_ptr(), &mut server), Status::InvalidArgument, "host:port");
        is(eplb_store_server_port(null(), null_mut()), Status::InvalidArgument, "server is null");
        is(eplb_value_set(null_mut(), null(), 0), Status::InvalidArgument, "value is null");
        assert!(other.is_null() && server.is_null());
        eplb_store_free(corner);
        eplb_store_free(null_mut());
        eplb_store_server_free(null_mut());
    }
}

/// A host's store whose functions fail in every way: each is an error with the host's words.
#[test]
fn what_a_hosts_store_says_is_told() {
    use std::ffi::{c_char, c_void};
    unsafe extern "C" fn set(
        state: *mut c_void,
        _: *const c_char,
        _: *const u8,
        _: usize,
        _: u64,
        out: *mut Value,
    ) -> i32 {
        // SAFETY: the state is a number, the value the library's.
        unsafe {
            eplb_value_set(out, b"no disk".as_ptr(), 7);
            *state.cast::<i32>()
        }
    }
    unsafe extern "C" fn get(_: *mut c_void, _: *const c_char, _: u64, _: *mut Value) -> i32 {
        EPLB_STORE_NOT
    }
    unsafe extern "C" fn swap(
        _: *mut c_void,
        _: *const c_char,
        _: *const u8,
        _: usize,
        _: *const u8,
        _: usize,
        _: u64,
        _: *mut Value,
    ) -> i32 {
        EPLB_STORE_ABSENT
    }
    let mut code = EPLB_STORE_DONE;
    let mut given = StoreCallbacks {
        struct_size: size_of::<StoreCallbacks>(),
        name: c"etcd".as_ptr(),
        state: (&raw mut code).cast(),
        set: Some(set),
        get: Some(get),
        compare_and_set: Some(swap),
        remove: Some(get),
        max_value: 16,
    };
    let mut store = null_mut();
    // SAFETY: functions as documented, live handles.
    unsafe {
        assert_eq!(eplb_store_from_callbacks(&given, &mut store), Status::Ok);
        let put = |len| eplb_store_set(store, c"k".as_ptr(), [0u8; 17].as_ptr(), len, 1000);
        assert_eq!(put(3), Status::Ok);
        is(put(17), Status::Store, "16");
        for (told, status, words) in [
            (EPLB_STORE_TIMEOUT, Status::Timeout, "timed out"),
            (EPLB_STORE_LOST, Status::Store, "no disk"),
            (EPLB_STORE_FAILED, Status::Store, "no disk"),
            (77, Status::Store, "returned 77"),
        ] {
            given.state.cast::<i32>().write(told);
            is(put(3), status, words);
        }
        let mut swapped = 7;
        let swap = eplb_store_compare_and_set(store, c"k".as_ptr(), null(), 0, null(), 0, 1000, &mut swapped);
        assert_eq!((swap, swapped), (Status::Ok, 0));
        eplb_store_free(store);
        given.get = None;
        is(eplb_store_from_callbacks(&given, &mut store), Status::InvalidArgument, "must not be null");
        given.struct_size = 8;
        is(eplb_store_from_callbacks(&given, &mut store), Status::InvalidArgument, "struct_size");
        is(eplb_store_from_callbacks(null(), &mut store), Status::InvalidArgument, "callbacks is null");
    }
}

#[test]
fn pairs_name_what_is_wrong() {
    let (store, corner) = stores();
    let mut pairs = null_mut();
    let mut connect = |backend: &CStr, rank, world| {
        // SAFETY: texts, a live handle, room for a pointer.
        unsafe { eplb_pairs_connect(backend.as_ptr(), rank, world, corner, null(), 50, &mut pairs) }
    };
    is(connect(c"smoke", 0, 2), Status::InvalidArgument, "gloo");
    is(connect(c"gloo", 2, 2), Status::InvalidArgument, "world_size");
    is(connect(c"gloo", 0, 1), Status::InvalidArgument, "world_size");
    // Without its library it says so, with it that nobody came.
    assert!(matches!(connect(c"gloo", 0, 2), Status::Timeout | Status::Transfer), "{}", said());
    assert!(pairs.is_null());
    let mut on_device = |backend: &CStr, rank, world| {
        // SAFETY: as above.
        unsafe { eplb_pairs_connect_device(backend.as_ptr(), 0, rank, world, corner, 50, &mut pairs) }
    };
    is(on_device(c"gloo", 0, 2), Status::InvalidArgument, "nccl and pynccl");
    is(on_device(c"nccl", 2, 2), Status::InvalidArgument, "one of them");
    is(on_device(c"nccl", 0, 1), Status::InvalidArgument, "at least 2");
    // Without a device or NCCL it says so, with both that nobody came.
    assert!(matches!(on_device(c"nccl", 0, 2), Status::Timeout | Status::Transfer), "{}", said());
    assert!(pairs.is_null());
    // SAFETY: null is allowed to be passed; live handles.
    unsafe {
        let name = c"nccl".as_ptr();
        is(
            eplb_pairs_connect_device(null(), 0, 0, 2, corner, 1, &mut pairs),
            Status::InvalidArgument,
            "backend is null",
        );
        is(
            eplb_pairs_connect_device(name, 0, 0, 2, null(), 1, &mut pairs),
            Status::InvalidArgument,
            "store is null",
        );
        is(
            eplb_pairs_connect_device(name, 0, 0, 2, corner, 1, null_mut()),
            Status::InvalidArgument,
            "pairs is null",
        );
        is(
            eplb_pairs_connect(c"gloo".as_ptr(), 0, 2, null(), null(), 1, &mut pairs),
            Status::InvalidArgument,
            "store is null",
        );
        is(
            eplb_pairs_connect(c"gloo".as_ptr(), 0, 2, corner, null(), 1, null_mut()),
            Status::InvalidArgument,
            "pairs is null",
        );
        is(eplb_pairs_exchange(null(), null(), 0, null(), 0, 1), Status::InvalidArgument, "pairs is null");
        is(eplb_pairs_received_bytes(null(), null_mut()), Status::InvalidArgument, "pairs is null");
        eplb_pairs_free(null_mut());
        eplb_store_free(corner);
        eplb_store_free(store);
    }
}
