# .ci/run runs all checks of CI. These targets are for daily work; `make` alone
# lists them.
.DEFAULT_GOAL := help

TOOL := go tool -modfile=internal/tools/go.mod
LINT := $(TOOL) golangci-lint
CONF := --config internal/tools/golangci.yml
# One fuzz target or benchmark: make fuzz PKG=./internal/event FUZZ=FuzzFindIDs
PKG  ?= ./...
FUZZ ?= Fuzz
BENCH ?= .

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/gatehook
	CGO_ENABLED=0 go build -trimpath -o bin/gatehook ./cmd/server

.PHONY: demo
demo: ## Run the whole product on this machine, with a simulated Discord
	go run ./cmd/server demo

.PHONY: test
test: ## Run all tests
	go test ./...

.PHONY: race
race: ## Run all tests with the race detector, in random order
	go test -race -shuffle=on ./...

MAJORS ?= 14 15 16 17 18
.PHONY: test-postgres
test-postgres: ## Run the database's tests on each major version of PostgreSQL (MAJORS="14 18")
	@for major in $(MAJORS); do \
		echo "== PostgreSQL $$major"; GATEHOOK_TEST_POSTGRES=$$major go test -count 1 ./internal/postgres/... ./internal/journal ./internal/listeners ./internal/delivery ./internal/gateway/... || exit 1; \
	done

.PHONY: test-pgbouncer
test-pgbouncer: ## Run the tests through PgBouncer in transaction mode (needs pgbouncer)
	.ci/through-pgbouncer

.PHONY: test-patroni
test-patroni: ## Switch PostgreSQL over and let it fail over under load (needs patroni, etcd, pgbouncer)
	go test -tags patroni -count=1 -timeout 30m -v -run '^TestPatroni$$' ./cmd/server

.PHONY: test-disk
test-disk: ## Fill the disk of the embedded PostgreSQL under load (needs root)
	go test -tags root -count=1 -v -run '^TestDiskFull$$' ./cmd/server

CHAOS ?= 10m
.PHONY: chaos
chaos: ## Break everything around the real servers (CHAOS=10m), with a new plan every minute
	GATEHOOK_CHAOS=$(CHAOS) go test -count=1 -timeout 2h -v -run '^TestChaos' ./cmd/server

SOAK ?= 10m
.PHONY: soak
soak: ## Balance the books of callbacks that fail in every way (SOAK=10m), in rounds of a minute
	GATEHOOK_SOAK=$(SOAK) go test -count=1 -timeout 2h -v -run '^TestSoak(One|Two|Calls)' ./cmd/server

.PHONY: examples
examples: ## Check the examples' types and run each on its platform's own runtime (needs Node.js, Python and PHP)
	examples/internal/check

.PHONY: bench
bench: ## Run the benchmarks (BENCH=pattern PKG=package), ready for benchstat
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count 6 $(PKG)

.PHONY: fuzz
fuzz: ## Fuzz every target for a few seconds (FUZZ=pattern PKG=package)
	@go test -list '$(FUZZ)' $(PKG) | awk '/^Fuzz/ {t[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, t[i]; n = 0}' | \
	while read -r pkg target; do \
		echo "== $$pkg $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime 10s "$$pkg" || exit 1; \
	done

.PHONY: fuzz-api
fuzz-api: ## Fuzz the API by its contract (EXAMPLES=50 cases per call; needs python3)
	EXAMPLES=$${EXAMPLES:-50} .ci/fuzz-api

.PHONY: generate
generate: ## Generate the code and documents that are made from api/
	go generate ./...

.PHONY: fmt
fmt: ## Format the code
	$(LINT) fmt $(CONF) ./...

.PHONY: lint
lint: ## Lint the code
	$(LINT) run $(CONF) ./...

.PHONY: tidy
tidy: ## Tidy both go.mod files
	go mod tidy
	cd internal/tools && go mod tidy

.PHONY: verify
verify: generate tidy ## Generate and tidy again, and fail if that changes anything
	git diff --exit-code

.PHONY: ci
ci: ## Run all checks of CI
	.ci/run
