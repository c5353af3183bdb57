//! The ethtool ioctl: driver, queues, offloads of an interface of the calling thread's network
//! namespace. Layouts are those of include/uapi/linux/ethtool.h.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::doctor::facts::{Offloads, Queues};

const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_STRING_COUNTS: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const GET_CHANNELS: u32 = 0x3c;
/// `ETH_SS_FEATURES`.
const FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN`.
const STRING: usize = 32;

pub(super) struct Ethtool(OwnedFd);

impl Ethtool {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// # Safety
    /// `words` must be as long as the structure of the command, which is its first word.
    unsafe fn call(&self, interface: &str, words: &mut [u32]) -> Option<()> {
        // SAFETY: all zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays 0.
        if interface.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the caller vouches for the structure behind the request.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        (result >= 0).then_some(())
    }

    /// The driver's name.
    pub(super) fn driver(&self, interface: &str) -> Option<String> {
        // `struct ethtool_drvinfo` has 196 bytes; the driver's name follows the command.
        let mut words = [0; 49];
        words[0] = GET_DRIVER;
        // SAFETY: as long as `struct ethtool_drvinfo`.
        unsafe { self.call(interface, &mut words) }?;
        Some(string(bytemuck::cast_slice(&words[1..=STRING / 4])))
    }

    /// The receive queues.
    pub(super) fn queues(&self, interface: &str) -> Option<Queues> {
        let mut words = [0; 9];
        words[0] = GET_CHANNELS;
        // SAFETY: as long as `struct ethtool_channels`.
        unsafe { self.call(interface, &mut words) }?;
        let [
            _,
            most_receive,
            _,
            _,
            most_combined,
            receive,
            _,
            _,
            combined,
        ] = words;
        (receive + combined > 0).then_some(Queues {
            receive: receive + combined,
            most: most_receive.max(most_combined),
            combined: most_combined > 0,
        })
    }

    /// The offloads.
    pub(super) fn offloads(&self, interface: &str) -> Offloads {
        let Some(features) = self.features(interface) else {
            return Offloads::default();
        };
        let on = |name: &str| features.get(name).copied();
        let checksums = [
            "tx-checksum-ipv4",
            "tx-checksum-ip-generic",
            "tx-checksum-ipv6",
        ];
        Offloads {
            lro: on("rx-lro"),
            gro_hw: on("rx-gro-hw"),
            rx_vlan: on("rx-vlan-hw-parse"),
            tx_checksum: checksums.into_iter().filter_map(on).max(),
        }
    }

    /// All features by name, and whether they are active.
    fn features(&self, interface: &str) -> Option<HashMap<String, bool>> {
        let mut counts = [0; 5];
        counts[0] = GET_STRING_COUNTS;
        let mask = (1_u64 << FEATURES).to_ne_bytes();
        counts[2..4].copy_from_slice(bytemuck::cast_slice::<u8, u32>(&mask).get(..2)?);
        // SAFETY: as long as `struct ethtool_sset_info` with one count.
        unsafe { self.call(interface, &mut counts) }?;
        let count = counts[4] as usize;

        let mut strings = vec![0; 3 + count * STRING / 4];
        strings[..3].copy_from_slice(&[GET_STRINGS, FEATURES, counts[4]]);
        // SAFETY: as long as `struct ethtool_gstrings` with the kernel's number of strings, which
        // is the same for the running kernel's whole life.
        unsafe { self.call(interface, &mut strings) }?;

        let blocks = count.div_ceil(32);
        let mut bits = vec![0; 2 + blocks * 4];
        bits[..2].copy_from_slice(&[GET_FEATURES, u32::try_from(blocks).ok()?]);
        // SAFETY: as long as `struct ethtool_gfeatures` with the blocks that it says it has.
        unsafe { self.call(interface, &mut bits) }?;

        let names = bytemuck::cast_slice::<u32, u8>(&strings[3..]).chunks(STRING);
        Some(
            names
                .enumerate()
                .map(|(bit, name)| {
                    // Available, requested, active, never changed.
                    let active = bits[2 + bit / 32 * 4 + 2];
                    (string(name), active >> (bit % 32) & 1 != 0)
                })
                .collect(),
        )
    }
}

fn string(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}
