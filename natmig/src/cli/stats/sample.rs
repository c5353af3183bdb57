//! Counters at a moment, and the rates between two moments.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use serde::Serialize;

use crate::router::{
    RouterError,
    reader::{BindingView, InterfaceView, Reader, TrafficView, class_name},
};

/// Counters at a moment.
pub(in crate::cli) struct Sample {
    at: Instant,
    pub(in crate::cli) interfaces: Vec<InterfaceView>,
    pub(in crate::cli) bindings: Vec<BindingView>,
}

/// Packets and bytes in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(in crate::cli) struct Rate {
    pub(in crate::cli) packets_per_second: f64,
    pub(in crate::cli) bytes_per_second: f64,
}

impl std::ops::AddAssign for Rate {
    fn add_assign(&mut self, other: Self) {
        self.packets_per_second += other.packets_per_second;
        self.bytes_per_second += other.bytes_per_second;
    }
}

/// What was added to a counter. One that went back was reset meanwhile: all that it has is new.
fn added(before: u64, after: u64) -> u64 {
    after.checked_sub(before).unwrap_or(after)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(
    (packets, bytes): (u64, u64),
    (packets_before, bytes_before): (u64, u64),
    seconds: f64,
) -> Rate {
    Rate {
        packets_per_second: added(packets_before, packets) as f64 / seconds,
        bytes_per_second: added(bytes_before, bytes) as f64 / seconds,
    }
}

/// Rates of the counters of an interface, by number.
pub(in crate::cli) type InterfaceRates = HashMap<u8, Rate>;

/// Rates of a binding: to it, and from it.
pub(in crate::cli) type BindingRates = (Rate, Rate);

impl Sample {
    /// Reads the counters, those of bindings only if they are asked for.
    pub(in crate::cli) fn read(reader: &Reader, with_bindings: bool) -> Result<Self, RouterError> {
        Ok(Self {
            at: Instant::now(),
            interfaces: reader.interfaces()?,
            bindings: if with_bindings {
                reader.bindings()
            } else {
                Vec::new()
            },
        })
    }

    /// Seconds since an earlier sample.
    fn seconds_since(&self, before: &Self) -> f64 {
        // Two readings at the same instant tell nothing, and must not tell infinity.
        self.at.duration_since(before.at).as_secs_f64().max(1e-3)
    }

    /// Rates of all counters since an earlier sample, by index of the interface.
    pub(in crate::cli) fn interface_rates(&self, before: &Self) -> HashMap<u32, InterfaceRates> {
        interface_rates(
            &before.interfaces,
            &self.interfaces,
            self.seconds_since(before),
        )
    }

    /// Rates of all bindings since an earlier sample, by identity.
    pub(in crate::cli) fn binding_rates(&self, before: &Self) -> HashMap<IpAddr, BindingRates> {
        let seconds = self.seconds_since(before);
        let earlier: HashMap<IpAddr, TrafficView> = before
            .bindings
            .iter()
            .map(|binding| (binding.identity, binding.traffic))
            .collect();
        self.bindings
            .iter()
            .map(|binding| {
                let before = earlier.get(&binding.identity).copied().unwrap_or_default();
                let after = binding.traffic;
                let to = rate(
                    (after.packets_to, after.bytes_to),
                    (before.packets_to, before.bytes_to),
                    seconds,
                );
                let from = rate(
                    (after.packets_from, after.bytes_from),
                    (before.packets_from, before.bytes_from),
                    seconds,
                );
                (binding.identity, (to, from))
            })
            .collect()
    }
}

fn interface_rates(
    before: &[InterfaceView],
    after: &[InterfaceView],
    seconds: f64,
) -> HashMap<u32, InterfaceRates> {
    after
        .iter()
        .map(|interface| {
            let earlier = before
                .iter()
                .find(|before| before.ifindex == interface.ifindex);
            let rates = interface.counters.iter().map(|counter| {
                let before = earlier
                    .and_then(|earlier| {
                        let mut counters = earlier.counters.iter();
                        counters.find(|before| before.number == counter.number)
                    })
                    .map_or((0, 0), |before| (before.packets, before.bytes));
                let after = (counter.packets, counter.bytes);
                (counter.number, rate(after, before, seconds))
            });
            (interface.ifindex, rates.collect())
        })
        .collect()
}

/// Packets and bytes of an interface by class of verdict: passed, dropped and sent.
pub(in crate::cli) fn totals(interface: &InterfaceView) -> [(&'static str, u64, u64); 3] {
    use natmig_common::CounterClass::{Dropped, Passed, Sent};
    [Passed, Dropped, Sent].map(|class| {
        let name = class_name(class);
        let counters = interface
            .counters
            .iter()
            .filter(|counter| counter.class == name);
        counters.fold((name, 0, 0), |(name, packets, bytes), counter| {
            (name, packets + counter.packets, bytes + counter.bytes)
        })
    })
}

/// The rate of a class of an interface's counters.
pub(in crate::cli) fn class_rate(
    interface: &InterfaceView,
    rates: &InterfaceRates,
    class: &str,
) -> Rate {
    let mut sum = Rate::default();
    for counter in &interface.counters {
        if counter.class == class {
            sum += rates.get(&counter.number).copied().unwrap_or_default();
        }
    }
    sum
}

/// A number for people, with k, M or G.
pub(in crate::cli) fn short(value: f64) -> String {
    for (unit, name) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= unit {
            return format!("{:.2}{name}", value / unit);
        }
    }
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::reader::CounterView;

    fn interface(packets: u64, bytes: u64) -> InterfaceView {
        let counter = |name, number, class| CounterView {
            name,
            number,
            class,
            packets,
            bytes,
        };
        InterfaceView {
            interface: "eth1".to_owned(),
            ifindex: 3,
            role: "access",
            gateway_owner: true,
            promiscuous: false,
            counters: vec![
                counter("pass_unbound", 0, "passed"),
                counter("pass_local", 1, "passed"),
                counter("translated", 16, "sent"),
                counter("anchored", 24, "step"),
            ],
        }
    }

    #[test]
    fn rates_are_what_was_added_in_a_second() {
        let rates = interface_rates(&[interface(100, 6400)], &[interface(300, 19200)], 2.0);
        let expected = Rate {
            packets_per_second: 100.0,
            bytes_per_second: 6400.0,
        };
        assert_eq!(rates[&3][&16], expected);
        let passed = class_rate(&interface(0, 0), &rates[&3], "passed");
        assert!((passed.packets_per_second - 200.0).abs() < 1e-9);
    }

    #[test]
    fn counters_that_were_reset_have_no_negative_rate() {
        let rates = interface_rates(&[interface(1000, 64000)], &[interface(10, 640)], 1.0);
        assert!((rates[&3][&0].packets_per_second - 10.0).abs() < 1e-9);
        // An interface that was not there before.
        let rates = interface_rates(&[], &[interface(10, 640)], 1.0);
        assert!((rates[&3][&0].bytes_per_second - 640.0).abs() < 1e-9);
    }

    #[test]
    fn steps_are_no_verdicts() {
        let expected = [("passed", 14, 28), ("dropped", 0, 0), ("sent", 7, 14)];
        assert_eq!(totals(&interface(7, 14)), expected);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(12.3), "12");
        assert_eq!(short(12_300.0), "12.30k");
        assert_eq!(short(1.5e6), "1.50M");
        assert_eq!(short(2.5e9), "2.50G");
    }
}
