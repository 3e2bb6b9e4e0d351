#!/usr/bin/env bash
# Install a wheel or an sdist into an empty environment for each set of extras, and use it there.
#
#     tests/release.sh dist/entropyfloor-0.2.0-py3-none-any.whl '' torch jax control,report
#
# PYTHON is the interpreter, python3 by default; PIP holds further arguments of pip, such as `torch==2.6.0` or
# `--constraint constraints.txt`. UV is a path of uv, which then installs in the place of pip, and faster.
# An environment is removed before the next is made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dist=$(realpath "$1")
shift
for extras in "$@"; do
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    "${PYTHON:-python3}" -m venv "$place"
    install=("$place/bin/python" -m pip install)
    if [[ -n ${UV:-} ]]; then install=("$UV" pip install --python "$place"); fi
    # shellcheck disable=SC2086  # several arguments
    "${install[@]}" --quiet "entropyfloor${extras:+[$extras]} @ file://$dist" ${PIP:-}
    # shellcheck disable=SC2086
    (cd "$place" && env -u PYTHONPATH bin/python -I "$here/smoke.py" ${extras//,/ })
    rm -rf "$place"
done
