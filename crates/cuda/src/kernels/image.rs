//! Where the machine code of the kernels comes from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compile::compile;
use crate::context::Context;
use crate::error::CudaError;
use crate::module::Module;

/// Environment variable that names the folder of fatbins.
pub(super) const FOLDER: &str = "EPLB_KERNELS";

/// One source file and its image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

pub(super) const DISPATCH: Source =
    Source { name: "dispatch", text: include_str!("../../../../kernels/dispatch.cu") };
pub(super) const ROWS: Source = Source { name: "rows", text: include_str!("../../../../kernels/rows.cu") };
pub(super) const CHECKSUM: Source =
    Source { name: "checksum", text: include_str!("../../../../kernels/checksum.cu") };
pub(super) const CROWD: Source = Source { name: "crowd", text: include_str!("../../../../kernels/crowd.cu") };

/// Folders that are looked in, in this order: `EPLB_KERNELS` alone if it is set, else the folder given and `kernels` beside
/// the program.
fn folders(given: Option<&Path>) -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
        return vec![folder.into()];
    }
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("kernels")));
    given.map(Path::to_path_buf).into_iter().chain(beside).collect()
}

/// Loads a source's image: `<folder>/<name>.fatbin` of the first folder that has one for this device, else, with `compiling`, what
/// NVRTC makes of the text. Returns the module and where it came from.
///
/// # Errors
/// There is neither, with what was tried.
pub(super) fn load(
    context: &Arc<Context>,
    source: Source,
    given: Option<&Path>,
    compiling: bool,
) -> Result<(Arc<Module>, String), CudaError> {
    let mut tried = Vec::new();
    for folder in folders(given) {
        let path = folder.join(format!("{}.fatbin", source.name));
        match std::fs::read(&path) {
            Err(error) => tried.push(format!("{}: {error}", path.display())),
            Ok(image) => match Module::load(context, &image) {
                Ok(module) => return Ok((module, path.display().to_string())),
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            },
        }
    }
    if !compiling {
        let words = format!("there is no machine code for {}.cu ({})", source.name, tried.join("; "));
        return Err(CudaError::Absent(format!(
            "{words}; set {FOLDER} to the folder that `make kernels` wrote"
        )));
    }
    match compile(context, source.text).and_then(|image| Module::load(context, &image)) {
        Ok(module) => Ok((module, "NVRTC".into())),
        Err(error) => {
            tried.push(format!("NVRTC: {error}"));
            Err(CudaError::Absent(format!(
                "the kernels of {}.cu can neither be loaded nor compiled ({}); set {FOLDER} to the folder that `make kernels` wrote, or \
                 install NVRTC",
                source.name,
                tried.join("; ")
            )))
        }
    }
}
