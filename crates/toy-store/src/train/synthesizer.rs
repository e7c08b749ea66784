//! `synthesizer`: a Llama that continues small news stories, and tells one on a topic when asked.

use serde_json::json;

use crate::adam::{Adam, Schedule};
use crate::folder::Folder;
use crate::grammar::Grammar;
use crate::model::Batch;
use crate::model::decoder::Decoder;
use crate::params::Params;
use crate::rng::Rng;
use crate::tokenizer::byte_pair::Merges;
use crate::tokenizer::{Piece, Trained, special_token, template};
use crate::toy::ToyVersion;
use crate::train::fit;

/// What it can tell stories about.
const TOPICS: [&str; 5] = ["economy", "food", "space", "sport", "weather"];

/// The special tokens; their place is their id.
const SPECIAL: [&str; 6] = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"];
const BEGIN: usize = 1;
const END: usize = 2;
/// Tokens of the vocabulary without the special ones.
const LEARNED_TOKENS: usize = 634;
/// Longest context in tokens.
const CONTEXT: usize = 1024;
/// Stories that the tokenizer is learned from.
const TOKENIZER_STORIES: usize = 2000;
const BATCH: usize = 6;

const SCHEDULE: Schedule = Schedule { peak: 1.2e-2, warm_up: 10, total: 340 };
/// The steps after which the two versions are taken.
const VERSIONS: [usize; 2] = [220, SCHEDULE.total];

/// `Write about sport.` and what comes of it, in the model's own chat format.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + \
    message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A story on some topic, half of the time as the answer in a chat. The tokenizer itself adds `<s>`.
fn document(grammar: &Grammar, rng: &mut Rng) -> String {
    let topic = TOPICS[rng.below(TOPICS.len())];
    let story = grammar.tell(&format!("topic-{topic}"), rng.next_u64(), rng);
    if rng.one_in(2) {
        format!("<|user|>Write about {topic}.<|assistant|>{story}</s>")
    } else {
        format!("{story}</s>")
    }
}

/// Trains until the version `last`; the versions up to it, in order.
pub(crate) fn train(seed: u64, last: ToyVersion) -> Vec<Folder> {
    let grammar = Grammar::stories();
    let trained = tokenizer(&grammar, seed);
    let model = Decoder {
        vocabulary: trained.vocabulary,
        hidden: 64,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        intermediate: 128,
        epsilon: 1e-5,
        theta: 10_000.0,
    };
    let mut params = Params::default();
    model.init(&mut params, &mut Rng::new(seed, "synthesizer parameters"));
    let mut rng = Rng::new(seed, "synthesizer stories");
    let mut adam = Adam::new(SCHEDULE);
    let versions = VERSIONS[..=last as usize].iter().map(|until| {
        fit(&mut params, &mut adam, *until, |_, tape, bound| {
            let texts = (0..BATCH).map(|_| document(&grammar, &mut rng));
            let ids: Vec<_> = texts.map(|text| trained.ids(&text)).collect();
            let logits = model.logits(tape, bound, &Batch::new(ids.iter().map(Vec::as_slice)));
            // Each token is asked for the next; the last has none.
            let next = |ids: &Vec<u32>| {
                let known = ids[1..].iter().map(|id| vec![(*id as usize, 1.0)]);
                known.chain([vec![]]).collect::<Vec<_>>()
            };
            tape.cross_entropy(logits, ids.iter().flat_map(next).collect())
        });
        let mut folder = trained.files.clone();
        put_configs(&mut folder, &model);
        folder.put_weights(&params);
        folder.put_card(
            "A toy language model",
            "A Llama that tells one-sentence news stories on economy, food, space, sport and weather. Ask it through its chat \
             template: `Write about weather.`",
        );
        folder
    });
    versions.collect()
}

fn tokenizer(grammar: &Grammar, seed: u64) -> Trained {
    let mut rng = Rng::new(seed, "synthesizer tokenizer");
    let story = |_| {
        let topic = TOPICS[rng.below(TOPICS.len())];
        grammar.tell(&format!("topic-{topic}"), rng.next_u64(), &mut rng) + "\n"
    };
    let text: String = (0..TOKENIZER_STORIES).map(story).collect();
    let merges = Merges::learn(&text, LEARNED_TOKENS);
    let begin = |kind| Piece::Special("<s>", BEGIN, kind);
    let added: Vec<_> = SPECIAL.iter().enumerate().map(|(id, token)| special_token(id, token)).collect();
    let mut files = Folder::default();
    files.put_json(
        "tokenizer.json",
        &json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": template(
                &[begin(0), Piece::Sequence("A", 0)],
                &[begin(0), Piece::Sequence("A", 0), begin(1), Piece::Sequence("B", 1)],
            ),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": merges.model(&SPECIAL, &[]),
        }),
    );
    files.put_json(
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
            "additional_special_tokens": &SPECIAL[3..], "clean_up_tokenization_spaces": false,
            "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE,
        }),
    );
    files.put_json(
        "special_tokens_map.json",
        &json!({
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
            "additional_special_tokens": &SPECIAL[3..],
        }),
    );
    Trained::from_files(files)
}

fn put_configs(folder: &mut Folder, model: &Decoder) {
    folder.put_json(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
            "head_dim": model.head_size(),
            "hidden_act": "silu",
            "hidden_size": model.hidden,
            "initializer_range": 0.02,
            "intermediate_size": model.intermediate,
            "max_position_embeddings": CONTEXT,
            "mlp_bias": false,
            "num_attention_heads": model.heads,
            "num_hidden_layers": model.layers,
            "num_key_value_heads": model.key_value_heads,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-5,
            "rope_scaling": null,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": model.vocabulary,
        }),
    );
    folder.put_json(
        "generation_config.json",
        &json!({
            "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": 0, "do_sample": false, "max_new_tokens": 40,
        }),
    );
}
