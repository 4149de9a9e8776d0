# Mica's targets; `make help` lists them from the comments behind their names.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

GO ?= go
CC := gcc
BIN := $(CURDIR)/bin
LDFLAGS := -s -w

# Its linters and formatter, staticcheck and gofumpt among them, are configured in .golangci.yml.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BENCHSTAT := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
# ginkgo runs the conformance tool's specs in several processes. It has the version that the tool is linked with.
GINKGO := github.com/onsi/ginkgo/v2/ginkgo@v2.32.0

# Debian packages for a node, for the image builder, and in addition for the tests.
NODE_PACKAGES := runc crun iptables nftables iproute2 containernetworking-plugins ca-certificates gcc libc6-dev
TEST_PACKAGES := $(NODE_PACKAGES) e2fsprogs busybox-static mandoc zsh fish systemd-container
BENCH_PACKAGES := $(TEST_PACKAGES) containerd
CLUSTER_PACKAGES := $(TEST_PACKAGES) mount util-linux dbus-daemon
VM_PACKAGES := $(NODE_PACKAGES) qemu-system-x86 mmdebstrap e2fsprogs cpio kmod

# go test's own arguments, and how long one package may take.
TESTFLAGS ?=
TEST_TIMEOUT ?= 45m
FUZZTIME ?= 10s
# An image to run instead of the default one, by any reference that pulls.
IMAGE ?=

# The number of nodes that `make cluster` starts.
NODES ?= 1

# The OCI runtime, crun or runc, of end-to-end and conformance tests. Default: the node's choice.
RUNTIME ?=
test race crash: export MICA_E2E_RUNTIME = $(RUNTIME)

# RACE=1 builds the daemon with the race detector; the other programs must be static.
RACE ?=

.PHONY: build
build: ## build the programs into BIN
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...
	$(if $(RACE),$(GO) build -race -o $(BIN)/micad ./cmd/micad)
	$(CC) -Os -s -static -nostdlib -o $(BIN)/mica-init cmd/mica-init/init.c

OUT ?= $(BIN)
.PHONY: deb
deb: build ## build the Debian package into OUT
	packaging/deb/build $(BIN) $(OUT)

# Debian packages for building for both architectures.
RELEASE_PACKAGES := git gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross dpkg-dev
.PHONY: release
release: packages-release ## build tarballs, Debian packages, module lists and checksums for amd64 and arm64 into OUT/release
	packaging/release $(OUT)/release

.PHONY: images
images: packages-node ## build the test images
	$(GO) run ./e2e/cmd/imagebox build

.PHONY: run
run: packages-node build ## start a separate node with a pod and leave both running; IMAGE= names another image
	$(GO) build -o $(BIN)/ ./e2e/cmd/...
	$(BIN)/demo run -bin $(BIN) $(if $(IMAGE),-image '$(IMAGE)')

.PHONY: stop
stop: ## end the node of make run and check for leftovers
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ ./e2e/cmd/... ./cmd/...
	$(BIN)/demo stop -bin $(BIN)

.PHONY: test
test: packages-test ## run unit, golden, script and end-to-end tests
	$(GO) test -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

.PHONY: race
race: packages-test ## run the same tests with the race detector, in the daemon as well
	MICA_E2E_RACE=1 $(GO) test -race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

.PHONY: crash
crash: packages-test ## kill the daemon at each of its fail points
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) -run '^TestCrash' ./e2e

.PHONY: lint
lint: ## the linters of .golangci.yml, among them vet, staticcheck and formatting
	$(GO) run $(GOLANGCI_LINT) run ./...
	cd e2e/cluster && $(GO) run $(GOLANGCI_LINT) run ./...
	GOARCH=arm64 $(GO) vet ./...

# CASES is a regular expression of the cases' names.
CASES ?= all
.PHONY: hostile
hostile: packages-test ## pull and run every image that attacks a limit and print the cost; make test runs the most expensive ones
	MICA_E2E_HOSTILE='$(CASES)' $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) $(TESTFLAGS) -run '^TestHostile' ./e2e

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME, a duration or, as in 2000x, a number of inputs
	@grep -rEo --include='*_test.go' '^func Fuzz\w+' . | sort | while IFS=: read -r file target; do \
		package=$$(dirname "$$file") target=$${target#func }; \
		echo "fuzz $$package $$target"; \
		$(GO) test -timeout 0 -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x "$$package"; \
	done

# Counts and measurements of the benchmark (see e2e/bench), and the directory of its JSON and charts.
BENCH_FLAGS ?=
BENCH_OUT ?= $(CURDIR)/bench-results/last
.PHONY: bench
bench: packages-bench build ## compare with Debian's containerd; prints a table and writes charts; BENCH_FLAGS=, BENCH_OUT=
	$(GO) run ./e2e/bench -bin $(BIN) -out '$(BENCH_OUT)' $(BENCH_FLAGS)

# BENCH is a regular expression of benchmarks, COUNT the number of runs of each. Results are stored in
# RESULTS, in a directory with the name of the commit.
REF ?= HEAD
BENCH ?= .
COUNT ?= 6
RESULTS ?= $(CURDIR)/bench-results
.PHONY: bench-compare
bench-compare: packages-test ## run the Go benchmarks of the commit REF and of the work tree in turn and compare them; BENCH=, COUNT=
	e2e/bench/compare '$(REF)' '$(BENCH)' $(COUNT) '$(RESULTS)' $(BENCHSTAT)

# The CRI conformance tool of the Kubernetes project, given as a binary.
# SEED determines the order of the specs, PARALLEL the number of concurrent ones.
CRITEST ?=
CRITEST_FLAGS ?=
SEED ?= 0
PARALLEL ?= 1
.PHONY: critest
critest: packages-test build ## run the conformance tool CRITEST; SEED=, PARALLEL=, RUNTIME=
	$(GO) build -o $(BIN)/ ./e2e/cmd/...
	$(if $(filter-out 1,$(PARALLEL)),GOBIN=$(BIN) $(GO) install $(GINKGO))
	$(BIN)/critest -bin $(BIN) -critest '$(CRITEST)' -runtime '$(RUNTIME)' -seed $(SEED) -parallel $(PARALLEL) -- $(CRITEST_FLAGS)

# With CRITEST, the conformance tool runs there as well. VM_FLAGS: see e2e/vm.
VM_FLAGS ?=
.PHONY: vm
vm: packages-vm ## run end-to-end tests on an emulated Debian with cgroup v2, systemd and AppArmor
	$(GO) build -o $(BIN)/vm ./e2e/vm
	$(BIN)/vm $(if $(CRITEST),-critest '$(CRITEST)' -critest-flags '$(CRITEST_FLAGS)') $(VM_FLAGS)

# The kubelet, the control plane and etcd are built once, which takes ten minutes.
.PHONY: cluster
cluster: packages-cluster build build-cluster ## start a Kubernetes cluster of NODES nodes on Mica and leave it running
	$(BIN)/cluster up -bin $(BIN) -root $(CURDIR) -nodes $(NODES)

.PHONY: cluster-down
cluster-down: ## end the cluster and check for leftovers
	@mkdir -p $(BIN)
	@$(MAKE) -s build build-cluster
	$(BIN)/cluster down -bin $(BIN)

.PHONY: cluster-test
cluster-test: packages-cluster build build-cluster ## run the cluster tests on a separate cluster
	cd e2e/cluster && MICA_BIN=$(BIN) $(GO) test -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

SOAK ?= 10m
.PHONY: cluster-soak
cluster-soak: packages-cluster build build-cluster ## run a mixed workload for SOAK; no program may log an error
	cd e2e/cluster && MICA_BIN=$(BIN) $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) -run '^TestSoak$$' . -soak $(SOAK)

CONTAINERD ?= containerd
ROUNDS ?= 3
.PHONY: cluster-bench
cluster-bench: packages-cluster-bench build build-cluster ## fill a node with pods, on Mica and on CONTAINERD in turn
	cd e2e/cluster && $(GO) run ./cmd/bench -bin $(BIN) -containerd '$(CONTAINERD)' -rounds $(ROUNDS)

# FOCUS and NODE_E2E_SKIP are regular expressions of specs; logs and reports are in REPORT.
FOCUS ?= \[NodeConformance\]
NODE_E2E_SKIP ?= \[Serial\]|\[Flaky\]|\[Slow\]
NODE_E2E_PARALLEL ?= 8
REPORT ?= $(BIN)/node-e2e-report
.PHONY: node-e2e
node-e2e: packages-cluster build build-cluster ## run the Kubernetes project's own tests of a node
	$(BIN)/node-e2e -bin $(BIN) -root $(CURDIR) -focus '$(FOCUS)' -skip '$(NODE_E2E_SKIP)' \
		-parallel $(NODE_E2E_PARALLEL) -runtime '$(RUNTIME)' -report $(REPORT)

.PHONY: build-cluster
build-cluster:
	$(GO) build -o $(BIN)/ ./e2e/cmd/imagebox
	cd e2e/cluster && $(GO) build -o $(BIN)/ ./cmd/...

.PHONY: clean
clean: ## remove BIN
	rm -rf $(BIN)

.PHONY: packages-node packages-test packages-bench packages-cluster packages-cluster-bench packages-vm packages-release
packages-node:
	@e2e/install-packages $(NODE_PACKAGES)
packages-test:
	@e2e/install-packages $(TEST_PACKAGES)
	@e2e/install-criu
packages-bench:
	@e2e/install-packages $(BENCH_PACKAGES)
packages-cluster:
	@e2e/install-packages $(CLUSTER_PACKAGES)
packages-cluster-bench:
	@e2e/install-packages $(CLUSTER_PACKAGES) containerd
packages-vm:
	@e2e/install-packages $(VM_PACKAGES)
packages-release:
	@e2e/install-packages $(RELEASE_PACKAGES)
