//! Files that are no safetensors files: each is one error that names the file and the reason.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tensor_diff::{MAX_HEADER_BYTES, TensorError, TensorTable};

use crate::support::raw;

fn u8s(name: &str, begin: u64, end: u64) -> String {
    format!(
        r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
        end.saturating_sub(begin)
    )
}

#[test]
fn every_broken_file_is_refused_with_its_reason() {
    let whole = raw(&format!("{{{}}}", u8s("a", 0, 4)), &[0; 4]);
    assert!(TensorTable::read("whole", whole.clone()).is_ok(), "the rows below break this one");
    let one = |tensor: &str| raw(&format!("{{{tensor}}}"), &[0; 4]);
    let two = |a: &str, b: &str| raw(&format!("{{{a},{b}}}"), &[0; 4]);
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        one(&format!(r#""a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}"#))
    };
    let rows: &[(&str, Vec<u8>, &str)] = &[
        ("empty", Vec::new(), "has 0 bytes"),
        ("seven bytes", vec![0; 7], "has 7 bytes"),
        ("no header", vec![0; 8], "begin with '{'"),
        (
            "a header longer than the file",
            raw("{", b"")[..8].to_vec(),
            "claims a header of 1 bytes and has 8",
        ),
        ("a header of 2^64-1 bytes", vec![255; 64], "the format allows 100000000"),
        ("a header over the limit", (MAX_HEADER_BYTES + 1).to_le_bytes().to_vec(), "the format allows"),
        ("cut in the header", whole[..20].to_vec(), "claims a header"),
        (
            "cut in the data",
            whole[..whole.len() - 1].to_vec(),
            "need 4 bytes after the header, and 3 are there",
        ),
        ("bytes behind", [&whole[..], &[0]].concat(), "need 4 bytes after the header, and 5 are there"),
        ("no JSON", raw("{nonsense}", b""), "cannot be read"),
        ("not UTF-8", [&2_u64.to_le_bytes()[..], b"{\xff"].concat(), "cannot be read"),
        ("a list", raw("[]", b""), "begin with '{'"),
        ("spaces before", raw(" {}", b""), "begin with '{'"),
        ("something behind the object", raw("{}{}", b""), "trailing characters"),
        ("nested without end", raw(&format!(r#"{{"a":{}"#, "[".repeat(100_000)), b""), "cannot be read"),
        ("an unknown dtype", tensor(r#""F3""#, "[4]", "[0,4]"), "unknown variant `F3`"),
        ("a dtype that is no string", tensor("7", "[4]", "[0,4]"), "cannot be read"),
        ("a negative axis", tensor(r#""U8""#, "[-4]", "[0,4]"), "cannot be read"),
        (
            "an axis too large for any number",
            tensor(r#""U8""#, "[18446744073709551616]", "[0,4]"),
            "cannot be read",
        ),
        (
            "a shape that overflows",
            tensor(r#""U8""#, "[4294967296,4294967296,2]", "[0,4]"),
            "impossible size",
        ),
        ("bits that overflow", tensor(r#""F32""#, "[1152921504606846976]", "[0,4]"), "impossible size"),
        ("half a byte", tensor(r#""F4""#, "[3]", "[0,4]"), "impossible size"),
        ("no offsets", one(r#""a":{"dtype":"U8","shape":[4]}"#), "missing field `data_offsets`"),
        ("three offsets", tensor(r#""U8""#, "[4]", "[0,4,8]"), "cannot be read"),
        ("offsets backwards", tensor(r#""U8""#, "[4]", "[4,0]"), "begins at 4"),
        ("backwards from the right place", two(&u8s("a", 0, 4), &u8s("b", 4, 2)), "lies from 4 to 2"),
        ("shape and offsets disagree", tensor(r#""F32""#, "[4]", "[0,4]"), "need 16 bytes"),
        ("overlap", two(&u8s("a", 0, 3), &u8s("b", 2, 4)), "begins at 2, where 3 is the first byte left"),
        ("the same bytes twice", two(&u8s("a", 0, 4), &u8s("b", 0, 4)), "begins at 0, where 4"),
        ("a gap", two(&u8s("a", 0, 1), &u8s("b", 2, 4)), "begins at 2, where 1"),
        ("a gap at the beginning", one(&u8s("a", 1, 4)), "begins at 1, where 0"),
        (
            "an end outside the file",
            one(&u8s("a", 0, 1 << 40)),
            "need 1099511627776 bytes after the header, and 4 are there",
        ),
        ("a name twice", two(&u8s("a", 0, 4), &u8s("a", 0, 4)), "tensor \"a\" twice"),
        (
            "an empty tensor twice",
            two(&u8s("b", 0, 4), &format!("{0},{0}", u8s("a", 4, 4))),
            "tensor \"a\" twice",
        ),
        ("metadata twice", two(r#""__metadata__":{}"#, r#""__metadata__":{}"#), "__metadata__ twice"),
        ("metadata with a number", one(r#""__metadata__":{"a":1}"#), "cannot be read"),
    ];
    for (row, bytes, reason) in rows {
        let error = TensorTable::read("model.safetensors", bytes.clone())
            .err()
            .unwrap_or_else(|| panic!("{row}: it was accepted"));
        assert!(matches!(error, TensorError::Broken { .. }), "{row}: {error:?}");
        let said = error.to_string();
        assert!(said.starts_with("model.safetensors is not a sound safetensors file: "), "{row}: {said}");
        assert!(said.contains(reason), "{row}: {reason:?} is not in {said:?}");
    }
}

#[test]
fn what_is_no_regular_file_is_not_waited_for() {
    for path in ["/dev/zero", "/"] {
        let error = TensorTable::open(path.as_ref()).unwrap_err();
        assert!(matches!(&error, TensorError::Io { file, .. } if file == path), "{path}: {error:?}");
    }
    let error = TensorTable::open("/no/such/model.safetensors".as_ref()).unwrap_err();
    assert_eq!(error.to_string(), "could not read /no/such/model.safetensors");
}

#[test]
fn a_sparse_giant_is_refused_by_its_header_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("giant.safetensors");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&99_999_999_999_u64.to_le_bytes(), 0).unwrap();
    let error = TensorTable::open(&path).unwrap_err();
    assert!(error.to_string().contains("the format allows"), "{error}");
}
