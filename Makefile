# The two commands are `make demo` and `make test`; README.md tells them by task.
#
#   make demo               set up, build, run the demo experiment and serve it until Ctrl-C
#   make demo ONCE=1        … end when it is finished, with a table and one line of JSON
#   STATE=dir make demo     … with all state in that folder
#   make test               everything that is checked, set-up included
#   make lint               formatting, clippy and the type check only
#   make bench              the benchmarks; BENCH=memory,lora make bench runs those parts, and BENCH=simulate and BENCH=bloat,
#                           named, at full length (DAYS=2, RUNS=20000 make them shorter)
#   make chaos              the long failure tests: FAULTS=500 faults, from SEED=… or one that is printed

SHELL := /bin/bash
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
DEPS := $(ROOT)/.deps
RELEASE := $(abspath $(or $(CARGO_TARGET_DIR),$(ROOT)/target))/release

export STARTED := $(shell date +%s.%N)
export STATE ONCE FAULTS SEED
export PATH := $(DEPS)/bin:$(PATH):$(HOME)/.cargo/bin
export CARGO_TARGET_DIR := $(patsubst %/release,%,$(RELEASE))
export LIBTORCH := $(DEPS)/libtorch
export SQLX_OFFLINE := true
export CAUSEWAY_COMMIT := $(shell git -C $(ROOT) rev-parse --short=12 HEAD 2>/dev/null)

INSTALL := python3 $(ROOT)/setup/install.py
MANIFEST := --manifest-path $(ROOT)/Cargo.toml

.PHONY: demo test lint bench chaos

demo:
	@$(INSTALL) announce build
	@$(INSTALL) data & trap "kill $$! 2>/dev/null" EXIT; \
	  cargo build $(MANIFEST) --release -p causeway-server -p causeway-trainer && wait $$!
	@exec python3 $(ROOT)/setup/demo.py $(RELEASE)

test:
	@$(INSTALL) announce build data test
	@python3 $(ROOT)/setup/verify.py test

lint:
	@$(INSTALL) build
	@python3 $(ROOT)/setup/verify.py lint

bench:
	@$(INSTALL) build data
	@cd $(ROOT) && cargo build --release --workspace --bins && cargo bench --workspace --bench causeway-bench \
		&& cargo bench --workspace --bench causeway-knn

chaos:
	@$(INSTALL) build data
	@python3 $(ROOT)/setup/verify.py chaos
