//! The incremental checksum against full recomputation by `etherparse`.

use etherparse::checksum::Sum16BitWords;
use natmig_ebpf::{
    Address as _, AddressIpv4,
    checksum::{Change, finish},
};
use proptest::{collection::vec, prelude::*};

/// The checksum over all of `bytes`, in memory order.
fn full(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement()
}

#[test]
fn rfc_1624_section_4_vector() {
    // HC = 0xdd2f, m = 0x5555, m' = 0x3285: the checksum is 0x0000, not 0xffff.
    let change = Change::NONE.word(0x5555, 0x3285);
    assert_eq!(change.apply(0xdd2f), 0x0000);
}

#[test]
fn udp_zero_checksum_stays_zero() {
    let change = Change::NONE.word(0x1234, 0x4321);
    assert_eq!(change.apply_udp(0), 0);
}

#[test]
fn udp_computed_zero_becomes_all_ones() {
    assert_eq!(Change::NONE.word(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
}

#[test]
fn a_folded_change_does_what_the_change_does() {
    let changes = [0x5555_u16, 0, 1, 0xfffe, 0xffff].map(|word| {
        let [old, new] = [[192, 0, 2, 1], [198, 51, 100, 255]].map(AddressIpv4::new);
        Change::NONE.word(0x3285, word).address(old, new)
    });
    for change in [Change::NONE, Change::NONE.word(0x5555, 0x3285)]
        .iter()
        .chain(&changes)
    {
        // An interpreted machine takes its time.
        for checksum in (0..=u16::MAX).step_by(if cfg!(miri) { 509 } else { 1 }) {
            let folded = change.folded();
            assert_eq!(folded.apply_folded(checksum), change.apply(checksum));
            assert_eq!(
                folded.apply_udp_folded(checksum),
                change.apply_udp(checksum)
            );
        }
    }
}

#[test]
fn a_decrement_is_that_of_the_first_byte() {
    for first in 1..=u8::MAX {
        let [old, new] = [[first, 17], [first - 1, 17]].map(u16::from_ne_bytes);
        assert_eq!(Change::DECREMENT, Change::NONE.word(old, new));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 200 } else { 20_000 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_full_recomputation(
        mut bytes in vec(any::<u8>(), 12..400),
        first in any::<prop::sample::Index>(),
        second in any::<prop::sample::Index>(),
        address in any::<[u8; 4]>(),
        word in any::<[u8; 2]>(),
    ) {
        // Something that is not zero stays, as in every packet.
        bytes[0] = 0x45;
        let before = full(&bytes);
        let places = (bytes.len() - 8) / 2;
        let at = 2 + 2 * first.index(places);
        let old: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
        bytes[at..at + 4].copy_from_slice(&address);
        let mut change = Change::NONE.address(AddressIpv4::new(old), AddressIpv4::new(address));
        let at = 2 + 2 * second.index(places);
        let old = [bytes[at], bytes[at + 1]];
        bytes[at..at + 2].copy_from_slice(&word);
        change = change.word(u16::from_ne_bytes(old), u16::from_ne_bytes(word));
        prop_assert_eq!(change.apply(before), full(&bytes));
        prop_assert_eq!(change.folded().apply_folded(before), full(&bytes));
    }

    #[test]
    fn full_sum_is_the_checksum(words in vec(any::<u16>(), 1..400)) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        prop_assert_eq!(finish(words.iter().copied().map(u64::from).sum()), full(&bytes));
    }
}
