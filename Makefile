# Everyday commands; `make help` lists them.
PREFIX ?= /usr/local

.PHONY: help lib mpi wheel sdist demo study test lint bench bench-sizes bench-peers bench-memory bench-model bench-transformers bench-generate bench-lowbits bench-ranks soak-ranks test-asan test-tsan test-transformers test-mpi fuzz check-arm64 install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lib: ## build/lib/libmoe.so and libmoe.a, what pkg-config and CMake read, build/include
	scripts/lib

mpi: ## build/mpi/lib/libmoe_mpi.so, a communicator over the MPI whose mpicc there is
	scripts/mpi

wheel: lib ## build/dist/libmoe-...-manylinux_....whl, for pip on other machines
	scripts/wheel

sdist: ## build/dist/libmoe-....tar.gz, which pip builds where there is a Swift toolchain
	scripts/wheel --sdist

demo: ## train a language model on real text
	scripts/demo

study: ## compare the routing schemes on real text
	scripts/study

test: ## everything a merge has to pass
	scripts/test

lint: ## swift format, ruff, mypy, shellcheck
	scripts/lint

test-asan: ## the Swift and C tests under the address sanitizer
	scripts/test-asan

test-transformers: ## libmoe.torch and libmoe.transformers in full, on every class of the installed transformers
	scripts/test-torch all

test-mpi: ## communicators under mpiexec, with Debian's Open MPI and MPICH and those of PyPI
	scripts/test-mpi

fuzz: ## coverage-guided fuzzing of the C interface and the file formats, a minute each
	scripts/fuzz

test-tsan: ## the tests of threads under the thread sanitizer
	scripts/test-tsan

check-arm64: ## compile for arm64, and run C tests in an emulator
	scripts/check-arm64

bench: lib ## how fast the layer is on this machine
	benchmarks/run

bench-sizes: lib ## what the layer's time is of the least that this machine allows, over all sizes
	benchmarks/run-sizes

bench-peers: lib ## how fast others are beside it, on the same work
	benchmarks/run-peers

bench-memory: lib ## how much memory a training step takes
	benchmarks/run-memory

bench-model: lib ## whole models beside PyTorch: training, attention, generation
	benchmarks/run-model

bench-transformers: lib ## models of transformers with libmoe's experts, beside its own
	benchmarks/run-transformers

bench-lowbits: lib ## the layer with weights of few bits, beside its peers
	benchmarks/run-lowbits

bench-ranks: lib ## the layer over ranks: beside one process, on a slow link, beside peers, simulated
	benchmarks/run-ranks

soak-ranks: lib ## ten thousand steps on three ranks with faults: no hang, flat memory, the bits of one
	benchmarks/run-soak

bench-generate: lib ## whole models from folders beside transformers and llama.cpp: loading, prompts, generation, training
	benchmarks/run-generate

install: ## what make lib has built, into PREFIX (/usr/local), below DESTDIR for packages
	scripts/install '$(PREFIX)' '$(DESTDIR)'

uninstall: ## removes it from there
	scripts/uninstall '$(PREFIX)' '$(DESTDIR)'

clean: ## remove everything that was built
	rm -rf build .build
