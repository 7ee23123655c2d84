//! Cases of copies of rows, commits and checksums.

use super::{Case, Size, numbers};
use crate::kernels::{ChecksumPart, RowCopy, WordWrite, commit, copy_rows, number_units, tensor_sum};
use crate::random::Random;

fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    noise.truncate(bytes);
    noise
}

/// Pitched rows, before they have a place.
#[derive(Debug, Clone, Copy)]
struct Rows {
    rows: usize,
    row_bytes: usize,
    /// Bytes between rows at the source and at the destination.
    gaps: [usize; 2],
    /// What the addresses of source and destination are a multiple of, and the bytes that they are off it.
    off: [usize; 2],
}

const ALIGN: usize = 64;

impl Rows {
    fn random(random: &mut Random, most: usize) -> Self {
        // Multiples of 1 to 16: every width of word is met.
        let width = 1 << random.below(5);
        let mut multiple = |end: usize| random.below(end.div_ceil(width)) * width;
        let row_bytes = multiple(most) + width;
        let (gaps, off) = ([multiple(64), multiple(64)], [multiple(ALIGN), multiple(ALIGN)]);
        let flat = random.below(2) == 0;
        let rows = if random.below(2) == 0 { 1 } else { 1 + random.below(2 * most / row_bytes + 2) };
        Self { rows, row_bytes, gaps: if flat { [0, 0] } else { gaps }, off }
    }

    fn span(&self, side: usize) -> usize {
        self.rows * (self.row_bytes + self.gaps[side])
    }
}

/// Rows that show each path of the kernel, and the sizes around its units.
fn designed() -> Vec<Rows> {
    let flat = |bytes, from, to| Rows { rows: 1, row_bytes: bytes, gaps: [0, 0], off: [from, to] };
    let mut rows = vec![
        flat(32_768, 0, 0),
        flat(32_769, 0, 0),
        flat(65_535, 16, 32),
        flat(70_001, 3, 3),
        flat(40_000, 1, 9),
        flat(40_000, 1, 5),
        flat(40_000, 1, 3),
        flat(40_000, 2, 1),
        flat(15, 15, 15),
        flat(1, 0, 63),
    ];
    for row_bytes in [3, 8, 32, 36, 1024, 7168, 40_000] {
        rows.push(Rows { rows: 1 + 70_000 / row_bytes, row_bytes, gaps: [16, 0], off: [0, 0] });
        rows.push(Rows { rows: 1 + 70_000 / row_bytes, row_bytes, gaps: [0, 5], off: [0, 0] });
        rows.push(Rows { rows: 1 + 70_000 / row_bytes, row_bytes, gaps: [4, 12], off: [8, 4] });
    }
    rows
}

/// Gives each entry its own place in two memories; source places may stand in any order, and gaps are kept.
fn place(list: &[Rows]) -> (Vec<RowCopy>, usize, usize) {
    let mut ends = [0usize; 2];
    let copies = list
        .iter()
        .map(|rows| {
            let mut at = [0; 2];
            for side in 0..2 {
                at[side] = ends[side].next_multiple_of(ALIGN) + rows.off[side];
                ends[side] = at[side] + rows.span(side);
            }
            let row_bytes = rows.row_bytes as u64;
            RowCopy {
                rows: rows.rows as u64,
                source_pitch: row_bytes + rows.gaps[0] as u64,
                dest_pitch: row_bytes + rows.gaps[1] as u64,
                ..RowCopy::run(at[0] as u64, at[1] as u64, row_bytes)
            }
        })
        .collect();
    (copies, ends[0] + 1, ends[1] + 1)
}

fn rows_case(random: &mut Random, what: &str, list: &[Rows], words: Option<usize>) -> Case {
    let (mut copies, source, dest) = place(list);
    let units = number_units(&mut copies);
    let (source, mut dest) = (noise(random, source), noise(random, dest));
    let encoded: Vec<u8> = copies.iter().flat_map(RowCopy::to_bytes).collect();
    let mut arrays = vec![("list", encoded), ("source", source.clone()), ("dest", dest.clone())];
    let Some(words) = words else {
        copy_rows(&copies, &source, &mut dest).expect("placed inside");
        arrays.extend([("shape", numbers(&[copies.len() as u64, units])), ("after_dest", dest)]);
        return Case { name: format!("rows/{what}"), arrays };
    };
    let mut maps = noise(random, 8 * words + 4);
    arrays.push(("maps", maps.clone()));
    let mut places: Vec<u64> = (0..2 * words as u64 + 1).map(|word| 4 * word).collect();
    random.shuffle(&mut places);
    let writes: Vec<WordWrite> =
        places[..words].iter().map(|&dest| WordWrite { dest, value: random.next() as u32 }).collect();
    commit(&copies, &writes, &source, &mut dest, &mut maps).expect("placed inside");
    arrays.extend([
        ("words", writes.iter().flat_map(WordWrite::to_bytes).collect()),
        ("shape", numbers(&[copies.len() as u64, units, words as u64])),
        ("after_dest", dest),
        ("after_maps", maps),
    ]);
    Case { name: format!("commit/{what}"), arrays }
}

/// Experts of a few tensors each; every sum belongs to one expert, and experts may stand in any order.
fn checksum_case(random: &mut Random, what: &str, experts: &[Vec<Rows>]) -> Case {
    let flat: Vec<Rows> = experts.concat();
    let (placed, bytes, _) = place(&flat);
    let memory = noise(random, bytes);
    let before: Vec<u64> = experts.iter().map(|_| 0).collect();
    let mut after = before.clone();
    let mut at = placed.iter();
    let mut parts = Vec::new();
    for (sum, tensors) in experts.iter().enumerate() {
        for (tensor, copy) in (0u32..tensors.len() as u32).zip(&mut at) {
            let row = |row: u64| {
                &memory[(copy.source + row * copy.source_pitch) as usize..][..copy.row_bytes as usize]
            };
            after[sum] = after[sum].wrapping_add(tensor_sum(tensor, (0..copy.rows).map(row)));
            parts.push(ChecksumPart {
                base: copy.source,
                rows: copy.rows,
                row_bytes: copy.row_bytes,
                pitch: copy.source_pitch,
                first_unit: 0,
                tensor,
                sum: sum as u32,
            });
        }
    }
    // The order of the list is the caller's; sums that stand apart must come out as well.
    if random.below(2) == 0 {
        random.shuffle(&mut parts);
    }
    let units = ChecksumPart::number_units(&mut parts);
    let arrays = vec![
        ("shape", numbers(&[parts.len() as u64, units])),
        ("list", parts.iter().flat_map(ChecksumPart::to_bytes).collect()),
        ("source", memory),
        ("sums", numbers(&before)),
        ("after_sums", numbers(&after)),
    ];
    Case { name: format!("checksum/{what}"), arrays }
}

pub(super) fn cases(random: &mut Random, size: Size) -> Vec<Case> {
    let (rounds, most) = match size {
        Size::Small => (8, 9_000),
        Size::Large => (30, 100_000),
    };
    let mut cases = Vec::new();
    for (at, rows) in designed().into_iter().enumerate() {
        cases.push(rows_case(random, &format!("designed {at} {rows:?}"), &[rows], None));
        cases.push(checksum_case(random, &format!("designed {at} {rows:?}"), &[vec![rows]]));
    }
    cases.push(rows_case(random, "only words", &[], Some(1000)));
    cases.push(rows_case(random, "only rows", &designed()[..4], Some(0)));
    for round in 0..rounds {
        let draw = |random: &mut Random, count: usize| -> Vec<Rows> {
            (0..count).map(|_| Rows::random(random, most)).collect()
        };
        let count = 1 + random.below(20);
        let list = draw(random, count);
        cases.push(rows_case(random, &format!("random {round}"), &list, None));
        let words = random.below(600);
        cases.push(rows_case(random, &format!("random {round}"), &list, Some(words)));
        let experts: Vec<_> = (0..1 + random.below(5))
            .map(|_| {
                let tensors = 1 + random.below(4);
                draw(random, tensors)
            })
            .collect();
        cases.push(checksum_case(random, &format!("random {round}"), &experts));
    }
    cases
}
