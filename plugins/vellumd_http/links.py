"""Links that open one result without a key, where the daemon has a public address."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from vellumd import Job


class Links:
    """Makes and checks links. Without a public address there are none."""

    def __init__(self, public_url: str | None, secret: str) -> None:
        self._base = public_url.rstrip("/") if public_url else None
        self._secret = secret.encode()

    def token(self, job_id: str, n: int) -> str:
        """HMAC-SHA256 of job and number, in hex."""
        return hmac.new(self._secret, f"{job_id}/{n}".encode(), hashlib.sha256).hexdigest()

    def opens(self, job_id: str, n: int, token: str) -> bool:
        """Whether `token` opens result `n` of the job."""
        if self._base is None:
            return False
        return hmac.compare_digest(self.token(job_id, n).encode(), token.encode())

    def url(self, job_id: str, n: int) -> str:
        """The address of result `n`, below the public one."""
        return f"{self._base}/r/{job_id}/{n}?t={self.token(job_id, n)}"

    def public(self, job: Job) -> dict[str, Any]:
        """The job's JSON; each result has its `url` where a public address is known."""
        shown = job.public()
        if self._base is not None:
            for result in shown["results"]:
                result["url"] = self.url(job.id, result["n"])
        return shown
