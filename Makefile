# make run    builds everything and leaves a pod running on a node of its own
# make stop   ends that node and leaves nothing behind
# make test   unit, golden, script and end-to-end tests
# make cluster        starts a Kubernetes cluster on Mica and leaves it running
# make cluster-test   the tests of a cluster of their own
# make cluster-soak   a mixed workload for ten minutes; no program may log an error
# make cluster-bench  a node full of pods, beside containerd
# make cluster-down   ends that of make cluster and leaves nothing behind
# make node-e2e       the Kubernetes project's own tests of a node
# make vm     end-to-end tests on an emulated Debian with cgroup v2, systemd and AppArmor
# make hostile  pulls and runs every image that attacks a limit, and prints what that cost
# make deb    builds the Debian package
# More targets: lint race fuzz crash bench critest images clean.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO ?= go
CC := gcc
BIN := $(CURDIR)/bin
LDFLAGS := -s -w

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT := mvdan.cc/gofumpt@v0.12.0
# Runs the conformance tool's specs in several processes; of the version that the tool is linked with.
GINKGO := github.com/onsi/ginkgo/v2/ginkgo@v2.32.0

# What a node needs, what the image builder needs, what the tests need besides.
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

# How many nodes `make cluster` starts.
NODES ?= 1

# The OCI runtime, crun or runc, of end-to-end and conformance tests. Default: what a node prefers of those that run here.
RUNTIME ?=
test race crash: export MICA_E2E_RUNTIME = $(RUNTIME)

# RACE=1 builds the daemon with the race detector; the other programs must be static.
RACE ?=

.PHONY: build
build:
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...
	$(if $(RACE),$(GO) build -race -o $(BIN)/micad ./cmd/micad)
	$(CC) -Os -s -static -nostdlib -o $(BIN)/mica-init cmd/mica-init/init.c

# The Debian package, in OUT.
OUT ?= $(BIN)
.PHONY: deb
deb: build
	packaging/deb/build $(BIN) $(OUT)

.PHONY: images
images: packages-node
	$(GO) run ./e2e/cmd/imagebox build

.PHONY: run
run: packages-node build
	$(GO) build -o $(BIN)/ ./e2e/cmd/...
	$(BIN)/demo run -bin $(BIN) $(if $(IMAGE),-image '$(IMAGE)')

.PHONY: stop
stop:
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/ ./e2e/cmd/... ./cmd/...
	$(BIN)/demo stop -bin $(BIN)

.PHONY: test
test: packages-test
	$(GO) test -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

.PHONY: race
race: packages-test
	MICA_E2E_RACE=1 $(GO) test -race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

# The daemon killed at each of its fail points.
.PHONY: crash
crash: packages-test
	$(GO) test -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) -run '^TestCrash' ./e2e

.PHONY: lint
lint:
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd e2e/cluster && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...
	@unformatted=$$($(GO) run $(GOFUMPT) -l $$(git ls-files '*.go')); \
	if [[ -n $$unformatted ]]; then printf 'not gofumpt-formatted:\n%s\n' "$$unformatted"; exit 1; fi

# Hostile images and archives, all of them; `make test` runs the sharpest. CASES is a regular expression of their names.
CASES ?= all
.PHONY: hostile
hostile: packages-test
	MICA_E2E_HOSTILE='$(CASES)' $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) $(TESTFLAGS) -run '^TestHostile' ./e2e

# Every fuzz target in turn, for FUZZTIME each.
.PHONY: fuzz
fuzz:
	@$(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do \
		for target in $$($(GO) test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			echo "fuzz $$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x "$$package"; \
		done; \
	done

# Side by side with Debian's containerd; prints a table.
.PHONY: bench
bench: packages-bench build
	$(GO) run ./e2e/bench -bin $(BIN)

# The CRI conformance tool of the Kubernetes project, given as a binary.
# SEED orders the specs, PARALLEL is how many run at a time.
CRITEST ?=
CRITEST_FLAGS ?=
SEED ?= 0
PARALLEL ?= 1
.PHONY: critest
critest: packages-test build
	$(GO) build -o $(BIN)/ ./e2e/cmd/...
	$(if $(filter-out 1,$(PARALLEL)),GOBIN=$(BIN) $(GO) install $(GINKGO))
	$(BIN)/critest -bin $(BIN) -critest '$(CRITEST)' -runtime '$(RUNTIME)' -seed $(SEED) -parallel $(PARALLEL) -- $(CRITEST_FLAGS)

# With CRITEST, the conformance tool runs there as well. VM_FLAGS: see e2e/vm.
VM_FLAGS ?=
.PHONY: vm
vm: packages-vm
	$(GO) build -o $(BIN)/vm ./e2e/vm
	$(BIN)/vm $(if $(CRITEST),-critest '$(CRITEST)' -critest-flags '$(CRITEST_FLAGS)') $(VM_FLAGS)

# The kubelet, the control plane and etcd are built once, which takes ten minutes.
.PHONY: cluster
cluster: packages-cluster build build-cluster
	$(BIN)/cluster up -bin $(BIN) -root $(CURDIR) -nodes $(NODES)

.PHONY: cluster-down
cluster-down:
	@mkdir -p $(BIN)
	@$(MAKE) -s build build-cluster
	$(BIN)/cluster down -bin $(BIN)

.PHONY: cluster-test
cluster-test: packages-cluster build build-cluster
	cd e2e/cluster && MICA_BIN=$(BIN) $(GO) test -count=1 -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

# A mixed workload for SOAK, which fails by what kubelets and daemons log.
SOAK ?= 10m
.PHONY: cluster-soak
cluster-soak: packages-cluster build build-cluster
	cd e2e/cluster && MICA_BIN=$(BIN) $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) -run '^TestSoak$$' . -soak $(SOAK)

# A node full of pods, on Mica and on CONTAINERD, turn by turn; prints a table.
CONTAINERD ?= containerd
ROUNDS ?= 3
.PHONY: cluster-bench
cluster-bench: packages-cluster-bench build build-cluster
	cd e2e/cluster && $(GO) run ./cmd/bench -bin $(BIN) -containerd '$(CONTAINERD)' -rounds $(ROUNDS)

# FOCUS and NODE_E2E_SKIP are regular expressions of specs; logs and reports are in REPORT.
FOCUS ?= \[NodeConformance\]
NODE_E2E_SKIP ?= \[Serial\]|\[Flaky\]|\[Slow\]
NODE_E2E_PARALLEL ?= 8
REPORT ?= $(BIN)/node-e2e
.PHONY: node-e2e
node-e2e: packages-cluster build build-cluster
	$(BIN)/node-e2e -bin $(BIN) -root $(CURDIR) -focus '$(FOCUS)' -skip '$(NODE_E2E_SKIP)' \
		-parallel $(NODE_E2E_PARALLEL) -runtime '$(RUNTIME)' -report $(REPORT)

.PHONY: build-cluster
build-cluster:
	$(GO) build -o $(BIN)/ ./e2e/cmd/imagebox
	cd e2e/cluster && $(GO) build -o $(BIN)/ ./cmd/...

.PHONY: clean
clean:
	rm -rf $(BIN)

.PHONY: packages-node packages-test packages-bench packages-cluster packages-cluster-bench packages-vm
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
