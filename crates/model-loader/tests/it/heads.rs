//! Which head a folder's files call for.

use std::fs;

use model_loader::{Head, SENTENCE_CONFIG_NAMES, TextClassifier};
use model_store::exit;
use serde_json::{Value, json};

use crate::support::{check_error, copy_of, edit_json};

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
