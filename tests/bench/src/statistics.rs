//! Medians and quartiles of samples, and ratios of samples that were taken in the same round.

use std::collections::BTreeMap;

/// Samples by round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(BTreeMap<usize, f64>);

/// The middle of some samples.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Middle {
    /// A quarter of the samples is below.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// A quarter of the samples is above.
    pub high: f64,
}

impl Samples {
    /// Adds the sample of a round.
    pub fn add(&mut self, round: usize, value: f64) {
        self.0.insert(round, value);
    }

    /// The middle; `None` without samples.
    pub fn middle(&self) -> Option<Middle> {
        middle(self.0.values().copied().collect())
    }

    /// Combines the samples of rounds in which both have one.
    pub fn paired(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let both = self.0.iter().filter_map(|(round, value)| {
            let other = other.0.get(round)?;
            Some((*round, combine(*value, *other)))
        });
        Self(both.collect())
    }

    /// The ratio, round by round.
    pub fn per(&self, other: &Self) -> Self {
        self.paired(other, |one, other| one / other)
    }

    /// The difference, round by round.
    pub fn above(&self, other: &Self) -> Self {
        self.paired(other, |one, other| one - other)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().enumerate().collect())
    }
}

/// The value below which a part of the sorted values is.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part * last as f64;
    let low = sorted.get(place as usize)?;
    let high = sorted.get((place as usize + 1).min(last))?;
    Some(low + (high - low) * place.fract())
}

fn middle(mut values: Vec<f64>) -> Option<Middle> {
    values.sort_by(f64::total_cmp);
    Some(Middle {
        low: quantile(&values, 0.25)?,
        median: quantile(&values, 0.5)?,
        high: quantile(&values, 0.75)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_between_samples() {
        let samples: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        let middle = samples.middle().unwrap();
        assert_eq!((middle.low, middle.median, middle.high), (1.75, 2.5, 3.25));
        assert_eq!(Samples::default().middle(), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let mut one = Samples::default();
        let mut other = Samples::default();
        one.add(0, 10.0);
        one.add(1, 40.0);
        one.add(2, 7.0);
        other.add(1, 20.0);
        other.add(0, 10.0);
        let ratio = one.per(&other);
        assert_eq!(ratio, [1.0, 2.0].into_iter().collect());
    }
}
