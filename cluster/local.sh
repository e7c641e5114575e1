#!/usr/bin/env bash
# One local Ray head for this repository, reachable from this machine only.
#
#   cluster/local.sh start     start it (in the repository's root, so that `ray job submit jobs/...` finds the jobs)
#   cluster/local.sh env       print what a shell must export to talk to it: eval "$(cluster/local.sh env)"
#   cluster/local.sh status    say whether it runs; 0 if it does
#   cluster/local.sh stop      end it and everything it started, and nothing else
#
# Settings: HSOKV_HEAD_CPUS (all cores), HSOKV_HEAD_STORE_BYTES (a tenth of the memory, 1 GB at most),
# HSOKV_HEAD_PORT (6379), HSOKV_HEAD_DASHBOARD_PORT (8265), HSOKV_HEAD_TEMP_DIR (/tmp/ray), HSOKV_HEAD_STATE (.scratch/head),
# RAY_AUTH_MODE (token).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=${HSOKV_HEAD_STATE:-$root/.scratch/head}
port=${HSOKV_HEAD_PORT:-6379}
dashboard_port=${HSOKV_HEAD_DASHBOARD_PORT:-8265}
temp_dir=${HSOKV_HEAD_TEMP_DIR:-/tmp/ray}
[ -d "$root/.venv/bin" ] && PATH=$root/.venv/bin:$PATH

# Everything below runs with these; `env` prints them. The second binds every port of Ray to 127.0.0.1, on Linux too.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # one machine has no other to hand its work to
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0  # its hook hangs in jobs: https://github.com/ray-project/ray/issues/54768

# The package `serve` is not installed; processes that Ray starts find it here.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

fail() {
    echo "error: $*" >&2
    exit 1
}

# The head's pid, if the process recorded in the state folder still is the one that was started.
head_pid() {
    [ -f "$state/pid" ] && [ -f "$state/started" ] || return 1
    local pid
    pid=$(cat "$state/pid")
    [ "$(started_at "$pid")" = "$(cat "$state/started")" ] && [ -s "$state/started" ] && echo "$pid"
}

started_at() {
    ps -o lstart= -p "$1" 2>/dev/null || true
}

# Pid and start of every process in the head's session or below it, so that a reused pid is never taken for one.
family() {
    ps -axo pid=,ppid=,sess=,stat=,lstart= | awk -v head="$1" '
        { pid[NR] = $1; parent[NR] = $2; session[NR] = $3; state[NR] = $4
          $1 = $2 = $3 = $4 = ""; sub(/^ +/, ""); start[NR] = $0 }
        END {
            of[head] = 1
            do { grew = 0
                for (i = 1; i <= NR; i++)
                    if (!(pid[i] in of) && (parent[i] in of || session[i] == head)) { of[pid[i]] = 1; grew = 1 }
            } while (grew)
            for (i = 1; i <= NR; i++) if (pid[i] in of && state[i] !~ /^Z/) print pid[i] "\t" start[i]
        }'
}

alive() {
    local pid start
    while IFS=$'\t' read -r pid start; do
        [ -n "$pid" ] && [ "$(started_at "$pid" | sed 's/^ *//;s/ *$//;s/  */ /g')" = "$(echo "$start" | sed 's/  */ /g')" ] && echo "$pid"
    done <<<"$1"
    return 0
}

free_port() {
    python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

store_bytes() {
    python -c 'import psutil; print(min(psutil.virtual_memory().total // 10, 10**9))'
}

taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

start() {
    if head_pid >/dev/null; then
        echo "the head of this repository runs already (pid $(head_pid))" >&2
        return 0
    fi
    command -v ray >/dev/null || fail "no ray in PATH: run 'make venv' first"
    if taken "$port"; then
        fail "port $port is taken by another program, perhaps another Ray head; set HSOKV_HEAD_PORT"
    fi
    if taken "$dashboard_port"; then
        fail "port $dashboard_port is taken by another program; set HSOKV_HEAD_DASHBOARD_PORT"
    fi
    if [ "$RAY_AUTH_MODE" = token ]; then
        ray get-auth-token --generate >/dev/null 2>&1 || fail "ray get-auth-token --generate failed; run it to see why"
    fi
    mkdir -p "$state"
    local attempt
    for attempt in 1 2 3; do
        launch
        if wait_until_up; then
            echo "a Ray head runs at 127.0.0.1:$port, dashboard http://127.0.0.1:$dashboard_port; in this shell, run:" >&2
            echo "  eval \"\$(cluster/local.sh env)\"" >&2
            return
        fi
        end_family "$(cat "$state/pid")"
        # Ray gives its processes a fixed 30 s to start, which a busy machine exceeds.
        grep -qi "timed out" "$state/log" || break
        echo "the head was too slow to come up (attempt $attempt of 3)" >&2
    done
    fail "the head did not come up: $(tail -1 "$state/log"); all of it: $state/log"
}

# The head gets a session of its own: Ctrl-C in this terminal does not reach it, and `stop` finds all that belongs to it.
launch() {
    cd "$root"
    python -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])' \
        ray start --head --block --disable-usage-stats \
        --port "$port" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard_port" \
        --ray-client-server-port "$(free_port)" --dashboard-agent-listen-port 0 --metrics-export-port 0 \
        --num-cpus "${HSOKV_HEAD_CPUS:-$(python -c 'import os; print(os.cpu_count())')}" \
        --object-store-memory "${HSOKV_HEAD_STORE_BYTES:-$(store_bytes)}" --temp-dir "$temp_dir" \
        </dev/null >"$state/log" 2>&1 &
    echo "$!" >"$state/pid"
    started_at "$!" >"$state/started"
}

# 0 once the dashboard answers; 1 if the head ended or two minutes have passed.
wait_until_up() {
    local i
    for i in $(seq 600); do
        head_pid >/dev/null || return 1
        grep -q "block forever" "$state/log" 2>/dev/null && python - "$dashboard_port" <<'PYTHON' && return
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/api/version", timeout=5)
except urllib.error.HTTPError as error:
    sys.exit(error.code not in (401, 403))  # it answers, and wants the token
except OSError:
    sys.exit(1)
PYTHON
        sleep 0.2
    done
    return 1
}

stop() {
    local pid
    if ! pid=$(head_pid); then
        echo "no head of this repository runs" >&2
        rm -f "$state/pid" "$state/started"
        return 0
    fi
    end_family "$pid"
    echo "the head is stopped" >&2
}

# End the head with this pid and all that belongs to it: asked first, forced after 15 s.
end_family() {
    local members left i
    members=$(family "$1")
    if head_pid >/dev/null; then kill -TERM "$1"; fi
    for i in $(seq 150); do
        left=$(alive "$members"$'\n'"$(family "$1")")
        [ -z "$left" ] && break
        sleep 0.1
    done
    if [ -n "$left" ]; then
        # shellcheck disable=SC2086
        kill -KILL $left 2>/dev/null || true
        sleep 0.5
        left=$(alive "$members")
        [ -z "$left" ] || fail "these processes did not end: $left"
    fi
    # Ray leaves its address behind, and the next ray.init() would wait for it in vain.
    if [ "$(cat "$temp_dir/ray_current_cluster" 2>/dev/null)" = "127.0.0.1:$port" ]; then
        rm -f "$temp_dir/ray_current_cluster"
    fi
    rm -f "$state/pid" "$state/started"
}

print_env() {
    echo "export RAY_AUTH_MODE=$RAY_AUTH_MODE"
    echo "export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"
    echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port"
    if [ -d "$root/.venv/bin" ]; then echo "export PATH=\"$root/.venv/bin:\$PATH\""; fi
}

case ${1:-} in
start) start ;;
stop) stop ;;
env) print_env ;;
status)
    if pid=$(head_pid); then
        echo "running: pid $pid, 127.0.0.1:$port, dashboard http://127.0.0.1:$dashboard_port"
    else
        echo "not running"
        exit 3
    fi
    ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
