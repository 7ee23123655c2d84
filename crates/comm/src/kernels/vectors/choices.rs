//! Cases of load recording and dispatch.

use super::{Case, Size, numbers};
use crate::kernels::{Choices, Counting, Faults, LayerMaps, RoutedId, dispatch, record};
use crate::random::Random;

/// Which inputs a case has, and how large it is.
#[derive(Debug, Clone, Copy)]
struct Shape {
    tokens: usize,
    k: usize,
    /// Elements behind the choices of a token, in ids and output.
    gaps: (usize, usize),
    /// Elements by which ids and output are off the start of their memory.
    offset: (usize, usize),
    experts: usize,
    slots: usize,
    columns: usize,
    tags: usize,
    tag: Option<i32>,
    valid: Option<i32>,
    mask: bool,
    /// Ids are slots.
    physical: bool,
    /// Slots are written.
    dispatch: bool,
    /// Choices are counted.
    counted: bool,
    /// Slots take the place of the ids.
    in_place: bool,
    /// Part of ids that are -1 or out of range.
    strange: f64,
    /// Entries between the rows of two tags.
    tag_gap: usize,
    layer: u32,
}

impl Shape {
    fn plain(tokens: usize, k: usize, experts: usize) -> Self {
        Self {
            tokens,
            k,
            gaps: (0, 0),
            offset: (0, 0),
            experts,
            slots: experts + experts.div_ceil(4),
            columns: 4,
            tags: 1,
            tag: None,
            valid: None,
            mask: false,
            physical: false,
            dispatch: true,
            counted: true,
            in_place: false,
            strange: 0.0,
            tag_gap: 3,
            layer: 5,
        }
    }

    fn random(random: &mut Random, tokens: usize) -> Self {
        let (k, experts) = (1 + random.below(9), 1 + random.below(300));
        let tags = 1 + random.below(3);
        let plain = Self::plain(random.below(tokens), k, experts);
        let dispatch = random.below(3) > 0;
        Self {
            gaps: (random.below(2) * random.below(5), random.below(2) * random.below(5)),
            offset: (random.below(4), random.below(4)),
            slots: 1 + random.below(2 * experts),
            columns: 1 + random.below(6),
            tags,
            tag: (random.below(2) > 0).then(|| random.below(tags + 2) as i32 - 1),
            valid: (random.below(2) > 0).then(|| random.below(plain.tokens + 3) as i32 - 1),
            mask: random.below(2) > 0,
            physical: random.below(4) == 0,
            dispatch,
            counted: !dispatch || random.below(4) > 0,
            strange: 0.1 * random.below(4) as f64,
            tag_gap: random.below(5),
            layer: random.below(70) as u32,
            ..plain
        }
    }
}

/// Random maps: every slot holds an expert or none, so that some experts have no slot and some many. Shares are random,
/// some of them 0.
fn maps(random: &mut Random, shape: &Shape) -> (Vec<i32>, Vec<i32>, Vec<i32>, Vec<f32>) {
    let (experts, columns) = (shape.experts, shape.columns);
    let mut phy2log = vec![-1i32; shape.slots];
    let (mut log2phy, mut logcnt) = (vec![-1i32; experts * columns], vec![0i32; experts]);
    for slot in 0..shape.slots {
        let expert = if slot < experts && random.below(8) > 0 { slot } else { random.below(experts + 1) };
        if expert < experts && (logcnt[expert] as usize) < columns {
            phy2log[slot] = expert as i32;
            log2phy[expert * columns + logcnt[expert] as usize] = slot as i32;
            logcnt[expert] += 1;
        }
    }
    let mut share = vec![0f32; shape.slots];
    for expert in 0..experts {
        let mine = &log2phy[expert * columns..][..logcnt[expert] as usize];
        let parts: Vec<f64> =
            mine.iter().map(|_| if random.below(6) == 0 { 0.0 } else { random.fraction() }).collect();
        let sum = parts.iter().sum::<f64>();
        for (&slot, part) in mine.iter().zip(parts) {
            share[slot as usize] = if sum > 0.0 { (part / sum) as f32 } else { 0.0 };
        }
    }
    (phy2log, log2phy, logcnt, share)
}

fn draw_id(random: &mut Random, limit: usize, strange: f64) -> i64 {
    if random.fraction() < strange {
        return [-1, -1, -2, limit as i64, i64::from(i32::MAX), i64::from(i32::MIN)][random.below(6)];
    }
    // Skewed: half of the choices fall on an eighth of the experts.
    let end = if random.below(2) == 0 { limit.div_ceil(8) } else { limit };
    random.below(end) as i64
}

fn case<I: RoutedId>(random: &mut Random, name: String, shape: Shape) -> Case {
    let (tokens, k) = (shape.tokens, shape.k);
    let stride = k + shape.gaps.0;
    let (out_stride, out_offset) =
        if shape.in_place { (stride, shape.offset.0) } else { (k + shape.gaps.1, shape.offset.1) };
    let (phy2log, log2phy, logcnt, share) = maps(random, &shape);
    let limit = if shape.physical { shape.slots } else { shape.experts };
    let mut wide = vec![0i64; shape.offset.0 + tokens * stride];
    wide.iter_mut().for_each(|id| *id = draw_id(random, limit, shape.strange));
    if I::BYTES == 8 && tokens > 0 && shape.strange > 0.0 {
        // Out of range only to those who look at all 64 bits.
        wide[shape.offset.0] = 1 << 32;
    }
    let ids: Vec<I> = wide.iter().map(|&id| I::cut(id)).collect();
    let mask: Vec<u8> = (0..tokens).map(|_| [0, 1, 1, 255][random.below(4)]).collect();
    let tag_stride = shape.experts + shape.tag_gap;
    let mut loads: Vec<u64> = vec![0; shape.tags * tag_stride];
    loads.iter_mut().for_each(|load| *load = random.next() >> 8);
    let salt = random.next() * random.below(2) as u64;
    let mut out = match shape.in_place {
        true => ids.clone(),
        false => vec![I::cut(0x5a5a_5a5a); out_offset + tokens * out_stride],
    };

    let mut choices = Choices::new(&ids[shape.offset.0..], tokens, k, stride).expect("ids have this shape");
    if let Some(valid) = shape.valid {
        choices = choices.with_valid(valid);
    }
    if shape.mask {
        choices = choices.with_mask(&mask).expect("one entry per token");
    }
    let counting = Counting {
        experts: shape.experts,
        tags: shape.tags,
        tag_stride,
        tag: shape.tag,
        phy2log: shape.physical.then_some(&phy2log[..]),
    };
    let (loads_before, out_before) = (numbers(&loads), bytes(&out));
    let faults = if shape.dispatch {
        let maps = LayerMaps {
            log2phy: &log2phy,
            logcnt: &logcnt,
            share: &share,
            columns: shape.columns,
            layer: shape.layer,
            salt,
        };
        let out = &mut out[out_offset..];
        let loads = shape.counted.then_some(&mut loads[..]);
        dispatch(&choices, &counting, &maps, out, out_stride, loads)
    } else {
        record(&choices, &counting, &mut loads)
    };
    let Faults { out_of_range, missing } = faults.expect("maps and output have this shape");

    let words = |words: &[i32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let scalars = [
        tokens,
        k,
        stride,
        out_stride,
        shape.offset.0,
        out_offset,
        I::BYTES,
        shape.experts,
        shape.slots,
        shape.columns,
        shape.tags,
        tag_stride,
        shape.layer as usize,
        usize::from(shape.dispatch),
        usize::from(shape.counted),
    ];
    let mut arrays = vec![
        ("shape", numbers(&scalars.map(|n| n as u64))),
        ("ids", bytes(&ids)),
        ("loads", loads_before),
        ("faults", numbers(&[0, 0])),
        ("out", out_before),
        ("log2phy", words(&log2phy)),
        ("logcnt", words(&logcnt)),
        ("share", share.iter().flat_map(|part| part.to_le_bytes()).collect()),
        ("salt", numbers(&[salt])),
        ("after_loads", numbers(&loads)),
        ("after_faults", numbers(&[out_of_range, missing])),
        // A case that expects other ids is one in place.
        (if shape.in_place { "after_ids" } else { "after_out" }, bytes(&out)),
    ];
    if let Some(valid) = shape.valid {
        arrays.push(("valid", words(&[valid])));
    }
    if let Some(tag) = shape.tag {
        arrays.push(("tag", words(&[tag])));
    }
    if shape.mask {
        arrays.push(("mask", mask));
    }
    if shape.physical {
        arrays.push(("phy2log", words(&phy2log)));
    }
    Case { name, arrays }
}

fn bytes<I: RoutedId>(ids: &[I]) -> Vec<u8> {
    ids.iter().flat_map(|&id| Into::<i64>::into(id).to_le_bytes().into_iter().take(I::BYTES)).collect()
}

pub(super) fn cases(random: &mut Random, size: Size) -> Vec<Case> {
    let (tokens, rounds) = match size {
        Size::Small => (300, 24),
        Size::Large => (4096, 60),
    };
    let plain = Shape::plain;
    let mut shapes = vec![
        ("one token", plain(1, 8, 256)),
        ("no token", plain(0, 8, 256)),
        ("one expert", plain(tokens, 1, 1)),
        ("whole batch", plain(tokens, 8, 256)),
        ("recorded only", Shape { dispatch: false, ..plain(tokens, 8, 256) }),
        ("all padding", Shape { valid: Some(0), ..plain(tokens, 8, 64) }),
        ("more valid than tokens", Shape { valid: Some(i32::MAX), ..plain(tokens, 8, 64) }),
        ("odd k, unaligned", Shape { offset: (1, 3), mask: true, strange: 0.2, ..plain(tokens - 1, 7, 60) }),
        ("in place", Shape { in_place: true, strange: 0.1, ..plain(tokens, 8, 64) }),
        (
            "in place, unaligned",
            Shape { in_place: true, offset: (3, 0), gaps: (1, 0), mask: true, ..plain(tokens, 5, 64) },
        ),
        ("warm-up", Shape { tag: Some(-1), ..plain(tokens, 6, 64) }),
        ("counts in global memory", Shape { columns: 2, ..plain(tokens, 8, 8193) }),
        ("most experts in shared memory", Shape { columns: 2, dispatch: false, ..plain(tokens, 8, 8192) }),
        ("slots recorded", Shape { physical: true, dispatch: false, strange: 0.1, ..plain(tokens, 8, 128) }),
    ];
    if size == Size::Large {
        shapes.push(("prefill", plain(65_536, 8, 256)));
        shapes.push(("prefill, recorded", Shape { dispatch: false, ..plain(65_537, 8, 384) }));
    }
    let mut cases = Vec::new();
    for (what, shape) in shapes {
        cases.push(case::<i32>(random, format!("dispatch/{what}, i32"), shape));
        cases.push(case::<i64>(random, format!("dispatch/{what}, i64"), shape));
    }
    for round in 0..rounds {
        let shape = Shape::random(random, tokens);
        cases.push(match round % 2 {
            0 => case::<i32>(random, format!("dispatch/random {round} {shape:?}, i32"), shape),
            _ => case::<i64>(random, format!("dispatch/random {round} {shape:?}, i64"), shape),
        });
    }
    // One captured launch, replayed with other ids, maps, masks, tags and numbers of tokens at the same addresses.
    let shape = Shape { tags: 2, mask: true, strange: 0.05, ..plain(tokens, 8, 256) };
    for (round, tag) in [0, 1, -1, 1, 2, 0].into_iter().enumerate() {
        let valid = Some(random.below(tokens + 1) as i32);
        let shape = Shape { tag: Some(tag), valid, ..shape };
        cases.push(case::<i32>(random, format!("replay/{round}"), shape));
    }
    cases
}
