# Two commands: `make run` and `make test`. Both install what they need into VENV on the first call.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
# A file of versions to install, e.g. constraints.txt; empty: the newest that requirements.txt allows.
CONSTRAINTS ?=
# A new list of packages is a new stamp, so that an unchanged one never asks the network again.
LIST := $(shell cat requirements.txt pyproject.toml $(CONSTRAINTS) | cksum | cut -d' ' -f1)
# $(call option,NAME,VALUE): --NAME VALUE where VALUE is set
option = $(if $(2),--$(1) "$(2)")
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check $(call option,constraint,$(CONSTRAINTS))

.PHONY: help run test lint notebooks publish report
help:
	@echo "make run        execute the three notebooks   [DATA=DIR] [WEIGHTS=DIR] [ONLY=01] [EPOCHS=30] [VIEWS=4] [SEED=42] [OUT=DIR] [FRESH=1]"
	@echo "                an interrupted one goes on where it stopped; FRESH=1 also runs again what is finished"
	@echo "make test       lint, notebooks up to date, tests"
	@echo "make lint       ruff check, ruff format --check, mypy"
	@echo "make notebooks  rebuild the notebooks from notebooks/ and transferlab/"
	@echo "make publish    execute them in place, name the runs in report/runs.toml   DATA=DIR WEIGHTS=DIR"
	@echo "make report     render experiment_report.md and the README's results from the named runs"
	@echo "Each takes VENV=DIR (default .venv), which is made and filled where it is missing, and"
	@echo "CONSTRAINTS=constraints.txt to fill it with the versions that were tested."

run: $(VENV)/.run-$(LIST)
	$(PY) -m transferlab run $(call option,only,$(ONLY)) $(call option,data,$(DATA)) $(call option,weights,$(WEIGHTS)) \
	  $(call option,epochs,$(EPOCHS)) $(call option,views,$(VIEWS)) $(call option,seed,$(SEED)) $(call option,out,$(OUT)) $(if $(filter-out 0,$(FRESH)),--fresh)

test: lint
	$(PY) tools/build_notebooks.py --check
	$(PY) -m pytest --numprocesses auto --maxprocesses 4

lint: $(VENV)/.test-$(LIST)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

notebooks: $(VENV)/.test-$(LIST)
	$(PY) tools/build_notebooks.py

publish: $(VENV)/.test-$(LIST)
	$(PY) tools/publish.py $(call option,data,$(DATA)) $(call option,weights,$(WEIGHTS)) $(call option,only,$(ONLY))

report: $(VENV)/.test-$(LIST)
	$(PY) report/render.py

$(VENV)/.run-$(LIST):
	@echo "installing the packages of requirements.txt into $(VENV) (once; PyTorch alone is several GB)"
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "setuptools>=77" wheel
	$(PIP_INSTALL) --no-build-isolation --editable ".[data,offline,run]"
	touch $@

$(VENV)/.test-$(LIST): $(VENV)/.run-$(LIST)
	@echo "installing what the tests need into $(VENV) (once)"
	$(PIP_INSTALL) --no-build-isolation --editable ".[test]"
	touch $@
