"""What the microVM half of `control` may be told; `Control` fills it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class MicrovmSettings:
    domain: str = "localhost"
    """Behind `<uuid>.lambda-microvm.<region>.` in an endpoint's name."""
    endpoint_port: int = 443
    suspend_hook_failure: str = "terminate"
    """`terminate` as measured, or `keep` as AWS's pages say (spec 14, C5)."""
    exit_grace: timedelta = timedelta(seconds=15)
    """How long a microVM whose application has ended still says RUNNING (spec 1.6)."""
    gate_hold: timedelta = timedelta(seconds=60)
    """How long the endpoint holds a request for a microVM that is being launched or woken."""
    suspend_wait: timedelta = timedelta(seconds=2)
    """How long SuspendMicrovm waits for SUSPENDED before it answers (spec 6.1: usually already SUSPENDED)."""
    drain: timedelta = timedelta(seconds=1)
    """How long a suspend waits for requests under way; new ones are held meanwhile, longer streams are cut."""
    resume_wait: timedelta = timedelta(seconds=1)
    """How long ResumeMicrovm waits for RUNNING before it answers."""
    retry_suspend_after: timedelta = timedelta(seconds=60)
    """After an idle suspend that failed."""
    keep_terminated: timedelta = timedelta(hours=24)
    """How long a TERMINATED microVM can still be read; AWS keeps them at least an hour (spec 1.7)."""
    remember_client_token: timedelta = timedelta(hours=24)
    """How long a RunMicrovm is repeated by its clientToken; AWS's own number is unknown (spec 15)."""
    look_every: timedelta = timedelta(seconds=5)
    """For VMMs that are gone although nobody said so; costs no look at the machine's files."""
    reconcile_every: timedelta = timedelta(seconds=60)
    """For everything else that records and machine may disagree about."""
    stop_within: timedelta = timedelta(seconds=90)
    """How long suspending everything may take when the service stops."""
