# make demo    the whole system on this machine, in network namespaces (ARGS="--keep" passes arguments on)
# make test    every behaviour, for real: what continuous integration runs
# make prove   the figures that are promised, measured; hours, results under docs/
# make lint    formatting, clippy, licences, documentation
# make bench   how fast it is here: the stages of the frame path, and beside other tunnels (ARGS="--runs 7 --write")

ARGS ?=
CARGO ?= cargo
FARLAN := $(or $(CARGO_TARGET_DIR),target)/debug/farlan
# How long each fuzz target runs in `make test`, in milliseconds.
FUZZ_MS ?= 10000
# Tests that make interfaces and namespaces, and therefore need root or a user namespace.
KERNEL := binary(netns) or (package(overlay-node) and kind(test))

.PHONY: demo test prove lint bench build

demo: build
	@tests/tools/install demo
	@$(FARLAN) demo $(ARGS)

build:
	@tests/tools/install build
	$(CARGO) build --locked -p cli

lint:
	tests/tools/install lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) deny --locked check licenses bans sources
	@if $(CARGO) deny fetch db 2>/dev/null; then $(CARGO) deny --locked check advisories; \
	else echo "advisories: the database cannot be fetched from here, not checked"; fi
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# One build for all, and always --workspace: each other selection of packages unifies features differently, and would
# build half of the dependencies once more.
test: lint
	tests/tools/install test
	$(CARGO) build --locked --workspace --all-targets
	$(CARGO) nextest run --locked --workspace -E 'not ($(KERNEL) or package(farlan-fuzz))'
	$(CARGO) test --locked --workspace --doc
	BOLERO_RANDOM_TEST_TIME_MS=$(FUZZ_MS) $(CARGO) nextest run --locked --workspace -E 'package(farlan-fuzz)'
	tests/tools/as-root $(CARGO) nextest run --locked --workspace -E '$(KERNEL)'

# Of the build that people run: what is not optimised takes twice the memory.
prove:
	tests/tools/install test
	$(CARGO) build --locked --release -p cli --bin farlan
	$(CARGO) build --locked --release -p overlay-tests --bin prove
	tests/tools/as-root $(or $(CARGO_TARGET_DIR),target)/release/prove $(ARGS)

# Runs the stages for a minute or two, the comparison for some minutes with each tunnel that is on this machine.
bench: build
	$(CARGO) bench --locked -p tunnel --bench stages
	tests/bench/compare $(ARGS)
