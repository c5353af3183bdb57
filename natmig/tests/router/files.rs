//! Bindings that come in files and through the command line.

use super::*;

/// `count` bindings, one per line.
fn lines(count: u32) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (identity, locator) = pair(number);
        writeln!(text, "{identity} {locator} away").unwrap();
    }
    text
}

#[test]
fn a_file_of_bindings_is_one_transaction_and_a_wrong_one_changes_nothing() {
    in_place(|place| {
        let Started { mut router, .. } = place.start();
        let good = place.file(
            "good",
            "10.1.1.10 10.1.2.130 away home rack1 02:00:00:00:00:10\n\
             10.1.2.20 10.1.1.130 here rack1 02:00:00:00:00:20\n",
        );
        let mut quiet = |_: &'static str, _, _| {};
        let applied = router.apply_file(&good, false, &mut quiet).unwrap();
        assert_eq!((applied.bindings, applied.report.added), (2, 4));
        let table = router.table();
        for (name, text, line) in [
            ("short", "10.1.1.12 10.1.2.132 away\n10.1.1.11\n", 2),
            (
                "segment",
                "10.1.1.11 10.1.2.131 here rack9 02:00:00:00:00:11\n",
                1,
            ),
            (
                "twice",
                "10.1.1.11 10.1.2.131 away\n10.1.1.11 10.1.2.132 away\n",
                2,
            ),
        ] {
            let file = place.file(name, text);
            let error = router.apply_file(&file, false, &mut quiet).unwrap_err();
            let BindingsError::File(error) = error else {
                panic!("{error}")
            };
            assert_eq!((error.file, error.line), (file, line));
            assert!(!error.remedy.is_empty());
            assert_eq!(router.table(), table);
        }
        let merged = place.file("merged", "10.1.1.11 10.1.2.131 away\n");
        let applied = router.apply_file(&merged, true, &mut quiet).unwrap();
        assert_eq!((applied.report.added, applied.report.removed), (2, 0));
        assert_eq!(router.table().len(), 6);
        let applied = router.apply_file(&good, false, &mut quiet).unwrap();
        assert_eq!((applied.report.unchanged, applied.report.removed), (4, 2));
        assert_eq!(router.table(), table);
        // More than there is room for.
        let file = place.file("many", &lines(8200));
        let error = router.apply_file(&file, false, &mut quiet).unwrap_err();
        assert!(
            matches!(error, BindingsError::Router(RouterError::Full { .. })),
            "{error}"
        );
        assert_eq!(router.table(), table);
    });
}

/// `NATMIG_TEST_BINDINGS=1000000` makes it as many.
#[test]
fn many_bindings_become_active_through_the_command_line() {
    in_place(|place| {
        let wanted = env::var("NATMIG_TEST_BINDINGS").ok();
        let bindings: u32 = wanted.and_then(|text| text.parse().ok()).unwrap_or(20_000);
        let config = place.file("router.toml", &place.config_text(bindings * 2 + 64));
        let file = place.file("bindings", &lines(bindings));
        let natmig = env!("CARGO_BIN_EXE_natmig");
        run(&format!("{natmig} load --config {}", config.display()));
        let instance = &place.instance;
        let report = run(&format!(
            "{natmig} map apply {} --instance {instance} --json",
            file.display()
        ));
        eprintln!("{report}");
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["bindings"], bindings);
        assert_eq!(report["added"], bindings * 2);
        let got = run(&format!(
            "{natmig} map get 10.2.0.9 --instance {instance} --json"
        ));
        let got: serde_json::Value = serde_json::from_str(&got).unwrap();
        assert_eq!(got["current"]["counterpart"], "100.64.0.9");
        let unbound = Command::new(natmig)
            .args(["map", "get", "192.0.2.1", "--instance", instance])
            .output()
            .unwrap();
        assert!(!unbound.status.success());
        let stats = run(&format!("{natmig} stats --instance {instance} --json"));
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        assert_eq!(stats["interfaces"].as_array().map(Vec::len), Some(3));
        assert_eq!(stats["guard"].as_array().map(Vec::len), Some(8));
        run(&format!("{natmig} unload --instance {instance}"));
    });
}
