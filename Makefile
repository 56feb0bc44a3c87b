# make demo      the main job on a real local cluster, step by step; sets up what it needs and cleans up
# make test      linters, type checks, C warnings, all tests (root: loop devices, mounts, a real Slurm cluster)
# make test-slurm RELEASE=trixie   the tests on a real cluster, with the Slurm of another Debian release
# make cluster   a local cluster to play with; make cluster-down takes it down
# make stress    the long random runs          make bench     the benchmarks
# make install   the node's files below $(DESTDIR)/: stubs, SPANK plugin, unit, example configuration

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCRIPTS := prolog.d/50-scratch-slurm epilog.d/50-scratch-slurm tests/with_slurm.sh .ci/run

# What the commands above need from Debian. A machine that is not Debian brings them itself.
CLUSTER_PACKAGES := slurmctld slurmd slurm-client munge libslurm-dev slurm-wlm-basic-plugins-dev squashfs-tools \
	erofs-utils fuse3 strace gcc libc6-dev make python3-venv e2fsprogs lua5.1 lua5.4
DEBIAN_PACKAGES := $(CLUSTER_PACKAGES) shellcheck unicode-data dict-gcide

.PHONY: test test-slurm cluster-tests demo cluster cluster-down stress bench check plugin packages install clean

test: check
	$(BIN)/python -m pytest -m "not stress" --numprocesses=2 --no-loadscope-reorder --durations=15 $(PYTEST_ARGS)

# The tests on a real cluster, in a Debian of another release: see the script. The first time takes some minutes.
RELEASE ?= trixie
test-slurm: DEBIAN_PACKAGES := mmdebstrap
test-slurm: packages
	tests/with_slurm.sh $(RELEASE) build/slurm-$(RELEASE) $(CLUSTER_PACKAGES)

cluster-tests: $(VENV)/ready plugin
	$(BIN)/python -m pytest -m "not stress" --durations=15 $(or $(PYTEST_ARGS),tests/cluster)

check: $(VENV)/ready plugin
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck $(SCRIPTS)

demo: $(VENV)/ready plugin
	$(BIN)/python -m tests.demo

cluster: $(VENV)/ready plugin
	$(BIN)/python -m tests.demo --keep

cluster-down: $(VENV)/ready
	$(BIN)/python -m tests.local_cluster down

stress: $(VENV)/ready plugin
	$(BIN)/python -m pytest -m stress $(PYTEST_ARGS)

bench: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	for each in bench/[a-z]*.py; do $(BIN)/python $$each || exit; done

plugin: packages
	$(MAKE) -C spank

packages:
	@missing=$$(for p in $(DEBIAN_PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
		echo "installing $$missing"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	# Only their data files, for the demo.
	$(BIN)/pip install --quiet --no-deps scikit-learn vega_datasets
	touch $@

PREFIX ?= /usr/local
install: plugin
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/lib/scratch-slurm/prolog.d prolog.d/50-scratch-slurm
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/lib/scratch-slurm/epilog.d epilog.d/50-scratch-slurm
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/scratch-slurm spank/scratch_slurm.so spank/scratch_slurm.lua
	install -D -m 0644 -t $(DESTDIR)/etc/systemd/system daemon/scratch-slurmd.service
	install -D -m 0644 daemon/config.yaml $(DESTDIR)/etc/scratch-slurm/config.yaml.example
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 docs/man/scratch-slurm.1

clean:
	$(MAKE) -C spank clean
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
