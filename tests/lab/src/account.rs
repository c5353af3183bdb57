//! What a flow is charged with.
//!
//! While a VM is unplugged nobody can deliver to it. Until its *anchors* have committed nobody must:
//! its home edges, which catch what carries its identity, and the edges that it left, which catch what
//! still carries the locator it had there. (Of these two the home edges commit last when a VM moves,
//! and first when it comes home.) Therefore a packet that did not arrive is excused if, and only if,
//! one of its ends moved and it was sent within
//!
//! ```text
//! [ unplug − longest delay observed in its flow,  max(replug, commit of the anchors) ]
//! ```
//!
//! Packets sent before the unplug may still be on their way at the unplug, hence the first bound.
//! Everything else that did not arrive is lost.

use crate::traffic::{Datagrams, Flow};

/// When packets from and to a VM need not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The VM.
    pub vm: String,
    /// When its unplugging began, in nanoseconds since the epoch.
    pub unplug: u64,
    /// When it was plugged in again.
    pub replug: u64,
    /// When the last of its home edges and of the edges that it left had committed.
    pub anchors: u64,
}

impl Window {
    /// When everything must arrive again.
    pub fn end(&self) -> u64 {
        self.replug.max(self.anchors)
    }

    /// What natmig adds to the guest's own pause, in nanoseconds.
    pub fn natmig_gap(&self) -> u64 {
        self.anchors.saturating_sub(self.replug)
    }
}

/// Fate of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Arrived,
    /// It did not, and needed not.
    Excused,
    /// It did not.
    Lost,
}

/// What became of the packets of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub arrived: u64,
    /// Packets that did not arrive and needed not.
    pub excused: u64,
    /// When the others were sent.
    pub lost: Vec<u64>,
}

/// Fate of each packet of a flow.
pub fn fates(flow: &Flow, log: &Datagrams, windows: &[Window]) -> Vec<Fate> {
    let delay = log.longest_delay();
    let windows: Vec<&Window> = windows
        .iter()
        .filter(|window| window.vm == flow.from || window.vm == flow.to)
        .collect();
    let excused = |sent: u64| {
        windows
            .iter()
            .any(|window| sent + delay >= window.unplug && sent <= window.end())
    };
    let packets = log.sent.iter().zip(&log.received);
    packets
        .map(|(sent, received)| match *received {
            0 if excused(*sent) => Fate::Excused,
            0 => Fate::Lost,
            _ => Fate::Arrived,
        })
        .collect()
}

/// Sums up the fates.
pub fn account(flow: &Flow, log: &Datagrams, windows: &[Window]) -> Account {
    let mut account = Account {
        sent: log.sent.len() as u64,
        ..Account::default()
    };
    for (fate, sent) in fates(flow, log, windows).into_iter().zip(&log.sent) {
        match fate {
            Fate::Arrived => account.arrived += 1,
            Fate::Excused => account.excused += 1,
            Fate::Lost => account.lost.push(*sent),
        }
    }
    account
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::tests::flow;

    fn window() -> Window {
        Window {
            vm: "vm1".into(),
            unplug: 1000,
            replug: 1200,
            anchors: 1300,
        }
    }

    #[test]
    fn only_the_window_excuses() {
        let log = Datagrams {
            sent: vec![900, 985, 990, 1100, 1300, 1301],
            received: vec![910, 0, 0, 0, 0, 0],
            ..Datagrams::default()
        };
        let account = account(&flow("host1", "vm1"), &log, &[window()]);
        assert_eq!(
            account,
            Account {
                sent: 6,
                arrived: 1,
                excused: 3,
                lost: vec![985, 1301]
            }
        );
    }

    #[test]
    fn others_are_never_excused() {
        let log = Datagrams {
            sent: vec![1100],
            received: vec![0],
            ..Datagrams::default()
        };
        assert_eq!(
            account(&flow("host1", "vm2"), &log, &[window()]).lost,
            [1100]
        );
    }

    #[test]
    fn gap_is_what_natmig_adds() {
        assert_eq!(window().natmig_gap(), 100);
        assert_eq!(
            Window {
                anchors: 1100,
                ..window()
            }
            .natmig_gap(),
            0
        );
        assert_eq!(
            Window {
                anchors: 1100,
                ..window()
            }
            .end(),
            1200
        );
    }
}
