"""Writes `sentences/`: folders of modules around the encoder of `sentence/`, and what sentence-transformers gives for them.

Usage: make_sentences.py
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from fixtures import DATA, SEED, TEXTS, fresh, report, wordpiece, write_json
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

HIDDEN = 32
POOLINGS = {
    "mean": {"embedding_dimension": HIDDEN, "pooling_mode": "mean"},
    "both": {"embedding_dimension": HIDDEN, "pooling_mode": ["cls", "max"]},
    "without-prompt": {"embedding_dimension": HIDDEN, "pooling_mode": ["mean", "lasttoken"], "include_prompt": False},
}
PROMPTS = {
    "prompts": {"query": "Find: ", "passage": "Text of the day: ", "nothing": None},
    "default_prompt_name": "passage",
}
generator = torch.Generator().manual_seed(SEED)


def random(*shape, around=0.0):
    return (torch.randn(shape, generator=generator) * 0.3 + around).contiguous()


def dense(inputs, outputs, activation=None, bias=True):
    """`activation=None` is a configuration that does not say, as the oldest have it."""
    config = {"in_features": inputs, "out_features": outputs, "bias": bias}
    if activation:
        config["activation_function"] = f"torch.nn.modules.{activation}"
    weights = {"linear.weight": random(outputs, inputs)} | ({"linear.bias": random(outputs)} if bias else {})
    return "Dense", config, weights


def layer_norm(width):
    return "LayerNorm", {"dimension": width}, {"norm.weight": random(width, around=1.0), "norm.bias": random(width)}


NORMALIZE, DROPOUT = ("Normalize", None, None), ("Dropout", {"dropout": 0.3}, None)

FILES = ["config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"]

# Name: where the encoder is (None: there is a table instead), the pooling, the steps after it, the configuration.
FOLDERS = {
    "dense": ("", "mean", [dense(32, 20)], None),
    "dense-twice": (
        "",
        "mean",
        [dense(32, 24, "activation.ReLU"), dense(24, 10, "linear.Identity", bias=False), NORMALIZE],
        None,
    ),
    "dense-gelu": ("0_Transformer", "both", [dense(64, 16, "activation.GELU"), DROPOUT, layer_norm(16)], None),
    "dense-gates": (
        "",
        "mean",
        [dense(32, 16, "activation.Sigmoid"), dense(16, 16, "activation.SiLU"), dense(16, 8, "activation.Tanh")],
        None,
    ),
    "layer-norm": ("", "both", [layer_norm(64), NORMALIZE], None),
    "subfolder": ("0_Transformer", "mean", [NORMALIZE], None),
    "prompts": ("", "mean", [NORMALIZE], PROMPTS),
    "prompts-left-out": ("", "without-prompt", [dense(64, 12)], PROMPTS),
    "fewer": ("", "mean", [NORMALIZE], {"truncate_dim": 10, "similarity_fn_name": "dot"}),
    "static": (None, None, [], None),
    "static-steps": (None, None, [dense(24, 12), NORMALIZE], PROMPTS),
    "model2vec": (None, None, [NORMALIZE], None),
}

# Each: a name, the folder, the method, its arguments.
CALLS = [(name, name, "encode", {}) for name in FOLDERS] + [
    ("prompts.query", "prompts", "encode_query", {}),
    ("prompts.document", "prompts", "encode_document", {}),
    ("prompts.by-name", "prompts", "encode", {"prompt_name": "query"}),
    ("prompts.null", "prompts", "encode", {"prompt_name": "nothing"}),
    ("prompts.none", "prompts", "encode", {"prompt": ""}),
    ("prompts.given", "prompts", "encode", {"prompt": "Given: "}),
    ("prompts-left-out.query", "prompts-left-out", "encode_query", {}),
    ("prompts-left-out.none", "prompts-left-out", "encode", {"prompt": ""}),
    ("static-steps.query", "static-steps", "encode_query", {}),
    ("subfolder.query", "subfolder", "encode_query", {}),
    ("subfolder.document", "subfolder", "encode_document", {}),
    ("subfolder.fewer", "subfolder", "encode", {"truncate_dim": 12}),
    ("subfolder.fewer-unit", "subfolder", "encode", {"truncate_dim": 12, "normalize_embeddings": True}),
    ("dense.unit", "dense", "encode", {"normalize_embeddings": True}),
    ("dense.more", "dense", "encode", {"truncate_dim": 100}),
    ("fewer.asked", "fewer", "encode", {"truncate_dim": 16}),
]


def make_folder(root: Path, name: str) -> Path:
    """The modules of one folder; the encoder's own files, or the table's, are put there by those who use it."""
    where, pooling, steps, settings = FOLDERS[name]
    folder, entries = root / name, []
    folder.mkdir()

    def module(path, kind):
        entry = {"idx": len(entries), "name": str(len(entries)), "path": path}
        entries.append({**entry, "type": f"sentence_transformers.models.{kind}"})

    module(where or "", "StaticEmbedding" if where is None else "Transformer")
    if pooling:
        module("1_Pooling", "Pooling")
        (folder / "1_Pooling").mkdir()
        write_json(folder / "1_Pooling/config.json", POOLINGS[pooling])
    for kind, config, weights in steps:
        path = f"{len(entries)}_{kind}"
        module(path, kind)
        if config:
            (folder / path).mkdir()
            write_json(folder / path / "config.json", config)
        if weights:
            save_file(weights, folder / path / "model.safetensors")
    write_json(folder / "modules.json", entries)
    if settings:
        write_json(folder / "config_sentence_transformers.json", settings)
    return folder


def whole(folder: Path, into: Path, root: Path) -> SentenceTransformer:
    where = FOLDERS[folder.name][0]
    shutil.copytree(folder, into)
    source = root / "table" if where is None else DATA / "sentence"
    (into / (where or "")).mkdir(exist_ok=True)
    for file in FILES:
        if (source / file).exists():
            shutil.copy(source / file, into / (where or "") / file)
    if folder.name == "model2vec":
        shutil.copy(root / "table/model2vec.safetensors", into / "model.safetensors")
    # What a float32 reader of the stored weights gives.
    return SentenceTransformer(str(into), device="cpu", model_kwargs={"dtype": torch.float32}).float()


def table(root: Path) -> None:
    folder, tokenizer = root / "table", wordpiece()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    weights = random(tokenizer.get_vocab_size(), 24)
    save_file({"embedding.weight": weights}, folder / "model.safetensors")
    save_file({"embeddings": weights.to(torch.float16)}, folder / "model2vec.safetensors")


def quantised(vectors: np.ndarray, calibration: np.ndarray) -> dict:
    outputs = {}
    for precision in ["int8", "uint8", "binary", "ubinary"]:
        outputs[f"{precision}.own"] = quantize_embeddings(vectors, precision)
        outputs[f"{precision}.calibrated"] = quantize_embeddings(vectors, precision, calibration_embeddings=calibration)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in outputs.items()}


def main() -> None:
    root, outputs = fresh("sentences"), {}
    table(root)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: whole(make_folder(root, name), Path(scratch) / name, root) for name in FOLDERS}
        for name, folder, method, arguments in CALLS:
            outputs[name] = getattr(models[folder], method)(TEXTS, convert_to_tensor=True, **arguments).contiguous()
        for name in ["cosine", "dot", "euclidean", "manhattan"]:
            model = models["dense"]
            model.similarity_fn_name = name
            outputs[f"similarity.{name}"] = model.similarity(outputs["dense"], outputs["dense.unit"]).contiguous()
    write_json(root / "texts.json", TEXTS)
    write_json(
        root / "calls.json",
        [
            {"name": name, "folder": folder, "at": FOLDERS[folder][0], "method": method, **arguments}
            for name, folder, method, arguments in CALLS
        ],
    )
    save_file(outputs, root / "outputs.safetensors")
    # Components that do not fill the last byte, and one that is the same in all vectors.
    vectors = outputs["dense"].numpy().copy()
    vectors[:, 3] = 0.25
    calibration = outputs["dense.unit"]
    tensors = {"vectors": torch.from_numpy(vectors), "calibration": calibration}
    save_file(tensors | quantised(vectors, calibration.numpy()), root / "quantized.safetensors")
    report(root)


if __name__ == "__main__":
    main()
