//! What leads from a prefix to its addresses' entries, and says what else is known of it: the tables
//! of prefixes in front of the index.

use ipnet::IpNet;

use super::super::{RouterError, family::Net, maps::Maps};

/// The tables of prefixes of a family. A narrow prefix is an address without its last octet.
///
/// Everything in here only leads to entries: a packet that follows an old way compares the address
/// of the entry that it finds with its own.
pub(in crate::router) trait Prefixes<F: Net>: std::fmt::Debug + Sized {
    /// Takes up what the maps hold. Until [`Prefixes::mend`], more prefixes may lead to the index
    /// than have addresses there.
    fn adopt(maps: &Maps) -> Self;

    /// What leads to an address, as a packet finds it: whether the index does, and the first entry
    /// of its block, which goes before.
    fn lead(maps: &Maps, address: F::Number) -> (bool, Option<u32>);

    /// Whether an address is in a locator pool, as a packet finds it.
    fn in_pool(maps: &Maps, address: F::Number) -> bool;

    /// The blocks that the maps name: narrow prefix and first entry, not checked.
    fn blocks(&self, maps: &Maps) -> Vec<(F::Number, u32)>;

    /// Lets the index be asked for addresses of a narrow prefix. The same again changes nothing.
    fn lead_to_index(&mut self, maps: &Maps, narrow: F::Number) -> Result<(), RouterError>;

    /// No address of the narrow prefix is in the index any longer.
    fn leave_index(&mut self, maps: &Maps, narrow: F::Number);

    /// Makes sure that a block of the narrow prefix has a place; `false` if there is none.
    fn make_room(&mut self, maps: &Maps, narrow: F::Number) -> Result<bool, RouterError>;

    /// Puts a block in place, for which there is room: one store. What else led to its addresses
    /// does so no more for packets that come later.
    fn put_block(&mut self, maps: &Maps, narrow: F::Number, first: u32) -> Result<(), RouterError>;

    /// Takes a block out of its place: its addresses are in the index, or nowhere.
    fn take_block(&mut self, maps: &Maps, narrow: F::Number);

    /// After all blocks and prefixes in the index have been named: takes back what leads nowhere.
    fn mend(&mut self, maps: &Maps);

    /// Sets the locator pools of the family, in such an order that no address that was in a pool
    /// and stays in one ever counts as in none. All or nothing, as far as room goes.
    fn set_pools(&mut self, maps: &Maps, pools: &[IpNet]) -> Result<(), RouterError>;
}
