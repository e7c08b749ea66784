//! Which profile a batch runs in.

use crate::RuntimeError;
use crate::description::InputShape;
use crate::profile::Span;
use crate::tensor::Input;

/// The smallest profile that takes a batch of this shape: its kernels are made for sizes nearest to it.
///
/// `profiles` are the inputs of each; `batch` has each of them once, in any order.
pub(crate) fn choose(profiles: &[Vec<InputShape>], batch: &[Input]) -> Result<usize, RuntimeError> {
    let inputs = profiles.first().map(Vec::as_slice).unwrap_or_default();
    for (index, input) in batch.iter().enumerate() {
        let name = &input.name;
        if inputs.iter().all(|known| known.name != *name) {
            let names: Vec<&str> = inputs.iter().map(|known| known.name.as_str()).collect();
            let names = names.join(", ");
            return Err(RuntimeError::Batch(format!("it has no input `{name}`; its inputs are {names}")));
        }
        if batch[..index].iter().any(|other| other.name == *name) {
            return Err(RuntimeError::Batch(format!("`{name}` was given twice")));
        }
    }
    if let Some(missing) = inputs.iter().find(|known| batch.iter().all(|input| input.name != known.name)) {
        return Err(RuntimeError::Batch(format!("its input `{}` was not given", missing.name)));
    }
    let fitting = profiles.iter().enumerate().filter(|(_, profile)| takes(profile, batch));
    let smallest = fitting.min_by(|(_, a), (_, b)| capacity(a).total_cmp(&capacity(b)));
    smallest.map(|(index, _)| index).ok_or_else(|| RuntimeError::Batch(misfit(profiles, batch)))
}

fn takes(profile: &[InputShape], batch: &[Input]) -> bool {
    batch.iter().all(|input| {
        profile.iter().any(|known| {
            known.name == input.name
                && known.dims.len() == input.shape.len()
                && known.dims.iter().zip(&input.shape).all(|(span, size)| within(span, *size))
        })
    })
}

fn within(span: &Span, size: usize) -> bool {
    (span.min as usize..=span.max as usize).contains(&size)
}

/// How much a profile takes at most, in values of its inputs.
fn capacity(profile: &[InputShape]) -> f64 {
    let volume = |input: &InputShape| input.dims.iter().map(|span| f64::from(span.max)).product::<f64>();
    profile.iter().map(volume).sum()
}

fn misfit(profiles: &[Vec<InputShape>], batch: &[Input]) -> String {
    let shapes = |profile: &Vec<InputShape>| {
        let input = profile.iter().map(|input| {
            let dims: Vec<String> =
                input.dims.iter().map(|span| format!("{}–{}", span.min, span.max)).collect();
            format!("{} [{}]", input.name, dims.join(" × "))
        });
        input.collect::<Vec<_>>().join(", ")
    };
    let given: Vec<String> = batch.iter().map(|input| format!("{} {:?}", input.name, input.shape)).collect();
    let taken: Vec<String> = profiles.iter().map(shapes).collect();
    format!("{} were given, and it takes {}", given.join(", "), taken.join("; or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use crate::tensor::Values;
    use onnx_export::DataType;

    fn profiles(texts: &[&str]) -> Vec<Vec<InputShape>> {
        let inputs = |text: &&str| {
            let profile: Profile = text.parse().unwrap_or_else(|error| panic!("{error}"));
            ["ids", "mask"].map(|name| InputShape::new(name, DataType::I64, &profile)).to_vec()
        };
        texts.iter().map(inputs).collect()
    }

    fn input(name: &str, shape: &[usize]) -> Input {
        Input { name: name.to_owned(), shape: shape.to_vec(), values: Values::I64(Vec::new()) }
    }

    #[test]
    fn a_batch_runs_in_the_smallest_profile_that_takes_it() {
        let two = profiles(&["1,8,64x1,128,512", "1,1,4x1,16,64"]);
        let check =
            |row: &str, batch: &[Input], expected: Result<usize, &str>| match (choose(&two, batch), expected)
            {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{row}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{row}: {error}"),
                (found, _) => panic!("{row}: {found:?}"),
            };
        let both = |shape: &[usize]| [input("ids", shape), input("mask", shape)];
        check("small", &both(&[2, 20]), Ok(1));
        check("the edge of the small one", &both(&[4, 64]), Ok(1));
        check("large", &both(&[5, 20]), Ok(0));
        check("the edge of the large one", &both(&[64, 512]), Ok(0));
        check("too long", &both(&[1, 513]), Err("[1, 513]"));
        check("empty", &both(&[0, 5]), Err("1–64 × 1–512"));
        check("another rank", &both(&[5]), Err("takes ids"));
        check("one missing", &[input("ids", &[1, 1])], Err("`mask` was not given"));
        check("one twice", &[input("ids", &[1, 1]), input("ids", &[1, 1])], Err("twice"));
        check("unknown", &[input("pixels", &[1, 1])], Err("no input `pixels`; its inputs are ids, mask"));
    }
}
