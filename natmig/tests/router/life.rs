//! How an instance begins and ends, and what it refuses to take up.

use super::*;

#[test]
fn load_adopts_upgrades_and_unload_leaves_nothing() {
    in_place(|place| {
        let routes = run("ip route");
        let Started { mut router, report } = place.start();
        assert!(!report.adopted);
        assert!(
            report
                .interfaces
                .iter()
                .all(|interface| !interface.replaced)
        );
        assert!(
            report
                .interfaces
                .iter()
                .all(|interface| interface.mode == "native")
        );
        router.replace(&before()).unwrap();
        let program = || {
            Reader::open(&place.instance)
                .unwrap()
                .summary()
                .unwrap()
                .program
        };
        let first = program();
        drop(router);

        let Started { router, report } = place.start();
        assert!(report.adopted);
        assert_eq!(report.addresses, 2);
        assert!(report.interfaces.iter().all(|interface| interface.replaced));
        assert_eq!(router.table(), before());
        let second = program();
        assert!(first.is_some() && second.is_some() && first != second);
        drop(router);

        natmig::router::unload(&place.instance).unwrap();
        assert!(!place.pins().exists());
        assert_eq!(run("ip route"), routes);
        assert_eq!(run("nft list ruleset"), "");
        let links = run("ip -d link");
        assert!(
            !links.contains("xdp") && !links.contains("PROMISC"),
            "{links}"
        );
        assert_eq!(links.matches("veth ").count(), 4, "{links}");
        let error = natmig::router::unload(&place.instance).unwrap_err();
        assert!(matches!(error, RouterError::NotLoaded { .. }), "{error}");
    });
}

#[test]
fn foreign_programs_bridges_and_missing_interfaces_are_refused() {
    in_place(|place| {
        let Started { router, .. } = place.start();
        let error = Router::open(&place.instance).unwrap_err();
        assert!(matches!(error, RouterError::Locked { .. }), "{error}");
        drop(router);

        let other = Place::new(format!("{}-b", place.instance));
        let start = |config: &RouterConfig| {
            Router::start(config, &StartOptions::default())
                .map(drop)
                .unwrap_err()
        };
        let mut config = other.config();
        let error = start(&config);
        let RouterError::ForeignProgram {
            interface,
            id,
            name,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((interface.as_str(), name.as_str()), ("acc0", "natmig"));
        assert!(*id > 0);
        assert!(error.to_string().contains("bpftool"), "{error}");

        run("ip link add br0 type bridge");
        config.interfaces[0].name = "br0".to_owned();
        let error = start(&config);
        assert!(
            matches!(error, RouterError::UnsuitableInterface { .. }),
            "{error}"
        );
        config.interfaces[0].name = "nowhere0".to_owned();
        let error = start(&config);
        assert!(matches!(error, RouterError::NoInterface(_)), "{error}");
        assert!(!other.pins().exists());
    });
}

#[test]
fn maps_of_another_layout_are_refused() {
    in_place(|place| {
        drop(place.start());
        let data = aya::maps::MapData::from_pin(place.pins().join("maps/META")).unwrap();
        let map = aya::maps::Map::from_map_data(data).unwrap();
        let mut meta: aya::maps::Array<_, [u8; 64]> = map.try_into().unwrap();
        let good = meta.get(&0, 0).unwrap();
        let mut other = good;
        other[4] = 99;
        meta.set(0, other, 0).unwrap();
        let error = Router::start(&place.config(), &StartOptions::default())
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, RouterError::Abi { found: 99, .. }),
            "{error}"
        );
        let error = Reader::open(&place.instance).map(drop).unwrap_err();
        assert!(
            matches!(error, RouterError::Abi { found: 99, .. }),
            "{error}"
        );
        meta.set(0, good, 0).unwrap();
        drop(place.start());
    });
}
