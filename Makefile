# Everything that CI checks is in .ci/run; these are the steps one uses while
# working. `make` alone lists them.
.DEFAULT_GOAL := help

TOOL := go tool -modfile=internal/tools/go.mod
LINT := $(TOOL) golangci-lint
CONF := --config internal/tools/golangci.yml
# One fuzz target or benchmark: make fuzz PKG=./internal/event FUZZ=FuzzIDs
PKG  ?= ./...
FUZZ ?= Fuzz
BENCH ?= .

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/gatehook
	CGO_ENABLED=0 go build -trimpath -o bin/gatehook ./cmd/server

.PHONY: demo
demo: ## Run the whole product here, with a simulated Discord
	go run ./cmd/server demo

.PHONY: test
test: ## Run all tests
	go test ./...

.PHONY: race
race: ## Run all tests with the race detector, in random order
	go test -race -shuffle=on ./...

CHAOS ?= 10m
.PHONY: chaos
chaos: ## Break everything around the real server for long (CHAOS=10m), a minute a plan
	GATEHOOK_CHAOS=$(CHAOS) go test -count=1 -timeout 2h -v -run '^TestChaos' ./cmd/server

SOAK ?= 10m
.PHONY: soak
soak: ## Balance the books of callbacks that fail in every way (SOAK=10m), a minute a round
	GATEHOOK_SOAK=$(SOAK) go test -count=1 -timeout 2h -v -run '^TestSoak(One|Two)' ./cmd/server

.PHONY: examples
examples: ## Check the examples' types and run each on its platform's runtime (needs Node.js)
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
fuzz-api: ## Fuzz the API by its contract (EXAMPLES=50 cases a call; needs python3)
	EXAMPLES=$${EXAMPLES:-50} .ci/fuzz-api

.PHONY: generate
generate: ## Generate code from api/openapi.yaml
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
verify: generate tidy ## Generate and tidy again, and show what that changed
	git diff --exit-code

.PHONY: ci
ci: ## Check all that CI checks
	.ci/run
