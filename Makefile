# safemem: `make run` and `make test` are all that a fresh Debian clone needs.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
export CI

RUN_PACKAGES := python3-venv
TEST_PACKAGES := $(RUN_PACKAGES) qemu-system-x86 busybox-static kexec-tools udev util-linux \
	zstd lz4 cpio gcc libc6-dev binutils dash shellcheck mmdebstrap squashfs-tools e2fsprogs fakeroot uidmap lintian ovmf rpm

.PHONY: run test test-fast draws nightly bench pages vm-demo kernels deb rpm lint clean

run: $(VENV)/.run
	@echo "== dry run of the default policy against this machine (read-only)"
	@$(BIN)/safemem simulate policies/live-update-host.toml --live; \
		code=$$?; case $$code in 0|4|5|6) ;; *) exit $$code ;; esac
	@echo
	@echo "== the same policy in every handover state"
	@$(BIN)/safemem simulate policies/live-update-host.toml --live --matrix; \
		code=$$?; case $$code in 0|4|5|6) ;; *) exit $$code ;; esac

test: $(VENV)/.test
	$(BIN)/python tests/vm/build_kernels.py --if-missing
	$(BIN)/python -m pytest -n $$(nproc)

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -n $$(nproc) -m "not vm"

# Takes most of an hour: the analysis against the engine, 100,000 times.
draws: $(VENV)/.test
	SAFEMEM_DRAWS=100000 $(BIN)/python -m pytest tests/test_analysis.py -k every_machine

# Takes ten minutes: the printed guard, 50 times after a rejection and 50 times after an acceptance.
nightly: $(VENV)/.test
	SAFEMEM_BOOTS=50 $(BIN)/python -m pytest -n $$(nproc) tests/vm/test_handover.py

bench: $(VENV)/.test
	$(BIN)/python -m tests.vm.bench

# Takes an hour: boots every row of docs/pages.md and writes it.
pages: $(VENV)/.test
	$(BIN)/python -m tests.vm.pages

vm-demo: $(VENV)/.test
	$(BIN)/python -m tests.vm.demo $(POLICY)

kernels: $(VENV)/.test
	$(BIN)/python tests/vm/build_kernels.py

# For Debian 12 and 13, into build/.
deb: $(VENV)/.test
	$(BIN)/python -m packages.deb bookworm
	$(BIN)/python -m packages.deb trixie

# For distributions that have dracut and pydantic 2, into build/.
rpm: $(VENV)/.test
	$(BIN)/python -m packages.rpm

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy safemem tests packages

clean:
	rm -rf $(VENV) build tests/vm/logs

# $(1): packages. Installs only what is missing, so a second run needs no network and no root.
define apt
	@missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing:" $$missing; \
		$(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
endef

$(VENV)/.run: pyproject.toml
	$(call apt,$(RUN_PACKAGES))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing safemem into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.run
	$(call apt,$(TEST_PACKAGES))
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
