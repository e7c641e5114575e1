#!/usr/bin/env bash
# What `make demo` runs: a Ray head unless one runs, the training job, a text from its checkpoint.
# Ends what it started (the job, the head), also on Ctrl-C, and nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# At most five minutes on two cores.
training=(--size micro --seq-len 256 --batch-size 8 --max-steps 240 --eval-every 60 --eval-tokens 32768 --save-every 120)
prompt="def read(self, path):"

name=demo
runs=$PWD/runs
api=http://127.0.0.1:${HSOKV_HEAD_DASHBOARD_PORT:-8265}
log=$(mktemp)
job=
started_head=

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$job" ]; then ray job stop "$job" >/dev/null 2>&1 || true; fi
    rm -f "$log"
    if [ -n "$started_head" ]; then cluster/local.sh stop || status=1; fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

answers() {
    python - "$api" <<'PYTHON'
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + "/api/version", timeout=5)
except urllib.error.HTTPError as error:
    sys.exit(error.code not in (401, 403))
except OSError:
    sys.exit(1)
PYTHON
}

# Print the job's output until it has ended; 0 if it succeeded.
follow() {
    python - "$1" <<'PYTHON'
import asyncio, logging, sys, time
from ray.job_submission import JobStatus, JobSubmissionClient

async def follow(client, job):
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)

logging.disable(logging.INFO)
client, job = JobSubmissionClient(), sys.argv[1]
try:
    asyncio.run(follow(client, job))
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.2)
except KeyboardInterrupt:
    sys.exit(130)
if status != JobStatus.SUCCEEDED:
    sys.exit(client.get_job_info(job).message)
PYTHON
}

show() {
    printf '\n$ %s\n' "$*"
}

if ! cluster/local.sh status >/dev/null && answers; then
    echo "using the Ray head at $api"
    export RAY_API_SERVER_ADDRESS=$api
    if [ -z "${RAY_AUTH_MODE:-}" ] && [ -f "$HOME/.ray/auth_token" ]; then export RAY_AUTH_MODE=token; fi
else
    if ! cluster/local.sh status >/dev/null; then
        echo "starting a Ray head (about 20 s)"
        started_head=yes  # before the start, so that Ctrl-C in between ends it too
        cluster/local.sh start
    fi
    eval "$(cluster/local.sh env)"
fi

job=demo-$$-$RANDOM
command=(jobs/train_hmst.py --output-dir "$runs" --name "$name" "${training[@]}")
show ray job submit --working-dir . -- "${command[@]}"
ray job submit --no-wait --submission-id "$job" --working-dir . -- "${command[@]}" >"$log" 2>&1 || {
    cat "$log" >&2
    exit 1
}
follow "$job" || {
    echo "error: the training job did not succeed; the reason is above, or: ray job logs $job" >&2
    exit 1
}
job=

show hsokv generate "$runs/$name" --prompt "\"$prompt\"" --max-length 80 --seed 0
hsokv generate "$runs/$name" --prompt "$prompt" --max-length 80 --seed 0

cat <<END

loss plot    $(ls "$runs/$name"/*.png)
model card   $runs/$name/README.md
checkpoints  $runs/$name/checkpoints

Next: your own text, in a folder of any size:
  make head && eval "\$(cluster/local.sh env)"
  ray job submit --working-dir . -- jobs/train_hmst.py --source /path/to/text --name mine
  hsokv generate ~/hsokv_runs/mine
END
