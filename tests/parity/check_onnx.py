"""Has onnx.checker and OpenVINO read every exported graph, as a second and a third opinion beside ONNX Runtime.

Usage:
  ONNX_GRAPHS_DIR=folder cargo test -p onnx-export -- --ignored every_graph_is_written
  check_onnx.py folder

onnx.checker checks each file with its weights and infers the shapes of all values (full_check, strict mode). OpenVINO reads
and compiles each for its CPU. Packages: check_requirements.txt.
"""

import sys
from collections import Counter
from pathlib import Path

import onnx
import openvino


def check(path: Path, core: openvino.Core, counts: Counter) -> list[str]:
    problems = []
    try:
        onnx.checker.check_model(str(path), full_check=True)
        counts["onnx.checker accepts"] += 1
    except Exception as error:  # noqa: BLE001 whatever it says is what is wanted
        problems.append(f"onnx.checker: {error}")
    try:
        core.compile_model(core.read_model(path), "CPU")
        counts["openvino compiles"] += 1
    except Exception as error:  # noqa: BLE001
        problems.append(f"openvino: {error}")
    return problems


def main() -> None:
    folder = Path(sys.argv[1])
    paths = sorted(folder.rglob("*.onnx"))
    if not paths:
        raise SystemExit(f"{folder} holds no *.onnx")
    core, counts, failed = openvino.Core(), Counter(), 0
    for path in paths:
        problems = check(path, core, counts)
        failed += bool(problems)
        for problem in problems:
            print(f"{path.relative_to(folder)}: {' '.join(problem.split())[:600]}")
    print(f"onnx {onnx.__version__}, openvino {openvino.__version__}: {len(paths)} graphs, {failed} refused")
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
