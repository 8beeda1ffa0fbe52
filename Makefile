# `make help` lists the targets. Each installs what it needs into .venv (or .venv-tf221) beside
# this file. Stamp files in there are written last, so an interrupted installation is repeated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: demo test bench lint lock clean help

STACK ?= tf215
PYTHON ?=
ARGS ?=

ifeq ($(STACK),tf215)
VENV := .venv
REQUIREMENTS := requirements.txt
TEST_REQUIREMENTS := requirements-test.txt
else ifeq ($(STACK),tf221)
VENV := .venv-tf221
REQUIREMENTS := requirements-tf221.txt
TEST_REQUIREMENTS := requirements-tf221.txt
export TF_USE_LEGACY_KERAS := 1
else
$(error STACK must be tf215 or tf221; found $(STACK))
endif

# Users of this project can't act on pip's warnings; its errors are still shown.
INSTALL := bin/python -m pip install -qq --disable-pip-version-check
UV_VERSION := 0.13.9

# Sets the shell variable `python`. Candidates are run, because a version manager's shim can be on
# the path and still fail.
define find_python
python= without_venv=
for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.10 python3 python); do
  fits='import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))'
  "$$candidate" -c "$$fits" > /dev/null 2>&1 || continue
  if "$$candidate" -c 'import ensurepip, venv' > /dev/null 2>&1; then python=$$candidate; break; fi
  without_venv=$$candidate
done
if [ -z "$$python" ]; then
  if [ -n "$$without_venv" ]; then
    echo "$$without_venv has the right version, but not the modules venv and ensurepip." >&2
    echo "Install them (Debian, Ubuntu: apt install python3-venv), or name another Python." >&2
  else
    echo "Python 3.10 or 3.11 is needed: TensorFlow 2.15 runs on no later one." >&2
    echo "Found none as $(if $(PYTHON),PYTHON=$(PYTHON),python3.11$(comma) python3.10$(comma) python3 or python)." >&2
  fi
  echo "To name one: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),demo)" >&2
  exit 1
fi
endef
comma := ,

demo: $(VENV)/installed  ## pretrain, evaluate and export on the bundled images
	$(VENV)/bin/python run.py --mode=train_then_eval --train_mode=pretrain $(ARGS)

test: $(VENV)/installed-test  ## run the tests (ARGS='-k name': some; STACK=tf221: on TensorFlow 2.21)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile \
	  --no-loadscope-reorder $(ARGS)

bench: $(VENV)/installed  ## run all benchmarks (an hour) and write benchmarks/results.md
	$(VENV)/bin/python -m benchmarks.speed $(ARGS)

lint: $(VENV)/installed-test  ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lock: .venv-lock/installed  ## regenerate the pinned requirements (ARGS=--upgrade: newest versions)
	@compile() {
	  echo "Writing $$2 from $$1"
	  .venv-lock/bin/uv pip compile --quiet --no-config --universal --python-version 3.10 \
	    --strip-extras --no-header "$${@:3}" $(ARGS) --output-file "$$2" "$$1"
	  sed -i "1i # Pinned for Python 3.10 and 3.11 by 'make lock' from $$1: edit that file, not this." "$$2"
	}
	compile requirements.in requirements.txt
	compile requirements-test.in requirements-test.txt --constraints requirements.txt
	compile requirements-tf221.in requirements-tf221.txt

clean:  ## remove virtual environments and caches (never runs/)
	rm -rf .venv .venv-tf221 .venv-lock .pytest_cache .ruff_cache .hypothesis

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 12
	echo "PYTHON=/path/to/python3.11 chooses another Python than python3.11, python3.10, python3 or python on the path."

$(VENV)/installed: $(REQUIREMENTS)
	@$(find_python)
	echo "Installing $(REQUIREMENTS) into $(VENV) with $$("$$python" --version); this takes some minutes."
	"$$python" -m venv --clear $(VENV)
	$(VENV)/$(INSTALL) -r $(REQUIREMENTS)
	touch $@

$(VENV)/installed-test: $(VENV)/installed $(TEST_REQUIREMENTS)
	@echo "Installing the test tools of $(TEST_REQUIREMENTS) into $(VENV)"
	$(VENV)/$(INSTALL) -r $(TEST_REQUIREMENTS)
	touch $@

.venv-lock/installed: Makefile
	@$(find_python)
	"$$python" -m venv --clear .venv-lock
	.venv-lock/$(INSTALL) uv==$(UV_VERSION)
	touch $@
