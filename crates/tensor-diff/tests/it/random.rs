//! Bytes of chance: no panic, and nothing is accepted that the format's own reader refuses.

use proptest::prelude::*;
use tensor_diff::TensorTable;

use crate::support::raw;

/// Files that are right, or nearly: what breaks them is a slip of an offset, a shape or the data's length.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec![("U8", 8), ("F32", 32), ("F4", 4), ("F6_E2M3", 6)]);
    let slip = || prop_oneof![20 => Just(0_u64), 1 => Just(1), 1 => any::<u64>()];
    let tensor = ("[a-z]", dtype, prop::collection::vec(0_u64..5, 0..3), slip(), slip());
    (prop::collection::vec(tensor, 0..4), slip()).prop_map(|(tensors, slip)| {
        let mut end = 0;
        let entries: Vec<_> = tensors
            .into_iter()
            .map(|(name, (dtype, bits), shape, begin_slip, end_slip)| {
                let begin = end;
                end += shape.iter().product::<u64>() * bits / 8;
                let (begin, end) = (begin.wrapping_add(begin_slip), end.wrapping_add(end_slip));
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        let data = usize::try_from(end + slip % 3).unwrap();
        raw(&format!("{{{}}}", entries.join(",")), &vec![7; data])
    })
}

proptest! {
    #[test]
    fn bytes_of_chance(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = TensorTable::read("random", bytes);
    }

    #[test]
    fn what_is_accepted_is_sound(file in file()) {
        if let Ok(table) = TensorTable::read("random", file.clone()) {
            let theirs = safetensors::SafeTensors::deserialize(&file).expect("the reference reader takes it");
            prop_assert_eq!(theirs.len(), table.tensors().count());
            for (name, tensor) in table.tensors() {
                let bytes = theirs.tensor(name).unwrap().data().to_vec();
                let begin = usize::try_from(tensor.offset_bytes).unwrap();
                prop_assert_eq!(&file[begin..begin + bytes.len()], &bytes[..]);
            }
            let same = tensor_diff::diff(&table, &table).unwrap();
            prop_assert!(same.is_empty());
        }
    }
}
