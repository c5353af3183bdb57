//! Writers that are killed at every step, and their successors.

use super::{
    blocks::{GROWN, SPARSE, assert_aligned, dense},
    *,
};

/// What the child of the tests of killed processes does, until it is killed.
#[test]
#[ignore = "no test of its own: the tests of killed processes run it in a process of its own"]
fn child() {
    let Ok(instance) = env::var("NATMIG_TEST_INSTANCE") else {
        return;
    };
    natmig::router::failpoint::arm(&env::var("NATMIG_TEST_FAILPOINT").unwrap());
    let mut router = Router::open(&instance).unwrap();
    for step in env::var("NATMIG_TEST_STEPS").unwrap().split(',') {
        match step {
            "prepare" => router.prepare(MOVE, &changes()).unwrap(),
            "commit" => drop(router.commit(MOVE).unwrap()),
            "abort" => router.abort(MOVE).unwrap(),
            "fold" => router.fold(MOVE).unwrap(),
            "replace" => drop(router.replace(&after()).unwrap()),
            "retire" => router.retire(&[OLD_LOCATOR]).unwrap(),
            "grow" => drop(router.replace(&dense(GROWN)).unwrap()),
            "shrink" => drop(router.replace(&dense(SPARSE)).unwrap()),
            "empty" => drop(router.replace(&BTreeMap::new()).unwrap()),
            other => panic!("no step {other}"),
        }
    }
}

pub(super) fn killed_at(place: &Place, steps: &str, failpoint: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "killed::child", "--ignored", "--nocapture"])
        .env("NATMIG_TEST_INSTANCE", &place.instance)
        .env("NATMIG_TEST_STEPS", steps)
        .env("NATMIG_TEST_FAILPOINT", failpoint)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(9),
        "{steps} reaches {failpoint}: {text}"
    );
    assert_aligned(place);
}

const PREPARE: [&str; 7] = [
    "prepare:claimed",
    "prepare:entries",
    "prepare:indexed",
    "prepare:pending#1",
    "prepare:pending#2",
    "prepare:written",
    "prepare:marked",
];

#[test]
fn a_killed_writer_leaves_what_its_successor_takes_up() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        drop(router);
        let seen_before = effective(&place.instance);
        let commit = ["commit:before", "commit:stored", "commit:acknowledged"];
        let fold = [
            "fold:marked",
            "fold:written",
            "fold:clearing#1",
            "fold:clearing#3",
            "fold:cleared",
            "close:freed",
        ];
        let abort = [
            "abort:marked",
            "abort:cleared",
            "remove:absent",
            "remove:unindexed",
            "close:freed",
        ];
        let cases = PREPARE
            .map(|point| ("prepare", point))
            .into_iter()
            .chain(commit.map(|point| ("prepare,commit", point)))
            .chain(fold.map(|point| ("prepare,commit,fold", point)))
            .chain(abort.map(|point| ("prepare,abort", point)));
        for (steps, point) in cases {
            killed_at(place, steps, point);
            let case = format!("{steps} killed at {point}");
            let mut router = Router::open(&place.instance).unwrap();
            let state = router.held().first().map(|held| held.state);
            let table = effective(&place.instance);
            match state {
                // A fold that was begun is finished by the successor.
                None if steps.ends_with("fold") => {
                    assert_eq!(router.table(), after(), "{case}");
                }
                None => {
                    assert!(!steps.contains("commit"), "{case}");
                    assert_eq!(table, seen_before, "{case}");
                    assert_eq!(router.table(), before(), "{case}");
                }
                Some(SlotState::Prepared) => {
                    assert_eq!(table[&IDENTITY], ("away", Some(OLD_LOCATOR)), "{case}");
                    assert!(!table.contains_key(&VISITOR), "{case}");
                }
                Some(SlotState::Committed) => {
                    assert_ne!(router.held()[0].committed_at, 0, "{case}");
                    assert_eq!(table[&IDENTITY], ("away", Some(NEW_LOCATOR)), "{case}");
                    assert_eq!(table[&OLD_LOCATOR], ("forward", Some(IDENTITY)), "{case}");
                    assert_eq!(table[&VISITOR], ("local", Some(VISITOR_LOCATOR)), "{case}");
                }
                Some(other) => panic!("{case}: {other:?}"),
            }
            // The controller sends again what it needs.
            if router.table() != after() {
                if state != Some(SlotState::Committed) {
                    router.prepare(MOVE, &changes()).unwrap();
                }
                router.commit(MOVE).unwrap();
                router.fold(MOVE).unwrap();
            }
            router.fold(MOVE).unwrap();
            assert_eq!(router.table(), after(), "{case}");
            assert!(router.held().is_empty(), "{case}");
            router.replace(&before()).unwrap();
            assert_eq!(effective(&place.instance), seen_before, "{case}");
            assert_eq!(
                Reader::open(&place.instance).unwrap().entries().count(),
                2,
                "{case}"
            );
        }
    });
}

#[test]
fn a_killed_table_change_is_whole_or_not_at_all() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        router.replace(&before()).unwrap();
        drop(router);
        for point in PREPARE.into_iter().chain(["commit:before"]) {
            killed_at(place, "replace", point);
            let router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), before(), "killed at {point}");
            assert!(router.held().is_empty(), "killed at {point}");
        }
        for point in [
            "commit:stored",
            "commit:acknowledged",
            "fold:written",
            "fold:clearing#2",
            "close:freed",
        ] {
            killed_at(place, "replace", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert_eq!(router.table(), after(), "killed at {point}");
            assert!(router.held().is_empty(), "killed at {point}");
            router.replace(&before()).unwrap();
        }
        for point in ["remove:absent", "remove:unindexed"] {
            killed_at(place, "retire", point);
            let mut router = Router::open(&place.instance).unwrap();
            assert!(
                !router.table().contains_key(&OLD_LOCATOR),
                "killed at {point}"
            );
            router.replace(&before()).unwrap();
        }
    });
}
