# safemem: `make run` and `make test` are all that a fresh Debian clone needs.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
PYTEST := $(BIN)/python -m pytest -n $$(nproc)
# The guests' kernels, if they are built already and lie beside the repository.
SAFEMEM_KERNELS ?= $(abspath $(wildcard ../shared/kernels))
export CI SAFEMEM_KERNELS VERBOSE

RUN_PACKAGES := python3-venv
ROOT_PACKAGES := mmdebstrap uidmap
TEST_PACKAGES := $(RUN_PACKAGES) $(ROOT_PACKAGES) qemu-system-x86 busybox-static kexec-tools systemd udev util-linux \
	zstd lz4 lzop cpio gcc libc6-dev binutils dash shellcheck squashfs-tools e2fsprogs fakeroot lintian ovmf rpm strace

.PHONY: help run test test-fast pythons lint draws nightly fuzz bench pages vm-demo kernels deb rpm clean

help:  ## what there is to make, and how long it takes on two cores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run  ## what the default policy would do here (1 min, then 2 s)
	@echo "== dry run of the default policy against this machine (read-only)"
	@$(BIN)/safemem simulate policies/live-update-host.toml --live; \
		code=$$?; case $$code in 0|4|5|6) ;; *) exit $$code ;; esac
	@echo
	@echo "== the same policy in every handover state"
	@$(BIN)/safemem simulate policies/live-update-host.toml --live --matrix; \
		code=$$?; case $$code in 0|4|5|6) ;; *) exit $$code ;; esac

test: $(VENV)/.test  ## everything, guests included; installs packages (30 min)
	$(BIN)/python tests/vm/build_kernels.py --if-missing
	$(PYTEST)

test-fast: $(VENV)/.dev  ## what needs no guest, no root and no package (2 min)
	$(PYTEST) -m "not vm and not pythons and not mirror"

pythons: $(VENV)/.dev  ## the same on Python 3.11 to 3.14, in scratch roots (2 min)
	$(call apt,$(ROOT_PACKAGES))
	$(PYTEST) tests/test_pythons.py

lint: $(VENV)/.dev  ## what the linters say, and what the wheel holds (15 s)
	$(PYTEST) tests/test_project.py

draws: $(VENV)/.dev  ## the analysis against the engine, 100,000 times (2 h)
	SAFEMEM_DRAWS=100000 $(BIN)/python -m pytest tests/test_analysis.py tests/test_search.py tests/test_stricter.py -k "every_machine or never_misses or never_loosens"

nightly: $(VENV)/.test fuzz  ## every fault, 200 kills, 50 boots a verdict, `fuzz` (4 h)
	SAFEMEM_FAULTS=all $(PYTEST) tests/test_faults.py tests/test_faults_later.py
	SAFEMEM_KILLS=200 $(PYTEST) tests/test_kill.py tests/test_makers.py -k kill
	$(BIN)/python tests/vm/build_kernels.py --if-missing --older
	SAFEMEM_BOOTS=50 $(PYTEST) tests/vm/test_handover.py tests/vm/test_gigantic.py
	SAFEMEM_ALL=1 $(PYTEST) tests/vm/test_bursts.py tests/vm/test_distro.py tests/vm/test_gate.py tests/vm/test_token.py tests/vm/test_unpack.py \
		tests/vm/test_pairs.py tests/vm/test_luo_client.py tests/vm/test_guests.py tests/vm/test_kernel_install.py tests/vm/test_package.py

fuzz: $(VENV)/.dev  ## every parser; guided by coverage with atheris (1 h)
	$(BIN)/python -m tests.fuzz 3600

bench: $(VENV)/.test  ## what safemem costs, as ratios (5 min)
	$(BIN)/python -m tests.vm.bench

pages: $(VENV)/.test  ## boot every row of docs/pages.md and write it (90 min)
	$(BIN)/python tests/vm/build_kernels.py --if-missing --older
	$(BIN)/python -m tests.vm.pages

vm-demo: $(VENV)/.test  ## a rejected handover, told with numbers; POLICY=NAME (1 min)
	@$(BIN)/python tests/vm/build_kernels.py --if-missing
	@$(BIN)/python -m tests.vm.demo $(POLICY)

kernels: $(VENV)/.test  ## build the guests' kernels from Debian's source (20 min)
	$(BIN)/python tests/vm/build_kernels.py --older

deb: $(VENV)/.test  ## packages for Debian 12, 13 and testing, into build/ (1 min)
	$(BIN)/python -m packages.deb bookworm
	$(BIN)/python -m packages.deb trixie
	$(BIN)/python -m packages.deb testing

rpm: $(VENV)/.test  ## a package for distributions with dracut, into build/ (10 s)
	$(BIN)/python -m packages.rpm

clean:  ## remove the environment, build/ and the guests' logs
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

# Of Debian's package the one program that tests need: installed, the package brings a server, and starts it.
define promtool
	@test -x $(BIN)/promtool || { \
		echo "fetching promtool"; \
		cd $(VENV) && rm -f prometheus_*.deb && \
		{ apt-get download -qq prometheus 2>/dev/null || { $(SUDO) apt-get update -qq && apt-get download -qq prometheus; }; } && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >bin/promtool.new && \
		chmod 755 bin/promtool.new && mv bin/promtool.new bin/promtool && rm prometheus_*.deb; \
	}
endef

# Where this Python can make an environment, no package is asked for: not every machine is a Debian.
$(VENV)/.run: pyproject.toml
	$(if $(shell $(PYTHON) -c 'import ensurepip, venv' 2>&1),$(call apt,$(RUN_PACKAGES)))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing safemem into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.run
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.test: $(VENV)/.dev Makefile
	$(call apt,$(TEST_PACKAGES))
	$(call promtool)
	@tests/vm/newer-qemu $(VENV)/qemu || echo "no QEMU with CXL memory: its tests are left out" >&2
	@touch $@
