"""Writes the fixtures of model-loader's parity tests; README.md says what each folder is.

Usage: make_reference.py [FOLDER_OF_ALL_MINILM_L6_V2]
"""

import shutil
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
    wordpiece,
    wrapped,
    write_json,
)
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SENTENCES = [
    "A sentence.",
    "Ships in the Suez Canal wait for the wind to fall.",
    "",
    " ",
    "?",
    "!!! ... --- ,,, ;;; ((( )))",
    "Hello",
    "HELLO WORLD, THIS IS SHOUTED",
    "Zürich's naïve café owner sold 1,234.56 crème brûlées.",
    "東京の天気は晴れです。",
    "Москва не сразу строилась.",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "한국어 문장입니다.",
    "🚢🌊 emoji only? 👩‍👩‍👧‍👦",
    "e\u0301 decomposed and \u00e9 composed",
    "tabs\tand\nnewlines\r\nin  one   text",
    "zero\u200bwidth and no\u00a0break",
    "http://example.org/a?b=c&d=%20e#f",
    "[CLS] special tokens [SEP] as text [MASK] [PAD] [UNK]",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 150,
    "3.14159 26535 89793 23846 26433 83279",
    "Profits rose sharply and investors cheered.",
    "Profits fell sharply and investors despaired.",
    "The central bank left its rate where it was, and said that inflation would fall by the summer.",
    "The port reopened on Monday after three days of storms; forty vessels were waiting outside the breakwater, "
    "and the pilots' association asked for patience while the channel was being surveyed for lost containers.",
    "word " * 254,
    "word " * 255,
    "The quick brown fox jumps over the lazy dog. " * 40,
    "Ein langer deutscher Satz über Binnenschifffahrtsgesellschaften und ihre Geschäftsführer. " * 30,
]


SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def classifier(name: str, model, tokenizer: Tokenizer, names: dict, dtype=torch.float32) -> None:
    folder = fresh(name)
    model.to(dtype).save_pretrained(folder)
    tokenizer_files(folder, tokenizer, names)
    # What a float32 reader of the stored weights gives.
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = wrapped(tokenizer, names)(TEXTS, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    if model.config.model_type == "roberta":
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model(**inputs).logits
    write_json(folder / "texts.json", TEXTS)
    save_file({"logits": logits.contiguous()}, folder / "outputs.safetensors")


def bert_config(tokenizer: Tokenizer, **more) -> BertConfig:
    return BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=48, **SHAPE, **more)


def classifiers() -> None:
    tokenizer = wordpiece()
    labels = {0: "negative", 1: "neutral", 2: "positive"}
    label_ids = {label: index for index, label in labels.items()}
    for name, dtype in [("bert", torch.float32), ("bert-fp16", torch.float16)]:
        config = bert_config(tokenizer, id2label=labels, label2id=label_ids)
        classifier(name, randomized(BertForSequenceClassification(config)), tokenizer, BERT_NAMES, dtype)
    bpe = byte_bpe()
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(),
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        layer_norm_eps=1e-5,
        hidden_act="gelu_new",
        num_labels=4,
        problem_type="multi_label_classification",
        **SHAPE,
    )
    classifier("roberta", randomized(RobertaForSequenceClassification(config)), bpe, ROBERTA_NAMES)


def sharded() -> None:
    folder, tokenizer = fresh("sharded"), wordpiece()
    model = randomized(BertModel(bert_config(tokenizer), add_pooling_layer=False))
    model.save_pretrained(folder, max_shard_size="40KB")
    tokenizer_files(folder, tokenizer, BERT_NAMES)
    # One at a time: the values at padded positions mean nothing.
    encode, outputs = wrapped(tokenizer, BERT_NAMES), {}
    for index, text in enumerate(TEXTS):
        inputs = encode([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            outputs[f"hidden.{index}"] = model(**inputs).last_hidden_state[0].contiguous()
    write_json(folder / "texts.json", TEXTS)
    save_file(outputs, folder / "outputs.safetensors")


def flags(*on: str) -> dict:
    every = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    return {"word_embedding_dimension": 32, **{f"pooling_mode_{name}": name in on for name in every}}


def newer(mode) -> dict:
    return {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}


POOLINGS = {
    "old-cls": flags("cls_token"),
    "old-max": flags("max_tokens"),
    "old-mean": flags("mean_tokens"),
    "old-mean-sqrt-len": flags("mean_sqrt_len_tokens"),
    "old-weightedmean": flags("weightedmean_tokens"),
    "old-lasttoken": flags("lasttoken"),
    "old-combined": flags("lasttoken", "max_tokens", "cls_token", "mean_tokens"),
    "new-cls": newer("cls"),
    "new-max": newer("max"),
    "new-mean": newer("mean"),
    "new-mean-sqrt-len": newer("mean_sqrt_len_tokens"),
    "new-weightedmean": newer("weightedmean"),
    "new-lasttoken": newer("lasttoken"),
    "new-combined": newer(["weightedmean", "cls", "mean_sqrt_len_tokens"]),
    "prompt-counts": {**newer(["mean", "cls", "weightedmean"]), "include_prompt": True},
    "prompt-left-out": {**newer(["mean", "cls", "weightedmean"]), "include_prompt": False},
}
PROMPT = "The price of: "


def sentence() -> None:
    folder, tokenizer = fresh("sentence"), wordpiece()
    randomized(BertModel(bert_config(tokenizer))).save_pretrained(folder)
    tokenizer_files(folder, tokenizer, {**BERT_NAMES, "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    entries = [
        {"idx": index, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (name, path, kind) in enumerate(modules)
    ]
    outputs = {}
    for name, pooling in POOLINGS.items():
        # The norm hides a wrong length, such as that of mean_sqrt_len: only one schema is normalized.
        write_json(folder / "modules.json", entries if name.startswith("old") else entries[:2])
        (folder / "1_Pooling").mkdir(exist_ok=True)
        write_json(folder / "1_Pooling/config.json", pooling)
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        prompt = PROMPT if name.startswith("prompt") else ""
        outputs[name] = model.encode(TEXTS, prompt=prompt, convert_to_tensor=True, batch_size=4).contiguous()
    shutil.rmtree(folder / "1_Pooling")
    write_json(folder / "modules.json", entries)
    write_json(folder / "poolings.json", {"prompt": PROMPT, "poolings": POOLINGS})
    write_json(folder / "texts.json", TEXTS)
    save_file(outputs, folder / "outputs.safetensors")


def minilm(model_folder: str) -> None:
    folder = fresh("minilm")
    model = SentenceTransformer(model_folder, device="cpu", model_kwargs={"dtype": torch.float32})
    vectors = model.encode(SENTENCES, convert_to_tensor=True, batch_size=8)
    write_json(folder / "texts.json", SENTENCES)
    save_file({"vectors": vectors.contiguous()}, folder / "outputs.safetensors")


def main() -> None:
    torch.manual_seed(SEED)
    classifiers()
    sharded()
    sentence()
    if len(sys.argv) > 1:
        minilm(sys.argv[1])
    report(DATA)


if __name__ == "__main__":
    main()
