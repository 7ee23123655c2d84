//! Colours of loads.

/// A colour in sRGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

impl std::fmt::Display for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// Stops of the scale: blue below the mean, pale at it, orange to brown above. The two arms differ in lightness and lie on
/// the blue-yellow axis, so that people with a red-green deficiency tell them apart.
const STOPS: [(f64, Rgb); 7] = [
    (0.0, Rgb(0x08, 0x30, 0x6b)),
    (0.5, Rgb(0x42, 0x92, 0xc6)),
    (0.85, Rgb(0xc6, 0xdb, 0xef)),
    (1.0, Rgb(0xf7, 0xf7, 0xf2)),
    (1.15, Rgb(0xfd, 0xd0, 0x8a)),
    (1.6, Rgb(0xe0, 0x7b, 0x16)),
    (2.5, Rgb(0x7a, 0x2f, 0x04)),
];

/// Largest load, in multiples of the mean, that has a colour of its own; above it the last one is used.
pub const LARGEST: f64 = STOPS[STOPS.len() - 1].0;

/// The colour of a rank's load, given in multiples of the mean over ranks.
pub fn of_load(ratio: f64) -> Rgb {
    let ratio = if ratio.is_finite() { ratio.clamp(0.0, LARGEST) } else { LARGEST };
    let upper = STOPS.iter().position(|&(at, _)| ratio <= at).unwrap_or(STOPS.len() - 1).max(1);
    let ((low, a), (high, b)) = (STOPS[upper - 1], STOPS[upper]);
    let t = (ratio - low) / (high - low);
    let mix = |a: u8, b: u8| (f64::from(a) + t * (f64::from(b) - f64::from(a))).round() as u8;
    Rgb(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Whether dark text can be read on a colour.
pub fn is_light(colour: Rgb) -> bool {
    // Luma of ITU-R BT.601.
    0.299 * f64::from(colour.0) + 0.587 * f64::from(colour.1) + 0.114 * f64::from(colour.2) > 140.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_passes_through_its_stops_and_never_leaves_them() {
        for (at, colour) in STOPS {
            assert_eq!(of_load(at), colour);
        }
        assert_eq!(of_load(99.0), STOPS[STOPS.len() - 1].1);
        assert_eq!(of_load(-1.0), STOPS[0].1);
        assert_eq!(of_load(f64::NAN), STOPS[STOPS.len() - 1].1);
    }

    #[test]
    fn the_arms_differ_without_red_and_green() {
        // What a person without red-green discrimination has left: the blue-yellow difference and lightness.
        let yellow = |c: Rgb| (f64::from(c.0) + f64::from(c.1)) / 2.0 - f64::from(c.2);
        for step in 1..=10 {
            let (below, above) =
                (of_load(1.0 - 0.09 * f64::from(step)), of_load(1.0 + 0.15 * f64::from(step)));
            assert!(yellow(above) - yellow(below) > 20.0, "{below} {above}");
        }
    }
}
