//! natmig's packet logic, pure: no maps, no helpers, no clock. `main.rs` wires it to XDP.

#![cfg_attr(target_arch = "bpf", no_std)]
