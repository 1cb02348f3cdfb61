# `make demo` and `make test` install what they need and do the rest. `make help` lists everything.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

export SYNC_OPERATOR_CACHE ?= $(HOME)/.cache/sync-operator
export CARGO_TARGET_DIR ?= $(SYNC_OPERATOR_CACHE)/target
CLUSTER ?= local

.PHONY: help demo demo-down check lint unit one-build check-generated test deny integration faults model test-chart test-e2e test-times test-faults prove-held prove-incremental prove-model prove-restore prove-upgrade bench bench-peers bench-scale bench-http bench-sources generate build image sbom

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: ## Show a run, and then the operator at work; LOCAL=1 ends after the run; CLUSTER=existing uses the cluster, Redis and MongoDB of your environment
	@CLUSTER=$(CLUSTER) tests/demo/demo.sh up

demo-down: ## Stop what `make demo` started
	@CLUSTER=$(CLUSTER) tests/demo/demo.sh down

check: lint unit one-build check-generated ## What is quick: formatting, lints, scripts, unit tests, generated files

test: check ## Run every check and test
	@tests/scripts/side_by_side.sh

lint: ## Formatting, lints, shell scripts
	@cargo fmt --check
	tests/scripts/shellcheck.sh
	cargo clippy --all-targets --quiet -- -D warnings

deny: ## Licences, origins and known vulnerabilities of what the program depends on
	@image/deny.sh

unit: ## Tests without servers
	@tests/demo/kubernetes_test.sh
	env -u REDIS_URL -u MONGODB_URI -u MONGODB_DATABASE tests/scripts/timed.sh unit --lib --bins

# More threads than cores: a test waits for more than half of its time.
integration: ## Tests against a real API server, Redis and MongoDB, and of whole processes
	@cargo test --quiet --test integration --no-run
	tests/cluster/with-cluster.sh tests/scripts/timed.sh integration --test integration -- --test-threads 3

faults: ## Three rounds of random faults against whole processes
	@ROUNDS=3 cargo test --test faults

model: ## 300 random cases of what runs do to documents
	@CASES=300 SEED=1 cargo test --quiet --test model

test-chart: ## Check the Helm chart: lint, schemas, scanners, unit tests
	@tests/chart/check.sh

test-e2e: ## Install the chart on a kind cluster and use it; CLUSTER=existing takes the one of KUBECONFIG
	@CLUSTER=$(CLUSTER) tests/e2e/run.sh

test-times: ## List the twenty slowest tests of the last run, and the parts of make test
	@tests/scripts/times.sh

test-faults: ## Many rounds of random faults: ROUNDS=200 SEED=1
	@ROUNDS=$${ROUNDS:-200} cargo test --test faults

prove-model: ## Many random cases of what runs do to documents: CASES=10000 SEED=1
	@CASES=$${CASES:-10000} cargo test --quiet --test model

prove-restore: ## Put Redis back, kill and flush it in the middle of random runs: ROUNDS=100 SEED=1 (about 20 minutes)
	@ROUNDS=$${ROUNDS:-100} tests/cluster/with-cluster.sh cargo test --quiet --test integration -- --nocapture restores::restore_storms

prove-upgrade: ## Upgrade from an earlier release, and back, in the middle of runs: FROM=REVISION, the last tag without it
	@tests/e2e/upgrade.sh $(FROM)

bench: ## Measure speed and memory: ROUNDS=3 SIZES="100000 1000000" (about 20 minutes)
	@benches/run.sh own

bench-peers: ## Measure the same beside BullMQ, Bull and bare MongoDB commands (about 15 minutes; needs Node.js)
	@benches/run.sh peers

bench-scale: ## Measure many schedules on a real API server: SCHEDULES=10000 JOBS=40000 (about 15 minutes)
	@benches/run.sh scale

bench-http: ## Measure /jobs/status at 1,000 requests a second and 10,000 SyncJobs (about 8 minutes)
	@SCHEDULES=20 JOBS=10000 benches/run.sh scale

bench-sources: ## Measure runs that fetch from a GraphQL server: rate limit and latency (about 3 minutes, and up to 20 to build)
	@tests/cluster/with-cluster.sh cargo test --quiet --release --test integration -- --ignored --nocapture --test-threads 1 sources::speed

prove-incremental: ## Check what an Incremental run examines of 1,000,000 documents: DOCUMENTS=n (about 2 minutes)
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

one-build: ## Fail when cargo build compiles dependencies anew that cargo test compiled
	@tests/scripts/one_build.sh

check-generated: ## Fail when a file that the program writes is stale
	@cargo build --quiet
	operator=$$CARGO_TARGET_DIR/debug/sync-operator
	fresh() { diff -u "$$1" - || { echo "$$1 is stale: run make generate" >&2; exit 1; }; }
	for kind in syncschedule syncjob syncalert; do "$$operator" crd $$kind | fresh crds/$${kind}s.yaml; done
	"$$operator" openapi | fresh docs/reference/openapi.json

build: ## Build the program that the demo and the tests use
	cargo build

image: ## Make the container image, of the release program, with Docker or without, and print the path of an archive of it
	@image/build.sh

sbom: ## Write what the program consists of as CycloneDX: sync-operator.cdx.json
	@image/sbom.sh
