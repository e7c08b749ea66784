"""What people use on a GPU without TensorRT: torch_gpu.py MODEL SENTENCES [BATCHxSEQ…].

Times the encoder and its mean pooling from tokens in host memory to fp32 values there, as `build-engine bench` does: ten
runs to warm up, then at least 50 and at least two seconds. In fp32 (with and without TF32) and fp16, each as it comes and
replayed from a CUDA graph. Then sentence-transformers over every line of SENTENCES. Prints Markdown.
"""

import sys
import time


def percentile(times, percent):
    ordered = sorted(times)
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1] * 1e3


def measure(run):
    for _ in range(10):
        run()
    times, start = [], time.perf_counter()
    while len(times) < 50 or time.perf_counter() - start < 2:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def main():
    import torch
    import transformers
    from transformers import AutoModel

    folder, sentences = sys.argv[1:3]
    sizes = [tuple(int(part) for part in size.split("x")) for size in sys.argv[3:]] or [(1, 16), (8, 128), (64, 128)]
    gpu = torch.cuda.get_device_name(0)
    print(f"- torch {torch.__version__}, transformers {transformers.__version__}, on {gpu}")
    ids = torch.arange(1000, 1000 + 64 * 512, dtype=torch.int64) % 20000 + 1000
    for name, dtype, tf32 in [("fp32", torch.float32, False), ("tf32", torch.float32, True), ("fp16", torch.float16, False)]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval().cuda()

        def compute(given, mask):
            hidden = model(input_ids=given, attention_mask=mask).last_hidden_state.float()
            weights = mask[..., None].float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1)

        for batch, seq in sizes:
            host = ids[: batch * seq].reshape(batch, seq)
            ones = torch.ones_like(host)
            cells = []
            with torch.inference_mode():

                def plain():
                    return compute(host.cuda(), ones.cuda()).cpu()

                given, mask = host.cuda(), ones.cuda()
                for _ in range(3):
                    compute(given, mask)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = compute(given, mask)

                def replayed():
                    given.copy_(host)
                    mask.copy_(ones)
                    graph.replay()
                    return out.cpu()

                for how, run in [("as it comes", plain), ("from a CUDA graph", replayed)]:
                    times = measure(run)
                    rate = len(times) * batch / sum(times)
                    cells.append(
                        f"{how} p50 {percentile(times, 50):.3f} ms, p99 {percentile(times, 99):.3f} ms, {rate:.0f} texts/s"
                    )
            print(f"- torch {name}, {batch}×{seq}: {'; '.join(cells)}", flush=True)

    from sentence_transformers import SentenceTransformer

    torch.backends.cuda.matmul.allow_tf32 = False
    texts = open(sentences, encoding="utf-8").read().splitlines()
    for name, dtype in [("fp32", torch.float32), ("fp16", torch.float16)]:
        model = SentenceTransformer(folder, device="cuda", model_kwargs={"dtype": dtype})
        for batch in (32, 256):
            model.encode(texts[:512], batch_size=batch)
            begin = time.perf_counter()
            model.encode(texts, batch_size=batch)
            seconds = time.perf_counter() - begin
            print(f"- sentence-transformers {name}, batches of {batch}: {len(texts)} sentences in {seconds:.3f} s", flush=True)


if __name__ == "__main__":
    main()
