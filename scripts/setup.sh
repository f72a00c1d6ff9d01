# Read by the other scripts: what a step needs of the machine, installed where it is missing.
# shellcheck shell=sh

# A Swift toolchain comes from its makers, not from apt.
need_swift() {
  command -v swift >/dev/null 2>&1 && return
  echo "Swift 6.2 or later is needed, and there is no swift on the PATH." >&2
  echo "Install it as www.swift.org/install says, or work in the official swift container image." >&2
  exit 1
}

# Debian or Ubuntu packages, installed in a checkout when this is root, named in one line otherwise.
need_packages() {
  missing=
  command -v make >/dev/null 2>&1 || missing="$missing make"
  command -v pkg-config >/dev/null 2>&1 || missing="$missing pkg-config"
  command -v python3 >/dev/null 2>&1 || missing="$missing python3"
  python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
  install_missing
}

# What makes libmoe.so and libmoe.a of the compilers' objects.
need_binutils() {
  missing=
  command -v ld.bfd >/dev/null 2>&1 && command -v strip >/dev/null 2>&1 || missing="$missing binutils"
  install_missing
}

# The library loads OpenBLAS on request only: for tests of that, and for comparisons.
need_openblas() {
  missing=
  has_library openblas || missing="$missing libopenblas-dev"
  has_library pthread-stubs || missing="$missing libpthread-stubs0-dev"
  install_missing
}

# An MPI: Open MPI where there is none.
need_mpi() {
  missing=
  command -v mpicc >/dev/null 2>&1 || missing="$missing libopenmpi-dev"
  command -v mpiexec >/dev/null 2>&1 || missing="$missing openmpi-bin"
  install_missing
}

# A compiler, libc and an emulator for arm64.
need_arm64_packages() {
  missing=
  command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 || missing="$missing gcc-aarch64-linux-gnu"
  [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
  command -v qemu-aarch64-static >/dev/null 2>&1 || missing="$missing qemu-user-static"
  install_missing
}

install_missing() {
  [ -z "$missing" ] && return
  # pip, which builds from an sdist, is expected to change nothing of the system.
  if [ "$(id -u)" != 0 ] || [ ! -e Makefile ]; then
    echo "Packages are missing. Please run:  sudo apt-get update && sudo apt-get install -y$missing" >&2
    exit 1
  fi
  echo "Installing$missing"
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of names
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

has_library() {
  for folder in /usr/lib/*/pkgconfig /usr/lib/pkgconfig /usr/share/pkgconfig /usr/local/lib/pkgconfig; do
    [ -e "$folder/$1.pc" ] && return
  done
  return 1
}

# need_venv NAME FILE...: build/venv/NAME with what the requirement files list; made anew when they change.
need_venv() {
  venv=build/venv/$1
  shift
  cat "$@" | cmp -s - "$venv/installed" && return
  echo "Making $venv"
  python3 -m venv --clear "$venv"
  for file in "$@"; do
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
  done
  cat "$@" >"$venv/installed"
}

# One build at a time in a checkout: which other one it waits for, a tool's own words do not say. Ends with the script.
one_at_a_time() {
  mkdir -p build
  command -v flock >/dev/null || return 0
  exec 9>build/lock
  flock -n 9 && return
  echo "${0##*/}: another build is running in $PWD; this one waits, and goes on when that has ended" >&2
  flock 9
}
