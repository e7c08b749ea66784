"""What people use to write a model as ONNX: export.py MODEL OUT, a process that loads the model and exports it."""

import resource
import sys
import warnings


def main():
    warnings.filterwarnings("ignore")
    import torch
    from transformers import AutoModel

    folder, out = sys.argv[1:]
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.ones((2, 8), dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": ids, "token_type_ids": torch.zeros_like(ids)}
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    exported = torch.onnx.export(model, (), kwargs=inputs, dynamic_shapes={name: sizes for name in inputs}, dynamo=True)
    exported.save(out)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
