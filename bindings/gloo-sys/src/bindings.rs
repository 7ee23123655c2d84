pub const EPLB_GLOO_ABI: u32 = 2;
pub const EPLB_GLOO_FOREVER: i32 = -1;
pub const EPLB_GLOO_SECRET_BYTES: u32 = 16;
pub const EPLB_GLOO_TEXT_BYTES: u32 = 512;
pub const eplb_gloo_status_EPLB_GLOO_OK: eplb_gloo_status = 0;
pub const eplb_gloo_status_EPLB_GLOO_CANCELLED: eplb_gloo_status = 1;
pub const eplb_gloo_status_EPLB_GLOO_INVALID: eplb_gloo_status = 2;
pub const eplb_gloo_status_EPLB_GLOO_IO: eplb_gloo_status = 3;
pub const eplb_gloo_status_EPLB_GLOO_STORE: eplb_gloo_status = 4;
pub const eplb_gloo_status_EPLB_GLOO_RESOURCE: eplb_gloo_status = 5;
pub const eplb_gloo_status_EPLB_GLOO_INTERNAL: eplb_gloo_status = 6;
pub type eplb_gloo_status = ::std::os::raw::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct eplb_gloo_error {
    pub text: [::std::os::raw::c_char; 512usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of eplb_gloo_error"][::std::mem::size_of::<eplb_gloo_error>() - 512usize];
    ["Alignment of eplb_gloo_error"][::std::mem::align_of::<eplb_gloo_error>() - 1usize];
    [
        "Offset of field: eplb_gloo_error::text",
    ][::std::mem::offset_of!(eplb_gloo_error, text) - 0usize];
};
pub type eplb_gloo_take = ::std::option::Option<
    unsafe extern "C" fn(
        sink: *mut ::std::os::raw::c_void,
        value: *const u8,
        bytes: usize,
    ),
>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct eplb_gloo_store {
    pub state: *mut ::std::os::raw::c_void,
    pub set: ::std::option::Option<
        unsafe extern "C" fn(
            state: *mut ::std::os::raw::c_void,
            key: *const ::std::os::raw::c_char,
            key_bytes: usize,
            value: *const u8,
            bytes: usize,
        ) -> i32,
    >,
    pub get: ::std::option::Option<
        unsafe extern "C" fn(
            state: *mut ::std::os::raw::c_void,
            key: *const ::std::os::raw::c_char,
            key_bytes: usize,
            sink: *mut ::std::os::raw::c_void,
            take: eplb_gloo_take,
        ) -> i32,
    >,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of eplb_gloo_store"][::std::mem::size_of::<eplb_gloo_store>() - 24usize];
    ["Alignment of eplb_gloo_store"][::std::mem::align_of::<eplb_gloo_store>() - 8usize];
    [
        "Offset of field: eplb_gloo_store::state",
    ][::std::mem::offset_of!(eplb_gloo_store, state) - 0usize];
    [
        "Offset of field: eplb_gloo_store::set",
    ][::std::mem::offset_of!(eplb_gloo_store, set) - 8usize];
    [
        "Offset of field: eplb_gloo_store::get",
    ][::std::mem::offset_of!(eplb_gloo_store, get) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct eplb_gloo_options {
    pub size: usize,
    pub rank: i32,
    pub world_size: i32,
    pub address: *const ::std::os::raw::c_char,
    pub interface_name: *const ::std::os::raw::c_char,
    pub connect_ms: i64,
    pub secret: *const u8,
    pub store: eplb_gloo_store,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of eplb_gloo_options"][::std::mem::size_of::<eplb_gloo_options>() - 72usize];
    [
        "Alignment of eplb_gloo_options",
    ][::std::mem::align_of::<eplb_gloo_options>() - 8usize];
    [
        "Offset of field: eplb_gloo_options::size",
    ][::std::mem::offset_of!(eplb_gloo_options, size) - 0usize];
    [
        "Offset of field: eplb_gloo_options::rank",
    ][::std::mem::offset_of!(eplb_gloo_options, rank) - 8usize];
    [
        "Offset of field: eplb_gloo_options::world_size",
    ][::std::mem::offset_of!(eplb_gloo_options, world_size) - 12usize];
    [
        "Offset of field: eplb_gloo_options::address",
    ][::std::mem::offset_of!(eplb_gloo_options, address) - 16usize];
    [
        "Offset of field: eplb_gloo_options::interface_name",
    ][::std::mem::offset_of!(eplb_gloo_options, interface_name) - 24usize];
    [
        "Offset of field: eplb_gloo_options::connect_ms",
    ][::std::mem::offset_of!(eplb_gloo_options, connect_ms) - 32usize];
    [
        "Offset of field: eplb_gloo_options::secret",
    ][::std::mem::offset_of!(eplb_gloo_options, secret) - 40usize];
    [
        "Offset of field: eplb_gloo_options::store",
    ][::std::mem::offset_of!(eplb_gloo_options, store) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct eplb_gloo_context {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct eplb_gloo_buffer {
    _unused: [u8; 0],
}
pub struct Symbols {
    __library: ::libloading::Library,
    pub eplb_gloo_abi: unsafe extern "C" fn() -> u32,
    pub eplb_gloo_version: unsafe extern "C" fn() -> u32,
    pub eplb_gloo_guards: unsafe extern "C" fn() -> i32,
    pub eplb_gloo_connect: unsafe extern "C" fn(
        options: *const eplb_gloo_options,
        context: *mut *mut eplb_gloo_context,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_close: unsafe extern "C" fn(context: *mut eplb_gloo_context),
    pub eplb_gloo_free: unsafe extern "C" fn(context: *mut eplb_gloo_context),
    pub eplb_gloo_buffer_new: unsafe extern "C" fn(
        context: *mut eplb_gloo_context,
        base: *mut ::std::os::raw::c_void,
        bytes: usize,
        buffer: *mut *mut eplb_gloo_buffer,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_buffer_free: unsafe extern "C" fn(buffer: *mut eplb_gloo_buffer),
    pub eplb_gloo_send: unsafe extern "C" fn(
        buffer: *mut eplb_gloo_buffer,
        to: i32,
        slot: u64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_recv: unsafe extern "C" fn(
        buffer: *mut eplb_gloo_buffer,
        from: i32,
        slot: u64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_wait_send: unsafe extern "C" fn(
        buffer: *mut eplb_gloo_buffer,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_wait_recv: unsafe extern "C" fn(
        buffer: *mut eplb_gloo_buffer,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_cancel_send: unsafe extern "C" fn(buffer: *mut eplb_gloo_buffer),
    pub eplb_gloo_cancel_recv: unsafe extern "C" fn(buffer: *mut eplb_gloo_buffer),
    pub eplb_gloo_barrier: unsafe extern "C" fn(
        context: *mut eplb_gloo_context,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_broadcast: unsafe extern "C" fn(
        context: *mut eplb_gloo_context,
        base: *mut ::std::os::raw::c_void,
        bytes: usize,
        root: i32,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
    pub eplb_gloo_all_reduce_sum: unsafe extern "C" fn(
        context: *mut eplb_gloo_context,
        base: *mut u64,
        count: usize,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status,
}
impl Symbols {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: AsRef<::std::ffi::OsStr>,
    {
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let eplb_gloo_abi = unsafe { __library.get(b"eplb_gloo_abi\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_version = unsafe { __library.get(b"eplb_gloo_version\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_guards = unsafe { __library.get(b"eplb_gloo_guards\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_connect = unsafe { __library.get(b"eplb_gloo_connect\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_close = unsafe { __library.get(b"eplb_gloo_close\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_free = unsafe { __library.get(b"eplb_gloo_free\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_buffer_new = unsafe { __library.get(b"eplb_gloo_buffer_new\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_buffer_free = unsafe { __library.get(b"eplb_gloo_buffer_free\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_send = unsafe { __library.get(b"eplb_gloo_send\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_recv = unsafe { __library.get(b"eplb_gloo_recv\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_wait_send = unsafe { __library.get(b"eplb_gloo_wait_send\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_wait_recv = unsafe { __library.get(b"eplb_gloo_wait_recv\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_cancel_send = unsafe { __library.get(b"eplb_gloo_cancel_send\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_cancel_recv = unsafe { __library.get(b"eplb_gloo_cancel_recv\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_barrier = unsafe { __library.get(b"eplb_gloo_barrier\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_broadcast = unsafe { __library.get(b"eplb_gloo_broadcast\0") }
            .map(|sym| *sym)?;
        let eplb_gloo_all_reduce_sum = unsafe {
            __library.get(b"eplb_gloo_all_reduce_sum\0")
        }
            .map(|sym| *sym)?;
        Ok(Symbols {
            __library,
            eplb_gloo_abi,
            eplb_gloo_version,
            eplb_gloo_guards,
            eplb_gloo_connect,
            eplb_gloo_close,
            eplb_gloo_free,
            eplb_gloo_buffer_new,
            eplb_gloo_buffer_free,
            eplb_gloo_send,
            eplb_gloo_recv,
            eplb_gloo_wait_send,
            eplb_gloo_wait_recv,
            eplb_gloo_cancel_send,
            eplb_gloo_cancel_recv,
            eplb_gloo_barrier,
            eplb_gloo_broadcast,
            eplb_gloo_all_reduce_sum,
        })
    }
    pub unsafe fn eplb_gloo_abi(&self) -> u32 {
        unsafe { (self.eplb_gloo_abi)() }
    }
    pub unsafe fn eplb_gloo_version(&self) -> u32 {
        unsafe { (self.eplb_gloo_version)() }
    }
    pub unsafe fn eplb_gloo_guards(&self) -> i32 {
        unsafe { (self.eplb_gloo_guards)() }
    }
    pub unsafe fn eplb_gloo_connect(
        &self,
        options: *const eplb_gloo_options,
        context: *mut *mut eplb_gloo_context,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_connect)(options, context, error) }
    }
    pub unsafe fn eplb_gloo_close(&self, context: *mut eplb_gloo_context) {
        unsafe { (self.eplb_gloo_close)(context) }
    }
    pub unsafe fn eplb_gloo_free(&self, context: *mut eplb_gloo_context) {
        unsafe { (self.eplb_gloo_free)(context) }
    }
    pub unsafe fn eplb_gloo_buffer_new(
        &self,
        context: *mut eplb_gloo_context,
        base: *mut ::std::os::raw::c_void,
        bytes: usize,
        buffer: *mut *mut eplb_gloo_buffer,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_buffer_new)(context, base, bytes, buffer, error) }
    }
    pub unsafe fn eplb_gloo_buffer_free(&self, buffer: *mut eplb_gloo_buffer) {
        unsafe { (self.eplb_gloo_buffer_free)(buffer) }
    }
    pub unsafe fn eplb_gloo_send(
        &self,
        buffer: *mut eplb_gloo_buffer,
        to: i32,
        slot: u64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_send)(buffer, to, slot, error) }
    }
    pub unsafe fn eplb_gloo_recv(
        &self,
        buffer: *mut eplb_gloo_buffer,
        from: i32,
        slot: u64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_recv)(buffer, from, slot, error) }
    }
    pub unsafe fn eplb_gloo_wait_send(
        &self,
        buffer: *mut eplb_gloo_buffer,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_wait_send)(buffer, timeout_ms, error) }
    }
    pub unsafe fn eplb_gloo_wait_recv(
        &self,
        buffer: *mut eplb_gloo_buffer,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_wait_recv)(buffer, timeout_ms, error) }
    }
    pub unsafe fn eplb_gloo_cancel_send(&self, buffer: *mut eplb_gloo_buffer) {
        unsafe { (self.eplb_gloo_cancel_send)(buffer) }
    }
    pub unsafe fn eplb_gloo_cancel_recv(&self, buffer: *mut eplb_gloo_buffer) {
        unsafe { (self.eplb_gloo_cancel_recv)(buffer) }
    }
    pub unsafe fn eplb_gloo_barrier(
        &self,
        context: *mut eplb_gloo_context,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe { (self.eplb_gloo_barrier)(context, tag, timeout_ms, error) }
    }
    pub unsafe fn eplb_gloo_broadcast(
        &self,
        context: *mut eplb_gloo_context,
        base: *mut ::std::os::raw::c_void,
        bytes: usize,
        root: i32,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe {
            (self
                .eplb_gloo_broadcast)(context, base, bytes, root, tag, timeout_ms, error)
        }
    }
    pub unsafe fn eplb_gloo_all_reduce_sum(
        &self,
        context: *mut eplb_gloo_context,
        base: *mut u64,
        count: usize,
        tag: u32,
        timeout_ms: i64,
        error: *mut eplb_gloo_error,
    ) -> eplb_gloo_status {
        unsafe {
            (self.eplb_gloo_all_reduce_sum)(context, base, count, tag, timeout_ms, error)
        }
    }
}
