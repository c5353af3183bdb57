//! What is announced of a commit, and which VMs are heard.

use super::*;

#[test]
fn a_commit_is_announced_also_by_a_successor() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        assert_eq!(router.take_announcements().len(), 1);
        router.prepare(MOVE, &changes()).unwrap();
        drop(router);
        let mut router = Router::open(&place.instance).unwrap();
        router.commit(MOVE).unwrap();
        drop(router);
        // Nobody knows whether the predecessor announced it.
        let Started { mut router, .. } = place.start();
        let announcements = router.take_announcements();
        let mut announced: Vec<IpAddr> = announcements
            .iter()
            .map(|announcement| announcement.address)
            .collect();
        announced.sort();
        assert_eq!(announced, [IDENTITY, VISITOR_GATEWAY]);
        natmig::router::announce::send(&announcements).unwrap();
        assert!(router.take_announcements().is_empty());
    });
}

/// Sends RARP as QEMU does out of an interface's peer, in the name of the VM with this MAC address.
fn announce(interface: &str, mac: MacAddress) {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(mac.0);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    let announcement = Announcement {
        ifindex: nix::net::if_::if_nametoindex(interface).unwrap(),
        address: VISITOR,
        frame,
    };
    natmig::router::announce::send(&[announcement]).unwrap();
}

/// Who was heard, once somebody was.
fn heard(router: &Router) -> Vec<(TransactionId, MacAddress)> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let heard = router.heard().unwrap();
        if !heard.is_empty() || Instant::now() > deadline {
            return heard.iter().map(|heard| (heard.id, heard.mac)).collect();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_heard_is_kept_until_the_decision_whoever_dies() {
    in_place(|place| {
        let visitor = at(0x20).mac;
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        // An agent is killed before it prepared what it listens for already.
        router.await_announcements(MOVE, &changes()).unwrap();
        drop(router);
        let Started { mut router, .. } = place.start();
        // Nobody waits for it, and then nobody waits for it there, or for that one.
        announce("acc0-peer", visitor);
        assert_eq!(router.heard().unwrap(), []);
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        announce("fab0-peer", visitor);
        announce("acc0-peer", at(0x66).mac);
        assert_eq!(router.heard().unwrap(), []);
        drop(router);

        // It speaks while no agent runs; the successor is asked to prepare again.
        announce("acc0-peer", visitor);
        let Started { mut router, .. } = place.start();
        assert_eq!(heard(&router), [(MOVE, visitor)]);
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        assert_eq!(heard(&router), [(MOVE, visitor)], "it is not forgotten");
        let at = router.heard().unwrap()[0].at;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_nanos() - u128::from(at);
        assert!(age < Duration::from_mins(5).as_nanos(), "{age} ns ago");

        router.abort(MOVE).unwrap();
        router.settle().unwrap();
        assert_eq!(router.heard().unwrap(), []);
        router.await_announcements(NEXT_MOVE, &changes()).unwrap();
        router.prepare(NEXT_MOVE, &changes()).unwrap();
        assert_eq!(router.heard().unwrap(), [], "of the one before");
        announce("acc0-peer", visitor);
        assert_eq!(heard(&router), [(NEXT_MOVE, visitor)]);
        router.commit(NEXT_MOVE).unwrap();
        drop(router);
        // Killed before it cleared up.
        let Started { router, .. } = place.start();
        assert_eq!(router.heard().unwrap(), []);
    });
}

#[test]
fn vms_are_told_of_as_they_are_heard() {
    in_place(|place| {
        let visitor = at(0x20).mac;
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        router.await_announcements(MOVE, &changes()).unwrap();
        router.prepare(MOVE, &changes()).unwrap();
        let (tell, told) = mpsc::channel();
        let tell = move |heard: Vec<Heard>| tell.send(heard).is_ok();
        router.listen(Box::new(tell)).unwrap();
        announce("acc0-peer", visitor);
        let first = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(
            first
                .iter()
                .map(|heard| (heard.id, heard.mac))
                .collect::<Vec<_>>(),
            [(MOVE, visitor)]
        );
        // Whoever listens from here on is told too.
        let (tell, told) = mpsc::channel();
        let tell = move |heard: Vec<Heard>| tell.send(heard).is_ok();
        router.listen(Box::new(tell)).unwrap();
        let again = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(again[0].mac, visitor);
        drop(router);
        // The listener ended with it.
        while told.recv().is_ok() {}
    });
}
