# make demo, make test, make check, make bench, make install: each sets up all it needs.

SHELL := /bin/bash
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

PREFIX ?= /usr/local
DESTDIR ?=
DEMO_IMAGE ?=
FUZZ_SECONDS ?= 30
TEST := node --import ./test/harness/property-seed.ts --test --test-reporter=spec --test-timeout=900000
FAST_TESTS := 'packages/**/*.test.ts' 'scripts/*.test.ts' 'bench/*.test.ts'
# One file at a time: a machine of two cores runs one VM well.
SLOW_TESTS := 'test/**/*.test.ts'

.DEFAULT_GOAL := help
.PHONY: sdk help setup setup-demo setup-bench setup-kvm demo test test-fast test-vm test-kvm fuzz check bench dev install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: setup-demo ## boots an image as a VM, uses it as a person would, and says how long each step took (DEMO_IMAGE=ref for one of yours)
	@node scripts/demo.ts $(DEMO_IMAGE)

test: setup ## every test, real VMs included
	@$(TEST) --test-concurrency=1 $(FAST_TESTS) $(SLOW_TESTS) </dev/null

test-fast: setup ## the tests that boot no VM and ask no outer tool
	@$(TEST) --test-concurrency=2 $(FAST_TESTS) </dev/null

test-vm: setup ## the tests with real VMs
	@$(TEST) --test-concurrency=1 'test/vm/*.test.ts' </dev/null

test-kvm: setup-kvm ## stories on real KVM: this host's, or that of an emulated machine (STORIES='test/vm/x.test.ts …' for some)
	@node test/kvm-lab/lab.ts $(STORIES)

fuzz: setup ## feeds the guest's parsers and the API with nonsense for FUZZ_SECONDS each, and tries properties on new values (FUZZ_SEED=7 repeats both)
	@$(MAKE) -s -C guest fuzz OUT=$(CURDIR)/build/guest SECONDS_EACH=$(FUZZ_SECONDS)
	@seed=$${FUZZ_SEED:-$$RANDOM}; echo "fuzz: FUZZ_SEED=$$seed"; \
	  FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$$seed $(TEST) test/fuzz/openapi.test.ts $$(grep -rl "from 'fast-check'" packages) </dev/null

check: setup ## types, lint, import rings, OpenAPI and API page drift, dead code, names, shell, C
	@node scripts/check.ts

bench: setup-bench ## measures every promise of docs/promises.md beside its anchor
	@node bench/bench.ts

sdk: setup-demo ## the SDK as an npm package, in build/sdk
	@node scripts/sdk.ts

dev: setup-demo ## a daemon with made-up VMs, on build/dev
	@DORMOUSE_DATA_DIR=$(CURDIR)/build/dev/data DORMOUSE_RUN_DIR=$(CURDIR)/build/dev/run DORMOUSE_HYPERVISOR=fake \
	  node --watch packages/daemon/src/main.ts serve

install: setup-demo ## daemon, CLI, guest, kernel and systemd unit below PREFIX (DESTDIR is respected)
	@node scripts/install.ts --prefix '$(PREFIX)' --destdir '$(DESTDIR)'

uninstall: ## removes what make install put below PREFIX; data stays
	@scripts/uninstall.sh '$(PREFIX)' '$(DESTDIR)'

setup: ## what all of these call first
	@scripts/setup.sh

setup-demo:
	@scripts/setup.sh demo

setup-bench:
	@scripts/setup.sh bench

clean: ## removes what was built; node_modules stays
	rm -rf build bench/out

setup-kvm:
	@scripts/setup.sh kvm
