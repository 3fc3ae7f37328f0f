"""Sends log lines somewhere else: to CloudWatch Logs or to an OTLP receiver."""

from __future__ import annotations

from torpor.config import ForwardSettings
from torpor.model.forwarding import Destination


def destination_of(settings: ForwardSettings) -> Destination | None:
    """Where lines are to be forwarded to, by checked settings; None is nowhere."""
    if settings.kind == "cloudwatch":
        from torpor.host.forwarding.cloudwatch import CloudWatch

        return CloudWatch(settings.endpoint_url, settings.region)
    if settings.kind == "otlp":
        from torpor.host.forwarding.otlp import Otlp

        assert settings.endpoint_url is not None
        return Otlp(settings.endpoint_url, settings.headers)
    return None
