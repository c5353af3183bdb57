//! libvirt's description of a domain, as far as it tells which VM it is.
//!
//! Source: <https://libvirt.org/formatdomain.html>.

use roxmltree::{Document, Node};

use crate::rule::MacAddress;

/// What a domain is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// The MAC addresses of its interfaces.
    pub macs: Vec<MacAddress>,
}

/// A text describes no domain.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// It is no XML.
    #[error(
        "standard input is not the XML of a domain ({0}); libvirt passes it there, so let the \
         hook's script leave standard input alone, or pass on what it read"
    )]
    Malformed(#[from] roxmltree::Error),
    /// It describes something else.
    #[error("the XML on standard input describes a <{0}>, not a <domain> with a <name>")]
    NoDomain(String),
}

impl Domain {
    /// Reads a domain's XML.
    pub fn parse(xml: &str) -> Result<Self, DomainError> {
        let document = Document::parse(xml)?;
        let root = document.root_element();
        let name = child(root, "name")
            .and_then(|name| name.text())
            .map(str::trim)
            .filter(|name| root.has_tag_name("domain") && !name.is_empty())
            .ok_or_else(|| DomainError::NoDomain(root.tag_name().name().to_owned()))?;
        let macs = child(root, "devices")
            .into_iter()
            .flat_map(|devices| devices.children())
            .filter(|device| device.has_tag_name("interface"))
            .filter_map(|interface| child(interface, "mac")?.attribute("address"))
            .filter_map(|address| address.trim().parse().ok())
            .collect();
        Ok(Self {
            name: name.to_owned(),
            macs,
        })
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const XML: &str = "\
<?xml version='1.0'?>
<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <metadata><owner xmlns='urn:x'><name>somebody</name></owner></metadata>
  <devices>
    <disk type='file' device='disk'><source file='/images/web1.qcow2'/></disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:10'/>
      <source bridge='br0'/>
      <model type='virtio'/>
    </interface>
    <interface type='network'><mac address='52:54:00:00:00:11'/></interface>
    <interface type='user'/>
  </devices>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>
";

    #[test]
    fn name_and_every_mac_are_read() {
        let domain = Domain::parse(XML).unwrap();
        assert_eq!(domain.name, "web1");
        let macs: Vec<_> = domain.macs.iter().map(ToString::to_string).collect();
        assert_eq!(macs, ["52:54:00:00:00:10", "52:54:00:00:00:11"]);
    }

    #[test]
    fn other_input_is_refused_with_a_remedy() {
        for text in ["", "web1", "<domain>", "\0"] {
            let error = Domain::parse(text).unwrap_err();
            assert!(error.to_string().contains("libvirt passes it"), "{error}");
        }
        for text in [
            "<network><name>default</name></network>",
            "<domain/>",
            "<domain><name> </name></domain>",
        ] {
            let error = Domain::parse(text).unwrap_err();
            assert!(error.to_string().contains("not a <domain>"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_description_never_panics(at in 0..XML.len(), byte in any::<char>()) {
            let damaged: String = XML
                .chars()
                .enumerate()
                .map(|(index, c)| if index == at { byte } else { c })
                .collect();
            drop(Domain::parse(&damaged));
            drop(Domain::parse(&XML[..at]));
        }
    }
}
