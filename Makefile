# One cargo profile (--release) everywhere: compiling libtorch's bindings takes minutes a profile.
.DEFAULT_GOAL := help
.PHONY: help tools setup build demo test lint fmt clean

# An empty LIBTORCH would hide the one that .cargo/config.toml sets.
ifeq ($(LIBTORCH),)
unexport LIBTORCH
endif


help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools:
	@scripts/check-tools

setup: tools ## fetch libtorch (0.5 GB, once a machine); a LIBTORCH that you set is used instead
	@scripts/setup-libtorch

build: setup ## compile everything
	cargo build --release --workspace

# Not `cargo run`: it selects one package, whose dependencies may resolve to other features than the workspace's, and
# then compiles libtorch's bindings a second time.
demo: build ## set up, compile and run the demonstration (options: make demo ARGS="...")
	$${CARGO_TARGET_DIR:-target}/release/talion demo $(ARGS)

# Tests run side by side, a core each; more threads inside each test would only wait for one another.
test: setup ## set up, compile and run all tests; they need no network
	OMP_NUM_THREADS=1 cargo test --release --workspace

lint: setup ## formatting, clippy, documentation, dependencies' licences and sources
	cargo fmt --all --check
	scripts/deny
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

fmt: ## format the code
	cargo fmt --all

clean: ## delete what cargo built (libtorch stays in the cache)
	cargo clean
