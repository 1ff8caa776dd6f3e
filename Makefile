# Every target installs what it needs; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
LATEST := .venv-latest
FAST := -m "not e2e and not slow"
# Followed by the number of tests at a time. Tests of deployments wait most of the time, so one more than two cores.
PYTEST := pytest --dist worksteal -n
# uv, where it is installed, makes the same environments in a fraction of the time. With pip in them: a test uses it.
ifneq ($(shell command -v uv),)
MAKE_ENV = uv venv --quiet --seed --allow-existing --python $(PYTHON)
INSTALL = uv pip install --quiet --python $(1)/bin/python
else
MAKE_ENV = $(PYTHON) -m venv
INSTALL = $(1)/bin/pip install --quiet --disable-pip-version-check
endif

.PHONY: run test lint check test-latest docs help clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.ready ## Train FedMR on real handwritten digits in Flower's simulation (about a minute).
	$(VENV)/bin/fedmr run conf/quickstart.yaml

lint: $(VENV)/.ready ## Check style and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint ## Check style and types, run unit and contract tests.
	$(VENV)/bin/$(PYTEST) 2 $(FAST)

test: $(VENV)/.ready ## Run all tests; the end-to-end ones start Flower.
	$(VENV)/bin/$(PYTEST) 3

test-latest: $(LATEST)/.ready ## Run all tests with the newest Flower.
	$(LATEST)/bin/python -c "from importlib.metadata import version; print('flwr', version('flwr'))"
	$(LATEST)/bin/$(PYTEST) 3

docs: $(VENV)/.docs ## Build the documentation site, in site/.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

clean: ## Remove environments and caches, but not your runs.
	rm -rf $(VENV) $(LATEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis site

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(MAKE_ENV) $(VENV)
	$(call INSTALL,$(VENV)) --constraint constraints.txt --editable ".[dev]"
	@touch $@

# In the same environment: the notebooks are executed with the package.
$(VENV)/.docs: $(VENV)/.ready
	$(call INSTALL,$(VENV)) --constraint constraints.txt --editable ".[docs]"
	@touch $@

# The newest Flower, and what it takes with it. By uv, because pip tries versions for more than ten minutes.
$(LATEST)/.ready: pyproject.toml constraints.txt
	$(MAKE_ENV) $(LATEST)
	$(call INSTALL,$(LATEST)) uv
	$(LATEST)/bin/uv pip install --quiet --python $(LATEST)/bin/python --upgrade "flwr[simulation]>=1.40" \
		$$(grep -E '^(torch|torchvision|ray|numpy)==' constraints.txt) --editable ".[dev]"
	@touch $@
