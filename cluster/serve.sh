#!/usr/bin/env bash
# What `make serve` runs: a Ray head unless one runs, and the application until Ctrl-C. Ends what it started, nothing else.
#
#   cluster/serve.sh                             the newest checkpoint of a run, else of `make demo`
#   cluster/serve.sh --model PATH --port 8001    the flags of `python -m serve --help`
#   cluster/serve.sh stop                        end the application of another shell
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

started_head=

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$started_head" ]; then cluster/local.sh stop || status=1; fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "${1:-}" = stop ] && ! cluster/local.sh status >/dev/null; then
    echo "no head of this repository runs, so nothing is served" >&2
    exit 0
fi
if ! cluster/local.sh status >/dev/null; then
    echo "starting a Ray head (about 20 s)"
    started_head=yes  # before the start, so that Ctrl-C in between ends it too
    cluster/local.sh start
fi
eval "$(cluster/local.sh env)"
export RAY_ADDRESS=127.0.0.1:${HSOKV_HEAD_PORT:-6379}  # this head, whichever others this machine has
python -m serve "$@"
