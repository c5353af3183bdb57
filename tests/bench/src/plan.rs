//! Which routers are built, and which traffic is sent through them.

use natmig_bench_ebpf::BINDINGS;

use crate::core::Settings;
use crate::site::Queues;
use crate::traffic::{Density, Family, Traffic};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Everything is built, verified and run, too shortly for its figures to mean anything.
    Smoke,
    /// What the project's goals speak of.
    Quick,
    /// Everything.
    Full,
}

/// A table of bindings, of both families, and the instance of natmig that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Bindings of each family.
    pub bindings: u32,
    /// How their addresses lie.
    pub density: Density,
    /// Whether there are visitors besides, on an access interface.
    pub visitors: bool,
    /// Whether unbound traffic is forwarded too (`forward = "all"`).
    pub forward_all: bool,
    /// Whether traffic is counted by binding.
    pub binding_counters: bool,
}

impl Tables {
    const fn dense(bindings: u32) -> Self {
        Self {
            bindings,
            density: Density::Dense,
            visitors: false,
            forward_all: false,
            binding_counters: true,
        }
    }
}

/// What forwards packets at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// Nothing: generator and sink are joined directly.
    None,
    /// An XDP program of the benchmarks'.
    Program(&'static str),
    /// A classifier of the benchmarks'.
    Classifier(&'static str),
    /// The kernel.
    Kernel,
    /// The kernel, with a map of nftables that translates destinations without state.
    Stateless(Family, u32),
    /// The kernel, with destination NAT of nftables and connection tracking, of IPv4.
    Tracked(u32),
    /// natmig.
    Natmig(Tables),
    /// natmig's program alone, with tables that are written directly.
    Core(Settings),
}

/// A site.
#[derive(Clone, Copy, Debug)]
pub struct SitePlan {
    /// Its name.
    pub key: &'static str,
    /// Its router.
    pub router: Router,
    /// The least extent in which it is built.
    pub from: Extent,
    /// Which queue a packet that the router's kernel forwards leaves through.
    pub queues: Queues,
}

/// Traffic through a site.
#[derive(Clone, Copy, Debug)]
pub struct LanePlan {
    /// Its name in machine-readable results.
    pub key: &'static str,
    /// What it is, for people.
    pub label: &'static str,
    /// Key of its site.
    pub site: &'static str,
    /// What is sent.
    pub traffic: Traffic,
    /// Whether packets are traced meanwhile.
    pub traced: bool,
    /// The least extent in which it is measured.
    pub from: Extent,
    /// Whether it is measured with all CPUs as well.
    pub all_cpus: bool,
}

const MANY: u32 = BINDINGS;
const HUNDRED_THOUSAND: u32 = 100_000;
const THOUSAND: u32 = 1000;

/// All sites.
pub const SITES: &[SitePlan] = &[
    site("direct", Router::None, Extent::Quick),
    site("bare", Router::Program("bare"), Extent::Smoke),
    site("forward", Router::Program("forward"), Extent::Smoke),
    site("hash", Router::Program("hash_nat"), Extent::Smoke),
    site("tc", Router::Classifier("hash_nat_tc"), Extent::Smoke),
    site("kernel", Router::Kernel, Extent::Smoke),
    site("core", Router::Core(Settings::ALL), Extent::Smoke),
    site("nft", Router::Stateless(Ipv4, MANY), Extent::Quick),
    SitePlan {
        queues: Queues::ByFlow,
        ..site("nft-by-flow", Router::Stateless(Ipv4, MANY), Extent::Quick)
    },
    site("nft6", Router::Stateless(Ipv6, MANY), Extent::Full),
    site("nft-1k", Router::Stateless(Ipv4, THOUSAND), Extent::Smoke),
    site(
        "nft-100k",
        Router::Stateless(Ipv4, HUNDRED_THOUSAND),
        Extent::Full,
    ),
    site("ct", Router::Tracked(MANY), Extent::Full),
    site("ct-1k", Router::Tracked(THOUSAND), Extent::Smoke),
    site(
        "natmig",
        Router::Natmig(Tables {
            forward_all: true,
            ..Tables::dense(MANY)
        }),
        Extent::Quick,
    ),
    site(
        "natmig-1k",
        Router::Natmig(Tables::dense(THOUSAND)),
        Extent::Smoke,
    ),
    site(
        "natmig-100k",
        Router::Natmig(Tables::dense(HUNDRED_THOUSAND)),
        Extent::Full,
    ),
    site(
        "natmig-shuffled",
        Router::Natmig(Tables {
            density: Density::Shuffled,
            ..Tables::dense(MANY)
        }),
        Extent::Full,
    ),
    site(
        "natmig-sparse",
        Router::Natmig(Tables {
            density: Density::Sparse,
            ..Tables::dense(MANY)
        }),
        Extent::Full,
    ),
    site(
        "natmig-visitors",
        Router::Natmig(Tables {
            visitors: true,
            ..Tables::dense(MANY)
        }),
        Extent::Full,
    ),
    site(
        "natmig-uncounted",
        Router::Natmig(Tables {
            binding_counters: false,
            ..Tables::dense(MANY)
        }),
        Extent::Full,
    ),
];

const fn site(key: &'static str, router: Router, from: Extent) -> SitePlan {
    SitePlan {
        key,
        router,
        from,
        queues: Queues::ByCpu,
    }
}

const fn lane(
    key: &'static str,
    label: &'static str,
    site: &'static str,
    traffic: Traffic,
    from: Extent,
) -> LanePlan {
    LanePlan {
        key,
        label,
        site,
        traffic,
        traced: false,
        from,
        all_cpus: false,
    }
}

const fn on_all_cpus(lane: LanePlan) -> LanePlan {
    LanePlan {
        all_cpus: true,
        ..lane
    }
}

const fn traced(lane: LanePlan) -> LanePlan {
    LanePlan {
        traced: true,
        ..lane
    }
}

const fn dense(family: Family, flows: u32) -> Traffic {
    Traffic::destination_hit(family, Density::Dense, flows)
}

const fn unrouted(family: Family) -> Traffic {
    Traffic {
        hops: 0,
        ..Traffic::plain(family)
    }
}

use Extent::{Full, Quick, Smoke};
use Family::{Ipv4, Ipv6};

/// All lanes. Ratios of the summary are taken between lanes of this table, by their keys.
#[rustfmt::skip]
pub const LANES: &[LanePlan] = &[
    on_all_cpus(lane("direct", "no router: generator and sink", "direct", unrouted(Ipv4), Quick)),
    lane("direct6", "no router, IPv6", "direct", unrouted(Ipv6), Full),
    on_all_cpus(lane("bare", "bare XDP redirect, nothing parsed", "bare", unrouted(Ipv4), Smoke)),
    lane("bare6", "bare XDP redirect, IPv6", "bare", unrouted(Ipv6), Full),
    on_all_cpus(lane("fib", "XDP routing table + redirect, no NAT", "forward", Traffic::plain(Ipv4), Smoke)),
    lane("fib6", "XDP routing table + redirect, IPv6, no NAT", "forward", Traffic::plain(Ipv6), Full),
    on_all_cpus(lane("natmig4", "natmig IPv4, 1M bindings, destination", "natmig", dense(Ipv4, MANY), Quick)),
    lane("natmig4-100k", "natmig IPv4, 100k bindings, destination", "natmig-100k", dense(Ipv4, HUNDRED_THOUSAND), Full),
    lane("natmig4-1k", "natmig IPv4, 1k bindings, destination", "natmig-1k", dense(Ipv4, THOUSAND), Smoke),
    lane("natmig4-source", "natmig IPv4, 1M bindings, source", "natmig", Traffic::source_hit(Ipv4, Density::Dense, MANY), Full),
    lane("natmig4-both", "natmig IPv4, 1M bindings + 1k visitors, both", "natmig-visitors", Traffic::both_hit(Ipv4, MANY), Full),
    lane("natmig4-shuffled", "natmig IPv4, 1M bindings in no order, destination", "natmig-shuffled", Traffic::destination_hit(Ipv4, Density::Shuffled, MANY), Full),
    lane("natmig4-sparse", "natmig IPv4, 1M sparse bindings, destination", "natmig-sparse", Traffic::destination_hit(Ipv4, Density::Sparse, MANY), Full),
    lane("natmig4-uncounted", "natmig IPv4, 1M bindings, not counted by binding", "natmig-uncounted", dense(Ipv4, MANY), Full),
    traced(lane("natmig4-traced", "natmig IPv4, 1M bindings, destination, traced", "natmig", dense(Ipv4, MANY), Full)),
    on_all_cpus(lane("untouched4", "natmig IPv4, unbound, forward = \"all\"", "natmig", Traffic::untouched(Ipv4), Quick)),
    lane("missed4", "natmig IPv4, unbound, to the kernel", "natmig-1k", Traffic::untouched(Ipv4), Smoke),
    on_all_cpus(lane("natmig6", "natmig IPv6, 1M bindings, destination", "natmig", dense(Ipv6, MANY), Quick)),
    lane("natmig6-100k", "natmig IPv6, 100k bindings, destination", "natmig-100k", dense(Ipv6, HUNDRED_THOUSAND), Full),
    lane("natmig6-1k", "natmig IPv6, 1k bindings, destination", "natmig-1k", dense(Ipv6, THOUSAND), Smoke),
    lane("natmig6-source", "natmig IPv6, 1M bindings, source", "natmig", Traffic::source_hit(Ipv6, Density::Dense, MANY), Full),
    lane("natmig6-both", "natmig IPv6, 1M bindings + 1k visitors, both", "natmig-visitors", Traffic::both_hit(Ipv6, MANY), Full),
    lane("natmig6-shuffled", "natmig IPv6, 1M bindings in no order, destination", "natmig-shuffled", Traffic::destination_hit(Ipv6, Density::Shuffled, MANY), Full),
    lane("natmig6-sparse", "natmig IPv6, 1M sparse bindings, destination", "natmig-sparse", Traffic::destination_hit(Ipv6, Density::Sparse, MANY), Full),
    traced(lane("natmig6-traced", "natmig IPv6, 1M bindings, destination, traced", "natmig", dense(Ipv6, MANY), Full)),
    lane("untouched6", "natmig IPv6, unbound, forward = \"all\"", "natmig", Traffic::untouched(Ipv6), Full),
    lane("missed6", "natmig IPv6, unbound, to the kernel", "natmig-1k", Traffic::untouched(Ipv6), Full),
    lane("core4", "natmig's program alone, IPv4, destination", "core", dense(Ipv4, MANY), Smoke),
    lane("core4-1k", "natmig's program alone, IPv4, 1k flows", "core", dense(Ipv4, THOUSAND).spread(MANY), Smoke),
    lane("core4-untouched", "natmig's program alone, IPv4, unbound", "core", Traffic::untouched(Ipv4), Smoke),
    lane("core6", "natmig's program alone, IPv6, destination", "core", dense(Ipv6, MANY), Smoke),
    lane("core6-1k", "natmig's program alone, IPv6, 1k flows", "core", dense(Ipv6, THOUSAND).spread(MANY), Smoke),
    lane("hash", "least NAT on XDP: hash, routing table, 1M", "hash", dense(Ipv4, MANY), Smoke),
    lane("tc", "least NAT on tc: hash, routing table, 1M", "tc", dense(Ipv4, MANY), Smoke),
    on_all_cpus(lane("kernel", "kernel ip_forward, no NAT", "kernel", Traffic::plain(Ipv4), Smoke)),
    lane("kernel6", "kernel ip_forward, IPv6, no NAT", "kernel", Traffic::plain(Ipv6), Full),
    on_all_cpus(lane("nft", "nftables stateless map, 1M", "nft", dense(Ipv4, MANY), Quick)),
    lane("nft-by-flow", "nftables stateless map, 1M, queues by flow", "nft-by-flow", dense(Ipv4, MANY), Quick),
    lane("nft6", "nftables stateless map, IPv6, 1M", "nft6", dense(Ipv6, MANY), Full),
    lane("nft-100k", "nftables stateless map, 100k", "nft-100k", dense(Ipv4, HUNDRED_THOUSAND), Full),
    lane("nft-1k", "nftables stateless map, 1k", "nft-1k", dense(Ipv4, THOUSAND), Smoke),
    lane("ct", "nftables dnat with conntrack, 1M, 100k flows", "ct", dense(Ipv4, HUNDRED_THOUSAND).spread(MANY), Full),
    lane("ct-1k", "nftables dnat with conntrack, 1k, 1k flows", "ct-1k", dense(Ipv4, THOUSAND), Smoke),
];

/// The lanes of an extent. A smoke run has its lanes of single sites with fewer flows.
pub fn lanes(extent: Extent) -> Vec<LanePlan> {
    LANES
        .iter()
        .filter(|lane| lane.from <= extent)
        .copied()
        .collect()
}

/// The sites of an extent.
pub fn sites(extent: Extent) -> Vec<SitePlan> {
    SITES
        .iter()
        .filter(|site| site.from <= extent)
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_its_site_in_every_extent() {
        for extent in [Smoke, Quick, Full] {
            let sites = sites(extent);
            for lane in lanes(extent) {
                let found = sites.iter().any(|site| site.key == lane.site);
                assert!(found, "{} needs {}", lane.key, lane.site);
            }
        }
        assert!(SITES.len() <= natmig_bench_ebpf::LANES as usize);
    }

    #[test]
    fn keys_are_unique() {
        let mut keys: Vec<_> = LANES.iter().map(|lane| lane.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), LANES.len());
    }
}
