//! Finding and opening the library.

use std::ffi::{CStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix;

use crate::UniqueId;
use crate::error::NcclError;
use crate::sys;

/// Soname of every NCCL 2.
const SONAME: &str = "libnccl.so.2";

/// Variables that name the library, in the order asked.
const VARIABLES: [&str; 2] = ["EPLB_NCCL_SO", "VLLM_NCCL_SO_PATH"];

/// Oldest version that has everything needed: `ncclCommSplit` came with it.
const OLDEST: Version = Version(21800);

/// A version as NCCL numbers it: major * 10000 + minor * 100 + patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0 / 10000, self.0 / 100 % 100, self.0 % 100)
    }
}

/// An open library. It stays loaded until the process ends: NCCL has threads of its own, and others use the same copy.
#[derive(Clone)]
pub struct Library {
    api: &'static sys::Api,
    path: String,
    version: Version,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("path", &self.path).field("version", &self.version).finish()
    }
}

/// Calls a function of a library, or returns the error that names what is missing.
macro_rules! call {
    ($library:expr, $name:ident($($argument:expr),* $(,)?)) => {
        match $library.api().$name.as_ref() {
            Ok(function) => function($($argument),*),
            Err(_) => return Err($library.missing(stringify!($name))),
        }
    };
}
pub(crate) use call;

impl Library {
    /// Looks for a library, in this order: `EPLB_NCCL_SO` and `VLLM_NCCL_SO_PATH` (a path that is set and does not open is
    /// an error), the copy that the process has loaded, `libnccl.so.2` where the system looks, and
    /// `nvidia/nccl/lib` in the site-packages of the Python in use.
    ///
    /// # Errors
    /// None was found, or what was found is too old.
    pub fn open() -> Result<Self, NcclError> {
        for variable in VARIABLES {
            if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
                let named = |error| format!("{variable}={}: {error}", path.to_string_lossy());
                return Self::at(&path).map_err(|error| match error {
                    NcclError::NotFound { tried } => {
                        NcclError::NotFound { tried: tried.into_iter().map(named).collect() }
                    }
                    other => other,
                });
            }
        }
        let mut tried = Vec::new();
        match Self::loaded() {
            Err(NcclError::NotFound { .. }) => tried.push("no copy loaded in this process".to_owned()),
            found => return found,
        }
        let candidates = std::iter::once(PathBuf::from(SONAME)).chain(site_packages());
        for candidate in candidates {
            match Self::at(candidate.as_os_str()) {
                Err(NcclError::NotFound { tried: why }) => tried.extend(why),
                found => return found,
            }
        }
        Err(NcclError::NotFound { tried })
    }

    /// The copy that this process has loaded, as PyTorch or a server does.
    ///
    /// # Errors
    /// It has loaded none, or one that is too old.
    pub fn loaded() -> Result<Self, NcclError> {
        // RTLD_NOLOAD: only what is there already.
        const RTLD_NOLOAD: i32 = 4;
        // SAFETY: nothing is loaded, so no initialiser runs.
        let library = unsafe { unix::Library::open(Some(SONAME), unix::RTLD_NOW | RTLD_NOLOAD) };
        let library = library.map_err(|error| NcclError::NotFound { tried: vec![words(SONAME, &error)] })?;
        Self::of(library, format!("{SONAME} of this process"))
    }

    /// The library at a path, or by a name that the system looks up.
    ///
    /// # Errors
    /// It cannot be opened, is no NCCL, or is too old.
    pub fn at(path: &std::ffi::OsStr) -> Result<Self, NcclError> {
        // SAFETY: the caller, or the search above, says that this is NCCL, whose initialisers may run anywhere.
        let library = unsafe { unix::Library::open(Some(path), unix::RTLD_NOW | unix::RTLD_LOCAL) };
        let path = path.to_string_lossy();
        let library = library.map_err(|error| NcclError::NotFound { tried: vec![words(&path, &error)] })?;
        Self::of(library, path.into_owned())
    }

    fn of(library: unix::Library, path: String) -> Result<Self, NcclError> {
        // SAFETY: only looks symbols up. They are called with the types of NCCL's documented interface.
        let api = unsafe { sys::Api::from_library(library) };
        let api = api.map_err(|error| NcclError::NotFound { tried: vec![words(&path, &error)] })?;
        let Ok(get_version) = &api.ncclGetVersion else {
            return Err(NcclError::NotFound { tried: vec![format!("{path} has no ncclGetVersion")] });
        };
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { get_version(&mut version) };
        if code != sys::ncclResult_t::ncclSuccess {
            return Err(NcclError::NotFound { tried: vec![format!("{path} does not tell its version")] });
        }
        let version = Version(u32::try_from(version).unwrap_or(0));
        if version < OLDEST {
            return Err(NcclError::TooOld { path, version });
        }
        Ok(Self { api: Box::leak(Box::new(api)), path, version })
    }

    /// Where it was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Draws the name of a new communicator.
    ///
    /// # Errors
    /// NCCL found no network interface, mostly.
    pub fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = sys::ncclUniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: writes the 128 bytes.
        let code = unsafe { call!(self, ncclGetUniqueId(&mut id)) };
        self.check("ncclGetUniqueId", code, None, std::ptr::null_mut())?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }

    pub(crate) fn api(&self) -> &'static sys::Api {
        self.api
    }

    pub(crate) fn missing(&self, symbol: &'static str) -> NcclError {
        NcclError::Missing { symbol, path: self.path.clone(), version: self.version }
    }

    /// The outcome of a call. "In progress" is none that failed.
    pub(crate) fn check(
        &self,
        call: &'static str,
        code: sys::ncclResult_t,
        rank: Option<usize>,
        comm: sys::ncclComm_t,
    ) -> Result<(), NcclError> {
        if code == sys::ncclResult_t::ncclSuccess || code == sys::ncclResult_t::ncclInProgress {
            return Ok(());
        }
        let text = |pointer: *const std::os::raw::c_char| match pointer.is_null() {
            true => String::new(),
            // SAFETY: NCCL's strings end with a nul and live until the next error of this thread.
            false => unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned(),
        };
        let name = match &self.api.ncclGetErrorString {
            // SAFETY: takes any code.
            Ok(function) => text(unsafe { function(code) }),
            Err(_) => String::new(),
        };
        let detail = match &self.api.ncclGetLastError {
            // SAFETY: the communicator is not looked at, by documentation it may be null.
            Ok(function) => text(unsafe { function(comm) }),
            Err(_) => String::new(),
        };
        let detail = if detail.is_empty() { "NCCL says no more".into() } else { detail };
        Err(NcclError::Call { call, code: code.0, name, detail, rank })
    }
}

/// Why a library could not be opened, in the words of the loader, which name the file.
fn words(path: &str, error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => format!("{path}: {error}"),
    }
}

/// Paths where Python packages keep the library, for the Python that this process would start.
fn site_packages() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME"] {
        roots.extend(std::env::var_os(variable).map(PathBuf::from));
    }
    let folders = |variable: &str| -> Vec<PathBuf> {
        std::env::var_os(variable).map(|paths| std::env::split_paths(&paths).collect()).unwrap_or_default()
    };
    // The folder beside `bin`, of the first Python on the path: not resolved, since a virtual environment's is a link.
    let python = |bin: &PathBuf| bin.join("python3").exists();
    roots.extend(folders("PATH").into_iter().find(python).and_then(|bin| bin.parent().map(Path::to_owned)));
    roots.push("/usr/local".into());
    roots.push("/usr".into());

    let mut packages: Vec<PathBuf> = folders("PYTHONPATH");
    for root in roots {
        let Ok(entries) = std::fs::read_dir(root.join("lib")) else { continue };
        let mut versions: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
        versions.retain(|name| name.to_string_lossy().starts_with("python3"));
        versions.sort();
        for version in versions.iter().rev() {
            for kind in ["site-packages", "dist-packages"] {
                packages.push(root.join("lib").join(version).join(kind));
            }
        }
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for package in packages {
        let library = package.join("nvidia/nccl/lib").join(SONAME);
        if library.exists() && !found.contains(&library) {
            found.push(library);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version(22809).to_string(), "2.28.9");
        assert_eq!(Version(21805).to_string(), "2.18.5");
    }

    #[test]
    fn what_is_no_library_is_named() {
        let error = Library::at("/nonexistent/libnccl.so.2".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/libnccl.so.2"), "{error}");
        let error = Library::at("libc.so.6".as_ref()).unwrap_err();
        assert!(error.to_string().contains("ncclGetVersion"), "{error}");
    }
}
