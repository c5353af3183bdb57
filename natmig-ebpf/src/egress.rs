//! The next hop of a packet: the VM's own attachment for what is delivered here, else the kernel's
//! routing table.

use crate::{
    address::HardwareAddress,
    environment::{Environment, HopKind, RouteQuery},
    scratch::Scratch,
};

/// Finds the next hop of the packet under its planned destination.
#[inline(never)]
pub(crate) fn find<E: Environment>(environment: &E, scratch: &mut Scratch) {
    let Scratch {
        packet, plan, hop, ..
    } = scratch;
    if plan.deliver == 0 {
        let mut query = RouteQuery {
            ingress: packet.ingress,
            source: packet.source,
            destination: plan.destination,
            length: packet.total_length,
            protocol: packet.protocol,
            tos: packet.tos,
        };
        environment.route(&query, hop);
        if hop.kind == HopKind::TooBig && packet.dont_fragment == 0 {
            // The kernel is to fragment it, and the egress role decides what it gets.
            let mtu = hop.mtu;
            query.length = 0;
            environment.route(&query, hop);
            hop.mtu = mtu;
            if hop.kind == HopKind::Forward {
                hop.kind = HopKind::TooBig;
            }
        }
        return;
    }
    hop.kind = HopKind::None;
    let Some(interface) = environment.interface(plan.deliver) else {
        return;
    };
    hop.ifindex = plan.deliver;
    hop.source_mac = HardwareAddress::new(interface.mac);
    hop.destination_mac = plan.deliver_mac;
    hop.mtu = interface.mtu;
    hop.kind = if packet.total_length > interface.mtu {
        HopKind::TooBig
    } else {
        HopKind::Forward
    };
}
