//! The few functions of cuBLAS that a matrix product needs, looked up at run time. Constants and types as its manual gives them.

use std::ffi::{OsString, c_int, c_longlong, c_void};
use std::path::Path;

use libloading::os::unix;

use crate::error::CudaError;

/// The variable that names the library.
const VARIABLE: &str = "EPLB_CUBLAS_SO";

/// Sonames, newest first.
const SONAMES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];

/// `CUDA_R_16BF`, `CUBLAS_COMPUTE_32F`, `CUBLAS_GEMM_DEFAULT`, `CUBLAS_OP_N`, `CUBLAS_OP_T`.
const BFLOAT16: c_int = 14;
const COMPUTE_32F: c_int = 68;
const DEFAULT: c_int = -1;
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;

type Raw = *mut c_void;
type Create = unsafe extern "C" fn(*mut Raw) -> c_int;
type Destroy = unsafe extern "C" fn(Raw) -> c_int;
type SetStream = unsafe extern "C" fn(Raw, Raw) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Raw, Raw, usize) -> c_int;
type Gemm = unsafe extern "C" fn(
    Raw,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    c_longlong,
    *const c_void,
    c_int,
    c_int,
    c_longlong,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_longlong,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// `batch` products `C[rows, columns] = A[rows, inner] B[inner, columns]` of bfloat16, one behind the other in memory; `B` is stored
/// column by column, as weights of linear layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) batch: usize,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
}

/// A handle of cuBLAS. The library stays open for good: it has state of its own.
#[derive(Debug)]
pub(super) struct Cublas {
    raw: Raw,
    destroy: Destroy,
    gemm: Gemm,
}

fn failed(call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::Call { call, code: code.unsigned_abs(), name: "a status of cuBLAS".into() }),
    }
}

/// Looks where `EPLB_CUBLAS_SO` says; where that says nothing, where the system looks.
fn open() -> Result<&'static unix::Library, CudaError> {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let candidates: Vec<OsString> = match named {
        Some(path) => vec![path],
        None => SONAMES.iter().map(OsString::from).collect(),
    };
    let mut tried = Vec::new();
    for candidate in candidates {
        // cuBLAS opens a second library of its own by name; where it is opened by its path, that one lies beside it.
        if let Some(folder) = Path::new(&candidate).parent().filter(|folder| folder.is_absolute()) {
            for name in ["libcublasLt.so.13", "libcublasLt.so.12"] {
                // SAFETY: NVIDIA's own library, whose initialisers may run anywhere. Kept open with the process.
                let light = unsafe {
                    unix::Library::open(Some(folder.join(name)), unix::RTLD_NOW | unix::RTLD_GLOBAL)
                };
                light.into_iter().for_each(std::mem::forget);
            }
        }
        // SAFETY: as above.
        match unsafe { unix::Library::open(Some(&candidate), unix::RTLD_NOW | unix::RTLD_LOCAL) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) => tried.push(format!("{}: {error}", candidate.to_string_lossy())),
        }
    }
    Err(CudaError::Absent(format!(
        "there is no cuBLAS ({}); set {VARIABLE} to a libcublas.so, or LD_LIBRARY_PATH to its folder",
        tried.join("; ")
    )))
}

impl Cublas {
    /// A handle on the current context that works on `stream`, with `bytes` bytes of scratch memory at `scratch`: with memory of its own
    /// it would allocate while serving.
    ///
    /// # Errors
    /// There is no cuBLAS, or it refused.
    ///
    /// # Safety
    /// The stream and the scratch memory live as long as the handle and whatever it enqueued.
    pub(super) unsafe fn new(stream: Raw, scratch: u64, bytes: usize) -> Result<Self, CudaError> {
        let library = open()?;
        macro_rules! find {
            ($name:literal, $kind:ty) => {{
                // SAFETY: looked up by the name that cuBLAS documents with this type.
                let found = unsafe { library.get::<$kind>($name.as_bytes()) };
                *found.map_err(|error| CudaError::Absent(format!("{}: {error}", $name)))?
            }};
        }
        let create = find!("cublasCreate_v2", Create);
        let destroy = find!("cublasDestroy_v2", Destroy);
        let set_stream = find!("cublasSetStream_v2", SetStream);
        let set_workspace = find!("cublasSetWorkspace_v2", SetWorkspace);
        let gemm = find!("cublasGemmStridedBatchedEx", Gemm);
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle, which Drop destroys once.
        failed("cublasCreate", unsafe { create(&mut raw) })?;
        let made = Self { raw, destroy, gemm };
        // SAFETY: the handle lives; the rest is passed on to the caller.
        failed("cublasSetStream", unsafe { set_stream(raw, stream) })?;
        // SAFETY: as above.
        failed("cublasSetWorkspace", unsafe { set_workspace(raw, scratch as Raw, bytes) })?;
        Ok(made)
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// A size that is no number of cuBLAS, or cuBLAS refused.
    ///
    /// # Safety
    /// `a`, `b` and `c` are device memory of the product's sizes that stay as they are, and are used by nobody else, until it has run.
    pub(super) unsafe fn multiply(&self, product: Product, a: u64, b: u64, c: u64) -> Result<(), CudaError> {
        let Product { batch, rows, inner, columns } = product;
        let sizes = [batch, rows, inner, columns].map(c_int::try_from);
        let [Ok(batches), Ok(m), Ok(k), Ok(n)] = sizes else {
            return Err(CudaError::Absent(format!("cuBLAS has no products of this size: {product:?}")));
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // cuBLAS counts by columns: it sees C transposed, which is the transposed product.
        // SAFETY: the scalars are read during the call; the rest is passed on to the caller.
        let code = unsafe {
            (self.gemm)(
                self.raw,
                TRANSPOSED,
                PLAIN,
                n,
                m,
                k,
                (&raw const one).cast(),
                b as *const c_void,
                BFLOAT16,
                k,
                (inner * columns) as c_longlong,
                a as *const c_void,
                BFLOAT16,
                k,
                (rows * inner) as c_longlong,
                (&raw const zero).cast(),
                c as *mut c_void,
                BFLOAT16,
                n,
                (rows * columns) as c_longlong,
                batches,
                COMPUTE_32F,
                DEFAULT,
            )
        };
        failed("cublasGemmStridedBatchedEx", code)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. Its outcome helps nobody.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}
