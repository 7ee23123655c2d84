//! Files as numpy writes them, built byte by byte and independently of the crate's own writer.

use std::io::{Cursor, Write};

use half::f16;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Dtype codes that are read, each with the largest whole number to test it with.
#[allow(dead_code)]
pub(crate) const CODES: [(&str, f64); 11] = [
    ("i1", 127.0),
    ("i2", 32_767.0),
    ("i4", 2_147_483_647.0),
    ("i8", 9_007_199_254_740_992.0),
    ("u1", 255.0),
    ("u2", 65_535.0),
    ("u4", 4_294_967_295.0),
    ("u8", 9_007_199_254_740_992.0),
    ("f2", 2_048.0),
    ("f4", 16_777_216.0),
    ("f8", 9_007_199_254_740_992.0),
];

/// One value in a dtype, least significant byte first.
fn element(code: &str, value: f64) -> Vec<u8> {
    match code {
        "i1" => (value as i8).to_le_bytes().to_vec(),
        "i2" => (value as i16).to_le_bytes().to_vec(),
        "i4" => (value as i32).to_le_bytes().to_vec(),
        "i8" => (value as i64).to_le_bytes().to_vec(),
        "u1" => (value as u8).to_le_bytes().to_vec(),
        "u2" => (value as u16).to_le_bytes().to_vec(),
        "u4" => (value as u32).to_le_bytes().to_vec(),
        "u8" => (value as u64).to_le_bytes().to_vec(),
        "f2" => f16::from_f64(value).to_le_bytes().to_vec(),
        "f4" => (value as f32).to_le_bytes().to_vec(),
        "f8" => value.to_le_bytes().to_vec(),
        _ => panic!("{code}"),
    }
}

/// The header of an `.npy` file of version 1.0, and then `data`.
pub(crate) fn npy_raw(descr: &str, fortran: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let axes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let fortran = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': ({axes}), }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((length as u16).to_le_bytes());
    file.extend(format!("{text:<width$}\n", width = length - 1).bytes());
    file.extend(data);
    file
}

/// An `.npy` file of dtype `order` + `code`, such as `<` and `f4`, with values given in C order.
#[allow(dead_code)]
pub(crate) fn npy(order: char, code: &str, fortran: bool, shape: &[usize], values: &[f64]) -> Vec<u8> {
    let mut data = Vec::new();
    for place in 0..values.len() {
        let value = if fortran { values[c_position(place, shape)] } else { values[place] };
        let mut bytes = element(code, value);
        if order == '>' {
            bytes.reverse();
        }
        data.extend(bytes);
    }
    let order = if code.ends_with('1') { '|' } else { order };
    npy_raw(&format!("'{order}{code}'"), fortran, shape, &data)
}

/// Where the element at a place in Fortran order stands in C order.
fn c_position(mut place: usize, shape: &[usize]) -> usize {
    let index: Vec<usize> = shape
        .iter()
        .map(|axis| {
            let at = place % axis;
            place /= axis;
            at
        })
        .collect();
    index.iter().zip(shape).fold(0, |position, (at, axis)| position * axis + at)
}

/// A zip file of the members, stored or deflated.
pub(crate) fn zip(members: &[(&str, Vec<u8>)], deflated: bool) -> Vec<u8> {
    let method = if deflated { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
