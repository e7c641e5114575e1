"""What the engine and the store of encoded texts count, as metrics; they are read when metrics are collected."""

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hsokv_ray.inference.engine.stats import GAP_BOUNDS_S, EngineStats, Gaps
from serve.shared_prefixes import SharedStats


class EngineCollector(Collector):
    """The metrics of one replica of the model.

    Args:
        engine: returns what the engine counts.
        prefixes: returns what the store of encoded texts counts.
        tokens_per_s: returns tokens generated in the last second.
    """

    def __init__(
        self, engine: Callable[[], EngineStats], prefixes: Callable[[], SharedStats], tokens_per_s: Callable[[], float]
    ) -> None:
        self._engine, self._prefixes, self._tokens_per_s = engine, prefixes, tokens_per_s

    def collect(self) -> Iterator[Metric]:
        engine, prefixes = self._engine(), self._prefixes()
        yield _gauge("running", "Answers that are being generated or read for.", engine.running + engine.reading)
        yield _gauge("queued", "Requests that wait.", engine.queued)
        yield _gauge("encoding", "Texts that are being encoded, or wait for it.", engine.encoding)
        yield _gauge("tokens_per_s", "Tokens generated in the last second.", self._tokens_per_s())
        yield _gauge("segment_bytes", "Encoded texts that this replica holds or has attached.", prefixes.local.bytes)
        counters = engine.counters
        yield _counter("encoded_tokens", "Tokens of documents that were encoded.", counters.encoded_tokens)
        yield _counter("encode_seconds", "Time the engine spent encoding documents.", counters.encode_s)
        yield _counter("prefix_hits", "Inputs of which a beginning was known, here or elsewhere.", prefixes.hits)
        yield _counter("prefix_misses", "Inputs of which nothing was known.", prefixes.misses)
        yield _counter("prefix_evictions", "Encoded texts that made room for others.", prefixes.local.evictions)
        yield _counter("attached_texts", "Encoded texts of other processes that were attached.", prefixes.attached)
        yield _counter("published_segments", "Encoded segments given to other processes.", prefixes.published)
        yield _counter("unpublished_segments", "Encoded segments that could not be given.", prefixes.unpublished)
        yield _counter("lost_segments", "Encoded segments that could not be attached any more.", prefixes.lost)
        yield _histogram(
            "inter_token_seconds", "Between the tokens of an answer, as the engine makes them.", counters.gaps
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"hsokv_serve_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"hsokv_serve_{name}", text, value=value)


def _histogram(name: str, text: str, gaps: Gaps) -> Metric:
    bounds = [*map(str, GAP_BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(gaps.counts), strict=True))
    return HistogramMetricFamily(f"hsokv_serve_{name}", text, buckets=buckets, sum_value=gaps.total_s)
