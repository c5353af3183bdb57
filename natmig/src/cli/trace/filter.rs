//! Which packets are traced: options into the filter that the program looks at.

use std::net::IpAddr;

use anyhow::Context as _;
use ipnet::IpNet;
use natmig_common::{
    Counter, CounterClass, TRACE_PREFIX_COUNT, TRACE_SNAP, TraceAddress, TraceEvent, TraceFilter,
    TracePrefix,
};

use crate::{cli::client::ClientArgs, coordinator::VmView, proto::v1, router::reader::class_name};

/// Which packets are traced. Options of different kinds must all hold.
#[derive(Debug, clap::Args)]
pub(super) struct FilterArgs {
    /// Packets that come in on this interface, or leave by it.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Packets from, to or quoting an address of this prefix, before or after; may be repeated.
    #[arg(long, value_name = "ADDRESS[/LENGTH]", value_parser = parse_prefix)]
    address: Vec<IpNet>,
    /// Packets from, to or quoting an address of this VM, which the controller knows; may be repeated.
    #[arg(long, value_name = "NAME")]
    vm: Vec<String>,
    /// Packets with this verdict: passed, dropped or sent; may be repeated.
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = parse_class)]
    verdict: Vec<CounterClass>,
    /// Packets that end in, or go through, one of these counters, by name or number; may be repeated.
    #[arg(long, value_name = "COUNTER", value_delimiter = ',', value_parser = parse_counter)]
    reason: Vec<Counter>,
    /// One packet in so many, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Bytes of each packet that are kept, before and after.
    #[arg(long, value_name = "BYTES", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(14..=256))]
    snap_length: u32,
}

const _: () = assert!(TRACE_SNAP == 256);

fn parse_prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map(|prefix| prefix.trunc())
        .map_err(|_| "write an address, or an address and a length such as 10.1.1.0/24".to_owned())
}

fn parse_class(text: &str) -> Result<CounterClass, String> {
    [
        CounterClass::Passed,
        CounterClass::Dropped,
        CounterClass::Sent,
    ]
    .into_iter()
    .find(|class| class_name(*class) == text)
    .ok_or_else(|| "write passed, dropped or sent".to_owned())
}

fn parse_counter(text: &str) -> Result<Counter, String> {
    let number = text.parse().ok();
    let is_told = |counter: &&Counter| {
        counter.class() != CounterClass::Step
            || TraceEvent::STEPS & TraceFilter::bit(**counter) != 0
    };
    let told = || Counter::ALL.iter().filter(is_told);
    told()
        .copied()
        .find(|counter| counter.name() == text || Some(counter.raw()) == number)
        .ok_or_else(|| {
            let names: Vec<_> = told().map(|counter| counter.name()).collect();
            format!("write one of {}", names.join(", "))
        })
}

/// A prefix as the program compares it.
fn prefix(prefix: IpNet) -> TracePrefix {
    match prefix.trunc() {
        IpNet::V4(prefix) => {
            let mut mask = TraceAddress::ipv4(prefix.netmask().octets());
            mask.octets[..12].fill(0xff);
            TracePrefix {
                address: TraceAddress::ipv4(prefix.network().octets()),
                mask,
            }
        }
        IpNet::V6(prefix) => TracePrefix {
            address: TraceAddress::ipv6(prefix.network().octets()),
            mask: TraceAddress::ipv6(prefix.netmask().octets()),
        },
    }
}

impl FilterArgs {
    /// The filter, with the controller asked for VMs and the kernel for interfaces.
    pub(super) fn resolve(&self, client: &ClientArgs) -> anyhow::Result<TraceFilter> {
        let mut prefixes = self.address.clone();
        if !self.vm.is_empty() {
            prefixes.extend(self.addresses_of_vms(client)?);
        }
        let ifindex = match self.interface.as_deref() {
            None => 0,
            Some(name) => nix::net::if_::if_nametoindex(name).with_context(|| {
                format!("interface {name} does not exist in this network namespace")
            })?,
        };
        self.filter(&prefixes, ifindex)
    }

    /// All addresses of the VMs: identities, locators, and locators that still lead to them.
    fn addresses_of_vms(&self, client: &ClientArgs) -> anyhow::Result<Vec<IpNet>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(async {
            let request = v1::ListVmsRequest {
                names: self.vm.clone(),
            };
            let answer = client.connect().await?.list_vms(request).await;
            answer.map_err(|status| anyhow::anyhow!("{}", status.message()))
        })?;
        let mut addresses = Vec::new();
        for vm in answer.into_inner().vms {
            let vm = VmView::try_from(vm)?;
            let current = vm.identities.iter().chain(vm.locators.iter());
            addresses.extend(current.chain(vm.draining).map(IpNet::from));
        }
        Ok(addresses)
    }

    fn filter(&self, prefixes: &[IpNet], ifindex: u32) -> anyhow::Result<TraceFilter> {
        anyhow::ensure!(
            prefixes.len() <= TRACE_PREFIX_COUNT,
            "{} addresses are too many: there is room for {TRACE_PREFIX_COUNT}; use a prefix",
            prefixes.len()
        );
        let bits = |counters: &mut dyn Iterator<Item = Counter>| {
            counters.fold(0, |bits, counter| bits | TraceFilter::bit(counter))
        };
        let mut filter = TraceFilter {
            sample: u32::MAX / self.sample,
            ifindex,
            prefix_count: u32::try_from(prefixes.len()).unwrap_or(0),
            snap: self.snap_length,
            ..TraceFilter::ALL
        };
        if !self.verdict.is_empty() {
            let classes = |counter: &Counter| self.verdict.contains(&counter.class());
            filter.verdicts &= bits(&mut Counter::ALL.iter().copied().filter(classes));
        }
        if !self.reason.is_empty() {
            filter.counters = bits(&mut self.reason.iter().copied());
        }
        for (slot, wanted) in filter.prefixes.iter_mut().zip(prefixes) {
            *slot = prefix(*wanted);
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn parse(arguments: &str) -> Result<FilterArgs, clap::Error> {
        let arguments = arguments.split_whitespace();
        Command::try_parse_from(std::iter::once("trace").chain(arguments))
            .map(|command| command.filter)
    }

    fn filter(arguments: &str) -> TraceFilter {
        let args = parse(arguments).unwrap();
        args.filter(&args.address.clone(), 0).unwrap()
    }

    #[test]
    fn without_options_everything_is_wanted() {
        assert_eq!(filter(""), TraceFilter::ALL);
    }

    #[test]
    fn verdicts_are_sets_of_counters() {
        let verdicts = filter("--verdict dropped,sent").verdicts;
        for counter in Counter::ALL {
            let wanted = matches!(counter.class(), CounterClass::Dropped | CounterClass::Sent);
            assert_eq!(
                verdicts & TraceFilter::bit(*counter) != 0,
                wanted,
                "{counter:?}"
            );
        }
        assert!(parse("--verdict step").is_err());
    }

    #[test]
    fn reasons_are_counters_by_name_or_number() {
        let filter = filter("--reason stale_source,24 --reason moved_on");
        let wanted = [
            Counter::DropStaleSource,
            Counter::Anchored,
            Counter::MovedOn,
        ];
        let bits = wanted
            .iter()
            .fold(0, |bits, counter| bits | TraceFilter::bit(*counter));
        assert_eq!(filter.counters, bits);
        assert!(parse("--reason nonsense").is_err());
        assert!(parse("--reason 200").is_err());
        // No event tells of it.
        assert!(parse("--reason trace_lost").is_err());
    }

    #[test]
    fn prefixes_are_of_both_families() {
        let filter = filter("--address 10.1.1.77/24 --address 2001:db8::7");
        assert_eq!(filter.prefix_count, 2);
        let [ipv4, ipv6, ..] = filter.prefixes;
        assert_eq!(ipv4.address, TraceAddress::ipv4([10, 1, 1, 0]));
        assert_eq!(
            u128::from_be_bytes(ipv4.mask.octets).leading_ones(),
            96 + 24
        );
        assert_eq!(u128::from_be_bytes(ipv6.mask.octets).leading_ones(), 128);
        assert_eq!(ipv6.address.octets[15], 7);
        assert!(parse("--address 10.1.1").is_err());
    }

    #[test]
    fn one_in_n_is_a_share_of_all_random_numbers() {
        assert_eq!(filter("--sample 1").sample, u32::MAX);
        assert_eq!(filter("--sample 1000").sample, u32::MAX / 1000);
        assert!(parse("--sample 0").is_err());
    }

    #[test]
    fn there_is_room_for_so_many_addresses() {
        let args = parse("").unwrap();
        let many: Vec<IpNet> = (0..9)
            .map(|n| IpNet::from(IpAddr::from([10, 0, 0, n])))
            .collect();
        assert!(args.filter(&many[..8], 0).is_ok());
        assert!(args.filter(&many, 0).is_err());
    }
}
