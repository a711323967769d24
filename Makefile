# symphony: everything a developer or a new machine needs. `make` lists the targets.

TARGET  := $(shell uname -m)-unknown-linux-gnu
# An explicit target keeps the flags away from build scripts and procedural macros.
STATIC  := RUSTFLAGS="-C target-feature=+crt-static" cargo
FLAGS   := --locked --target $(TARGET)
BINARY  := target/symphony
# The conformance suite as a program of its own, for guests.
SUITE   := target/conformance
# And the benchmark.
FIGURES := target/bench
PROTOX  := target/tools/bin/protox
SECONDS_EACH ?= 60
MINUTES ?= 10
SEED ?=
SEEDS ?= 3000
BENCH_DATA ?=
FUZZERS := $(notdir $(wildcard tests/fuzz/seeds/*))

# What the tests drive symphony with, and the packages that bring it: program=package.
PROGRAMS := etcd=etcd-server etcdctl=etcd-client fio=fio nbdinfo=libnbd-bin nbdcopy=libnbd-bin nbdsh=python3-libnbd \
            nbdkit=nbdkit qemu-img=qemu-utils qemu-io=qemu-utils mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs xfs_io=xfsprogs \
            mount=mount ip=iproute2 lvm=lvm2 thin_restore=thin-provisioning-tools \
            setpriv=util-linux unshare=util-linux openssl=openssl
# What runs guests and makes them out of packages; what is in the guests is downloaded, not installed.
VM_PROGRAMS := qemu-system-x86_64=qemu-system-x86 python3=python3 modprobe=kmod depmod=kmod nbdkit=nbdkit

.PHONY: help build demo test test-faults test-simulation test-vm $(SUITE) lint bench bench-scale bench-vm $(FIGURES) \
        bench-data fuzz tools test-tools demo-tools clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: tools ## Build the static executable target/symphony
	$(STATIC) build --release $(FLAGS)
	@cp target/$(TARGET)/release/symphony $(BINARY).new && mv $(BINARY).new $(BINARY)
	@ldd $(BINARY) 2>&1 | grep -q 'statically linked\|not a dynamic executable' || { echo "$(BINARY) is not static"; exit 1; }
	@ls -lh $(BINARY) | awk '{print "$(BINARY): " $$5 ", static"}'

demo: build demo-tools ## Show the whole way: volume, upload, kill -9, download, compare
	tests/demo/run $(BINARY)

test: tools test-tools ## Run every test
	@if cargo nextest --version >/dev/null 2>&1; then \
	  echo cargo nextest run --locked; cargo nextest run --locked; \
	else \
	  echo cargo test --locked; cargo test --locked; \
	fi

test-faults: tools test-tools ## Hurt real processes at random for MINUTES (default 10); SEED=… repeats a run's faults
	SYMPHONY_FAULTS_MINUTES=$(MINUTES) $(if $(SEED),SYMPHONY_FAULTS_SEED=$(SEED)) \
	  cargo test --locked --test scenarios faults:: -- --test-threads=2 --nocapture

test-simulation: tools ## Let SEEDS simulated clusters live (default 3000), SEED=… the first of them
	CARGO_PROFILE_TEST_OPT_LEVEL=2 SYMPHONY_SIMULATION_SEEDS=$(SEEDS) $(if $(SEED),SYMPHONY_SIMULATION_SEED=$(SEED)) \
	  cargo test --locked --lib simulation:: -- --nocapture

test-vm: build $(SUITE) ## Run what needs a kernel of its own, in emulated guests; CASES="10 40" chooses
	@tests/tools/install $(VM_PROGRAMS)
	tests/vm/run --conformance $(SUITE) $(BINARY) $(CASES)

$(SUITE): tools
	CARGO_PROFILE_DEV_STRIP=debuginfo $(STATIC) test --no-run $(FLAGS) --test conformance \
	  --message-format=json-render-diagnostics >$(SUITE).json
	@cp "$$(sed -n 's/.*"executable":"\([^"]*\/conformance-[^"]*\)".*/\1/p' $(SUITE).json)" $(SUITE)

lint: tools ## Check formatting and run clippy
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

bench: build test-tools ## Print the control plane's figures, side by side with the raw stores
	SYMPHONY_BENCH_BINARY=$(abspath $(BINARY)) $(STATIC) bench $(FLAGS) --bench control

bench-scale: build test-tools ## Print how the control plane grows: SERVICES=1000 VOLUMES=1000,10000,100000 on either store
	SYMPHONY_BENCH_BINARY=$(abspath $(BINARY)) $(STATIC) bench $(FLAGS) --bench control -- scale

bench-vm: build $(FIGURES) ## Print what needs device-mapper, in an emulated guest: ratios tell, milliseconds do not
	@tests/tools/install $(VM_PROGRAMS)
	tests/vm/run --bench $(FIGURES) $(BINARY) 90

$(FIGURES): tools
	CARGO_PROFILE_BENCH_STRIP=symbols $(STATIC) bench --no-run $(FLAGS) --bench control \
	  --message-format=json-render-diagnostics >$(FIGURES).json
	@cp "$$(sed -n 's/.*"executable":"\([^"]*\/control-[^"]*\)".*/\1/p' $(FIGURES).json)" $(FIGURES)

bench-data: tools ## Print the data path's figures, side by side with qemu-nbd, nbdkit and nbd-server
	@tests/tools/install fio=fio nbdcopy=libnbd-bin qemu-nbd=qemu-utils nbdkit=nbdkit nbd-server=nbd-server ip=iproute2 \
	  openssl=openssl
	$(STATIC) build --release $(FLAGS) --example serve
	tests/bench/data/compare.py --rt $(BENCH_DATA) \
	  --server 'symphony=exec tests/bench/data/serve {file} {transport} {port} {sock} target/$(TARGET)/release/examples/serve' \
	  --uri 'symphony=tls:nbds://127.0.0.1:{port}/?tls-certificates={dir}'

fuzz: tools ## Fuzz every parser, each for SECONDS_EACH seconds (default 60)
	@test -x target/tools/bin/cargo-fuzz || cargo install cargo-fuzz --root target/tools --locked
	@for target in $(FUZZERS); do \
	  echo "fuzzing $$target"; mkdir -p tests/fuzz/target/corpus/$$target; \
	  RUSTC_BOOTSTRAP=1 PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo fuzz run --dev -s none --fuzz-dir tests/fuzz $$target \
	    tests/fuzz/target/corpus/$$target tests/fuzz/seeds/$$target -- -max_total_time=$(SECONDS_EACH) -rss_limit_mb=2048 || exit 1; \
	done

# etcd-client's build compiles its protocol with $$PROTOC, which .cargo/config.toml points at this pure-Rust compiler.
tools: $(PROTOX)

$(PROTOX):
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from your distribution or with rustup"; exit 1; }
	cargo install protox --version 0.10.0 --features bin --root target/tools --locked

test-tools:
	@tests/tools/install $(PROGRAMS)
	@tests/tools/nbd-tester-client

demo-tools:
	@tests/tools/install mkfs.ext4=e2fsprogs

clean: ## Remove everything that was built
	cargo clean
