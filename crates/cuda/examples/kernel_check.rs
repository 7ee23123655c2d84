//! Compares the GPU kernels with their twins through the launches that the engine makes, and says where the machine code came
//! from: `cargo run --release -p eplb-cuda --example kernel_check [FOLDER OF FATBINS]`. Exit code 2: there is no GPU here.

use std::path::PathBuf;
use std::process::ExitCode;

use eplb_comm::kernels::vectors::{Size, cases};
use eplb_cuda::kernels::{Kernels, check::differences};
use eplb_cuda::{Context, CudaError};

fn run(folder: Option<PathBuf>) -> Result<bool, CudaError> {
    let context = Context::primary(0)?;
    let kernels = Kernels::load(&context, folder.as_deref())?;
    println!("kernels of {}", kernels.origin());
    let mut agree = true;
    for (size, seed) in [(Size::Small, 3), (Size::Large, 4)] {
        let cases = cases(seed, size);
        let differ = differences(&context, &kernels, &cases)?;
        differ.iter().for_each(|d| println!("DIFFERS {}: {} at byte {}", d.case, d.array, d.byte));
        println!("{size:?}: {} cases, {} differ", cases.len(), differ.len());
        agree &= differ.is_empty();
    }
    Ok(agree)
}

fn main() -> ExitCode {
    match run(std::env::args_os().nth(1).map(PathBuf::from)) {
        Ok(true) => {
            println!("KERNELS AGREE");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("KERNELS DIFFER");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("nothing was compared: {error}");
            ExitCode::from(2)
        }
    }
}
