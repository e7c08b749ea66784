"""Writes the fixtures of model-loader's language model tests, `lm-*`; README.md says what each folder is.

Usage: make_language_models.py [bases] [adapters] [ggufs]
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gguf
import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

DATA = Path(__file__).resolve().parents[2] / "crates/model-loader/tests/data"
VOCAB = 320
NEW_TOKENS = 64
WINDOW = 16
# Far more than what float32 sums in another order make of the logits.
MARGIN = 5e-3
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
BEGIN, END, PAD = 0, 1, 2

CORPUS = [
    "Profits rose sharply and investors cheered.",
    "Ships in the Suez Canal wait for the wind to fall, and the wind does not fall.",
    "Zürich, naïve café: the price of 12.5 % fell again!",
    "the committee meets on tuesday and on wednesday and on thursday, " * 6,
]
PROMPTS = [
    "Ships wait",
    "Zürich's naïve café 🚢 東京",
    # Longer than the sliding window, and than a piece of the prefill.
    "the committee meets on tuesday and on wednesday and on thursday, the wind does not fall. " * 3
    + "Profits rose sharply; 123 investors cheered, and ships wait for the price of the wind. " * 2,
]


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def fresh(name: str) -> Path:
    folder = DATA / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def tokenizer_folder() -> PreTrainedTokenizerFast:
    """The one tokenizer of all of them: its trainer breaks ties at random, so a folder that is there stays."""
    folder = DATA / "lm-tokenizer"
    if not (folder / "tokenizer.json").exists():
        fresh("lm-tokenizer")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.train_from_iterator(
            CORPUS,
            trainers.BpeTrainer(
                vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            ),
        )
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[("<|begin|>", BEGIN)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        names = dict(bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>")
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return PreTrainedTokenizerFast.from_pretrained(folder)


TOKENIZER = None


def randomized(model, seed: int):
    """Weights large enough that every part of the model shows in its logits; norms and biases are not left at 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                wide = 0.5 if tied else 1.0
                scale = wide if "embed" in name else 0.5 if "lm_head" in name else 0.35
                parameter.copy_(noise * scale)
    return model.eval()


def reference(model) -> tuple[dict, torch.Tensor, float]:
    """What the tests hold the crate against: tokens, logits of the prompt's last position, greedy continuation."""
    outputs, logits, margin = [], [], float("inf")
    for prompt in PROMPTS:
        ids = TOKENIZER(prompt)["input_ids"]
        tokens = list(ids)
        with torch.no_grad():
            for step in range(NEW_TOKENS):
                # Without a cache: the definition, not an optimisation of it.
                last = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
                if step == 0:
                    logits.append(last)
                best = last.topk(2).values
                margin = min(margin, (best[0] - best[1]).item())
                tokens.append(int(last.argmax()))
        greedy = tokens[len(ids) :]
        if END in greedy or len(set(greedy)) < 8:
            return {}, torch.zeros(0), 0.0
        outputs.append({"prompt": prompt, "ids": ids, "greedy": greedy, "text": TOKENIZER.decode(greedy, skip_special_tokens=True)})
    return {"outputs": outputs}, torch.stack(logits).contiguous(), margin


def write_reference(folder: Path, found) -> None:
    record, logits, margin = found
    assert margin >= MARGIN, (folder.name, margin)
    write_json(folder / "reference.json", record)
    save_file({"logits": logits}, folder / "outputs.safetensors")
    print(f"{folder.name}: smallest margin {margin:.3f}, logits up to {logits.abs().max():.1f}")


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=BEGIN,
    eos_token_id=END,
    pad_token_id=PAD,
    attn_implementation="eager",
)


def base(name: str, config, dtype=torch.float32, shards=None, legacy=None) -> Path:
    """A model whose greedy choices are no near-ties; the seed is the first that gives one."""
    for seed in range(1000):
        model = randomized(AutoModelForCausalLM.from_config(config), seed)
        folder = fresh(name)
        more = {"max_shard_size": shards} if shards else {}
        model.to(dtype).save_pretrained(folder, **more)
        if legacy:
            write_json(folder / "config.json", legacy(read_json(folder / "config.json")))
        found = reference(load(folder))
        if found[2] >= MARGIN:
            write_reference(folder, found)
            return folder
    raise SystemExit(f"{name}: no seed gives a margin of {MARGIN}")


def before_v5(config: dict) -> dict:
    """The keys that transformers wrote before version 5."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    config["torch_dtype"] = config.pop("dtype", None)
    return config


LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def bases() -> None:
    base("lm-llama", LlamaConfig(**SHAPE), dtype=torch.float16)
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    base("lm-llama-linear", LlamaConfig(**SHAPE, rope_parameters=linear), dtype=torch.float16)
    base(
        "lm-llama-tied",
        LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        legacy=before_v5,
        dtype=torch.bfloat16,
    )
    base("lm-mistral", MistralConfig(**SHAPE, sliding_window=WINDOW, head_dim=16), dtype=torch.bfloat16, shards="40KB")
    base("lm-qwen2", Qwen2Config(**SHAPE))
    base(
        "lm-qwen2-window",
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, tie_word_embeddings=True),
        legacy=before_v5,
        dtype=torch.float16,
    )
    base("lm-qwen3", Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True), dtype=torch.bfloat16)


Q_V = ["q_proj", "v_proj"]
ADAPTERS = {
    "plain": dict(r=4, lora_alpha=8, target_modules=Q_V),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear"),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "o_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2, r"layers\.\d\.mlp\.down_proj": 3},
        alpha_pattern={"o_proj": 20, "layers.1.self_attn.q_proj": 5},
    ),
    "regex": dict(r=4, lora_alpha=8, target_modules=r".*\.layers\.1\.(self_attn|mlp)\.(k|gate)_proj"),
    "layers": dict(r=4, lora_alpha=8, target_modules=Q_V, layers_to_transform=[1], layers_pattern="layers"),
    "excluded": dict(r=4, lora_alpha=8, target_modules=Q_V, exclude_modules=r".*layers\.0\.self_attn\.q_proj"),
    "fan-in-fan-out": dict(r=4, lora_alpha=8, target_modules=Q_V, fan_in_fan_out=True),
    "saved": dict(r=4, lora_alpha=8, target_modules=Q_V, modules_to_save=["lm_head", "embed_tokens", "norm"]),
    "bias-all": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], bias="all"),
    "bias-lora-only": dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], bias="lora_only"),
    "dora": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True),
    "embedding": dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj", "lm_head"]),
    "embedding-dora": dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"], use_dora=True),
}


def adapter(name: str, settings: dict) -> None:
    for seed in range(1000):
        model = get_peft_model(load(DATA / "lm-qwen2"), LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "lora_magnitude" in key:
                    parameter.mul_(1.0 + 0.2 * noise)
                elif "lora_" in key:
                    parameter.copy_(0.2 * noise)
                elif parameter.requires_grad:
                    parameter.add_(0.2 * noise)
        folder = fresh(f"lm-lora/{name}")
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        config = read_json(folder / "adapter_config.json")
        config["base_model_name_or_path"] = "lm-qwen2"
        if settings["target_modules"] == "all-linear":
            # What peft expands it to when it saves; files written by hand keep the word.
            config["target_modules"] = "all-linear"
        write_json(folder / "adapter_config.json", config)
        merged = PeftModel.from_pretrained(load(DATA / "lm-qwen2"), folder).merge_and_unload()
        found = reference(merged)
        if found[2] >= MARGIN:
            write_reference(folder, found)
            return
    raise SystemExit(f"{name}: no seed gives a margin of {MARGIN}")


def permuted(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """GGUF's Llama turns neighbours where transformers turns halves: the rows of q and k go into another order."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, part = name.split(".", 3)
    part, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def gguf_file(name: str, of: str, kind: gguf.GGMLQuantizationType) -> None:
    """A GGUF file of another model's shape; the seed is the first whose rounded weights give no near-ties."""
    for seed in range(1000):
        folder = fresh(name)
        found = reference(written(folder, randomized(load(DATA / of), seed), kind))
        if found[2] >= MARGIN:
            return write_reference(folder, found)
    raise SystemExit(f"{name}: no seed gives a margin of {MARGIN}")


def written(folder: Path, model, kind: gguf.GGMLQuantizationType):
    """Writes the model and gives it back with the weights as they were rounded."""
    config = model.config
    arch = {"llama": "llama", "mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(folder / "model.gguf", arch)
    writer.add_name("a fixture")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(1)
    tokenizer = read_json(DATA / "lm-tokenizer/tokenizer.json")
    tokens = sorted(TOKENIZER.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    special = {entry["id"] for entry in tokenizer["added_tokens"]}
    writer.add_token_types([3 if index in special else 1 for _, index in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
        turned = next((count for end, count in heads.items() if key.endswith(end) and arch == "llama"), None)
        stored = permuted(array, turned) if turned else array
        chosen = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(numpy.ascontiguousarray(stored), chosen)
        writer.add_tensor(gguf_name(key), raw, raw_dtype=chosen)
        # Of a row, each 32 numbers share a scale: the order of the rows does not matter.
        state[key] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, chosen), chosen).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def ggufs() -> None:
    kinds = gguf.GGMLQuantizationType
    gguf_file("lm-gguf-llama", "lm-llama", kinds.F16)
    gguf_file("lm-gguf-qwen2", "lm-qwen2", kinds.Q8_0)
    gguf_file("lm-gguf-qwen3", "lm-qwen3", kinds.BF16)


def main() -> None:
    global TOKENIZER
    TOKENIZER = tokenizer_folder()
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or ["bases", "adapters", "ggufs"]
    if "bases" in chosen:
        bases()
    if "adapters" in chosen:
        for name, settings in ADAPTERS.items():
            adapter(name, settings)
    if "ggufs" in chosen:
        ggufs()


if __name__ == "__main__":
    main()
