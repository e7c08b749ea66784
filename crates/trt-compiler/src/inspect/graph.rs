//! What an ONNX file holds, counted: read as protobuf, without its weights and without trusting it.

use std::collections::BTreeMap;

use serde::Serialize;

/// Field numbers of `onnx.proto`.
mod field {
    pub(super) const MODEL_OPSET: u64 = 8;
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const OPSET_DOMAIN: u64 = 1;
    pub(super) const OPSET_VERSION: u64 = 2;
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const NODE_OPERATOR: u64 = 4;
    pub(super) const TENSOR_LOCATION: u64 = 14;
}

/// The operators of a graph and what else it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GraphSummary {
    /// Number of nodes.
    pub nodes: usize,
    /// Number of nodes of each operator.
    pub operators: BTreeMap<String, usize>,
    /// Number of initializers, constants included.
    pub initializers: usize,
    /// How many of them lie in other files.
    pub external: usize,
    /// Number of casts.
    pub casts: usize,
    /// Version of each operator set; the standard one has no name.
    pub opsets: BTreeMap<String, u64>,
}

/// One field of a message.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Counts; an error says where the bytes stop being a graph.
pub(crate) fn summarize(bytes: &[u8]) -> Result<GraphSummary, String> {
    let mut summary = GraphSummary::default();
    let mut has_graph = false;
    each(bytes, &mut |number, value| match (number, value) {
        (field::MODEL_OPSET, Value::Bytes(opset)) => {
            let (mut domain, mut version) = (String::new(), 0);
            each(opset, &mut |number, value| {
                match (number, value) {
                    (field::OPSET_DOMAIN, Value::Bytes(name)) => domain = lossy(name),
                    (field::OPSET_VERSION, Value::Number(number)) => version = number,
                    _ => {}
                }
                Ok(())
            })?;
            summary.opsets.insert(domain, version);
            Ok(())
        }
        (field::MODEL_GRAPH, Value::Bytes(graph)) => {
            has_graph = true;
            count(graph, &mut summary)
        }
        _ => Ok(()),
    })?;
    if !has_graph {
        return Err("it holds no graph".to_owned());
    }
    summary.casts = summary.operators.get("Cast").copied().unwrap_or_default();
    Ok(summary)
}

fn count(graph: &[u8], summary: &mut GraphSummary) -> Result<(), String> {
    each(graph, &mut |number, value| {
        match (number, value) {
            (field::GRAPH_NODE, Value::Bytes(node)) => {
                summary.nodes += 1;
                each(node, &mut |number, value| {
                    if let (field::NODE_OPERATOR, Value::Bytes(operator)) = (number, value) {
                        *summary.operators.entry(lossy(operator)).or_default() += 1;
                    }
                    Ok(())
                })?;
            }
            (field::GRAPH_INITIALIZER, Value::Bytes(tensor)) => {
                summary.initializers += 1;
                each(tensor, &mut |number, value| {
                    if matches!((number, value), (field::TENSOR_LOCATION, Value::Number(1))) {
                        summary.external += 1;
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Gives each field of a message to `f`.
fn each<'a>(bytes: &'a [u8], f: &mut dyn FnMut(u64, Value<'a>) -> Result<(), String>) -> Result<(), String> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => Value::Bytes(take(&mut rest, 8)?),
            2 => {
                let length = varint(&mut rest)?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => Value::Bytes(take(&mut rest, 4)?),
            kind => return Err(format!("a field of kind {kind} is in no ONNX file")),
        };
        f(key >> 3, value)?;
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest, 1)? else { break };
        number |= u64::from(byte & 127) << shift;
        if byte & 128 == 0 {
            return Ok(number);
        }
    }
    Err("a number does not end".to_owned())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let cut = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (taken, left) =
        cut.ok_or_else(|| format!("it ends {} bytes too early", length - rest.len() as u64))?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_are_counted_and_garbage_is_not() {
        // One standard operator set, two nodes, one initializer in another file.
        let model = b"\x42\x02\x10\x17\x3a\x12\x0a\x06\x22\x04Cast\x0a\x04\x22\x02Or\x2a\x02\x70\x01";
        let check = |row: &str, bytes: &[u8], expected: Result<(usize, usize), &str>| match (
            summarize(bytes),
            expected,
        ) {
            (Ok(summary), Ok(counts)) => {
                assert_eq!((summary.nodes, summary.external), counts, "{row}");
                assert_eq!((summary.casts, summary.initializers), (1, 1), "{row}");
                assert_eq!(summary.opsets[""], 23, "{row}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{row}: {error}"),
            (got, _) => panic!("{row}: {got:?}"),
        };
        check("a graph", model, Ok((2, 1)));
        check("nothing", b"", Err("no graph"));
        check("cut short", &model[..10], Err("too early"));
        check("endless number", &[0xff; 20], Err("does not end"));
        check("another format", b"\x0e\x00", Err("kind 6"));
        check("a length of almost everything", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", Err("too early"));
        // Whatever a cut leaves, nothing panics.
        for end in 0..model.len() {
            let _ = summarize(&model[..end]);
        }
    }
}
