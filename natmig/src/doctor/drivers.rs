//! Drivers with native XDP, for kernels that cannot be asked (before 6.3).

/// Names of drivers, as `ethtool -i` says them, that run XDP programs and redirect in Linux 6.1.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "fsl_enetc_vf",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "rvu-nicpf",
    "rvu-nicvf",
    "sfc",
    "st_gmac",
    "tsnep",
    "tun",
    "veth",
    "vif",
    "virtio_net",
];

/// Whether a driver is known to run XDP programs.
pub(super) fn is_native(driver: &str) -> bool {
    NATIVE.binary_search(&driver).is_ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn drivers_are_sorted() {
        assert!(super::NATIVE.is_sorted());
    }
}
