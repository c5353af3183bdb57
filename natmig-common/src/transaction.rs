//! Transaction slots: one store into a slot commits a transaction on a router.

/// Number of elements of the `TRANSACTIONS` map: transactions that a router can hold at once.
pub const SLOT_COUNT: u32 = 1024;

/// Committed flag of [`Slot::word`].
const COMMITTED: u64 = 1 << 63;

/// Names a transaction from an entry: the slot and the generation of its use.
///
/// The generation is never 0, so no reference is 0, which stands for "nothing pending".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(u64);

impl Reference {
    /// A reference to the use of `slot` that `generation` (1..2^31) names.
    pub const fn new(slot: u32, generation: u32) -> Option<Self> {
        if slot < SLOT_COUNT && generation != 0 && generation < 1 << 31 {
            Some(Self(((generation as u64) << 32) | slot as u64))
        } else {
            None
        }
    }

    /// The reference that an entry holds, `None` if nothing is pending.
    #[inline]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw == 0 { None } else { Some(Self(raw)) }
    }

    /// As an entry holds it.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The slot, below [`SLOT_COUNT`] for every reference that [`Reference::new`] made.
    #[inline]
    pub const fn slot(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The generation.
    #[inline]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The word that a slot has exactly if the transaction that `raw` names is committed; no slot
    /// ever has the word that this gives for 0, where nothing is pending.
    #[inline]
    pub const fn committed_word(raw: u64) -> u64 {
        (raw & 0xffff_ffff_0000_0000) | COMMITTED
    }

    /// Whether a slot whose word is `word` says that this transaction is committed. A generation
    /// that does not match counts as not committed.
    #[inline]
    pub const fn committed(self, word: u64) -> bool {
        word == Self::committed_word(self.0)
    }
}

/// Where a router's transaction stands, as the agent keeps it in [`Slot::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum SlotState {
    /// Free.
    Free = 0,
    /// Versions are being written; after a crash of the agent they are taken back.
    Preparing = 1,
    /// All pending versions are in place.
    Prepared = 2,
    /// The commit was stored.
    Committed = 3,
    /// Current versions are being brought up to the committed ones; after a crash of the agent that
    /// is finished, because entries that are done can no longer be told from settled ones.
    Folding = 4,
}

impl SlotState {
    /// The state with this number, or `None` for a number that is none.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Free),
            1 => Some(Self::Preparing),
            2 => Some(Self::Prepared),
            3 => Some(Self::Committed),
            4 => Some(Self::Folding),
            _ => None,
        }
    }
}

/// Element of the `TRANSACTIONS` map. The program reads nothing but `word`; the rest lets an agent
/// that was killed find out what it held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Slot {
    /// The generation in bits 32 to 62, committed in bit 63, otherwise zero.
    pub word: u64,
    /// The migration's number.
    pub transaction: u64,
    /// [`SlotState`].
    pub state: u32,
    /// Number of entries with a pending version.
    pub entries: u32,
    /// When the commit had been stored: nanoseconds since the Unix epoch, 0 before.
    pub committed_at: u64,
    /// Unused, zero.
    pub _reserved: [u64; 4],
}

impl Slot {
    /// The word of a slot in use by `generation`, not committed.
    pub const fn open_word(generation: u32) -> u64 {
        (generation as u64) << 32
    }

    /// The word of a slot whose transaction `generation` is committed.
    pub const fn committed_word(generation: u32) -> u64 {
        Self::open_word(generation) | COMMITTED
    }

    /// The generation of the slot's current or last use.
    pub const fn generation(&self) -> u32 {
        ((self.word & !COMMITTED) >> 32) as u32
    }
}

const _: () = assert!(size_of::<Slot>() == 64);
