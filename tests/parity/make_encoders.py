"""Writes `encoders/`: a tiny random classifier of each family of encoders, and what transformers gives for it.

Usage: make_encoders.py [--keep] [FAMILY...]

With --keep the models stay as they are and only what transformers gives for them is written again.
"""

import json
import sys

import torch
from fixtures import (
    BERT_NAMES,
    DATA,
    MAX_TOKENS,
    ROBERTA_NAMES,
    SEED,
    TEXTS,
    byte_bpe,
    fresh,
    randomized,
    report,
    tokenizer_files,
    unigram,
    wordpiece,
    wrapped,
    write_json,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification
from transformers import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    XLMRobertaConfig,
)

PAIRS = [
    ["Profits rose sharply.", "Investors cheered."],
    ["Ships wait.", ""],
    ["", "the price of 12.5 % fell again!"],
    [TEXTS[4], "on tuesday"],
    [TEXTS[4], TEXTS[4]],
]
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
POSITIONS = dict(max_position_embeddings=48)
# Their positions are counted from the padding id on.
OFFSET_POSITIONS = dict(max_position_embeddings=MAX_TOKENS + 2, pad_token_id=1, bos_token_id=0, eos_token_id=2)
# A text of 40 tokens is longer than the window of a local layer: 4 tokens on either side.
MODERNBERT = dict(
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=32,
    max_position_embeddings=48,
    local_attention=8,
    global_attn_every_n_layers=3,
    pad_token_id=0,
    bos_token_id=2,
    cls_token_id=2,
    eos_token_id=3,
    sep_token_id=3,
)
# What ModernBERT's configuration said before transformers 5 wrote `layer_types` and `rope_parameters`.
OLD_MODERNBERT = dict(
    global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0, local_attention=8
)
DEBERTA = dict(
    relative_attention=True,
    position_buckets=16,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    type_vocab_size=0,
    max_relative_positions=-1,
    pooler_hidden_size=32,
    pad_token_id=0,
)
# Its other half: places by plain distance and through products of their own, positions and types in the input.
PLAIN_DEBERTA = dict(
    relative_attention=True,
    share_att_key=False,
    pos_att_type="c2p",
    position_biased_input=True,
    type_vocab_size=2,
    max_relative_positions=10,
    pooler_hidden_size=32,
    pooler_hidden_act="tanh",
    pad_token_id=0,
)

# The configuration without what the tokenizer decides, the tokenizer, its special tokens, and whether the model takes
# token types.
FAMILIES = {
    "bert": (BertConfig, {**SHAPE, **POSITIONS}, wordpiece, BERT_NAMES, True),
    "distilbert": (
        DistilBertConfig,
        dict(dim=32, n_layers=2, n_heads=4, hidden_dim=40, sinusoidal_pos_embds=False, **POSITIONS),
        wordpiece,
        BERT_NAMES,
        False,
    ),
    "mpnet": (
        MPNetConfig,
        {**SHAPE, **OFFSET_POSITIONS, "relative_attention_num_buckets": 32},
        lambda: wordpiece(roberta_names=True),
        ROBERTA_NAMES,
        False,
    ),
    "modernbert-cls": (
        ModernBertConfig,
        {**MODERNBERT, "classifier_pooling": "cls"},
        lambda: byte_bpe(bert_names=True),
        BERT_NAMES,
        False,
    ),
    "modernbert-mean": (
        ModernBertConfig,
        {**MODERNBERT, "classifier_pooling": "mean"},
        lambda: byte_bpe(bert_names=True),
        BERT_NAMES,
        False,
    ),
    "albert": (
        AlbertConfig,
        {**SHAPE, **POSITIONS, "embedding_size": 16, "pad_token_id": 0, "num_hidden_layers": 3},
        lambda: unigram(bert_names=True),
        BERT_NAMES,
        True,
    ),
    "electra": (ElectraConfig, {**SHAPE, **POSITIONS, "embedding_size": 16}, wordpiece, BERT_NAMES, True),
    "xlm-roberta": (
        XLMRobertaConfig,
        {**SHAPE, **OFFSET_POSITIONS, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        unigram,
        ROBERTA_NAMES,
        False,
    ),
    "camembert": (
        CamembertConfig,
        {**SHAPE, **OFFSET_POSITIONS, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        unigram,
        ROBERTA_NAMES,
        False,
    ),
    "deberta-v2": (
        DebertaV2Config,
        {**SHAPE, **POSITIONS, **DEBERTA},
        lambda: unigram(bert_names=True),
        BERT_NAMES,
        False,
    ),
    "deberta-v2-plain": (
        DebertaV2Config,
        {**SHAPE, **POSITIONS, **PLAIN_DEBERTA},
        lambda: unigram(bert_names=True),
        BERT_NAMES,
        True,
    ),
}


def make(name: str) -> None:
    config_class, shape, make_tokenizer, names, _ = FAMILIES[name]
    torch.manual_seed(SEED)
    folder, tokenizer = fresh(f"encoders/{name}"), make_tokenizer()
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(),
        id2label=LABELS,
        label2id={label: index for index, label in LABELS.items()},
        **shape,
    )
    randomized(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)).save_pretrained(folder)
    if name == "modernbert-mean":
        path = folder / "config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved = {key: value for key, value in saved.items() if key not in ("layer_types", "rope_parameters")}
        write_json(path, {**saved, **OLD_MODERNBERT})
    tokenizer_files(folder, tokenizer, names)


def make_outputs(name: str) -> None:
    _, _, _, names, takes_types = FAMILIES[name]
    folder = DATA / f"encoders/{name}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encode = wrapped(Tokenizer.from_file(str(folder / "tokenizer.json")), names)

    def tokens(text):
        # In a list: of a pair alone, an empty second text would be taken for none.
        return encode([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")

    def run(inputs):
        # One at a time and without padding, whose values mean nothing.
        kept = {key: value for key, value in inputs.items() if takes_types or key != "token_type_ids"}
        with torch.no_grad():
            hidden = model.base_model(**kept).last_hidden_state[0]
            return hidden.contiguous(), model(**kept).logits[0]

    texts, pairs = [tokens(text) for text in TEXTS], [tokens(tuple(pair)) for pair in PAIRS]
    outputs = {"logits": torch.stack([run(inputs)[1] for inputs in texts]).contiguous()}
    outputs["pair_logits"] = torch.stack([run(inputs)[1] for inputs in pairs]).contiguous()
    outputs |= {f"hidden.{index}": run(inputs)[0] for index, inputs in enumerate(texts)}
    write_json(folder / "texts.json", TEXTS)
    write_json(folder / "pairs.json", PAIRS)
    as_list = lambda all_inputs, key: [inputs[key][0].tolist() for inputs in all_inputs]
    write_json(
        folder / "tokens.json",
        {
            "ids": as_list(texts, "input_ids"),
            "pair_ids": as_list(pairs, "input_ids"),
            "pair_type_ids": as_list(pairs, "token_type_ids"),
        },
    )
    save_file(outputs, folder / "outputs.safetensors")
    report(folder)


def main() -> None:
    arguments = sys.argv[1:]
    for name in [name for name in arguments if name != "--keep"] or FAMILIES:
        if "--keep" not in arguments:
            make(name)
        make_outputs(name)


if __name__ == "__main__":
    main()
