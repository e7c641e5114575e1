"""Metrics for Prometheus, names `hsokv_serve_*`, and the text of a scrape made of every process's report."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serve.board import Report

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_RETRIEVAL_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class GatewayMetrics:
    """What the HTTP side measures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "hsokv_serve_http_answers", "Answers by route and status.", ["route", "status"], registry=self.registry
        )
        self.first_token_s = Histogram(
            "hsokv_serve_time_to_first_token_seconds",
            "From the request to the first token.",
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "hsokv_serve_open_generations", "Generations that clients wait for.", registry=self.registry
        )


class ReplicaMetrics:
    """What a replica of the model measures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of inputs, documents included.")
        self.cached_tokens = self._counter("cached_tokens", "Of these, read before.")
        self.completion_tokens = self._counter("completion_tokens", "Tokens that were generated.")
        self.cancelled = self._counter("cancelled_requests", "Requests that ended because the client went away.")
        self.failed = Counter(
            "hsokv_serve_failed_requests", "Requests that failed, by kind.", ["kind"], registry=self.registry
        )
        self.retrieval_s = Histogram(
            "hsokv_serve_retrieval_seconds",
            "Choosing and fetching, per generated token; a mean of each request past the window.",
            buckets=_RETRIEVAL_S,
            registry=self.registry,
        )
        self.queue_s = Histogram(
            "hsokv_serve_queue_seconds", "Time in the queue.", buckets=_FIRST_TOKEN_S, registry=self.registry
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"hsokv_serve_{name}", text, registry=self.registry)


class _Reports(Collector):
    def __init__(self, reports: Iterable[Report]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for report in self._reports:
            for family in report.families:
                metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.type))
                for sample in family.samples:
                    metric.add_sample(sample.name, {**dict(sample.labels), "replica": report.source}, sample.value)
        rss = Metric("hsokv_serve_resident_bytes", "Memory a process has in use.", "gauge")
        for report in self._reports:
            rss.add_sample(rss.name, {"replica": report.source, "role": report.role}, report.rss_bytes)
        yield from (*metrics.values(), rss)


def render(reports: list[Report]) -> bytes:
    """Return the text of a scrape; each sample is labelled with the process it is of."""
    registry = CollectorRegistry()
    registry.register(_Reports(reports))
    return generate_latest(registry)
