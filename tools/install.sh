#!/usr/bin/env bash
# Install ojak into a virtual environment: tools/install.sh VENV [EXTRA]. Makes the environment if there is none.
#
# torch comes first, because the ordinary index has it for Linux only as a CUDA build of some gigabytes. Where there is
# no GPU, the CPU build is asked for by its full version, "+cpu" included: no other build can answer to that name. It
# is sought where pip is set up to look (a mirror, a folder of wheels), then in PyTorch's own CPU index. If neither has
# it, the ordinary index decides.
set -euo pipefail

venv=$1
extra=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
constraints=$root/constraints.txt
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local name
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$name"
            return
        fi
    done
    say "ojak needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.12 ..."
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    say "making $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        say "this Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
        return 1
    fi
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

install_cpu_torch() {
    local torch
    torch=$(sed -n 's/^torch==\([0-9.]*\).*/torch==\1+cpu/p' "$constraints")
    say "looking for the CPU build of torch ($torch)"
    pip_install --no-deps "$torch" 2>/dev/null && return
    pip_install --no-deps --index-url "$cpu_index" "$torch" 2>/dev/null && return
    say "no CPU build of torch found; the ordinary index decides, and its build may be large"
}

pip_install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c "$constraints" "$@"; }

[ -x "$venv/bin/python" ] || make_venv
if [ "$(uname -s)" = Linux ] && ! has_gpu; then
    install_cpu_torch
fi
say "installing ojak${extra:+ with what its tests need} into $venv (a few minutes the first time)"
pip_install --editable "$root${extra:+[$extra]}"
