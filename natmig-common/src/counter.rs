//! Counters: every packet ends in exactly one verdict, and every step worth knowing is counted.

/// What a counter says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CounterClass {
    /// The packet went to the kernel.
    Passed,
    /// The packet was dropped.
    Dropped,
    /// The packet was sent out of an interface.
    Sent,
    /// Not a verdict: something that was done with the packet on the way.
    Step,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $class:ident $label:literal;)+) => {
        /// A counter. The numbers are stable: maps, traces and metrics carry them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Counter {
            /// All counters, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The counter with this number, or `None` for a number that is none.
            pub const fn from_raw(raw: u8) -> Option<Self> {
                match raw {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name that reports and metrics use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// What it counts, for people.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }

            /// What the counter says of a packet.
            pub const fn class(self) -> CounterClass {
                match self {
                    $(Self::$name => CounterClass::$class,)+
                }
            }
        }
    };
}

counters! {
    /// No binding touches the packet.
    PassUnbound = 0 Passed "pass_unbound";
    /// The packet is for the router itself.
    PassLocal = 1 Passed "pass_local";
    /// Neither IPv4, IPv6 nor ARP.
    PassOtherProtocol = 2 Passed "pass_other_protocol";
    /// Multicast, broadcast or link-local.
    PassMulticast = 3 Passed "pass_multicast";
    /// The frame is for another host's MAC address.
    PassForeignMac = 4 Passed "pass_foreign_mac";
    /// Truncated, or its lengths contradict each other.
    PassMalformed = 5 Passed "pass_malformed";
    /// The TTL (hop limit) expires here; the kernel answers.
    PassTtlExpired = 6 Passed "pass_ttl_expired";
    /// The next hop's MAC address is not resolved; the kernel resolves it.
    PassNoNeighbor = 7 Passed "pass_no_neighbor";
    /// Too big for the next hop and may be fragmented; the kernel does that.
    PassFragment = 8 Passed "pass_fragment";
    /// The routing table has no unicast route that the fast path can use.
    PassNoRoute = 9 Passed "pass_no_route";
    /// An ARP message that natmig does not answer.
    PassArp = 10 Passed "pass_arp";
    /// The interface is not in natmig's table.
    PassUnknownInterface = 11 Passed "pass_unknown_interface";
    /// A destination in a locator pool, from outside the fabric.
    DropLocatorFromOutside = 12 Dropped "locator_from_outside";
    /// A source in a locator pool, from outside the fabric.
    DropLocatorSourceFromOutside = 13 Dropped "locator_source_from_outside";
    /// An identity's packet from a place where its VM is not: a stale copy or a spoofer.
    DropStaleSource = 14 Dropped "stale_source";
    /// A packet from the router's own port that cannot be forwarded.
    DropKernelPort = 15 Dropped "drop_kernel_port";
    /// Translated or delivered, and redirected to its next hop.
    Translated = 16 Sent "translated";
    /// A bound address's packet in transit: redirected as it is.
    Transit = 17 Sent "transit";
    /// An ARP request was answered.
    ArpAnswered = 18 Sent "arp_answered";
    /// The packet was too big for its next hop and its sender was told.
    FragNeededSent = 19 Sent "frag_needed_sent";
    /// Not enough room in the frame to do what the packet needed.
    DropNoRoom = 20 Dropped "drop_no_room";
    /// Step: the destination was rewritten.
    DestinationTranslated = 21 Step "destination_translated";
    /// Step: the source was rewritten.
    SourceTranslated = 22 Step "source_translated";
    /// Step: the packet quoted in an ICMP error was rewritten.
    QuoteTranslated = 23 Step "quote_translated";
    /// Step: an untranslated packet from the fabric was translated by a home edge.
    Anchored = 24 Step "anchored";
    /// Step: a packet to a locator from which the VM moved on was sent after it.
    MovedOn = 25 Step "moved_on";
    /// Step: the packet was delivered to a VM on this router.
    Delivered = 26 Step "delivered";
    /// Traffic that no binding touches, forwarded because `forward = "all"`.
    Forwarded = 27 Sent "forwarded";
    /// A neighbour solicitation (IPv6) was answered.
    NeighborAnswered = 28 Sent "neighbor_answered";
    /// A neighbour discovery message that natmig does not answer.
    PassNeighbor = 29 Passed "pass_neighbor";
    /// An IPv6 extension header after which nothing can be translated safely.
    PassExtension = 30 Passed "pass_extension";
    /// A tag that is none of the VLANs on the interface.
    PassUnknownVlan = 31 Passed "pass_unknown_vlan";
    /// Step: an IPv6 packet whose payload is not understood was translated by its addresses alone.
    AddressesOnly = 32 Step "addresses_only";
    /// Step: the kernel's routing table was asked for the next hop.
    FibAsked = 33 Step "fib_asked";
    /// Step: a trace event was lost because the ring buffer was full.
    TraceLost = 34 Step "trace_lost";
    /// Step: traffic by binding could not be added to the totals, and is not in any count.
    BindingTrafficLost = 35 Step "binding_traffic_lost";
    /// A header is in a part of a multi-buffer frame that the program cannot see.
    PassNotLinear = 36 Passed "pass_not_linear";
    /// Step: the first frame of a VM that a migration waits to hear here.
    VmHeard = 37 Step "vm_heard";
    /// Step: an announcement of an awaited VM, but from another MAC address or access interface.
    AnnouncementForged = 38 Step "announcement_forged";
    /// Step: a RARP, gratuitous ARP or unsolicited advertisement that no migration waits for.
    AnnouncementUnexpected = 39 Step "announcement_unexpected";
    /// Step: the ring buffer was full when a VM was heard; the agent learns it from the table.
    AnnouncementUnreported = 40 Step "announcement_unreported";
    /// A locator that stands for no VM here would leave where only identities are known.
    DropUnknownLocator = 41 Dropped "unknown_locator";
}

impl Counter {
    /// Counters in an element of the `COUNTERS` map; at least as many as there are.
    pub const COUNT: u32 = 64;

    /// The counter's number.
    #[inline]
    pub const fn raw(self) -> u8 {
        self as u8
    }
}

/// An element of the per-CPU `COUNTERS` map: an interface's counters, by number.
pub type InterfaceTraffic = [Traffic; Counter::COUNT as usize];

/// What a counter of an interface has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, link-layer headers included.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Traffic>() == 16);
    assert!(Counter::ALL.len() <= Counter::COUNT as usize);
};
