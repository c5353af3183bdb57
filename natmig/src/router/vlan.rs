//! Interfaces that are VLANs of another: which they are, and which the program cannot tell apart.
//!
//! The kernel says it of its own VLAN interfaces, so the configuration need not. What the
//! configuration says must agree; for an interface that is no VLAN to the kernel, it is believed:
//! frames with the tag are then taken for that interface's.

use super::{RouterError, netlink::Link};
use crate::config::{InterfaceConfig, VlanConfig};

/// The interface's VLAN, if it is one; refused if it is one that natmig cannot serve.
pub(super) fn vlan_of(
    config: &InterfaceConfig,
    link: &Link,
    links: &[Link],
) -> Result<Option<VlanConfig>, RouterError> {
    let refuse = |problem: String| {
        Err(RouterError::UnsuitableVlan {
            interface: link.name.clone(),
            problem,
        })
    };
    let is_vlan = |link: &Link| link.kind.as_deref() == Some("vlan");
    let mut vlan = config.vlan.clone();
    if is_vlan(link) {
        let Some(id) = link.vlan else {
            return refuse("has a service tag (802.1ad): natmig tells VLANs by 802.1Q tags".into());
        };
        let parent = link
            .lower
            .filter(|_| !link.lower_is_elsewhere)
            .and_then(|lower| links.iter().find(|other| other.ifindex == lower));
        let Some(parent) = parent else {
            return refuse(
                "has its parent in another network namespace: load natmig where the parent is"
                    .into(),
            );
        };
        let actual = VlanConfig {
            parent: parent.name.clone(),
            id,
        };
        if vlan.as_ref().is_some_and(|vlan| *vlan != actual) {
            return refuse(format!(
                "is VLAN {id} of {} to the kernel: correct `parent` and `vlan`, or leave them out",
                parent.name
            ));
        }
        vlan = Some(actual);
    }
    let Some(vlan) = vlan else { return Ok(None) };
    if !(1..4095).contains(&vlan.id) {
        return refuse(format!("has VLAN identifier {}: use 1 to 4094", vlan.id));
    }
    if vlan.parent == link.name {
        return refuse("is named as its own parent: write the physical interface".into());
    }
    let parent = links.iter().find(|other| other.name == vlan.parent);
    if parent.is_some_and(is_vlan) {
        return refuse(format!(
            "is a VLAN of {}, which is a VLAN itself (QinQ): only the outer tag tells VLANs apart",
            vlan.parent
        ));
    }
    Ok(Some(vlan))
}

#[cfg(test)]
mod tests {
    use natmig_common::Role;

    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            ..Link::default()
        }
    }

    /// What the kernel calls a VLAN of the interface with index `lower`.
    fn kernel_vlan(name: &str, lower: u32, id: Option<u16>) -> Link {
        Link {
            kind: Some("vlan".to_owned()),
            lower: Some(lower),
            vlan: id,
            ..link(9, name)
        }
    }

    fn config(name: &str, vlan: Option<(&str, u16)>) -> InterfaceConfig {
        InterfaceConfig {
            name: name.to_owned(),
            role: Role::Fabric,
            segment: None,
            prefix: None,
            gateway: None,
            prefix_ipv6: None,
            gateway_ipv6: None,
            vlan: vlan.map(|(parent, id)| VlanConfig {
                parent: parent.to_owned(),
                id,
            }),
            keeps_source: false,
        }
    }

    fn found(link: &Link, vlan: Option<(&str, u16)>) -> Result<Option<(String, u16)>, String> {
        let links = [
            super::tests::link(2, "eth1"),
            kernel_vlan("eth1.7", 2, Some(7)),
            link.clone(),
        ];
        vlan_of(&config(&link.name, vlan), link, &links)
            .map(|vlan| vlan.map(|vlan| (vlan.parent, vlan.id)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_kernel_says_which_interfaces_are_vlans() {
        let is = |parent: &str, id| Ok(Some((parent.to_owned(), id)));
        assert_eq!(found(&link(9, "eth2"), None), Ok(None));
        let vlan = kernel_vlan("eth1.10", 2, Some(10));
        assert_eq!(found(&vlan, None), is("eth1", 10));
        assert_eq!(found(&vlan, Some(("eth1", 10))), is("eth1", 10));
        // One that is none to the kernel is what the configuration says.
        assert_eq!(
            found(&link(9, "eth1.10"), Some(("eth1", 10))),
            is("eth1", 10)
        );
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_an_explanation() {
        let elsewhere = Link {
            lower_is_elsewhere: true,
            ..kernel_vlan("eth1.10", 2, Some(10))
        };
        for (link, vlan, problem) in [
            (
                kernel_vlan("eth1.10", 2, Some(10)),
                Some(("eth1", 11)),
                "is VLAN 10 of eth1",
            ),
            (
                kernel_vlan("eth1.10", 2, Some(10)),
                Some(("eth2", 10)),
                "is VLAN 10 of eth1",
            ),
            (kernel_vlan("eth1.10", 2, None), None, "service tag"),
            (elsewhere, None, "another network namespace"),
            (link(9, "x"), Some(("eth1", 0)), "use 1 to 4094"),
            (link(9, "x"), Some(("eth1", 4095)), "use 1 to 4094"),
            (link(9, "x"), Some(("x", 5)), "own parent"),
            (link(9, "x"), Some(("eth1.7", 5)), "QinQ"),
        ] {
            let error = found(&link, vlan).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
