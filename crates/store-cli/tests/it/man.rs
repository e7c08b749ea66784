//! The manual.

use std::fs;
use std::process::Command;

use crate::desk::{Desk, text};

#[test]
fn every_command_has_a_page_that_keeps_its_examples() {
    let desk = Desk::new();
    let dir = desk.folder().join("man");
    desk.run(&["man", "--dir", text(&dir)]).ok();
    let mut pages: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    for name in ["model-store.1", "model-store-gc.1", "model-store-rollback.1", "model-store-policy-set.1"] {
        assert!(pages.iter().any(|page| page == name), "{name} is not among {pages:?}");
    }
    let rollback = fs::read_to_string(dir.join("model-store-rollback.1")).unwrap();
    assert_eq!(desk.run(&["man", "rollback"]).ok(), rollback);
    assert_eq!(desk.run(&["man"]).ok(), fs::read_to_string(dir.join("model-store.1")).unwrap());
    assert!(rollback.contains(".SH \"EXAMPLES\"\n.nf\n"), "{rollback}");
    for page in pages {
        let rendered =
            Command::new("groff").args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(dir.join(&page)).output();
        let rendered = match rendered {
            Ok(rendered) => rendered,
            Err(e) => return eprintln!("skipped: pages are not rendered without groff: {e}"),
        };
        let said = String::from_utf8_lossy(&rendered.stderr);
        assert!(rendered.status.success() && said.is_empty(), "{page}: {said}");
        let shown = String::from_utf8(rendered.stdout).unwrap();
        assert!(shown.contains("SYNOPSIS") && shown.contains("EXAMPLE"), "{page}: {shown}");
        if page == "model-store-rollback.1" {
            assert!(shown.contains("\n       model-store rollback scout --to v1\n"), "{shown}");
        }
    }
}
