# make demo      the main job on a real local cluster, step by step; sets up what it needs and cleans up
# make test      linters, type checks, C warnings, all tests (root: loop devices, mounts, a real Slurm cluster)
# make test-slurm RELEASE=trixie   the tests on a real cluster, with the Slurm of another Debian release
# make test-systemd   the unit on a machine that a real systemd boots, in namespaces
# make cluster   a local cluster to play with; make cluster-down takes it down
# make stress    the long random runs          make bench     the benchmarks
# make install   what a node, a login node and the controller need, below $(DESTDIR)$(PREFIX); see there for its variables
# make uninstall removes that, and says what is to be taken out of Slurm's files      make wheels   for nodes without network

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCRIPTS := prolog.d/50-scratch-slurm epilog.d/50-scratch-slurm tests/with_slurm.sh tests/systemd/boot.sh .ci/run

# What the commands above need from Debian. A machine that is not Debian brings them itself.
CLUSTER_PACKAGES := slurmctld slurmd slurm-client slurmrestd munge libslurm-dev slurm-wlm-basic-plugins-dev squashfs-tools \
	erofs-utils fuse3 strace bsdutils gcc libc6-dev make python3-venv e2fsprogs lua5.1 lua5.4
DEBIAN_PACKAGES := $(CLUSTER_PACKAGES) shellcheck unicode-data dict-gcide

.PHONY: test test-slurm test-systemd cluster-tests demo cluster cluster-down stress bench check plugin packages clean
.PHONY: install install-python wheels uninstall

test: check
	$(BIN)/python -m pytest -m "not stress and not systemd" --numprocesses=3 --no-loadscope-reorder --durations=15 $(PYTEST_ARGS)

# The tests on a real cluster, in a Debian of another release: see the script. The first time takes some minutes.
RELEASE ?= trixie
test-slurm: DEBIAN_PACKAGES := mmdebstrap
test-slurm: packages
	tests/with_slurm.sh $(RELEASE) build/slurm-$(RELEASE) $(CLUSTER_PACKAGES)

# A Debian root with systemd and Slurm 22.05; nothing of the machine's is changed. The first time takes a minute.
SYSTEMD_PACKAGES := systemd systemd-sysv dbus slurmctld slurmd slurm-client munge libslurm-dev \
	slurm-wlm-basic-plugins-dev squashfs-tools gcc libc6-dev make python3-venv
test-systemd: DEBIAN_PACKAGES := mmdebstrap squashfs-tools python3-venv
test-systemd: $(VENV)/ready packages
	tests/with_slurm.sh --tree bookworm build/systemd-bookworm $(SYSTEMD_PACKAGES)
	$(BIN)/python -m pytest -m systemd --durations=5 tests/systemd $(PYTEST_ARGS)

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

# Random steps, kills and attackers for long, then what runs out, again and again: descriptors, processes, memory, disks, ledgers.
STRESS_ROUNDS ?= 10
EXHAUSTION := $(addprefix tests/component/,test_shortages.py test_failing_disks.py test_oswords.py test_ledger.py test_door.py)
stress: $(VENV)/ready plugin
	$(BIN)/python -m pytest -m stress $(PYTEST_ARGS)
	for round in $$(seq $(STRESS_ROUNDS)); do $(BIN)/python -m pytest -q $(EXHAUSTION) || exit; done

bench: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	for each in bench/[a-z]*.py; do $(BIN)/python $$each || exit; done

plugin: packages
	$(MAKE) -C spank

packages:
	@missing=$$(for p in $(DEBIAN_PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
		echo "installing $$missing"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	# Only their data files, for the demo.
	$(BIN)/pip install --quiet --no-deps scikit-learn vega_datasets
	touch $@

# Installing asks no package manager for anything: what is missing is said. It needs Python, its dependencies from pip's
# index or from WHEELS, and for the plugin a compiler and the headers of the Slurm that runs here; a plugin that is
# built already, on a machine of the same release, is taken where these are missing.
#   DESTDIR       an image to install into          PREFIX   /usr/local
#   SLURM_PREFIX  Slurm's own prefix, where it is not the system's: /opt/slurm
#   PYTHON        3.11 or later
#   WHEELS        a directory that `make wheels` filled: then pip asks no index
PREFIX ?= /usr/local
UNIT_DIR ?= /etc/systemd/system
WHEELS ?= build/wheels
LIB := $(PREFIX)/lib/scratch-slurm
INSTALLED_VENV := $(DESTDIR)$(LIB)/venv
PROGRAMS := scratch-slurm scratch-slurmd scratch-slurm-hook
PATHS := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MOVE := sed -e 's|/usr/local/lib/scratch-slurm|$(LIB)|g' -e 's|/usr/local/bin/scratch|$(PREFIX)/bin/scratch|g'

install: install-python
	$(MAKE) -C spank install PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) SLURM_PREFIX=$(SLURM_PREFIX)
	for hook in prolog.d epilog.d; do \
		install -d $(DESTDIR)$(LIB)/$$hook && \
		sed -e 's|/usr/local/sbin:/usr/local/bin:|$(PREFIX)/bin:&|' $$hook/50-scratch-slurm >$(DESTDIR)$(LIB)/$$hook/.new && \
		chmod 0755 $(DESTDIR)$(LIB)/$$hook/.new && \
		mv $(DESTDIR)$(LIB)/$$hook/.new $(DESTDIR)$(LIB)/$$hook/50-scratch-slurm || exit; \
	done
	install -d $(DESTDIR)$(UNIT_DIR)
	$(MOVE) $(if $(SLURM_PREFIX),-e 's|^ExecStart=|Environment=PATH=$(SLURM_PREFIX)/bin:$(PATHS)\n&|') \
		daemon/scratch-slurmd.service >$(DESTDIR)$(UNIT_DIR)/scratch-slurmd.service
	install -D -m 0644 daemon/config.yaml $(DESTDIR)/etc/scratch-slurm/config.yaml.example
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 docs/man/scratch-slurm.1

# The scripts name the Python of the place where they will run: in their first line, or, where that would be too long, below.
install-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON): Python 3.11 or later is needed: say which, as in PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(INSTALLED_VENV)
	pip="$(INSTALLED_VENV)/bin/python -m pip install --quiet --disable-pip-version-check"; package=.; \
	if [ -n "$$(ls $(WHEELS)/*.whl 2>/dev/null)" ]; then \
		pip="$$pip --no-index --find-links=$(WHEELS)"; package=scratch-slurm; \
	fi; \
	$$pip $$package && $$pip --no-deps --force-reinstall $$package
	sed -i '1,3s|$(INSTALLED_VENV)/bin/python[0-9.]*|$(LIB)/venv/bin/python3|' $(PROGRAMS:%=$(INSTALLED_VENV)/bin/%)
	install -d $(DESTDIR)$(PREFIX)/bin
	ln -sfn $(PROGRAMS:%=../lib/scratch-slurm/venv/bin/%) $(DESTDIR)$(PREFIX)/bin

wheels:
	$(PYTHON) -m venv build/wheels-venv
	build/wheels-venv/bin/python -m pip wheel --quiet --wheel-dir $(WHEELS) .

# Slurm's lines go first, everywhere; but what is removed too early breaks no job.
uninstall:
	$(MAKE) -C spank uninstall PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)
	rm -rf $(INSTALLED_VENV) $(DESTDIR)$(LIB)/prolog.d $(DESTDIR)$(LIB)/epilog.d
	rm -f $(PROGRAMS:%=$(DESTDIR)$(PREFIX)/bin/%) $(DESTDIR)$(PREFIX)/share/man/man1/scratch-slurm.1
	rm -f $(DESTDIR)$(UNIT_DIR)/scratch-slurmd.service $(DESTDIR)/etc/scratch-slurm/config.yaml.example
	rmdir $(DESTDIR)$(LIB) $(DESTDIR)/etc/scratch-slurm 2>/dev/null || true
	@$(MOVE) daemon/removal.txt

clean:
	$(MAKE) -C spank clean
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
