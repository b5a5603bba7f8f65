# Everything that a developer runs. `make` lists it.

GO ?= $(firstword $(shell command -v go) /usr/local/go/bin/go)
GOFMT = $(dir $(GO))gofmt
# Whoever runs this need not own the checkout.
GIT = git -c safe.directory='*'

# The committed objects are clang 14's. Looked up when used: setup may install it.
CLANG = $(firstword $(shell command -v clang-14 clang))
export BPF2GO_CC = $(CLANG)
export BPF2GO_STRIP = $(subst clang,llvm-strip,$(CLANG))
# clang for BPF does not look where Debian has the architecture's asm/ headers.
export BPF2GO_CFLAGS = -idirafter /usr/include/$(shell gcc -print-multiarch)

VERSION = $(or $(shell $(GIT) describe --tags --always --dirty 2>/dev/null),devel)
COMMIT = $(shell $(GIT) rev-parse HEAD 2>/dev/null)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

setup: ## install from apt what is missing (as root)
	@tools/setup.sh

generate: setup ## compile bpf/ into pkg/maps and pkg/loader
	$(GO) generate ./pkg/maps ./pkg/loader

check-generate: generate ## fail if what generate makes differs from what is committed
	@case $(CLANG) in \
	*clang-14) $(GIT) diff --exit-code --stat -- 'pkg/*_bpfel.*' ;; \
	*) echo "no clang-14: comparing Go files only"; $(GIT) diff --exit-code -- 'pkg/*_bpfel.go' ;; \
	esac
	@new=$$($(GIT) ls-files --others --exclude-standard -- 'pkg/*_bpfel.*'); \
	test -z "$$new" || { echo "not committed: $$new"; exit 1; }

build: ## bin/calico-node, bin/calicoctl, bin/calico-cni
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
		-ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)' \
		-o bin/ ./cmd/calico-node ./cmd/calicoctl ./cmd/calico-cni

test: setup root ## all tests; they make network namespaces and load BPF, so as root
	$(GO) test ./...

FUZZTIME = 3s
FUZZERS = pkg/api:FuzzDecode pkg/api:FuzzStored pkg/api:FuzzSalvage pkg/api:FuzzSelector pkg/datastore:FuzzKey pkg/datastore:FuzzKeyOfName pkg/datastore:FuzzReread pkg/ipam:FuzzBlock cmd/calicoctl/manifest:FuzzRead

fuzz: ## every fuzzer for FUZZTIME (3s each; by hand make fuzz FUZZTIME=10m)
	@for f in $(FUZZERS); do \
		$(GO) test ./$${f%:*} -run '^$$' -fuzz "^$${f#*:}$$" -fuzztime $(FUZZTIME) || exit 1; done

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$($(GOFMT) -l cmd pkg perf tools); \
	test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

demo: setup root build ## three hosts, real packets, one screen (KEEP=1 leaves it up)
	$(GO) build -buildvcs=false -o bin/demo ./tools/demo
	bin/demo $(if $(KEEP),--keep)

demo-down: ## end a demo that KEEP=1 left up
	bin/demo --down

PERF_OUT = bin/perf

perf: setup-perf root ## what it costs, beside its peers: all of it, some minutes; report in bin/perf
	$(GO) run ./perf --out $(PERF_OUT)

perf-quick: setup-perf root ## the same in less than 50 seconds
	$(GO) run ./perf --quick --out $(PERF_OUT)-quick

perf-gate: setup-perf root ## fail if a path is slower than perf/baseline.json allows
	$(GO) run ./perf gate

perf-vagrant: ## measure on virtual machines and across them (with vagrant; results in bin/perf-vagrant)
	@command -v vagrant >/dev/null || { echo "this needs vagrant: apt-get install vagrant vagrant-libvirt" >&2; exit 1; }
	perf/vagrant/run.sh

perf-qemu: setup-qemu root ## the crossing of perf-vagrant between two guests of an emulator: some minutes
	GO=$(GO) perf/vagrant/qemu.sh

setup-perf: ## install what setup does, and what the product is compared with
	@tools/setup.sh perf

test-kernel: setup-kernel root ## the same packets on Debian 12's kernel, in an emulator: some minutes
	GO=$(GO) tools/test-kernel.sh

setup-kernel: ## install what setup does, and the emulator
	@tools/setup.sh kernel

setup-qemu: ## install what setup does, the emulator, and ssh to its guests
	@tools/setup.sh qemu

clean: ## remove what build has made
	rm -rf bin

root:
	@test "$$(id -u)" = 0 || { echo "this needs root: it makes network namespaces and loads BPF" >&2; exit 1; }

.PHONY: help setup generate check-generate build test fuzz lint demo demo-down perf perf-quick perf-gate perf-vagrant perf-qemu setup-perf test-kernel setup-kernel setup-qemu clean root
