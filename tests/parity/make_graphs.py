"""Writes `crates/onnx-export/tests/data/`: what transformers gives for the models of `encoders/` on the shortest and the
longest input, and as token classifiers.

The models themselves are those of `make_encoders.py`. Where one has no layer for token classification, a random one is
written with the outputs, which a test puts beside the model as a second shard.

Usage: make_graphs.py [FAMILY...]
"""

import json
import sys
from pathlib import Path

import torch
from fixtures import DATA, MAX_TOKENS, SEED
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

OUT = Path(__file__).resolve().parents[2] / "crates/onnx-export/tests/data"


def run(model, ids: torch.Tensor) -> torch.Tensor:
    """The logits, or the last hidden state of a bare encoder."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]


def make(family: str) -> None:
    folder = DATA / "encoders" / family
    generator = torch.Generator().manual_seed(SEED)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    # Positions of RoBERTa and MPNet begin after the padding id, so fewer tokens fit.
    longest = MAX_TOKENS if classifier.config.max_position_embeddings < 48 else 48
    tensors = {}
    for name, length in [("short", 1), ("long", longest)]:
        # Past the special tokens, none of which may come in the middle.
        ids = torch.randint(5, classifier.config.vocab_size, (1, length), generator=generator)
        hidden = run(classifier.base_model, ids)
        tensors |= {f"{name}.ids": ids, f"{name}.hidden": hidden, f"{name}.logits": run(classifier, ids)}
    tokens, info = AutoModelForTokenClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    tokens.eval()
    if info["missing_keys"]:
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}, info
        with torch.no_grad():
            for parameter in tokens.classifier.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
        tensors |= {f"classifier.{name}": value for name, value in tokens.classifier.state_dict().items()}
    for index, ids in enumerate(json.loads((folder / "tokens.json").read_text())["ids"]):
        tensors[f"tokens.{index}"] = run(tokens, torch.tensor([ids]))[0]
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, OUT / f"{family}.safetensors")
    (OUT / f"{family}.safetensors").chmod(0o644)
    print(f"{family}: {(OUT / f'{family}.safetensors').stat().st_size / 1000:.0f} KB")


def main() -> None:
    torch.set_num_threads(1)
    for family in sys.argv[1:] or sorted(path.name for path in (DATA / "encoders").iterdir()):
        make(family)


if __name__ == "__main__":
    main()
