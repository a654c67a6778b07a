# Everything runs in .venv, which is made on first need and made again when the requirements change.
# Another Python: make PYTHON=/path/to/python3 …   More notebooks at a time: make test JOBS=8
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready

# $(PYTHON) where it is one of those that were tried, then these by name, then whatever newer one $(PYTHON) is
TRIED := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))
NEWER := import sys; sys.exit(sys.version_info < (3, 10))
FIND_PYTHON = for p in $(PYTHON) python3.13 python3.12 python3.11 python3.10; do \
	"$$p" -c '$(TRIED)' >/dev/null 2>&1 && { echo "$$p"; exit; }; done; "$(PYTHON)" -c '$(NEWER)' >/dev/null 2>&1 && echo "$(PYTHON)"

.DEFAULT_GOAL := help
.PHONY: help demo test lint lab notebooks docs export readme clean quarto runtime

help: ## print this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name what; do \
		printf 'make %-11s %s\n' "$$name" "$$what"; done

demo: $(READY) ## a photograph read with the shipped weights, then a small model trained and evaluated on synthetic faces
	@$(BIN)/python tools/demo.py

test: $(READY) lint ## lint, every notebook, every test; with SLOW=1 the slow ones too
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(JOBS) --do_print $(if $(SLOW),--flags slow)
	@$(BIN)/python -m pytest

lint: $(READY) ## ruff over code and notebooks, mypy over the package
	@$(BIN)/ruff check grefel nbs tests tools benchmarks
	@$(BIN)/mypy

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=nbs nbs/index.ipynb

notebooks: $(READY) ## run every notebook (or NB="nbs/a.ipynb …") in a Jupyter kernel and store cleaned outputs
	@$(BIN)/python tools/run_notebooks.py $(NB)

docs: quarto runtime readme ## build the website into _docs (needs Quarto and npm)
	@touch README.md  # else nbdev_docs writes one of its own over it
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_docs
	@$(BIN)/python tools/try_it.py _docs

export: $(READY) ## clean the notebooks, write grefel/ from them, and the files of the website that follow from them
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export
	@$(BIN)/python -c 'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()'
	@$(BIN)/python tools/sidebar.py
	@$(BIN)/python tools/readme.py

readme: $(READY) ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

clean: ## remove what was built; keeps .venv and runs/
	@rm -rf _docs _proc build dist *.egg-info
	@find grefel tools nbs -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

quarto:
	@command -v quarto >/dev/null || { \
		echo 'make docs needs Quarto: install it from https://quarto.org/docs/get-started/ and run make docs again' >&2; exit 1; }

runtime: $(READY)
	@$(BIN)/python tools/try_it.py

$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	[ -n "$$python" ] || { echo 'grefel needs Python 3.10 or newer: make PYTHON=/path/to/python3 …' >&2; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 && exit; \
	"$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || { \
		echo "$$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or name another with PYTHON=" >&2; \
		exit 1; }; \
	echo "Making .venv with $$("$$python" --version); PyTorch is large, so the first time takes some minutes."; \
	"$$python" -m venv --clear .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
