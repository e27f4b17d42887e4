# The ways into this repository. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-ops rules dashboard simulate chaos lint fmt

CARGO_TARGET_DIR ?= target
SEEDS ?= 20000
FIRST ?= 1
MINUTES ?= 10
# Tools that scripts/setup had to build live here, not in your home directory.
export PATH := $(abspath $(CARGO_TARGET_DIR))/tools/bin:$(PATH)

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: ## See changes of a table arrive in KV (a throw-away Postgres and KV, Ctrl-C ends it)
	@scripts/setup demo
	@cargo build --release --locked --quiet
	@"$(CARGO_TARGET_DIR)/release/pg2kv" demo $(DEMO_ARGS)

test: ## Run every test, against real servers
	@scripts/setup test
	@cargo nextest run --locked

test-ops: ## Run the slow tests of what operators get: the image, incidents, the dashboard
	@scripts/setup test
	@scripts/setup ops
	@cargo nextest run --locked --profile ops

rules: ## Write the PrometheusRule from the plain alert rules
	@scripts/prometheus-rule >deploy/prometheus/pg2kv.prometheusrule.yaml

dashboard: ## Write the Grafana dashboard from its source, and draw it after a run of six minutes
	@scripts/setup test
	@scripts/setup ops
	@PG2KV_DASHBOARD_SECONDS=360 cargo nextest run --locked --profile ops -E 'test(/^ops::dashboard::/)'

simulate: ## Simulate more seeds: make simulate SEEDS=50000 FIRST=1
	@scripts/setup test
	@PG2KV_SIM_SEEDS=$(SEEDS) PG2KV_SIM_FIRST=$(FIRST) cargo nextest run --locked --profile long \
	  --no-capture -E 'test(=simulation::converges_whatever_fails)'

chaos: ## Let a nemesis loose on two daemons for longer: make chaos MINUTES=30
	@scripts/setup test
	@PG2KV_CHAOS_SECONDS=$$(( $(MINUTES) * 60 )) cargo nextest run --locked --profile long \
	  --no-capture -E 'test(/^chaos::nemesis/)'

lint: ## Check format, lints, licences and sources of dependencies, and known vulnerabilities
	@cargo fmt --check
	@scripts/setup lint
	@cargo clippy --all-targets --locked --quiet -- -D warnings
	@scripts/check-dependencies

fmt: ## Format the sources
	@cargo fmt
