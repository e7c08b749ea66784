//! What `diff` says of two versions.

use std::fs;

use model_store::MoveOptions;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::desk::{Desk, agent};

/// Name, shape, and the values as `f32`.
type Row<'a> = (&'a str, &'a [usize], &'a [f32]);

fn write(desk: &Desk, file: &str, rows: &[Row<'_>]) {
    let bytes: Vec<Vec<u8>> =
        rows.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = rows.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    fs::write(desk.folder().join(file), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn publish(desk: &Desk, version: &str) {
    desk.run(&["publish", "scout", version, "--from", "folder"]).ok();
}

/// `v1` and `v2`, with one difference of each kind.
fn two_versions() -> Desk {
    let desk = Desk::new();
    write(
        &desk,
        "model.safetensors",
        &[("a", &[2], &[1.0, 2.0]), ("b", &[1, 2], &[1.0, 2.0]), ("old", &[1], &[0.0])],
    );
    publish(&desk, "v1");
    fs::write(desk.folder().join("config.json"), b"{\"a\": 1}").unwrap();
    fs::remove_file(desk.folder().join("sub/vocab.txt")).unwrap();
    fs::write(desk.folder().join("vocab.txt"), b"a b c").unwrap();
    write(
        &desk,
        "model.safetensors",
        &[("a", &[2], &[1.0, 2.5]), ("b", &[2], &[1.0, 2.0]), ("new", &[1], &[0.0])],
    );
    publish(&desk, "v2");
    desk
}

#[test]
fn people_read_a_table() {
    let desk = two_versions();
    let shown = desk.run(&["diff", "scout", "v1"]).ok();
    let expected = "\
scout  v1 → v2
           OLD    NEW  PATH
changed    2 B    8 B  config.json
changed  196 B  196 B  model.safetensors
renamed    5 B    5 B  sub/vocab.txt → vocab.txt
0 files, 0 B as before

tensors of model.safetensors  2 changed, 1 added, 1 removed, 0 as before
         OLD         NEW         MAX |Δ|  TENSOR
changed  F32 [2]     F32 [2]    5.000e-1  a
changed  F32 [1, 2]  F32 [2]  same bytes  b
added    -           F32 [1]           -  new
removed  F32 [1]     -                 -  old
";
    assert_eq!(shown, expected, "\n{shown}");
    let same = desk.run(&["diff", "scout", "v2", "current"]).ok();
    assert_eq!(same, "scout  v2 → v2\nthe same 3 files, 209 B\n");
}

#[test]
fn scripts_read_json() {
    let desk = two_versions();
    let found = desk.run(&["diff", "scout", "v1", "v2", "--json"]).json();
    assert_eq!(found["versions"]["old"]["version"], "v1");
    assert_eq!(found["changed"][0]["size"], json!({"old": 2, "new": 8}));
    assert_eq!(found["renamed"][0]["path"], json!({"old": "sub/vocab.txt", "new": "vocab.txt"}));
    let tensors = &found["tensors"][0];
    assert_eq!(tensors["checkpoint"], "model.safetensors");
    assert_eq!(tensors["changed"][0]["max_abs_difference"], 0.5);
    assert_eq!(tensors["added"][0], json!({"name": "new", "dtype": "F32", "shape": [1], "bytes": 4}));
    let found = desk.run(&["diff", "scout", "v1", "v2", "--json", "--no-tensors"]).json();
    assert_eq!(found["tensors"], json!([]));
}

#[test]
fn a_checkpoint_sharded_otherwise_has_the_same_tensors() {
    let desk = Desk::new();
    let rows: [Row<'_>; 3] = [("a", &[1], &[1.0]), ("b", &[1], &[2.0]), ("c", &[1], &[3.0])];
    write(&desk, "model.safetensors", &rows);
    publish(&desk, "v1");
    fs::remove_file(desk.folder().join("model.safetensors")).unwrap();
    write(&desk, "model-00001-of-00002.safetensors", &rows[..1]);
    write(&desk, "model-00002-of-00002.safetensors", &rows[1..]);
    publish(&desk, "v2");
    let shown = desk.run(&["diff", "scout", "v1", "v2"]).ok();
    let expected = "tensors of model.safetensors  0 changed, 0 added, 0 removed, 3 as before\n\
                    only their places in the files differ\n";
    assert!(shown.ends_with(expected), "{shown}");
    // A shard that is the same is not read again, and its tensors are not missed.
    write(&desk, "model-00002-of-00002.safetensors", &[("b", &[1], &[2.0]), ("c", &[1], &[4.0])]);
    publish(&desk, "v3");
    let tensors = &desk.run(&["diff", "scout", "v2", "v3", "--json"]).json()["tensors"][0];
    assert_eq!((&tensors["removed"], &tensors["unchanged"]), (&json!([]), &json!(1)), "{tensors}");
    assert_eq!(tensors["changed"][0]["name"], "c");
}

#[test]
fn what_only_looks_like_safetensors_is_still_compared_as_a_file() {
    let desk = Desk::new();
    for (version, bytes) in [("v1", "not tensors"), ("v2", "neither")] {
        fs::write(desk.folder().join("model.safetensors"), bytes).unwrap();
        publish(&desk, version);
    }
    let shown = desk.run(&["diff", "scout", "v1", "v2"]).ok();
    assert!(shown.contains("changed  11 B  7 B  model.safetensors"), "{shown}");
    assert!(shown.contains("not compared: scout/v1/model.safetensors is not a sound"), "{shown}");
    let found = desk.run(&["diff", "scout", "v1", "v2", "--json"]).json();
    assert!(found["tensors"][0]["error"].as_str().unwrap().contains("claims a header"), "{found}");
}

#[test]
fn the_exit_code_tells_on_request() {
    let desk = two_versions();
    let rows: &[(&[&str], i32)] = &[
        (&["diff", "scout", "v1", "v2"], 0),
        (&["diff", "scout", "v1", "v2", "--exit-code"], 1),
        (&["diff", "scout", "v2", "--exit-code"], 0),
        (&["diff", "scout", "v9", "v2"], 3),
        (&["diff", "nobody", "v1"], 3),
        (&["diff", "scout"], 2),
        (&["diff", "scout", "../v1"], 2),
    ];
    for (arguments, code) in rows {
        let run = desk.run(arguments);
        assert_eq!(run.code, Some(*code), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn refs_are_sides_too() {
    let desk = two_versions();
    let store = desk.store();
    store
        .tag(&agent("scout"), &"champion".parse().unwrap(), &"v1".parse().unwrap(), &MoveOptions::default())
        .unwrap();
    let shown = desk.run(&["diff", "scout", "champion", "current", "--no-tensors"]).ok();
    assert!(shown.starts_with("scout  v1 → v2\n") && !shown.contains("tensors of"), "{shown}");
}

#[test]
fn names_of_others_do_not_move_the_cursor() {
    let desk = Desk::new();
    for (version, value) in [("v1", 1.0), ("v2", 2.0)] {
        write(&desk, "model.safetensors", &[("a\u{1b}[2J", &[1], &[value])]);
        publish(&desk, version);
    }
    let shown = desk.run(&["diff", "scout", "v1", "v2"]).ok();
    assert!(!shown.contains('\u{1b}') && shown.contains(r"a\u{1b}[2J"), "{shown:?}");
}
