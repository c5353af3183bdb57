//! Which elements of `NEXT_HOPS` are free.

use natmig_common::NEXT_HOP_COUNT;

/// Sizes of runs of elements: powers of two up to this exponent.
const CLASSES: usize = 9;

/// Elements in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    /// Number of elements, a power of two.
    length: u32,
}

/// The free elements.
#[derive(Debug)]
pub(super) struct Elements {
    /// First elements of free runs, by exponent.
    free: [Vec<u32>; CLASSES],
    /// From here on nothing was ever used.
    untouched: u32,
}

impl Elements {
    pub(super) const fn new() -> Self {
        Self {
            free: [const { Vec::new() }; CLASSES],
            untouched: 0,
        }
    }

    /// Takes a run of at least `count` elements; `None` if there is none.
    pub(super) fn take(&mut self, count: usize) -> Option<Run> {
        let length = u32::try_from(count).ok()?.next_power_of_two();
        let class = length.trailing_zeros() as usize;
        let first = self.free.get_mut(class)?.pop();
        let first = first
            .or_else(|| self.never_used(length))
            .or_else(|| self.split(class))?;
        Some(Run { first, length })
    }

    /// Gives a run back.
    pub(super) fn give(&mut self, run: Run) {
        if let Some(free) = self.free.get_mut(run.length.trailing_zeros() as usize) {
            free.push(run.first);
        }
    }

    fn never_used(&mut self, length: u32) -> Option<u32> {
        let first = self.untouched;
        let end = first.checked_add(length)?;
        (end <= NEXT_HOP_COUNT).then(|| {
            self.untouched = end;
            first
        })
    }

    fn split(&mut self, class: usize) -> Option<u32> {
        let larger = (class + 1..CLASSES).find(|larger| !self.free[*larger].is_empty())?;
        let first = self.free[larger].pop()?;
        // The second half, the second quarter and so on stay free.
        for half in class..larger {
            self.free[half].push(first + (1 << half));
        }
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_never_overlap() {
        let mut elements = Elements::new();
        let mut taken: Vec<Run> = Vec::new();
        let mut used = BTreeSet::new();
        let mut state = 1_u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let number = (state >> 33) as usize;
            let run = if number.is_multiple_of(3) {
                None
            } else {
                elements.take(1 + number / 3 % 64)
            };
            if let Some(run) = run {
                for element in run.first..run.first + run.length {
                    assert!(element < NEXT_HOP_COUNT && used.insert(element));
                }
                taken.push(run);
            } else if !taken.is_empty() {
                let run = taken.swap_remove(number % taken.len());
                for element in run.first..run.first + run.length {
                    used.remove(&element);
                }
                elements.give(run);
            }
        }
        assert!(taken.len() > 100);
        assert_eq!(elements.take(1000), None, "larger than any class");
    }
}
