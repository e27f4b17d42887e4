# The ways into this repository. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-worker test-ops rules dashboard simulate chaos backlog bench measure lint fmt

CARGO_TARGET_DIR ?= target
SEEDS ?= 20000
FIRST ?= 1
MINUTES ?= 10
ROWS ?= 10000000
# Tools that scripts/setup had to build live here, not in your home directory.
export PATH := $(abspath $(CARGO_TARGET_DIR))/tools/bin:$(PATH)

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: ## See changes of a table arrive in KV (a throw-away Postgres and KV, Ctrl-C ends it)
	@scripts/setup demo
	@cargo build --release --locked --quiet
	@"$(CARGO_TARGET_DIR)/release/pg2kv" demo $(DEMO_ARGS)

test: ## Run every test, against real servers
	@scripts/setup test
	@cargo nextest run --locked

test-worker: ## Run the tests of the Worker alone: PostgreSQL, pg2kv, workerd, browser
	@scripts/setup test
	@cargo nextest run --locked --no-capture -E 'test(/^worker::/)'

test-ops: ## Run the slow tests of what operators get: the image, incidents, the dashboard
	@scripts/setup test
	@scripts/setup ops
	@cargo nextest run --locked --profile ops

rules: ## Write the PrometheusRule from the plain alert rules
	@scripts/prometheus-rule >deploy/prometheus/pg2kv.prometheusrule.yaml

dashboard: ## Write the Grafana dashboard from its source, and draw it after a run of six minutes
	@scripts/setup test
	@scripts/setup ops
	@PG2KV_DASHBOARD_SECONDS=360 cargo nextest run --locked --profile ops \
	  -E 'test(=ops::dashboard::every_panel_shows_a_real_run)'

simulate: ## Simulate more seeds: make simulate SEEDS=50000 FIRST=1
	@scripts/setup test
	@PG2KV_SIM_SEEDS=$(SEEDS) PG2KV_SIM_FIRST=$(FIRST) cargo nextest run --locked --profile long \
	  --no-capture -E 'test(=simulation::converges_whatever_fails)'

chaos: ## Let a nemesis loose on two daemons for longer: make chaos MINUTES=30
	@scripts/setup test
	@PG2KV_CHAOS_SECONDS=$$(( $(MINUTES) * 60 )) cargo nextest run --locked --profile long \
	  --no-capture -E 'test(/^chaos::nemesis/)'

backlog: ## Drain a huge backlog in little memory: make backlog ROWS=10000000
	@scripts/setup test
	@cargo build --release --locked --quiet
	@PG2KV_BACKLOG_ROWS=$(ROWS) PG2KV_BINARY="$(abspath $(CARGO_TARGET_DIR))/release/pg2kv" \
	  cargo nextest run --locked --profile long --no-capture -E 'test(/^chaos::backlog/)'

bench: ## Measure it beside what people would use instead: make bench QUICK=1 ONLY=writers
	@scripts/setup test
	@scripts/setup bench
	@cargo bench --locked --quiet --bench bench -- $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

measure: ## Measure a change of one user in a document of 100,000
	@scripts/setup test
	@cargo nextest run --release --locked --no-capture -E 'test(=daemon::large::one_user_of_100000_in_one_document)'

lint: ## Check format, lints, licences and sources of dependencies, and known vulnerabilities
	@cargo fmt --check
	@scripts/setup lint
	@cargo clippy --all-targets --locked --quiet -- -D warnings
	@scripts/check-dependencies

fmt: ## Format the sources
	@cargo fmt
