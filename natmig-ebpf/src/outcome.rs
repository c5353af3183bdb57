//! What becomes of a packet.

use natmig_common::Counter;

/// What becomes of a packet, and the counter that says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The kernel gets the frame.
    Pass(Counter),
    /// The frame ends here.
    Drop(Counter),
    /// The frame leaves on [`crate::Scratch::device`]. (The number is not here: the compiler would keep
    /// whatever is in a register in its place where there is none, which the verifier refuses.)
    Redirect(Counter),
    /// The frame leaves where it came in.
    Reply(Counter),
}

impl Outcome {
    /// The verdict's counter.
    pub const fn counter(self) -> Counter {
        match self {
            Self::Pass(counter)
            | Self::Drop(counter)
            | Self::Redirect(counter)
            | Self::Reply(counter) => counter,
        }
    }
}
