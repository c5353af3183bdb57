//! Reads the interfaces of a router's configuration file.

use std::{collections::BTreeSet, net::IpAddr, ops::Range};

use ipnet::IpNet;
use natmig_common::Role;
use serde::Deserialize;
use toml::Spanned;

use super::{
    ConfigError, InterfaceConfig, VlanConfig, parse_role,
    read::{Source, parse_prefix},
};
use crate::names::SegmentName;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterfaceText {
    name: Spanned<String>,
    role: Spanned<String>,
    segment: Option<Spanned<String>>,
    prefix: Option<Spanned<String>>,
    gateway: Option<Spanned<String>>,
    prefix_ipv6: Option<Spanned<String>>,
    gateway_ipv6: Option<Spanned<String>>,
    parent: Option<Spanned<String>>,
    vlan: Option<Spanned<u16>>,
    source: Option<Spanned<String>>,
}

pub(super) fn parse_interfaces(
    source: &Source<'_>,
    texts: &[Spanned<InterfaceText>],
) -> Result<Vec<InterfaceConfig>, ConfigError> {
    if texts.is_empty() {
        return Err(source.error(
            0..0,
            "no [[interface]] is named",
            "add one [[interface]] with `name` and `role` for each interface of the router",
        ));
    }
    let mut interfaces = Vec::new();
    let mut names = BTreeSet::new();
    let mut segments = BTreeSet::new();
    let mut vlans = BTreeSet::new();
    for text in texts {
        let interface = parse_interface(source, text)?;
        let text = text.get_ref();
        if !names.insert(interface.name.clone()) {
            return Err(source.error(
                text.name.span(),
                format!("interface {} is named twice", interface.name),
                "remove one of the two",
            ));
        }
        if let (Some(segment), Some(span)) = (&interface.segment, &text.segment)
            && !segments.insert(segment.clone())
        {
            return Err(source.error(
                span.span(),
                format!("segment {segment} is behind two interfaces"),
                "a router serves a segment with one interface: remove one of the two",
            ));
        }
        if let (Some(vlan), Some(span)) = (&interface.vlan, &text.vlan)
            && !vlans.insert(vlan.clone())
        {
            return Err(source.error(
                span.span(),
                format!("VLAN {} of {} is named twice", vlan.id, vlan.parent),
                "remove one of the two",
            ));
        }
        interfaces.push(interface);
    }
    for (interface, text) in interfaces.iter().zip(texts) {
        let nested = interface.vlan.as_ref().is_some_and(|vlan| {
            let is_vlan =
                |other: &InterfaceConfig| other.name == vlan.parent && other.vlan.is_some();
            interfaces.iter().any(is_vlan)
        });
        if nested && let Some(parent) = &text.get_ref().parent {
            return Err(source.error(
                parent.span(),
                format!("{} is a VLAN itself", parent.get_ref()),
                "write the physical interface as `parent`: VLANs inside VLANs cannot be told apart",
            ));
        }
    }
    Ok(interfaces)
}

fn parse_interface(
    source: &Source<'_>,
    text: &Spanned<InterfaceText>,
) -> Result<InterfaceConfig, ConfigError> {
    let whole = text.span();
    let text = text.get_ref();
    let name = &text.name;
    check_interface_name(source, name)?;
    let name = name.get_ref();
    let Some(role) = parse_role(text.role.get_ref()) else {
        return Err(source.error(
            text.role.span(),
            format!("`{}` is no role", text.role.get_ref()),
            "write access, fabric or external",
        ));
    };
    let prefix = parse_optional(text.prefix.as_ref(), |prefix| {
        parse_prefix(source, prefix, "an IPv4 prefix", "10.1.1.0/24")
    })?;
    let prefix_ipv6 = parse_optional(text.prefix_ipv6.as_ref(), |prefix| {
        parse_prefix(source, prefix, "an IPv6 prefix", "2001:db8:1::/64")
    })?;
    let gateway = parse_optional(text.gateway.as_ref(), |gateway| {
        source.parse(
            gateway,
            "an IPv4 address",
            "write an address such as 10.1.1.1",
        )
    })?;
    let gateway_ipv6 = parse_optional(text.gateway_ipv6.as_ref(), |gateway| {
        source.parse(
            gateway,
            "an IPv6 address",
            "write an address such as 2001:db8:1::1 or fe80::1",
        )
    })?;
    let segment = text
        .segment
        .as_ref()
        .map(|segment| SegmentName::new(segment.get_ref().as_str()));
    let keys = [
        &text.segment,
        &text.prefix,
        &text.gateway,
        &text.prefix_ipv6,
        &text.gateway_ipv6,
    ];
    if role == Role::Access {
        if segment.is_none() || (prefix.is_none() && prefix_ipv6.is_none()) {
            return Err(source.error(
                whole,
                format!("access interface {name} lacks `segment` or a prefix"),
                "add `segment`, `prefix` or `prefix_ipv6` or both, and the gateways that this router may own",
            ));
        }
    } else if let Some(key) = keys.into_iter().flatten().next() {
        return Err(source.error(
            key.span(),
            format!(
                "only access interfaces have a segment, and {name} is {}",
                role.name()
            ),
            "remove `segment`, prefixes and gateways, or write role = \"access\"",
        ));
    }
    let gateways: [(_, Option<IpAddr>, Option<IpNet>); 2] = [
        (
            &text.gateway,
            gateway.map(IpAddr::V4),
            prefix.map(IpNet::V4),
        ),
        (
            &text.gateway_ipv6,
            gateway_ipv6.map(IpAddr::V6),
            prefix_ipv6.map(IpNet::V6),
        ),
    ];
    for (key, gateway, prefix) in gateways {
        if let (Some(key), Some(gateway)) = (key, gateway) {
            check_gateway(source, key.span(), gateway, prefix)?;
        }
    }
    Ok(InterfaceConfig {
        name: name.clone(),
        role,
        segment,
        prefix,
        gateway,
        prefix_ipv6,
        gateway_ipv6,
        vlan: parse_vlan(source, text)?,
        keeps_source: parse_source(source, text.source.as_ref())?,
    })
}

fn parse_optional<T>(
    text: Option<&Spanned<String>>,
    parse: impl Fn(&Spanned<String>) -> Result<T, ConfigError>,
) -> Result<Option<T>, ConfigError> {
    text.map(parse).transpose()
}

fn check_interface_name(source: &Source<'_>, name: &Spanned<String>) -> Result<(), ConfigError> {
    let text = name.get_ref();
    if text.is_empty() || text.len() > 15 || text.contains(['/', ' ', '\0']) {
        return Err(source.error(
            name.span(),
            format!("`{text}` cannot name an interface"),
            "write a name of 1 to 15 characters as `ip link` shows it",
        ));
    }
    Ok(())
}

fn check_gateway(
    source: &Source<'_>,
    span: Range<usize>,
    gateway: IpAddr,
    prefix: Option<IpNet>,
) -> Result<(), ConfigError> {
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    match prefix {
        Some(prefix) if !link_local && !prefix.contains(&gateway) => Err(source.error(
            span,
            format!("gateway {gateway} is outside {prefix}"),
            "write the segment's own gateway address",
        )),
        Some(_) => Ok(()),
        None => Err(source.error(
            span,
            format!("gateway {gateway} has no prefix of its family beside it"),
            "add the segment's prefix of that family, or remove the gateway",
        )),
    }
}

fn parse_vlan(
    source: &Source<'_>,
    text: &InterfaceText,
) -> Result<Option<VlanConfig>, ConfigError> {
    let (parent, id) = match (&text.parent, &text.vlan) {
        (None, None) => return Ok(None),
        (Some(parent), Some(id)) => (parent, id),
        (Some(parent), None) => {
            return Err(source.error(
                parent.span(),
                "`parent` without `vlan`",
                "add the VLAN identifier: vlan = 100",
            ));
        }
        (None, Some(id)) => {
            return Err(source.error(
                id.span(),
                "`vlan` without `parent`",
                "add the interface that carries the VLAN: parent = \"eth0\"",
            ));
        }
    };
    check_interface_name(source, parent)?;
    if parent.get_ref() == text.name.get_ref() {
        return Err(source.error(
            parent.span(),
            format!("interface {} is its own parent", parent.get_ref()),
            "write the VLAN interface as `name` and the one that carries it as `parent`",
        ));
    }
    if !(1..=4094).contains(id.get_ref()) {
        return Err(source.error(
            id.span(),
            format!("{} is no VLAN identifier", id.get_ref()),
            "write a number from 1 to 4094",
        ));
    }
    Ok(Some(VlanConfig {
        parent: parent.get_ref().clone(),
        id: *id.get_ref(),
    }))
}

fn parse_source(source: &Source<'_>, text: Option<&Spanned<String>>) -> Result<bool, ConfigError> {
    match text.map(|text| (text.get_ref().as_str(), text)) {
        None | Some(("locator", _)) => Ok(false),
        Some(("identity", _)) => Ok(true),
        Some((other, span)) => Err(source.error(
            span.span(),
            format!("`{other}` is no kind of source"),
            "write \"locator\" or \"identity\"",
        )),
    }
}
