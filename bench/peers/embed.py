"""What people use to embed sentences, as a process: embed.py MODEL st|ort first SENTENCE, or … all FILE.

`first` loads the model and embeds one sentence. `all` embeds every line of a file after a warm-up and prints the seconds
that took. Both sides read the same folder; ONNX Runtime gets its sentences sorted by length in batches of 32, as
sentence-transformers sorts them.
"""

import sys
import time

BATCH = 32


def sentence_transformers(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    return lambda texts: model.encode(texts, batch_size=BATCH)


def onnxruntime(folder):
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    inputs = [given.name for given in session.get_inputs()]
    pooled_by_graph = session.get_outputs()[0].name == "sentence_embedding"

    def encode(texts):
        tokens = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        out = [None] * len(texts)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            width = max(len(tokens[i]) for i in rows)
            ids = np.zeros((len(rows), width), np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(rows):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            found = session.run(None, {name: feed[name] for name in inputs})[0]
            if not pooled_by_graph:
                found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
                found /= np.linalg.norm(found, axis=1, keepdims=True)
            for row, i in enumerate(rows):
                out[i] = found[row]
        return np.stack(out)

    return encode


def main():
    folder, peer, what, given = sys.argv[1:]
    encode = {"st": sentence_transformers, "ort": onnxruntime}[peer](folder)
    if what == "first":
        encode([given])
        return
    with open(given, encoding="utf-8") as file:
        texts = file.read().splitlines()
    encode(texts[:64])
    begun = time.perf_counter()
    encode(texts)
    print(time.perf_counter() - begun)


main()
