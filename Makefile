PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check clean

demo: .venv/ready
	$(BIN)/python -m sparselayers demo

# All but the tests marked long, which would take it past ten minutes on two cores.
test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m "not long"

test-all: .venv/ready
	$(BIN)/python -m pytest -n 2

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: with it in place no other package asks for another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,fast,dev]'
	touch $@

clean:
	rm -rf .venv demo
