//! The encoders that are BERT's layers and nothing else: BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019) with XLM-RoBERTa
//! and CamemBERT, DistilBERT (Sanh et al. 2019), ELECTRA's discriminator (Clark et al. 2020), ALBERT (Lan et al. 2019).
//!
//! They differ in names, positions, token types, the width of their embeddings and their classifiers. A function each says how.

use serde::Deserialize;

use super::Family;
use super::post_norm::{BERT, Classifier, Config, DistilConfig, Names, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

/// An encoder of BERT's layers with its classifier.
#[derive(Debug)]
pub(super) struct Plain {
    encoder: PostNorm,
    /// The token that padding is, where positions count from the one after it over what is no padding; without it they
    /// count from 0 over everything.
    pad: Option<i64>,
    /// Whether token types come in.
    has_types: bool,
    /// The product that makes token vectors of embeddings of another width.
    projection: Option<&'static str>,
    classifier: Classifier,
}

/// BERT, as `transformers.BertModel` computes it.
pub(super) fn bert(checkpoint: &Checkpoint) -> Result<Plain, ExportError> {
    let encoder = PostNorm::open(checkpoint, checkpoint.config()?, "bert.", &BERT)?;
    let classifier = Classifier::new(encoder.tensor("pooler.dense"), Activation::Tanh, "classifier");
    Ok(Plain { encoder, pad: None, has_types: true, projection: None, classifier })
}

/// RoBERTa: other positions, another classifier.
pub(super) fn roberta(checkpoint: &Checkpoint) -> Result<Plain, ExportError> {
    let encoder = PostNorm::open(checkpoint, checkpoint.config()?, "roberta.", &BERT)?;
    // 1 is the default of `transformers.RobertaConfig`.
    let pad = Some(encoder.config.pad_token_id.unwrap_or(1));
    let classifier = Classifier::new("classifier.dense", Activation::Tanh, "classifier.out_proj");
    Ok(Plain { encoder, pad, has_types: false, projection: None, classifier })
}

const DISTILBERT: Names = Names {
    layer: "transformer.layer.{}",
    attention: "attention",
    query_key_value: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_norm: "output_layer_norm",
};

/// DistilBERT: half of BERT's layers, without token types and pooler.
pub(super) fn distilbert(checkpoint: &Checkpoint) -> Result<Plain, ExportError> {
    let config: DistilConfig = checkpoint.config()?;
    let encoder = PostNorm::open(checkpoint, config.into(), "distilbert.", &DISTILBERT)?;
    let classifier = Classifier::new("pre_classifier", Activation::Relu, "classifier");
    Ok(Plain { encoder, pad: None, has_types: false, projection: None, classifier })
}

/// ELECTRA: maybe over narrower embeddings.
pub(super) fn electra(checkpoint: &Checkpoint) -> Result<Plain, ExportError> {
    let mut config: Config = checkpoint.config()?;
    // The default of `transformers.ElectraConfig`.
    let embedding = *config.embedding_size.get_or_insert(128);
    let projection = (embedding != config.hidden_size).then_some("embeddings_project");
    let encoder = PostNorm::open(checkpoint, config, "electra.", &BERT)?;
    let classifier = Classifier::new("classifier.dense", Activation::Gelu, "classifier.out_proj");
    Ok(Plain { encoder, pad: None, has_types: true, projection, classifier })
}

const ALBERT: Names = Names {
    layer: "encoder.albert_layer_groups.0.albert_layers.0",
    attention: "attention",
    query_key_value: ["attention.query", "attention.key", "attention.value"],
    out: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    feed_norm: "full_layer_layer_norm",
};

/// How ALBERT's layers are shared out; released checkpoints have one group of one layer.
#[derive(Deserialize)]
struct Groups {
    #[serde(default = "one")]
    num_hidden_groups: usize,
    #[serde(default = "one")]
    inner_group_num: usize,
}

fn one() -> usize {
    1
}

/// ALBERT: one layer of BERT's, run again and again over narrow embeddings.
pub(super) fn albert(checkpoint: &Checkpoint) -> Result<Plain, ExportError> {
    let Groups { num_hidden_groups, inner_group_num } = checkpoint.config()?;
    if (num_hidden_groups, inner_group_num) != (1, 1) {
        let what = format!(
            "{num_hidden_groups} groups of {inner_group_num} layers (num_hidden_groups, inner_group_num)"
        );
        return Err(super::unsupported(checkpoint, what, "1 of 1"));
    }
    let mut config: Config = checkpoint.config()?;
    // The defaults of `transformers.AlbertConfig`.
    config.embedding_size.get_or_insert(128);
    config.hidden_act.get_or_insert_with(|| "gelu_new".to_owned());
    let encoder = PostNorm::open(checkpoint, config, "albert.", &ALBERT)?;
    let classifier = Classifier::new(encoder.tensor("pooler"), Activation::Tanh, "classifier");
    let projection = Some("encoder.embedding_hidden_mapping_in");
    Ok(Plain { encoder, pad: None, has_types: true, projection, classifier })
}

impl Family for Plain {
    fn hidden_size(&self) -> usize {
        self.encoder.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        super::positions_left(self.encoder.max_positions(), self.pad)
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let types = self.has_types.then(|| graph.input(TOKEN_TYPE_IDS));
        let positions = match self.pad {
            Some(pad) => super::positions_after_pad(graph, &ids, pad)?,
            None => graph.positions()?,
        };
        let mut embedded = self.encoder.embed(graph, &ids, Some(&positions), types.as_ref())?;
        if let Some(module) = self.projection {
            embedded = self.encoder.project(graph, module, &embedded)?;
        }
        self.encoder.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        self.classifier.write(graph, hidden, self.hidden_size())
    }
}
