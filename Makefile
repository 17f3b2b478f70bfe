# Everything runs in .venv, which is made here from settings.ini and setup.py, and again when one of them changes.
# Another Python:  make test PYTHON=python3.12        Another place for the demo:  make demo OUT=elsewhere
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
RUN := $(BIN)/python
WORKERS ?= 2
# the pins and this folder: a copy of the folder never uses the environment of the first
DIGEST := $(shell (echo '$(CURDIR)'; cat settings.ini setup.py) | cksum | cut -d' ' -f1)
BASE := .venv/.installed-$(DIGEST)
DEV := .venv/.installed-dev-$(DIGEST)

.PHONY: help demo test check book preview notebooks unit readme lab docs clean
.NOTPARALLEL:
# the tests and the book reach no hub, and their workers share the cores instead of fighting for them
test check book preview notebooks unit docs: export HF_HUB_OFFLINE = 1
test check book preview notebooks unit docs: export OMP_NUM_THREADS = 1
test check book preview notebooks unit docs: export TOKENIZERS_PARALLELISM = false

help:
	@echo 'make demo       tokenise, train, recommend and evaluate on the toy shop; writes report.html'
	@echo 'make test       everything that must hold: export, names, links, every page, every test'
	@echo 'make lab        JupyterLab on the tour'
	@echo 'make preview    the book as plain HTML in _preview/'
	@echo 'make docs       the book as a site in _docs/, where Quarto is installed'
	@echo 'make check | book | notebooks | unit     the parts of make test'
	@echo 'make readme     README.md from nbs/index.ipynb'
	@echo 'make clean      removes the environment and everything that was built'

$(BASE):
	@test -n "$(PYTHON)" || { echo 'No Python of version 3.11 or later found; install one, or name it: make demo PYTHON=/path/to/python3.11.'; exit 1; }
	@test "$$(cat .venv/.made-in 2>/dev/null)" = '$(CURDIR)' || $(PYTHON) -m venv --clear .venv || \
	  { rm -rf .venv; echo '$(PYTHON) cannot make a virtual environment; install its venv package (python3-venv on Debian and Ubuntu).'; exit 1; }
	@echo '$(CURDIR)' > .venv/.made-in
	@rm -f .venv/.installed*
	@echo 'Installing gentok and what it needs into .venv (a few minutes, once).'
	@$(RUN) -m pip install -qq --disable-pip-version-check -e .
	@touch $@

$(DEV): $(BASE)
	@echo 'Installing what the tests and the book need (a minute, once).'
	@$(RUN) -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(BASE)
	$(BIN)/gentok demo$(if $(OUT), --out $(OUT))

test: check book notebooks unit
	@echo 'make test: everything holds.'

check: $(DEV)
	$(RUN) tools/check_repo.py
	$(RUN) -m ruff check --quiet gentok tools tests setup.py

book: $(DEV)
	$(RUN) tools/book.py
	$(RUN) tools/page_vitals.py --brief --max first=5 long=0 checks=0 noalt=0 nocap=0 ctrl=0 label=0 imports=0 stderr=0

notebooks: $(DEV)
	$(RUN) tools/check_repo.py notebooks

unit: $(DEV)
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile

preview: book
	@echo 'Open _preview/index.html in a browser.'

docs: $(DEV)
	$(RUN) tools/book.py --render

readme: $(DEV)
	$(RUN) tools/readme.py

lab: $(DEV)
	$(BIN)/jupyter lab nbs/00_start/01_tour.ipynb

clean:
	rm -rf .venv _proc _docs _preview build dist gentok.egg-info .pytest_cache .ruff_cache .hypothesis
