//! Folders of modules against what sentence-transformers gave for them; streams, long texts, fewer bits.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use cpu_kernels::Arithmetic;
use model_loader::{
    Backend, Chunking, EmbedOptions, LoadError, LoadOptions, Quantization, Quantized, Ranges,
    SentenceEmbedder, Similarity, quantize,
};
use model_store::exit;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::json;

use crate::support::{
    check_error, copy_of, data, each_batching, edit_json, edit_tensors, max_abs, min_cosine, on_own_kernels,
    output, texts, with,
};

const MIN_COSINE: f64 = 0.999_99;

/// What was asked of sentence-transformers.
#[derive(Clone, Deserialize)]
struct Call {
    name: String,
    folder: String,
    /// Where the encoder is; a table of token vectors has no such place.
    at: Option<String>,
    method: String,
    prompt: Option<String>,
    prompt_name: Option<String>,
    truncate_dim: Option<NonZeroUsize>,
    #[serde(default)]
    normalize_embeddings: bool,
}

/// The modules of a fixture, with the files that they share.
fn assemble(folder: &str, at: Option<&str>) -> tempfile::TempDir {
    let whole = tempfile::tempdir().unwrap();
    copy(&data("sentences").join(folder), whole.path());
    if let Some(at) = at {
        let into = whole.path().join(at);
        fs::create_dir_all(&into).unwrap();
        let files = ["config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json"];
        for file in files.into_iter().chain(["tokenizer_config.json"]) {
            fs::copy(data("sentence").join(file), into.join(file)).unwrap();
        }
    } else {
        let weights = if folder == "model2vec" { "model2vec.safetensors" } else { "model.safetensors" };
        let table = data("sentences").join("table");
        fs::copy(table.join(weights), whole.path().join("model.safetensors")).unwrap();
        fs::copy(table.join("tokenizer.json"), whole.path().join("tokenizer.json")).unwrap();
    }
    whole
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[test]
fn every_call_gives_what_sentence_transformers_gave() {
    let calls: Vec<Call> =
        serde_json::from_slice(&fs::read(data("sentences").join("calls.json")).unwrap()).unwrap();
    assert!(calls.len() >= 25);
    let check = |call: Call, options: &LoadOptions, allowed: f32| {
        let Call { name, folder, at, method, prompt, prompt_name, truncate_dim, normalize_embeddings } = call;
        let whole = assemble(&folder, at.as_deref());
        let embedder = SentenceEmbedder::from_dir_with(whole.path(), options).unwrap();
        let backend = options.backend;
        let options = EmbedOptions { prompt, prompt_name, truncate_dim, normalize: normalize_embeddings };
        let run = |texts: &[&str]| {
            match method.as_str() {
                "encode_query" => embedder.embed_queries(texts, &options),
                "encode_document" => embedder.embed_documents(texts, &options),
                _ => embedder.embed_with(texts, &options),
            }
            .unwrap()
        };
        let expected = output("sentences", &name);
        if truncate_dim.is_none() {
            assert_eq!(embedder.dimension(), expected[0].len(), "{name}");
        }
        each_batching(&texts("sentences"), run, |batching, vectors| {
            // A vector of 0, such as that of a table for no text, has no direction.
            let pairs = vectors.iter().zip(&expected).filter(|(_, row)| row.iter().any(|x| *x != 0.0));
            let (some, wanted): (Vec<_>, Vec<_>) = pairs.map(|(a, b)| (a.clone(), b.clone())).unzip();
            let (cosine, abs) = (min_cosine(&some, &wanted), max_abs(vectors, &expected));
            assert!(
                cosine >= MIN_COSINE && abs <= allowed,
                "{name} on {backend}, {batching}: cosine {cosine}, max abs {abs:e}"
            );
        });
    };
    on_own_kernels(1e-4, |options, allowed| {
        calls.iter().cloned().for_each(|call| check(call, options, allowed));
    });
}

/// A unit of each feed-forward block that is large and that nothing listens to: beside it the others of its block are less
/// than a step of 16 bits.
#[test]
fn a_model_that_sixteen_bits_would_spoil_is_computed_in_float32() {
    if Arithmetic::fastest() != Arithmetic::Fixed16 {
        return eprintln!("skipped: float32 is the faster arithmetic here");
    }
    let copy = copy_of("sentence");
    fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    fs::write(copy.path().join("1_Pooling/config.json"), json!({ "pooling_mode": "mean" }).to_string())
        .unwrap();
    let embed = |backend: Backend| {
        let embedder = SentenceEmbedder::from_dir_with(copy.path(), &with(backend)).unwrap();
        (embedder.backend(), embedder.embed(&texts("sentence")).unwrap())
    };
    assert_eq!(embed(Backend::Auto).0, Backend::CpuFixed16);
    edit_tensors(&copy.path().join("model.safetensors"), |name, values| {
        if name.ends_with("intermediate.dense.bias") {
            values[0] = 1e6;
        } else if name.ends_with("output.dense.weight") && !name.contains("attention") {
            values.chunks_exact_mut(48).for_each(|row| row[0] = 0.0);
        }
    });
    let (_, exact) = embed(Backend::Cpu);
    let (_, spoilt) = embed(Backend::CpuFixed16);
    assert!(min_cosine(&exact, &spoilt) < 0.999, "the unit does no harm, so that there is nothing to find");
    assert_eq!(embed(Backend::Auto), (Backend::Cpu, exact));
}

#[test]
fn similarities_are_those_of_sentence_transformers() {
    let (left, right) = (output("sentences", "dense"), output("sentences", "dense.unit"));
    let check = |similarity: Similarity| {
        let expected = output("sentences", &format!("similarity.{similarity}"));
        let found = max_abs(&similarity.matrix(&left, &right), &expected);
        assert!(found <= 1e-5, "{similarity}: max abs {found:e}");
        assert_eq!(similarity.name().parse::<Similarity>().unwrap(), similarity);
    };
    check(Similarity::Cosine);
    check(Similarity::Dot);
    check(Similarity::Euclidean);
    check(Similarity::Manhattan);
    let said = |folder| SentenceEmbedder::from_dir(assemble(folder, Some("")).path()).unwrap().similarity();
    assert_eq!((said("fewer"), said("dense")), (Similarity::Dot, Similarity::Cosine));
}

#[test]
fn quantised_vectors_are_those_of_sentence_transformers() {
    let bytes = fs::read(data("sentences").join("quantized.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<Vec<f32>> {
        let view = tensors.tensor(name).unwrap();
        let values: Vec<f32> = view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        values.chunks(view.shape()[1]).map(<[f32]>::to_vec).collect()
    };
    let (vectors, ranges) = (floats("vectors"), Ranges::of(&floats("calibration")).unwrap());
    let check = |name: &str, precision: Quantization| {
        for (suffix, ranges) in [("own", None), ("calibrated", Some(&ranges))] {
            let view = tensors.tensor(&format!("{name}.{suffix}")).unwrap();
            let found: Vec<u8> = match quantize(&vectors, precision, ranges).unwrap() {
                Quantized::Unsigned(rows) => rows.concat(),
                Quantized::Signed(rows) => rows.concat().into_iter().map(i8::cast_unsigned).collect(),
            };
            assert_eq!(found, view.data(), "{name}.{suffix}");
        }
    };
    check("int8", Quantization::Int8);
    check("uint8", Quantization::Uint8);
    check("binary", Quantization::Binary);
    check("ubinary", Quantization::Ubinary);
}

/// A byte more or less is what a sum in another order may make of a value that lies on the edge of a step.
#[test]
fn what_is_embedded_and_quantised_here_is_within_a_step() {
    let embedder = SentenceEmbedder::from_dir(assemble("dense", Some("")).path()).unwrap();
    let (vectors, expected) = (embedder.embed(&texts("sentences")).unwrap(), output("sentences", "dense"));
    let ranges = Ranges::of(&expected).unwrap();
    let unsigned = |vectors: &[Vec<f32>]| match quantize(vectors, Quantization::Uint8, Some(&ranges)).unwrap()
    {
        Quantized::Unsigned(rows) => rows.concat(),
        Quantized::Signed(_) => panic!("uint8 is unsigned"),
    };
    for (found, expected) in unsigned(&vectors).into_iter().zip(unsigned(&expected)) {
        assert!(found.abs_diff(expected) <= 1, "{found} where sentence-transformers has {expected}");
    }
}

#[test]
fn quantising_what_does_not_go_together_is_refused() {
    let vectors = [vec![1.0, 2.0], vec![1.0]];
    let error = quantize(&vectors, Quantization::Ubinary, None).unwrap_err();
    check_error("lengths", &error, exit::USAGE, &["vector 1", "1 components", "the first 2"]);
    let ranges = Ranges::of(&[vec![0.0; 3]]).unwrap();
    let error = quantize(&vectors[..1], Quantization::Int8, Some(&ranges)).unwrap_err();
    check_error("ranges", &error, exit::USAGE, &["ranges of 3", "vectors of 2"]);
    assert!(Ranges::of(&[]).is_none());
}

#[test]
fn a_stream_gives_what_a_batch_gives_in_order() {
    let embedder = SentenceEmbedder::from_dir(assemble("subfolder", Some("0_Transformer")).path()).unwrap();
    // More than a window, and one text that fills a window by itself.
    let texts: Vec<String> = (0..2500)
        .map(|index| match index {
            700 => "word ".repeat(1 << 18),
            _ => format!("{} ships wait {}", index, "and wait ".repeat(index % 7)),
        })
        .collect();
    let expected = embedder.embed(&texts).unwrap();
    let stream = embedder.embed_iter(&texts, &EmbedOptions::default());
    let found: Vec<_> = stream.collect::<Result<_, _>>().unwrap();
    assert!(max_abs(&found, &expected) <= 1e-5);
    assert_eq!(embedder.embed_iter(Vec::<String>::new(), &EmbedOptions::default()).count(), 0);
}

/// A stream that went on after an error would give vectors for texts that nobody can tell apart any more.
#[test]
fn a_stream_ends_with_its_error() {
    let embedder = SentenceEmbedder::from_dir(assemble("dense", Some("")).path()).unwrap();
    let options = EmbedOptions { prompt_name: Some("nowhere".to_owned()), ..EmbedOptions::default() };
    let items: Vec<_> = embedder.embed_iter(["a", "b"], &options).collect();
    let [Err(error)] = &items[..] else { panic!("{items:?}") };
    check_error("prompt", error, exit::USAGE, &["nowhere", "it has: none"]);
}

#[test]
fn a_long_text_is_read_to_its_end() {
    let embedder = SentenceEmbedder::from_dir(assemble("subfolder", Some("0_Transformer")).path()).unwrap();
    let options = EmbedOptions::default();
    let sentence = "the committee meets on tuesday, and ships wait in Zürich's naïve café 東京. ";
    let check = |row: &str, text: &str, chunking: Chunking, prompt: Option<&str>| {
        let options = EmbedOptions { prompt: prompt.map(str::to_owned), ..options.clone() };
        let long = embedder.embed_long(text, &chunking, &options).unwrap();
        let max = chunking.max_tokens.unwrap_or(embedder.tokenizer().max_tokens());
        let mut covered = 0;
        for (index, piece) in long.pieces.iter().enumerate() {
            let part = &text[piece.range.clone()];
            assert_eq!(part.trim(), part, "{row}: piece {index}");
            assert!(!part.is_empty(), "{row}: piece {index}");
            // Nothing but white space is left out, and pieces go on from where the last one was.
            if piece.range.start > covered {
                assert_eq!(text[covered..piece.range.start].trim(), "", "{row}: before piece {index}");
            }
            assert!(piece.range.end > covered, "{row}: piece {index} adds nothing");
            covered = piece.range.end;
            let prompted = format!("{}{part}", prompt.unwrap_or_default());
            assert!(
                embedder.tokenizer().spans(&prompted).unwrap().len() + 2 <= max,
                "{row}: piece {index} is cut"
            );
            let alone = embedder.embed_with(&[part], &options).unwrap();
            assert!(max_abs(&alone, std::slice::from_ref(&piece.vector)) <= 1e-5, "{row}: piece {index}");
        }
        assert_eq!(text[covered..].trim(), "", "{row}: the end");
        let length = long.mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{row}: the mean has the length {length}");
        long
    };
    let text = sentence.repeat(20);
    let plain = check("plain", &text, Chunking::default(), None);
    assert!(plain.pieces.len() > 10, "{}", plain.pieces.len());
    let smaller = check("smaller", &text, Chunking { max_tokens: Some(12), overlap: 0 }, None);
    assert!(smaller.pieces.len() > plain.pieces.len());
    let overlapping = check("overlap", &text, Chunking { max_tokens: None, overlap: 8 }, None);
    assert!(overlapping.pieces.windows(2).any(|pair| pair[1].range.start < pair[0].range.end));
    check("prompt", &text, Chunking::default(), Some("Find: "));
    check("one word", &"x".repeat(90), Chunking::default(), None);

    let short = "Ships wait.";
    let once = embedder.embed_long(short, &Chunking::default(), &options).unwrap();
    assert_eq!(once.pieces.len(), 1);
    assert!(max_abs(&[once.mean], &embedder.embed(&[short]).unwrap()) <= 1e-5);
    assert_eq!(embedder.embed_long("", &Chunking::default(), &options).unwrap().pieces.len(), 1);

    let error =
        embedder.embed_long(short, &Chunking { max_tokens: Some(2), overlap: 0 }, &options).unwrap_err();
    check_error("no room", &error, exit::USAGE, &["pieces of 2 tokens", "nothing new is left"]);
}

#[test]
fn spans_say_where_tokens_are_and_decode_gives_their_text() {
    let embedder = SentenceEmbedder::from_dir(assemble("dense", Some("")).path()).unwrap();
    let tokenizer = embedder.tokenizer();
    let text = "Ships wait, and wait.";
    let spans = tokenizer.spans(text).unwrap();
    let pieces: String = spans.iter().map(|span| &text[span.range.clone()]).collect();
    assert_eq!(pieces, "Shipswait,andwait.");
    // Far past what the model reads.
    let long = "on tuesday ".repeat(200);
    let spans = tokenizer.spans(&long).unwrap();
    assert_eq!((spans[0].range.start, spans.last().unwrap().range.end), (0, long.trim().len()));
    assert!(spans.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    let tokens = tokenizer.encode_batch(&["profits rose sharply"]).unwrap().remove(0);
    assert_eq!(tokenizer.decode(&tokens.ids, true).unwrap(), "profits rose sharply");
    assert_eq!(tokenizer.decode(&tokens.ids, false).unwrap(), "[CLS] profits rose sharply [SEP]");
    assert_eq!(tokenizer.token_id("[CLS]"), Some(tokens.ids[0]));
}

#[test]
fn modules_that_cannot_be_run_are_refused_by_name() {
    let check = |row: &str, edit: &dyn Fn(&Path), code: u8, parts: &[&str]| {
        let whole = assemble("dense", Some(""));
        edit(whole.path());
        check_error(row, &SentenceEmbedder::from_dir(whole.path()).unwrap_err(), code, parts);
    };
    let modules = |classes: &'static [&'static str]| {
        move |folder: &Path| {
            let entry = |(index, class): (usize, &&str)| {
                let path = if index == 0 { String::new() } else { format!("{index}_{class}") };
                json!({ "idx": index, "name": index.to_string(), "path": path, "type": format!("x.{class}") })
            };
            let entries: Vec<_> = classes.iter().enumerate().map(entry).collect();
            fs::write(folder.join("modules.json"), json!(entries).to_string()).unwrap();
        }
    };
    let dense = |changes: serde_json::Value| {
        move |folder: &Path| edit_json(&folder.join("2_Dense/config.json"), &changes)
    };
    let refused = exit::REFUSED;
    check("a router", &modules(&["Router"]), refused, &["modules.json", "x.Router", "StaticEmbedding"]);
    check("words", &modules(&["WordEmbeddings", "Pooling"]), refused, &["WordEmbeddings", "Transformer"]);
    check("no pooling", &modules(&["Transformer"]), exit::CORRUPT, &["modules.json", "Pooling"]);
    check("none", &modules(&[]), exit::CORRUPT, &["modules.json", "Transformer"]);
    check("early", &modules(&["Transformer", "Dense", "Pooling"]), exit::CORRUPT, &["Dense", "out of order"]);
    check("twice", &modules(&["Transformer", "Pooling", "Pooling"]), exit::CORRUPT, &["Pooling", "twice"]);
    check(
        "late",
        &modules(&["Transformer", "Pooling", "Transformer"]),
        exit::CORRUPT,
        &["Transformer", "twice"],
    );
    check(
        "another activation",
        &dense(json!({ "activation_function": "my.code.Act" })),
        refused,
        &["2_Dense/config.json", "my.code.Act", "GELU"],
    );
    check(
        "token vectors",
        &dense(json!({ "module_input_name": "token_embeddings" })),
        refused,
        &["module_input_name", "token_embeddings"],
    );
    check("width", &dense(json!({ "in_features": 33 })), exit::CORRUPT, &["length 33", "32"]);
    check("nothing", &dense(json!({ "out_features": 0 })), exit::CORRUPT, &["`out_features` is 0"]);
    check(
        "shape",
        &dense(json!({ "out_features": 21 })),
        exit::CORRUPT,
        &["linear.weight", "[20, 32]", "[21, 32]"],
    );
    check(
        "no weights",
        &|folder| fs::remove_file(folder.join("2_Dense/model.safetensors")).unwrap(),
        exit::NOT_FOUND,
        &["2_Dense/model.safetensors"],
    );
    check(
        "another task",
        &|folder| {
            edit_json(&folder.join("sentence_bert_config.json"), &json!({ "transformer_task": "fill-mask" }));
        },
        refused,
        &["transformer_task", "fill-mask"],
    );
    check(
        "a measure",
        &|folder| {
            let said = json!({ "similarity_fn_name": "hamming" });
            fs::write(folder.join("config_sentence_transformers.json"), said.to_string()).unwrap();
        },
        refused,
        &["similarity_fn_name", "hamming", "manhattan"],
    );
}

#[test]
fn a_table_that_is_none_is_an_error_that_names_it() {
    let whole = assemble("static", None);
    fs::copy(data("sentence").join("model.safetensors"), whole.path().join("model.safetensors")).unwrap();
    let error = SentenceEmbedder::from_dir(whole.path()).unwrap_err();
    check_error("no table", &error, exit::CORRUPT, &["model.safetensors", "embedding.weight", "is missing"]);
    assert!(matches!(error, LoadError::Tensor { .. }));
    assert!(SentenceEmbedder::from_dir(assemble("static", None).path()).unwrap().config().is_none());
}
