"""Count what the catalogue serves. No label tells a phone or a file."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Metrics:
    """Counters of one serving process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = self._counter("requests", "Reads that ended, by status code.", ("method", "code"))
        self.sent = self._counter("sent_bytes", "Bytes of files and manifests that were sent.")
        self.resumes = self._counter("resumes", "Reads from inside a file to its end: most are resumed.")
        self.failures = self._counter("failures", "Reads that failed for a reason of the server's own.")

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"fedcaptor_catalogue_{name}", text, labels, registry=self.registry)
