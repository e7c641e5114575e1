"""`python -m serve [--config FILE] [--model PATH ...]` runs the application; `python -m serve stop` ends it.

Starts a Ray where none runs, waits until the model answers, says how to ask it, and on Ctrl-C ends what it started.
"""

import signal
import sys
import time
import urllib.error
import urllib.request

import pydantic
import tyro

from hsokv_ray.config import load_yaml
from hsokv_ray.errors import HsokvError, RunError
from serve.args import ServeArgs

_READY_S = 600.0


class Command(ServeArgs):
    """Serve a model over HTTP until Ctrl-C, to clients of OpenAI's API. `--config FILE.yaml` may be given first."""

    host: str = "127.0.0.1"
    """Address to listen on; another one needs API keys."""

    port: int = pydantic.Field(default=8000, ge=1, le=65535)
    """Port to listen on."""

    application: str = "hsokv"
    """Name of the application in Serve."""

    @property
    def args(self) -> ServeArgs:
        """Return what concerns the application alone."""
        return ServeArgs(**{name: getattr(self, name) for name in ServeArgs.model_fields})


def main(argv: list[str] | None = None) -> int:
    """Run or stop the application; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["stop"]:
            return stop(words[1] if len(words) > 1 else "hsokv")
        return run(_parse(words))
    except HsokvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(words: list[str]) -> Command:
    default = Command()
    if words[:1] == ["--config"] and len(words) > 1:
        default, words = load_yaml(Command, words[1]), words[2:]
    return tyro.cli(Command, args=words, default=default, prog="python -m serve", config=(tyro.conf.AvoidSubcommands,))


def run(command: Command) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from serve.keys import read_keys
    from serve.newest import model_name, model_path

    model = model_path(command.model)  # before what takes seconds
    has_keys = bool(read_keys(command.keys_file))
    if not has_keys and command.host not in ("127.0.0.1", "::1", "localhost"):
        raise RunError(f"--host {command.host} needs API keys: set HSOKV_API_KEYS or --keys-file")
    from hsokv_ray.runtime import connect

    connect(log_to_driver=False)
    _end_on_signals()
    from ray import serve
    from ray.exceptions import RayActorError

    from serve.app import build

    if command.application in serve.status().applications:
        raise RunError(f"{command.application} is served already; end it: make stop-serve, or give --application NAME")
    url = _address(command.host, command.port)
    try:
        serve.start(http_options={"host": command.host, "port": command.port})
        serve.run(build(command.args), name=command.application, route_prefix="/", blocking=False)
        _wait_until_ready(url)
        print(_greeting(url, command.name or model_name(model), has_keys=has_keys), flush=True)
        while command.application in serve.status().applications:  # another shell may end it
            time.sleep(1)
        return 0
    except RayActorError:  # and Serve with it
        return 0
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise RunError(f"the application did not start: {cause}; the logs of replicas are in /tmp/ray") from error
    except KeyboardInterrupt:
        print("ending", file=sys.stderr)
        return 0
    finally:
        _end(command.application)


def stop(application: str) -> int:
    """End the application of another shell and its actors; documents stay on disk."""
    from hsokv_ray.runtime import connect, head_address

    if head_address() is None:
        print("no Ray runs here, so nothing is served", file=sys.stderr)
        return 0
    connect(log_to_driver=False)
    _end(application)
    return 0


def _end(application: str) -> None:
    """End the application in the connected Ray, after the answers that are on their way."""
    import ray
    from ray import serve

    from serve.actors import end_actors

    running = serve.status().applications
    if application in running:
        serve.delete(application, _blocking=False)  # which else gives up after 60 s, and drain_s may be more
        while application in serve.status().applications:
            time.sleep(0.2)
    ended = end_actors(application)
    if not any(name != application for name in running):
        serve.shutdown()
    ray.shutdown()
    print(f"ended {application}: {len(ended)} actors", file=sys.stderr)


def _end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the server in order.

    A shell's background job begins with SIGINT ignored; and Ray's own handler of SIGTERM, replaced here, aborts
    the process after 3 s.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _address(host: str, port: int) -> str:
    """Return the URL under which this machine reaches a server that listens on `host`."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _wait_until_ready(url: str) -> None:
    end_s = time.monotonic() + _READY_S
    while time.monotonic() < end_s:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10)
            return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise RunError(f"{url}/health is refused with {error.code}; is another server there?") from error
            time.sleep(0.2)
        except OSError:
            time.sleep(0.2)
    raise RunError(f"{url}/health did not answer within {_READY_S:g} s; the replicas' logs are in /tmp/ray")


def _greeting(url: str, model: str, *, has_keys: bool) -> str:
    key = "$HSOKV_API_KEY" if has_keys else "none"
    in_python = 'os.environ["HSOKV_API_KEY"]' if has_keys else '"none"'
    return f"""
{url} is ready: the page in a browser, the API below {url}/v1

curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 50}}'

import os
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={in_python})
for chunk in client.completions.create(model="{model}", prompt="Once", max_tokens=50, stream=True):
    print(chunk.choices[0].text, end="", flush=True)

Ctrl-C ends it."""


if __name__ == "__main__":
    sys.exit(main())
