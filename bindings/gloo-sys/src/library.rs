//! Finding and opening `libeplb_gloo.so`.

use std::ffi::{CStr, OsStr};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix;

use crate::bindings::{EPLB_GLOO_ABI, Symbols};
use crate::error::LoadError;

const LIBRARY: &str = "libeplb_gloo.so";

/// Why the build made no library; empty if it did.
const NOT_BUILT: &str = env!("EPLB_GLOO_NOT_BUILT");

/// The loaded library. It stays loaded until the process ends: threads of its own may run in it.
#[derive(Clone, Copy)]
pub struct Gloo {
    symbols: &'static Symbols,
}

impl fmt::Debug for Gloo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gloo").field("version", &self.version()).finish()
    }
}

impl Gloo {
    /// Loads the library: the file that `EPLB_GLOO_SO` names, and no other, if it is set; else the first that is found beside
    /// the program or the shared object that this code is part of, one folder above it, in `lib` next to that, or where the
    /// system looks. What was loaded once is kept.
    ///
    /// # Errors
    /// Not built, not found, or not usable; the message says what to do.
    pub fn load() -> Result<Self, LoadError> {
        static LOADED: OnceLock<Gloo> = OnceLock::new();
        if let Some(gloo) = LOADED.get() {
            return Ok(*gloo);
        }
        let gloo = Self::find(std::env::var_os("EPLB_GLOO_SO").as_deref(), &folders())?;
        // Two threads may have opened it at the same time: the loader gives both the same library.
        Ok(*LOADED.get_or_init(|| gloo))
    }

    fn find(chosen: Option<&OsStr>, folders: &[PathBuf]) -> Result<Self, LoadError> {
        if let Some(path) = chosen {
            return match Path::new(path).exists() {
                true => Self::open(Path::new(path)),
                false => Err(LoadError::Missing {
                    looked: vec![format!("EPLB_GLOO_SO={}", Path::new(path).display())],
                }),
            };
        }
        let paths: Vec<PathBuf> = folders.iter().map(|folder| folder.join(LIBRARY)).collect();
        if let Some(path) = paths.iter().find(|path| path.exists()) {
            return Self::open(path);
        }
        match Self::open(Path::new(LIBRARY)) {
            // The loader names the file that it did not find: this library, or one that this library needs.
            Err(LoadError::Broken { detail, .. }) if detail.contains(LIBRARY) => Err(match NOT_BUILT {
                "" => LoadError::Missing {
                    looked: paths
                        .iter()
                        .map(|path| path.display().to_string())
                        .chain(["the system's folders".to_owned()])
                        .collect(),
                },
                reason => LoadError::NotBuilt { reason: reason.to_owned() },
            }),
            other => other,
        }
    }

    /// Opens one file.
    ///
    /// # Errors
    /// It cannot be opened, or is of another version.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let name = || path.display().to_string();
        let broken = |error: libloading::Error| LoadError::Broken { path: name(), detail: error.to_string() };
        let flags = unix::RTLD_NOW | unix::RTLD_LOCAL | libc::RTLD_DEEPBIND;
        // SAFETY: initialisers of the library, of Gloo and of the C++ runtime run; none of them touches memory of ours
        // or calls back. Whoever points EPLB_GLOO_SO at a file vouches for it.
        let library = unsafe { unix::Library::open(Some(path), flags) }.map_err(broken)?;
        let symbols = {
            // SAFETY: the symbols are looked up by the names of the header that the types were made from; that the library
            // was compiled from the same header is what `eplb_gloo_abi`, the same in all versions, says below.
            unsafe { Symbols::from_library(library) }.map_err(broken)?
        };
        // Never unloaded, see the type.
        let symbols: &'static Symbols = Box::leak(Box::new(symbols));
        // SAFETY: takes and touches nothing.
        let found = unsafe { symbols.eplb_gloo_abi() };
        if found != EPLB_GLOO_ABI {
            return Err(LoadError::Version { path: name(), found, expected: EPLB_GLOO_ABI });
        }
        Ok(Self { symbols })
    }

    /// Version of Gloo that the library was compiled against, such as `"0.5.0"`.
    pub fn version(&self) -> String {
        // SAFETY: takes and touches nothing.
        let number = unsafe { self.symbols.eplb_gloo_version() };
        format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
    }

    /// Whether it turns strangers away ([`Gloo::connect`] with a secret): not where it was compiled against a Gloo whose TCP
    /// classes it does not know.
    pub fn guards(&self) -> bool {
        // SAFETY: takes and touches nothing.
        unsafe { self.symbols.eplb_gloo_guards() != 0 }
    }

    pub(crate) fn symbols(&self) -> &'static Symbols {
        self.symbols
    }
}

/// The shared object or program that this code is part of.
fn this_object() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: all zero bytes is a valid value of this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let here = this_object as *const () as *const libc::c_void;
    // SAFETY: `here` is the address of a function of this object, and `info` is valid for writes.
    if unsafe { libc::dladdr(here, &mut info) } == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so the name is a C string that lives as long as the object is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Path::new(OsStr::from_bytes(name.to_bytes())).canonicalize().ok()
}

/// Folders to look in, in order.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for object in [this_object(), std::env::current_exe().ok()].into_iter().flatten() {
        let Some(beside) = object.parent() else { continue };
        let above = beside.parent().unwrap_or(beside);
        for folder in [beside.to_path_buf(), above.to_path_buf(), above.join("lib")] {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_with_what_to_do() {
        let absent = Gloo::find(Some(OsStr::new("/nowhere/libeplb_gloo.so")), &[]).unwrap_err();
        assert!(absent.to_string().contains("EPLB_GLOO_SO=/nowhere"), "{absent}");
        // The folders given have none, and neither has the system, unless someone installed it there.
        if let Err(error) = Gloo::find(None, &[PathBuf::from("/nowhere")]) {
            match &error {
                LoadError::NotBuilt { reason } => assert_eq!(reason, NOT_BUILT),
                LoadError::Missing { looked } => assert!(looked[0].starts_with("/nowhere"), "{looked:?}"),
                other => panic!("{other}"),
            }
            assert!(error.to_string().contains("EPLB_GLOO_SO"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let error = Gloo::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).unwrap_err();
        assert!(matches!(&error, LoadError::Broken { path, .. } if path.ends_with("Cargo.toml")), "{error}");
    }

    #[test]
    fn a_library_without_the_interface_is_refused() {
        let error = Gloo::open(Path::new("libc.so.6")).unwrap_err();
        assert!(error.to_string().contains("eplb_gloo"), "{error}");
    }

    #[test]
    fn not_built_says_how_to_get_it() {
        let error = LoadError::NotBuilt { reason: "no g++".into() }.to_string();
        assert!(error.contains("install libgloo-dev and g++") && error.contains("no g++"), "{error}");
    }
}
