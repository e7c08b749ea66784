"""What the scripts of this folder share: texts, small tokenizers, random weights, and how a fixture is written."""

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[2] / "crates/model-loader/tests/data"
SEED = 20251
VOCAB = 200
MAX_TOKENS = 40

TEXTS = [
    "Profits rose sharply and investors cheered.",
    "Ships wait.",
    "",
    "Zürich, naïve café: the price of 12.5 % fell again!",
    "the committee meets on tuesday and on wednesday and on thursday, " * 6,
    "東京 🚢 ?!",
]

# Words for the tokenizers to learn from, beside the texts.
MORE_WORDS = [
    "Profits rose sharply and investors cheered.",
    "Profits fell sharply and investors despaired.",
    "The central bank left its rate where it was, and said that inflation would fall by the summer.",
    "The port reopened on Monday after three days of storms; forty vessels were waiting outside the breakwater, "
    "and the pilots' association asked for patience while the channel was being surveyed for lost containers.",
]

BERT_NAMES = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
ROBERTA_NAMES = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def fresh(name: str) -> Path:
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def report(folder: Path) -> None:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder.relative_to(DATA)}: {total / 1000:.0f} KB")


def bert_template() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )


def wordpiece(roberta_names: bool = False) -> Tokenizer:
    unk = "<unk>" if roberta_names else "[UNK]"
    tokenizer = Tokenizer(models.WordPiece(unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta_names else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    tokenizer.train_from_iterator(
        TEXTS[:5] + MORE_WORDS, trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=special)
    )
    if roberta_names:
        # MPNet's pairs, as RoBERTa's, have two separators and one type.
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        tokenizer.post_processor = bert_template()
    tokenizer.decoder = decoders.WordPiece()
    # Such settings travel in real files; the loader has to set its own.
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9, pad_id=0, pad_token="[PAD]")
    return tokenizer


def byte_bpe(bert_names: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert_names else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    tokenizer.train_from_iterator(
        TEXTS[:5],
        trainers.BpeTrainer(
            vocab_size=VOCAB + 120,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if bert_names:
        tokenizer.post_processor = bert_template()
    else:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram(bert_names: bool = False) -> Tokenizer:
    """SentencePiece's model, as XLM-RoBERTa, CamemBERT, ALBERT and DeBERTa have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert_names else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    tokenizer.train_from_iterator(
        TEXTS[:5] + MORE_WORDS,
        trainers.UnigramTrainer(vocab_size=VOCAB, special_tokens=special, unk_token=special[1 if bert_names else 3]),
    )
    if bert_names:
        tokenizer.post_processor = bert_template()
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wrapped(tokenizer: Tokenizer, names: dict) -> PreTrainedTokenizerFast:
    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.no_truncation()
    bare.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def tokenizer_files(folder: Path, tokenizer: Tokenizer, names: dict) -> None:
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", {"model_max_length": MAX_TOKENS, **names})


def randomized(model):
    """Weights large enough that every part of the model shows in its outputs; norms and biases are not left at 1 and 0."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            scale = 0.2 if parameter.ndim == 1 else 0.5 if "embeddings" in name else 0.25
            parameter.copy_(noise * scale + (1.0 if is_gain else 0.0))
    return model.eval()
