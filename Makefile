# Every target sets up what it needs; python3 (3.11 or newer) and make are
# enough. `make PYTHON=python3.12 ...` picks another interpreter.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BEAM := .venv-beam
XMANAGER := .venv-xmanager
APP := .venv-app
BENCH := .venv-bench
BIN := $(VENV)/bin
# Event loops that Gradio makes and never closes.
GRADIO_LEAVES := -W ignore::ResourceWarning \
  -W ignore::pytest.PytestUnraisableExceptionWarning
TOUR := --model=demo --style=pastel=pastel --shots=docs/app
# Left out of api-docs: the commands, whose flags clash when they are imported
# together, and what needs packages of another environment.
COMMANDS := main|sample|evaluate|convert|prepare|plan|app
ELSEWHERE := data\.preprocess_beam|contrib\.web

.PHONY: demo gallery test smoke scale beam xmanager app-test app-shots lint format \
  parity torture bench bench-check api-docs lock clean

demo: $(VENV)/ready  ## every task and a few steps of every stage, on a page
	$(BIN)/python -m launch.demo --out=out/demo

gallery: $(VENV)/ready  ## make the pictures and clips of docs/gallery.md anew
	$(BIN)/python -m launch.gallery

test: $(VENV)/ready  ## the whole suite, without torch
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder \
	  -m "not parity and not scale and not app"

scale: $(VENV)/ready  ## eight devices and several processes against one
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/scale

beam: $(BEAM)/ready  ## data preparation at scale, against the small one
	$(BEAM)/bin/python -m pytest -q tests/launch/test_prepare_beam.py

smoke: $(VENV)/ready $(BEAM)/ready $(APP)/ready  ## a little of scale, Beam, the page
	$(BIN)/python -m pytest -q tests/scale/test_windows.py
	$(BEAM)/bin/python -m pytest -q tests/launch/test_prepare_beam.py -k output_equals
	$(APP)/bin/python -m pytest -q $(GRADIO_LEAVES) tests/contrib/web/test_page.py

xmanager: $(XMANAGER)/ready  ## the XManager launcher, against a stand-in
	$(XMANAGER)/bin/python -m pytest -q tests/launch/test_xm_launch.py

app-test: $(APP)/ready  ## the web page, in a browser too (Debian: chromium)
	$(APP)/bin/python -m pytest -q $(GRADIO_LEAVES) tests/contrib/web

app-shots: $(APP)/ready  ## pictures of the page on the model that ships
	$(APP)/bin/python -m pytest -q $(GRADIO_LEAVES) tests/contrib/web/test_tour.py $(TOUR)

lint: $(VENV)/ready  ## format, style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(PARITY)/ready  ## compare with torch, diffusers and transformers
	$(PARITY)/bin/python -m pytest -q tests/parity

bench: $(VENV)/ready $(BENCH)/ready  ## speed beside others, docs/performance.md
	$(BIN)/python -m benchmarks.speed --peers=$(BENCH)/bin/python \
	  --out=docs/performance.json --page=docs/performance.md

bench-check: $(VENV)/ready $(BENCH)/ready  ## ratios more than 10% worse
	$(BIN)/python -m benchmarks.speed --peers=$(BENCH)/bin/python --check

torture: $(VENV)/ready  ## kill a run in every way there is; some minutes
	XLA_FLAGS= $(BIN)/python -m tests.torture --report=docs/reliability.md

api-docs: $(VENV)/ready  ## pages of the Python API, at out/api/index.html
	$(BIN)/python -W ignore::UserWarning -m pdoc --docformat=google \
	  --no-show-source --output-directory=out/api lumiere_jax \
	  '!lumiere_jax\.($(COMMANDS)|$(ELSEWHERE))'

lock: $(VENV)/ready  ## requirements*.txt from pyproject.toml; UPGRADE=1: newest
	$(call lock,requirements.txt,to train and sample,pyproject.toml)
	$(call lock,requirements-dev.txt,lint and tests,pyproject.toml --group=dev)
	$(call lock,requirements-parity.txt,make parity,pyproject.toml --group=parity)
	$(call lock,requirements-beam.txt,make beam,pyproject.toml \
	  --extra=beam --group=test)
	$(call lock,requirements-xmanager.txt,make xmanager,pyproject.toml \
	  --extra=xmanager --group=dev)
	$(call lock,requirements-app.txt,the web page,pyproject.toml \
	  --extra=app --group=app-test)
	$(call lock,requirements-bench.txt,networks that make bench compares with, \
	  --group=bench)

clean:
	rm -rf $(VENV) $(PARITY) $(BEAM) $(XMANAGER) $(APP) $(BENCH) out

$(VENV)/ready: requirements-dev.txt
	$(call install,$(VENV),requirements-dev.txt)

$(PARITY)/ready: requirements-parity.txt
	$(call install,$(PARITY),requirements-parity.txt)

$(BEAM)/ready: requirements-beam.txt
	$(call install,$(BEAM),requirements-beam.txt)

$(XMANAGER)/ready: requirements-xmanager.txt
	$(call install,$(XMANAGER),requirements-xmanager.txt)

$(BENCH)/ready: requirements-bench.txt
	$(call install,$(BENCH),requirements-bench.txt)

$(APP)/ready: requirements-app.txt
	$(call install,$(APP),requirements-app.txt)

# Versions in the file stay as they are, unless UPGRADE is set.
define lock
$(BIN)/uv pip compile --quiet --python-version=3.11 --python-platform=linux \
  --no-annotate --custom-compile-command="make lock  # $(2)" \
  $(if $(UPGRADE),--upgrade) $(3) --output-file=$(1)
endef

define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "error: $(PYTHON) is older than 3.11; make PYTHON=python3.12 ..."; \
    exit 2; }
@$(PYTHON) -m venv $(1) || \
  { echo "error: $(PYTHON) -m venv failed; on Debian: apt install python3-venv"; \
    exit 2; }
$(1)/bin/python -m pip install -q --disable-pip-version-check -r $(2)
@touch $@
endef
