//! Settings below `/proc/sys` as commands name them.

/// The command that sets a setting of an interface.
pub(super) fn set_interface(interface: &str, name: &str, value: u32) -> String {
    // A dot in an interface's name would end a part of the setting's.
    if interface.contains('.') {
        format!("sysctl -w net/ipv4/conf/{interface}/{name}={value}")
    } else {
        set(&format!("net.ipv4.conf.{interface}.{name}"), value)
    }
}

/// The command that sets a setting.
pub(super) fn set(name: &str, value: u32) -> String {
    format!("sysctl -w {name}={value}")
}
