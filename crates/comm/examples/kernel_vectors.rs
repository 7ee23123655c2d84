//! Writes the cases that `kernels/test/check.cu` compares the GPU kernels with:
//! `cargo run --release -p eplb-comm --example kernel_vectors -- FILE [small|large] [SEED]`.

use std::fs::File;
use std::io::BufWriter;

use eplb_comm::kernels::vectors::{Size, cases, write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: kernel_vectors FILE [small|large] [SEED]")?;
    let size = match args.next().as_deref() {
        None | Some("small") => Size::Small,
        Some("large") => Size::Large,
        Some(other) => return Err(format!("size is small or large, not {other}").into()),
    };
    let seed = args.next().map_or(Ok(1), |seed| seed.parse())?;
    let cases = cases(seed, size);
    write(&cases, BufWriter::new(File::create(&file)?))?;
    println!("{} cases in {file}", cases.len());
    Ok(())
}
