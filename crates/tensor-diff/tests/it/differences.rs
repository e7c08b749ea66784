//! What is found, and what is none.

use std::collections::HashMap;
use std::ops::ControlFlow;

use half::{bf16, f16};
use safetensors::Dtype::{self, BF16, F16, F32, F64, I64, U8};
use tensor_diff::{TensorDiff, TensorError, TensorTable, checkpoint_name, diff, diff_observed};

use crate::support::{Row, f32s, file, file_with, table, write};

fn names(found: &TensorDiff) -> [Vec<&str>; 3] {
    [
        found.added.iter().map(|t| t.name.as_str()).collect(),
        found.removed.iter().map(|t| t.name.as_str()).collect(),
        found.changed.iter().map(|t| t.name.as_str()).collect(),
    ]
}

#[test]
fn tensors_added_removed_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let old = write(
        &dir.path().join("old.safetensors"),
        &[
            ("a.same", F32, &[2], f32s(&[1.0, 2.0])),
            ("b.gone", U8, &[3], vec![1, 2, 3]),
            ("c.bytes", F32, &[2], f32s(&[1.0, 2.0])),
            ("d.shape", F32, &[2, 1], f32s(&[1.0, 2.0])),
            ("e.dtype", F16, &[2], vec![0; 4]),
            ("f.empty", F32, &[0, 4], vec![]),
        ],
    );
    let new = write(
        &dir.path().join("new.safetensors"),
        &[
            ("a.same", F32, &[2], f32s(&[1.0, 2.0])),
            ("b.new", I64, &[], vec![0; 8]),
            ("c.bytes", F32, &[2], f32s(&[1.5, -2.0])),
            ("d.shape", F32, &[1, 2], f32s(&[1.0, 2.0])),
            ("e.dtype", BF16, &[2], vec![0; 4]),
            ("f.empty", F32, &[0, 4], vec![]),
        ],
    );
    let found = diff(&old, &new).unwrap();
    assert_eq!(names(&found), [vec!["b.new"], vec!["b.gone"], vec!["c.bytes", "d.shape", "e.dtype"]]);
    assert_eq!((found.unchanged, found.unchanged_bytes), (2, 8));
    let [bytes, shape, dtype] = &found.changed[..] else { panic!("{found:?}") };
    assert_eq!((bytes.bytes_differ, bytes.max_abs_difference), (true, Some(4.0)));
    assert_eq!((shape.bytes_differ, shape.max_abs_difference), (false, None));
    assert_eq!((shape.shape.old.as_slice(), shape.shape.new.as_slice()), (&[2, 1][..], &[1, 2][..]));
    assert_eq!((dtype.dtype.old, dtype.dtype.new, dtype.bytes_differ), (F16, BF16, false));

    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        json["added"][0],
        serde_json::json!({"name": "b.new", "dtype": "I64", "shape": [], "bytes": 8})
    );
    assert_eq!(json["changed"][2]["dtype"], serde_json::json!({"old": "F16", "new": "BF16"}));
    assert!(diff(&new, &new).unwrap().is_empty());
}

/// What is compared, of which type, and the distance.
type DistanceRow = (&'static str, Dtype, Vec<u8>, Vec<u8>, Option<f64>);

#[test]
fn distances() {
    let halves = |values: [f32; 2]| values.map(f16::from_f32).map(f16::to_le_bytes).concat();
    let brains = |values: [f32; 2]| values.map(bf16::from_f32).map(bf16::to_le_bytes).concat();
    let doubles = |values: [f64; 2]| values.map(f64::to_le_bytes).concat();
    let rows: [DistanceRow; 8] = [
        ("F16", F16, halves([1.0, -3.0]), halves([1.0, 3.0]), Some(6.0)),
        ("BF16", BF16, brains([256.0, 0.0]), brains([0.5, 0.0]), Some(255.5)),
        ("F64", F64, doubles([0.0, 1e300]), doubles([0.0, -1e300]), Some(2e300)),
        ("only the sign of zero", F32, f32s(&[0.0]), f32s(&[-0.0]), Some(0.0)),
        ("a number and none", F32, f32s(&[0.0]), f32s(&[f32::NAN]), None),
        ("infinite", F32, f32s(&[f32::INFINITY]), f32s(&[f32::MAX]), None),
        ("equal NaNs beside", F32, f32s(&[f32::NAN, 1.0]), f32s(&[f32::NAN, 2.0]), Some(1.0)),
        ("no floats", U8, vec![1], vec![255], None),
    ];
    for (row, dtype, old, new, expected) in rows {
        let shape = [old.len() * 8 / dtype.bitsize()];
        let side = |bytes| table(&[("t", dtype, &shape, bytes)]);
        let found = diff(&side(old), &side(new)).unwrap();
        assert_eq!(found.changed.len(), 1, "{row}");
        assert_eq!(found.changed[0].max_abs_difference, expected, "{row}");
    }
}

/// A difference in the last byte of a tensor of many pieces is found, and a larger one in its middle measured.
#[test]
fn large_tensors_are_compared_to_their_end() {
    let count = 600_000;
    let zeros = vec![0.0; count];
    let (mut last, mut middle) = (zeros.clone(), zeros.clone());
    last[count - 1] = 1.0;
    middle[300_000] = -7.0;
    middle[count - 1] = 1.0;
    let side = |values: &[f32]| table(&[("big", F32, &[600_000], f32s(values)), ("z", U8, &[1], vec![9])]);
    for (row, other, expected) in [("last", &last, 1.0), ("middle", &middle, 7.0)] {
        let found = diff(&side(&zeros), &side(other)).unwrap();
        assert_eq!(found.changed[0].max_abs_difference, Some(expected), "{row}");
        assert_eq!((found.changed.len(), found.unchanged), (1, 1), "{row}");
    }
}

#[test]
fn sharding_otherwise_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let rows: [Row<'_>; 3] =
        [("a", F32, &[1], f32s(&[1.0])), ("b", F32, &[1], f32s(&[2.0])), ("c", F32, &[1], f32s(&[3.0]))];
    let whole = write(&dir.path().join("model.safetensors"), &rows);
    let shards = || {
        [&rows[..1], &rows[1..]].into_iter().enumerate().map(|(i, part)| {
            write(&dir.path().join(format!("model-0000{}-of-00002.safetensors", i + 1)), part)
        })
    };
    let united = TensorTable::unite(shards()).unwrap();
    assert_eq!(united.tensors().count(), 3);
    let found = diff(&whole, &united).unwrap();
    assert!(found.is_empty() && found.unchanged == 3 && !found.metadata_differs, "{found:?}");

    let twice = TensorTable::unite(shards().chain([whole.clone()])).unwrap_err();
    let said = twice.to_string();
    assert!(matches!(twice, TensorError::Twice { .. }) && said.contains("\"a\" is both in"), "{said}");
}

#[test]
fn metadata_alone_is_told() {
    let rows: [Row<'_>; 1] = [("a", U8, &[1], vec![1])];
    let with = |value: &str| {
        let metadata = HashMap::from([("format".to_owned(), value.to_owned())]);
        TensorTable::read("table", file_with(&rows, Some(metadata))).unwrap()
    };
    let found = diff(&with("pt"), &with("np")).unwrap();
    assert!(found.is_empty() && found.metadata_differs);
    assert_eq!(with("pt").metadata().collect::<Vec<_>>(), [("format", "pt")]);
    assert!(!diff(&with("pt"), &with("pt")).unwrap().metadata_differs);
}

#[test]
fn an_observer_sees_every_byte_and_can_stop() {
    let bytes = |byte| vec![byte; 700_000];
    let old = table(&[("a", U8, &[700_000], bytes(0)), ("b", U8, &[10], vec![0; 10])]);
    let new = table(&[("a", U8, &[700_000], bytes(1)), ("c", U8, &[7], vec![0; 7])]);
    let mut seen = 0;
    diff_observed(&old, &new, &mut |bytes| {
        seen += bytes;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, new.bytes());
    let stopped = diff_observed(&old, &new, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(stopped, TensorError::Stopped));
}

/// The file shrinks between the look at its header and the comparison.
#[test]
fn a_file_that_shrinks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let rows: [Row<'_>; 1] = [("a", U8, &[1000], vec![1; 1000])];
    let before = write(&path, &rows);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(500).unwrap();
    let error = diff(&before, &TensorTable::read("new", file(&rows)).unwrap()).unwrap_err();
    assert!(
        matches!(&error, TensorError::Io { file, .. } if file.ends_with("model.safetensors")),
        "{error:?}"
    );
}

#[test]
fn shards_belong_to_their_checkpoint() {
    let rows = [
        ("model.safetensors", Some("model.safetensors")),
        ("a/b/model-00002-of-00010.safetensors", Some("a/b/model.safetensors")),
        ("model-of-00002.safetensors", Some("model-of-00002.safetensors")),
        ("model-1-of-.safetensors", Some("model-1-of-.safetensors")),
        ("model-x-of-2.safetensors", Some("model-x-of-2.safetensors")),
        ("best-of-3.safetensors", Some("best-of-3.safetensors")),
        ("model.safetensors.index.json", None),
        ("safetensors", None),
    ];
    for (path, expected) in rows {
        assert_eq!(checkpoint_name(path).as_deref(), expected, "{path}");
    }
}
