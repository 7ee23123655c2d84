//! Drift of loads, carried on to the step to come.
//!
//! A window's steps are samples of a step to come only as far as loads stand still. Where an expert's load rises or falls
//! along a line, each step of the window is carried along that line to the step after the newest: what is left
//! is how far the step was from the line. A line through noise has a slope too; a slope counts by the part of its
//! square that is not the square of its standard error.

use super::scenarios::Sample;

/// Below so many steps of equal weight a line goes through them all, and says nothing.
const LEAST_WORTH: f64 = 3.0;

/// Carries samples of a layer to the step after the newest. `strength` is the part of the measured drift that is expected to
/// go on, 0 to 1; `worth` the number of steps of equal weight that say as much. No load falls below 0, and the loads of a
/// sample have the same sum afterwards.
pub(super) fn carry_on(samples: &mut [Sample], strength: f64, worth: f64) {
    let total: f64 = samples.iter().map(|sample| sample.weight).sum();
    if strength <= 0.0 || worth < LEAST_WORTH {
        return;
    }
    let mean_of = |value: &dyn Fn(&Sample) -> f64| {
        samples.iter().map(|sample| sample.weight * value(sample)).sum::<f64>() / total
    };
    let age = mean_of(&|sample| sample.age);
    let spread = mean_of(&|sample| (sample.age - age) * (sample.age - age));
    if spread <= 0.0 {
        return;
    }
    let experts = samples.first().map_or(0, |sample| sample.row.len());
    let slopes: Vec<f64> = (0..experts)
        .map(|expert| {
            let load = mean_of(&|sample| sample.row[expert]);
            // By step forwards, that is against the age.
            let slope = -mean_of(&|sample| (sample.age - age) * (sample.row[expert] - load)) / spread;
            let rest = mean_of(&|sample| {
                let off = sample.row[expert] - load + slope * (sample.age - age);
                off * off
            });
            let error = rest / spread / (worth - 2.0);
            let square = slope * slope;
            if square > 0.0 { strength * slope * square / (square + error) } else { 0.0 }
        })
        .collect();
    for sample in samples {
        let steps = sample.age + 1.0;
        let before: f64 = sample.row.iter().sum();
        for (load, slope) in sample.row.iter_mut().zip(&slopes) {
            *load = (*load + slope * steps).max(0.0);
        }
        let after: f64 = sample.row.iter().sum();
        if after > 0.0 {
            sample.row.iter_mut().for_each(|load| *load *= before / after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of equal weight, the oldest first.
    fn samples(rows: &[[f64; 2]]) -> Vec<Sample> {
        let age = |at: usize| (rows.len() - 1 - at) as f64;
        let sample = |(at, row): (usize, &[f64; 2])| Sample { weight: 1.0, age: age(at), row: row.to_vec() };
        rows.iter().enumerate().map(sample).collect()
    }

    fn expected(samples: &[Sample]) -> f64 {
        samples.iter().map(|sample| sample.row[0]).sum::<f64>() / samples.len() as f64
    }

    #[test]
    fn a_line_is_continued_and_a_part_of_it_in_part() {
        let line: Vec<[f64; 2]> = (0..6).map(|t| [1.0 + 0.1 * t as f64, 1.0 - 0.1 * t as f64]).collect();
        for (strength, next) in [(1.0, 1.6), (0.5, 1.425), (0.0, 1.25)] {
            let mut carried = samples(&line);
            carry_on(&mut carried, strength, 6.0);
            assert!((expected(&carried) - next).abs() < 1e-9, "{strength}: {}", expected(&carried));
            assert!(carried.iter().all(|sample| (sample.row[0] + sample.row[1] - 2.0).abs() < 1e-12));
        }
        // All of a line goes on: every step becomes the step to come.
        let mut carried = samples(&line);
        carry_on(&mut carried, 1.0, 6.0);
        assert!(carried.iter().all(|sample| (sample.row[0] - 1.6).abs() < 1e-9));
    }

    #[test]
    fn noise_has_hardly_a_slope_and_two_steps_have_none() {
        let noise =
            [[1.3, 0.7], [0.7, 1.3], [1.2, 0.8], [0.8, 1.2], [1.3, 0.7], [0.6, 1.4], [1.2, 0.8], [0.9, 1.1]];
        let mut carried = samples(&noise);
        carry_on(&mut carried, 1.0, 8.0);
        assert!((expected(&carried) - expected(&samples(&noise))).abs() < 0.02, "{}", expected(&carried));
        let mut two = samples(&[[0.5, 1.5], [1.0, 1.0]]);
        carry_on(&mut two, 1.0, 2.0);
        assert_eq!(two, samples(&[[0.5, 1.5], [1.0, 1.0]]));
    }

    #[test]
    fn no_load_falls_below_nothing() {
        let falling: Vec<[f64; 2]> =
            [0.8, 0.6, 0.4, 0.2, 0.0].iter().map(|&load| [load, 2.0 - load]).collect();
        let mut carried = samples(&falling);
        carry_on(&mut carried, 1.0, 5.0);
        assert!(carried.iter().all(|sample| sample.row[0] == 0.0 && (sample.row[1] - 2.0).abs() < 1e-12));
    }
}
