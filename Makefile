# `make help` lists the targets. `make demo` and `make test` install what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

export SYNC_OPERATOR_CACHE ?= $(HOME)/.cache/sync-operator
export CARGO_TARGET_DIR ?= $(SYNC_OPERATOR_CACHE)/target
CLUSTER ?= local
fault_rounds := cargo test --quiet --test integration -- --ignored --nocapture --exact faults::all_runs_end_correctly_after_random_faults

.PHONY: help demo demo-down check lint unit one-build check-generated test deny integration faults model test-chart test-e2e test-times test-faults prove-held prove-incremental prove-model prove-restore prove-tenants prove-upgrade bench bench-peers bench-scale bench-http bench-sources generate build image sbom notices

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: ## Show a local run, then the operator on Kubernetes; LOCAL=1 stops after the run; CLUSTER=existing uses your cluster, Redis and MongoDB
	@CLUSTER=$(CLUSTER) tests/demo/demo.sh up

demo-down: ## Stop the processes of `make demo` and delete their data
	@CLUSTER=$(CLUSTER) tests/demo/demo.sh down

check: lint unit one-build check-generated ## Run the fast checks: format, lints, wording, unit tests, generated files

test: check ## Run every check and test
	@tests/scripts/side_by_side.sh

lint: ## Check the format, the wording, Markdown, shell scripts and Rust lints
	@cargo fmt --check
	tests/wording/check.sh
	tests/scripts/shellcheck.sh
	cargo clippy --all-targets --quiet -- -D warnings

deny: ## Check licences, origins and known vulnerabilities of the dependencies, and the third-party notices
	@image/deny.sh

unit: ## Run the tests that need no servers
	@tests/demo/kubernetes_test.sh
	tests/wording/check_test.sh
	env -u REDIS_URL -u MONGODB_URI -u MONGODB_DATABASE tests/scripts/timed.sh unit --lib --bins

# More threads than cores, because a test waits for more than half of its time.
integration: ## Run the tests of whole processes with a real API server, Redis and MongoDB
	@cargo test --quiet --test integration --no-run
	tests/cluster/with-cluster.sh tests/scripts/timed.sh integration --test integration -- --test-threads 3

faults: ## Run three rounds of random faults against whole processes
	@ROUNDS=3 $(fault_rounds)

model: ## Compare runs with a model in 300 random cases
	@CASES=300 SEED=1 cargo test --quiet --test model

test-chart: ## Check the Helm chart: lints, schemas, scanners, unit tests
	@tests/chart/check.sh

test-e2e: ## Run the end-to-end tests of the chart on a kind cluster; CLUSTER=existing uses the cluster of KUBECONFIG
	@CLUSTER=$(CLUSTER) tests/e2e/run.sh

test-times: ## List the 20 slowest tests of the last run, and the durations of the parts of make test
	@tests/scripts/times.sh

test-faults: ## Run many rounds of random faults: ROUNDS=200 SEED=1
	@ROUNDS=$${ROUNDS:-200} $(fault_rounds)

prove-model: ## Compare runs with a model in many random cases: CASES=10000 SEED=1
	@CASES=$${CASES:-10000} cargo test --quiet --test model

prove-restore: ## Restore, kill and flush Redis during random runs: ROUNDS=100 SEED=1 (about 20 minutes)
	@ROUNDS=$${ROUNDS:-100} tests/cluster/with-cluster.sh cargo test --quiet --test integration -- --nocapture restores::restore_storms

prove-tenants: ## Attack the operator as a tenant of one namespace, during 20 schedules of others (7 minutes)
	@HOSTILE_SECONDS=300 tests/cluster/with-cluster.sh cargo test --quiet --test integration -- --nocapture hostile_tenant

prove-upgrade: ## Upgrade from an earlier release and downgrade again, during runs: FROM=REVISION (default: the last tag)
	@tests/e2e/upgrade.sh $(FROM)

bench: ## Measure speed and memory: ROUNDS=3 SIZES="100000 1000000" (about 20 minutes)
	@benches/run.sh own

bench-peers: ## Compare with BullMQ, Bull and bare MongoDB commands (about 15 minutes; needs Node.js)
	@benches/run.sh peers

bench-scale: ## Measure many schedules on a real API server: SCHEDULES=10000 JOBS=40000 (about 15 minutes)
	@benches/run.sh scale

bench-http: ## Measure /jobs/status at 1,000 requests per second with 10,000 SyncJobs (about 8 minutes)
	@SCHEDULES=20 JOBS=10000 benches/run.sh scale

bench-sources: ## Measure runs with a GraphQL source: rate limit and latency (about 3 minutes, and up to 20 to build)
	@tests/cluster/with-cluster.sh cargo test --quiet --release --test integration -- --ignored --nocapture --test-threads 1 sources::speed

prove-incremental: ## Check how many of 1,000,000 documents an Incremental run examines: DOCUMENTS=n (about 2 minutes)
	@tests/cluster/with-cluster.sh cargo test --quiet --test integration -- --ignored --nocapture --test-threads 1 incremental::proof

prove-held: ## Kill the operator after each request of a held run (about 3 minutes)
	@EVERY=1 tests/cluster/with-cluster.sh cargo test --quiet --test integration -- --nocapture crashes::killed_after_each_request_of_a_held_run

generate: ## Write the generated files
	cargo build --quiet
	operator=$$CARGO_TARGET_DIR/debug/sync-operator
	for kind in syncschedule syncjob syncalert; do "$$operator" crd $$kind > crds/$${kind}s.yaml; done
	"$$operator" openapi > docs/reference/openapi.json
	UPDATE_DOCS=1 cargo test --quiet --lib documentation::the_api_reference
	tests/chart/generate.sh

one-build: ## Fail if cargo build recompiles dependencies of cargo test
	@tests/scripts/one_build.sh

check-generated: ## Fail if a generated file is stale
	@cargo build --quiet
	operator=$$CARGO_TARGET_DIR/debug/sync-operator
	fresh() { diff -u "$$1" - || { echo "$$1 is stale: run make generate" >&2; exit 1; }; }
	for kind in syncschedule syncjob syncalert; do "$$operator" crd $$kind | fresh crds/$${kind}s.yaml; done
	"$$operator" openapi | fresh docs/reference/openapi.json

build: ## Build the program for the demo and the tests
	cargo build

image: ## Build the container image of a release, with or without Docker, and print the path of its archive
	@image/build.sh

sbom: ## Write the software bill of materials (CycloneDX) to sync-operator.cdx.json
	@image/sbom.sh

notices: ## Write the licences of all software in the image to THIRD-PARTY-NOTICES
	@image/notices.sh THIRD-PARTY-NOTICES

