//! Two commands at once on one agent.

use std::process::Stdio;

use toy_store::Kind;

use crate::support::{Bench, shown, text};

#[test]
fn two_at_once_both_publish_or_one_says_why_not() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let folder = folder.to_str().unwrap();
    let run = |versions: [&str; 2]| {
        let children = versions.map(|version| {
            bench
                .command(&["--agent", "analyst", "--source", folder, "--output-version", version])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        children.map(|child| child.wait_with_output().unwrap())
    };
    let agent = "analyst".parse().unwrap();
    for output in run(["a", "b"]) {
        assert!(output.status.success(), "different versions: {}", shown(&output));
    }
    let outputs = run(["c", "c"]);
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "the same version");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let message = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(5 | 6)), "{}", shown(output));
        assert!(message.contains("analyst") && message.contains('c'), "{message}");
    }
    let store = bench.store();
    let versions = store.versions(&agent).unwrap();
    assert_eq!(versions.len(), 3, "{versions:?}");
    for version in versions {
        assert!(store.verify(&agent, &version).unwrap().is_ok(), "{version}");
    }
}
