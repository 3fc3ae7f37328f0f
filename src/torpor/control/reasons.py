"""Every stateReason of a microVM that is Torpor's own; AWS's are of hooks and exits (spec 1.9).

Each has a line in docs/operations.md that says what an operator does about it. Texts with braces are filled in.
"""

from __future__ import annotations

from typing import Final

SUCCESS: Final = "Success."
LAUNCH_FAILED: Final = "The MicroVM could not be launched: {}"
SUSPEND_FAILED: Final = "The MicroVM could not be suspended: {}"
RESUME_FAILED: Final = "The MicroVM could not be resumed: {}"
RECOVER_FAILED: Final = "The MicroVM could not be recovered: {}"
RECOVERED: Final = "Recovered from its disk: its files are as it was suspended, its memory and processes are lost."
DURATION: Final = "The MicroVM reached its maximum duration of {:.0f} seconds."
SUSPENDED_TOO_LONG: Final = "The MicroVM was suspended for {:.0f} seconds, as long as its idle policy allows."
UNKEPT: Final = "The MicroVM would have been suspended, and its idle policy does not keep suspended MicroVMs."
EXITED: Final = "Container Stopped with Exit Code: {}"
"""AWS's (spec 1.9)."""
DIED: Final = "The virtual machine ended unexpectedly: {}"
LOST: Final = "The virtual machine was found to be gone."
LOST_IN_SAVE: Final = "The virtual machine was lost while it was saved: {}"
GONE: Final = "The virtual machine was gone when the service started: it ended while the service was down."
GONE_IN_SUSPEND: Final = (
    "The virtual machine, or the machine it ran on, ended while the MicroVM was being suspended."
)
REBOOTED: Final = (
    "The machine was restarted while the MicroVM ran: its virtual machine was lost, and what it had not saved."
)
FELL_BACK: Final = "{}. It resumes as it was at its suspend before that; what it did since then is lost."
SILENT: Final = "The guest does not answer; it may be hung or out of memory. Nothing has been done about it."
"""It is told and not acted on: a guest that has little of the processor is silent too, and comes back."""
STALLED: Final = (
    "The machine has no disk space for what the MicroVM writes: it stands still and goes on once there is. "
    "Nothing is lost."
)
MISSING: Final = "The saved files of the MicroVM are missing."
DAMAGED: Final = "The saved files of the MicroVM are damaged: {}"
COLLECTED: Final = "The saved files of the MicroVM are missing; torpor gc ended it."
STRANDED: Final = "The MicroVM was {} without an action under way."
IMPORTED: Final = "Imported: it resumes as it was when it was suspended on the machine it came from."
IMPORTED_COLD: Final = (
    "Imported without memory that this machine could restore ({}): torpor recover boots its disk."
)
HOOK_STATUS: Final = "{} lifecycle hook returned HTTP status {}."
HOOK_TIMEOUT: Final = "{} lifecycle hook timed out after {}."
HOOK_UNREACHABLE: Final = "{} lifecycle hook could not be reached."
HOOK_UNCALLED: Final = "{} lifecycle hook could not be called: {}"
HOOK_ADVICE: Final = "Please check your hook endpoint and application logs for more details."
"""AWS's (spec 1.9)."""
