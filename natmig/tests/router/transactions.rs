//! Prepare, commit, abort, fold and retire, in the tables and in the kernel.

use super::*;

#[test]
fn a_transaction_is_invisible_until_its_commit_and_whole_from_then_on() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let digest = router.digest();

        router.prepare(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        assert_eq!(
            router.table(),
            before(),
            "the table is without what is pending"
        );
        assert_eq!(router.digest(), digest);
        let table = effective(&place.instance);
        assert_eq!(table[&IDENTITY], ("away", Some(OLD_LOCATOR)));
        assert_eq!(
            table[&NEW_LOCATOR],
            ("known", Some(IDENTITY)),
            "early is early"
        );
        assert!(!table.contains_key(&VISITOR));
        assert_eq!(router.held()[0].state, SlotState::Prepared);

        let mut different = changes();
        different.pending.pop();
        let error = router.prepare(MOVE, &different).unwrap_err();
        assert!(matches!(error, RouterError::DifferentChanges(_)), "{error}");
        let error = router.prepare(NEXT_MOVE, &different).unwrap_err();
        assert!(
            matches!(error, RouterError::Busy { holder: MOVE, .. }),
            "{error}"
        );
        let error = router.fold(MOVE).unwrap_err();
        assert!(matches!(error, RouterError::NotCommitted(_)), "{error}");

        let report = router.commit(MOVE).unwrap();
        let again = router.commit(MOVE).unwrap();
        assert_eq!(report.committed_at, again.committed_at);
        let table = effective(&place.instance);
        assert_eq!(table[&IDENTITY], ("away", Some(NEW_LOCATOR)));
        assert_eq!(table[&OLD_LOCATOR], ("forward", Some(IDENTITY)));
        assert_eq!(table[&VISITOR], ("local", Some(VISITOR_LOCATOR)));
        let error = router.abort(MOVE).unwrap_err();
        assert!(matches!(error, RouterError::AlreadyCommitted(_)), "{error}");

        router.fold(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        assert_eq!(router.table(), after());
        assert!(router.held().is_empty());
        router.retire(&[OLD_LOCATOR]).unwrap();
        router.retire(&[OLD_LOCATOR]).unwrap();
        assert!(!router.table().contains_key(&OLD_LOCATOR));
        let error = router.commit(MOVE).unwrap_err();
        assert!(
            matches!(error, RouterError::UnknownTransaction(_)),
            "{error}"
        );
    });
}

#[test]
fn metrics_say_what_the_router_holds_and_did() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let metrics = RouterMetrics::new(&place.instance, router.figures());
        let says = |line: &str| {
            let text = metrics.render().unwrap();
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in\n{text}"
            );
        };
        says("natmig_addresses{family=\"ipv4\"} 0");
        says("natmig_address_capacity{family=\"ipv4\"} 16384");
        says("natmig_next_hops_believed 0");
        says("natmig_trace_lost_events_total 0");
        says("natmig_guard_dropped_packets_total{rule=\"source\"} 0");
        router.replace(&before()).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 2");
        says("natmig_addresses{family=\"ipv6\"} 0");
        says("natmig_commits_total 1");
        router.prepare(MOVE, &changes()).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 5");
        says("natmig_transactions{phase=\"prepared\"} 1");
        says("natmig_transactions{phase=\"committed\"} 0");
        for _ in 0..2 {
            router.commit(MOVE).unwrap();
        }
        says("natmig_transactions{phase=\"committed\"} 1");
        says("natmig_commits_total 2");
        says("natmig_commit_grace_seconds_count 2");
        router.fold(MOVE).unwrap();
        router.retire(&[OLD_LOCATOR]).unwrap();
        says("natmig_addresses{family=\"ipv4\"} 4");
        router.set_term(9).unwrap();
        says("natmig_term 9");
        run("ip link set acc0 name acc7");
        let text = metrics.render().unwrap();
        let counters = text.lines().filter(|line| {
            line.starts_with("natmig_packets_total{") && line.contains("interface=\"acc7\"")
        });
        assert_eq!(
            counters.count(),
            natmig_common::Counter::ALL.len(),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"), "{text}");
        drop(router);
        natmig::router::unload(&place.instance).unwrap();
        let missing = RouterMetrics::new("test-of-nothing", std::sync::Arc::default());
        assert!(missing.render().unwrap_err().contains("not loaded"));
    });
}

#[test]
fn an_abort_leaves_no_trace() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let seen = effective(&place.instance);
        for _ in 0..3 {
            router.prepare(MOVE, &changes()).unwrap();
            router.abort(MOVE).unwrap();
            router.abort(MOVE).unwrap();
            assert_eq!(router.table(), before());
            assert_eq!(effective(&place.instance), seen);
            assert_eq!(Reader::open(&place.instance).unwrap().entries().count(), 2);
        }
        // Nothing is written of changes that cannot be written whole.
        let mut wrong = changes();
        let nowhere = Attachment {
            segment: "rack9".into(),
            mac: MacAddress([2; 6]),
        };
        wrong.pending.push(change(
            Ipv4Addr::new(10, 9, 9, 9).into(),
            Rule::Local {
                locator: None,
                at: nowhere,
                gateway: None,
            },
        ));
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(
            matches!(error, RouterError::UnknownSegment { .. }),
            "{error}"
        );
        wrong.pending.pop();
        wrong.pending.push(change(IDENTITY, Rule::Absent));
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(matches!(error, RouterError::Twice { .. }), "{error}");
        wrong.pending.pop();
        wrong
            .early
            .push(change(OLD_LOCATOR, Rule::Known { identity: VISITOR }));
        wrong.pending.retain(|change| change.address != OLD_LOCATOR);
        let error = router.prepare(MOVE, &wrong).unwrap_err();
        assert!(matches!(error, RouterError::InUse { .. }), "{error}");
        assert_eq!(effective(&place.instance), seen);
        assert!(router.held().is_empty());
    });
}

#[test]
fn promiscuous_mode_is_switched_for_guests_and_an_operators_stays_on() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let promiscuous = || run("ip link show acc0").contains("PROMISC");
        let come_and_go = |router: &mut Router, stays: bool| {
            for _ in 0..2 {
                router.replace(&before()).unwrap();
                assert!(promiscuous());
                router.refresh_promiscuity().unwrap();
                assert!(promiscuous());
                // Nothing is told of this before guests come again.
                router.replace(&BTreeMap::new()).unwrap();
                assert_eq!(promiscuous(), stays);
            }
        };
        come_and_go(&mut router, false);
        run("ip link set acc0 promisc on");
        router.refresh_promiscuity().unwrap();
        come_and_go(&mut router, true);
        run("ip link set acc0 promisc off");
        router.refresh_promiscuity().unwrap();
        come_and_go(&mut router, false);
    });
}

#[test]
fn the_kernels_routes_follow_the_transaction() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let routes = || run("ip route show proto 110");
        let neighbors = || run("ip neighbour show nud permanent");
        let promiscuous = || run("ip link show acc0").contains("PROMISC");
        assert!(!promiscuous());
        router.replace(&before()).unwrap();
        assert!(routes().contains("10.1.1.10 dev nm0-"), "{}", routes());
        assert!(promiscuous());
        router.prepare(MOVE, &changes()).unwrap();
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        router.commit(MOVE).unwrap();
        router.settle().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(neighbors().contains("10.1.2.20 dev acc0 lladdr 02:00:00:00:00:20"));
        router.fold(MOVE).unwrap();
        drop(router);
        // What somebody else broke is mended at the start.
        run("ip route del 10.1.2.20 dev acc0 proto 110");
        run("ip route add 10.1.3.3 dev acc0 proto 110");
        let Started { mut router, .. } = place.start();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(!routes().contains("10.1.3.3"), "{}", routes());
        // The kernel drops routes of a link that goes down.
        run("ip link set acc0 down");
        run("ip link set acc0 up");
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        router.refresh_interfaces().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(neighbors().contains("10.1.2.20 dev acc0 lladdr 02:00:00:00:00:20"));

        // A link that is down holds no transaction back.
        run("ip link set acc0 down");
        drop(router);
        let Started { mut router, report } = place.start();
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.contains("host routes"))
        );
        router.prepare(NEXT_MOVE, &Changes::default()).unwrap();
        router.commit(NEXT_MOVE).unwrap();
        router.fold(NEXT_MOVE).unwrap();
        run("ip link set acc0 up");
        router.refresh_interfaces().unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());

        // The visitor leaves, the VM comes home.
        let to = Ipv4Addr::new(10, 1, 3, 9).into();
        let return_home = Changes {
            early: Vec::new(),
            pending: vec![
                change(VISITOR, Rule::Absent),
                change(
                    VISITOR_LOCATOR,
                    Rule::Forward {
                        identity: VISITOR,
                        to,
                    },
                ),
                change(IDENTITY, home()),
            ],
        };
        router.prepare(NEXT_MOVE, &return_home).unwrap();
        // From the commit on the identity is unbound here: nothing may lead to where the VM was.
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        assert!(!neighbors().contains("10.1.2.20"), "{}", neighbors());
        router.abort(NEXT_MOVE).unwrap();
        assert!(routes().contains("10.1.2.20 dev acc0"), "{}", routes());
        assert!(neighbors().contains("10.1.2.20 dev acc0 lladdr 02:00:00:00:00:20"));
        router.prepare(NEXT_MOVE, &return_home).unwrap();
        drop(router);
        let Started { mut router, .. } = place.start();
        assert!(!routes().contains("10.1.2.20"), "{}", routes());
        assert!(routes().contains("10.1.1.10 dev nm0-"), "{}", routes());
        router.commit(NEXT_MOVE).unwrap();
        router.settle().unwrap();
        assert_eq!(routes(), "");
        assert!(!neighbors().contains("10.1.2.20"));
        router.fold(NEXT_MOVE).unwrap();
        assert!(
            promiscuous(),
            "a VM that has just returned is still looked after"
        );
        let all: Vec<IpAddr> = router.table().into_keys().collect();
        router.retire(&all).unwrap();
        assert!(router.table().is_empty());
        assert!(!promiscuous());
    });
}

#[test]
fn a_retirement_spares_a_vm_that_moves_again() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let return_home = Changes {
            early: Vec::new(),
            pending: vec![change(IDENTITY, home())],
        };
        router.prepare(MOVE, &return_home).unwrap();
        router.commit(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        let again = Changes {
            early: vec![change(NEW_LOCATOR, Rule::Known { identity: IDENTITY })],
            pending: vec![change(IDENTITY, away(NEW_LOCATOR))],
        };
        router.prepare(NEXT_MOVE, &again).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        router.commit(NEXT_MOVE).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        router.fold(NEXT_MOVE).unwrap();
        router.retire(&[IDENTITY, OLD_LOCATOR]).unwrap();
        assert_eq!(router.table()[&IDENTITY], away(NEW_LOCATOR));
        assert!(!router.table().contains_key(&OLD_LOCATOR));
    });
}

#[test]
fn a_fold_leaves_no_entry_of_what_is_not_known_any_more() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        let entries = || {
            let reader = Reader::open(&place.instance).unwrap();
            let entries: Vec<_> = reader.entries().map(|entry| entry.address).collect();
            entries
        };
        let forget = Changes {
            early: Vec::new(),
            pending: vec![change(IDENTITY, Rule::Absent)],
        };
        router.prepare(MOVE, &forget).unwrap();
        router.commit(MOVE).unwrap();
        assert!(entries().contains(&IDENTITY));
        router.fold(MOVE).unwrap();
        assert!(!entries().contains(&IDENTITY));
        assert!(entries().contains(&OLD_LOCATOR));
    });
}

#[test]
fn a_table_is_replaced_around_what_a_transaction_holds() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        let (identity, locator) = pair(1);
        let other = BTreeMap::from([
            (
                identity,
                Rule::Away {
                    locator,
                    home: None,
                },
            ),
            (locator, Rule::Known { identity }),
        ]);
        let report = router.replace(&other).unwrap();
        assert_eq!((report.added, report.removed, report.held), (2, 0, 5));
        router.commit(MOVE).unwrap();
        router.fold(MOVE).unwrap();
        let mut expected = after();
        expected.extend(other);
        assert_eq!(router.table(), expected);
    });
}

#[test]
fn a_group_of_a_thousand_vms_becomes_active_with_one_store() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let mut group = Changes::default();
        for (identity, locator) in (0..1000).map(pair) {
            group.early.push(change(locator, Rule::Known { identity }));
            group.pending.push(change(identity, away(locator)));
        }
        router.prepare(MOVE, &group).unwrap();
        let reader = Reader::open(&place.instance).unwrap();
        let phase = || {
            let held = reader.transactions();
            assert_eq!(held.len(), 1);
            held[0].phase
        };
        let active = || {
            reader
                .entries()
                .filter(|entry| entry.effective().action == "away")
                .count()
        };
        assert_eq!((phase(), active()), ("prepared", 0));
        let entries: Vec<_> = reader.entries().collect();
        let begun = std::time::Instant::now();
        let report = router.commit(MOVE).unwrap();
        let acknowledged = begun.elapsed();
        router.settle().unwrap();
        let settled = begun.elapsed();
        assert_eq!((phase(), active()), ("committed", 1000));
        // Nothing but the slot has changed.
        for (was, is) in entries.iter().zip(reader.entries()) {
            assert_eq!((&was.current, &was.pending), (&is.current, &is.pending));
        }
        eprintln!(
            "1000 VMs: grace period {:?}, acknowledged after {acknowledged:?}, 1000 host routes after {settled:?}",
            report.grace
        );
        assert_eq!(run("ip route show proto 110").lines().count(), 1000);
        router.fold(MOVE).unwrap();
        assert_eq!(router.table().len(), 2000);
    });
}
