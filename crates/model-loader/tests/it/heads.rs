//! Which head a folder's files call for.

use std::fs;

use model_loader::{Head, SENTENCE_CONFIG_NAMES, TextClassifier};
use model_store::exit;
use serde_json::{Value, json};

use crate::support::{check_error, copy_of, data, edit_json, max_abs, output, texts};

/// A fixture with these `architectures` (`null`: none).
fn with_architectures(folder: &str, architectures: &Value) -> tempfile::TempDir {
    let copy = copy_of(folder);
    edit_json(&copy.path().join("config.json"), &json!({ "architectures": architectures }));
    copy
}

#[test]
fn the_architecture_or_else_the_weights_name_the_head() {
    let check = |folder: &str, architectures: Value, expected: Head| {
        let copy = with_architectures(folder, &architectures);
        let found = Head::detect(copy.path()).unwrap();
        assert_eq!(found, expected, "{folder} with {architectures}");
    };
    check("bert", json!(["BertForSequenceClassification"]), Head::SequenceClassification);
    check("bert", json!(["BertForMaskedLM"]), Head::HiddenStates);
    check("bert", json!(["BertForPreTraining"]), Head::HiddenStates);
    check("bert", json!(["BertModel"]), Head::HiddenStates);
    check("bert", Value::Null, Head::SequenceClassification);
    check("roberta", Value::Null, Head::SequenceClassification);
    check("roberta", json!([]), Head::SequenceClassification);
    check("sharded", Value::Null, Head::HiddenStates);
    check("sentence", json!(["BertForMaskedLM"]), Head::SentenceEmbedding);
}

/// A token classifier was taken for a bare encoder, whose vectors say nothing about labels.
#[test]
fn heads_that_nothing_here_runs_are_refused_by_name() {
    let check = |architecture: &str| {
        let copy = with_architectures("bert", &json!([architecture]));
        let parts = ["config.json", "architecture", architecture, "ForSequenceClassification"];
        check_error(architecture, &Head::detect(copy.path()).unwrap_err(), exit::REFUSED, &parts);
        check_error(architecture, &TextClassifier::from_dir(copy.path()).unwrap_err(), exit::REFUSED, &parts);
    };
    check("BertForTokenClassification");
    check("RobertaForQuestionAnswering");
    check("BertForMultipleChoice");
}

#[test]
fn every_name_of_the_sentence_configuration_is_read() {
    for name in SENTENCE_CONFIG_NAMES {
        let copy = copy_of("sharded");
        fs::write(copy.path().join(name), r#"{ "max_seq_length": 11 }"#).unwrap();
        let config = model_loader::ModelConfig::from_dir(copy.path()).unwrap();
        let tokenizer = model_loader::Tokenizer::from_dir(copy.path(), &config).unwrap();
        assert_eq!(tokenizer.max_tokens(), 11, "{name}");
    }
}

#[test]
fn labels_are_ranked_and_chosen_by_their_scores() {
    let (texts, scores) = (texts("roberta"), output("roberta", "logits"));
    let classifier = TextClassifier::from_dir(data("roberta")).unwrap();
    assert!(classifier.is_multi_label());
    assert!(!TextClassifier::from_dir(data("bert")).unwrap().is_multi_label());
    for (prediction, logits) in classifier.classify(&texts).unwrap().iter().zip(scores) {
        let mut best: Vec<usize> = (0..logits.len()).collect();
        best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let top = classifier.top(prediction, 3);
        let names: Vec<&str> = top.iter().map(|(label, _)| *label).collect();
        assert_eq!(names, best[..3].iter().map(|i| classifier.labels()[*i].as_str()).collect::<Vec<_>>());
        assert_eq!((top[0].0, top[0].1.to_bits()), (prediction.label.as_str(), prediction.score.to_bits()));
        assert_eq!(classifier.top(prediction, 9).len(), 4, "there are no more labels");
        // A probability of a half is a logit of 0.
        let above: Vec<&str> =
            classifier.above(prediction, 0.5).into_iter().map(|(label, _)| label).collect();
        let positive = logits.iter().zip(classifier.labels()).filter(|(logit, _)| **logit >= 0.0);
        assert_eq!(above, positive.map(|(_, label)| label.as_str()).collect::<Vec<_>>());
    }
}

#[test]
fn a_pair_is_one_input() {
    let folder = "encoders/bert";
    let classifier = TextClassifier::from_dir(data(folder)).unwrap();
    let path = data(folder).join("pairs.json");
    let pairs: Vec<(String, String)> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let predictions = classifier.classify_pairs(&pairs).unwrap();
    for (prediction, logits) in predictions.iter().zip(output(folder, "pair_logits")) {
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        let expected = logits.iter().map(|x| x.exp() / total).collect();
        assert!(max_abs(std::slice::from_ref(&prediction.scores), &[expected]) <= 1e-4);
    }
    let both: Vec<String> = pairs.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let together = classifier.classify(&both).unwrap();
    assert!(
        predictions
            .iter()
            .zip(&together)
            .any(|(a, b)| max_abs(std::slice::from_ref(&a.scores), std::slice::from_ref(&b.scores)) > 1e-3)
    );
}
