"""The whole look at the machine, and the removal of one thing found. Blocking."""

from __future__ import annotations

from typing import Final

from pyroute2 import NetlinkError

from torpor.host import simulated_vm
from torpor.host.adoption import saved_at
from torpor.host.base import Found
from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import Estate
from torpor.host.inventory.files import files, remove_files, simulated_files
from torpor.host.inventory.kernel import kernel_things, remove_kernel_thing, slots_of
from torpor.host.inventory.processes import end_process, processes
from torpor.host.layout import MicrovmFiles
from torpor.host.places import Kind as Owner
from torpor.host.places import read_note
from torpor.host.simulated_vm import SAVED
from torpor.model.errors import NotRemoved, TorporError
from torpor.model.ids import MicrovmId
from torpor.vmm.record import find_process

IN_KERNEL: Final = frozenset({Kind.MOUNT, Kind.LOOP_DEVICE, Kind.CGROUP, Kind.SLOT, Kind.INTERFACE, Kind.NFTABLES})


def take_stock(estate: Estate) -> list[Holding]:
    """Everything that belongs to the estate, in use or not."""
    return [*processes(estate), *kernel_things(estate), *files(estate)]


def take_simulated_stock(estate: Estate) -> list[Holding]:
    """What a service without virtual machines makes: a real one's leftovers in the same place are not its business."""
    own = [each for each in processes(estate) if not any(key.startswith("run:") for key in each.keys)]
    return [*own, *simulated_files(estate)]


def remove(estate: Estate, holding: Holding) -> None:
    """Remove one thing. Repeating it does nothing.

    Raises:
        NotRemoved: naming it and what the machine said.
    """
    try:
        if holding.kind is Kind.PROCESS:
            end_process(holding)
        elif holding.kind in IN_KERNEL:
            remove_kernel_thing(estate, holding)
        else:
            remove_files(estate, holding)
    except (OSError, NetlinkError, TorporError) as error:
        raise NotRemoved(f"{holding.kind} {holding.name} cannot be removed: {error}") from error


def saved(estate: Estate) -> list[Found]:
    """What is saved of each microVM, while no service runs."""
    found = [Found(MicrovmId(path.name), False, False, saved_at(MicrovmFiles(path)))
             for path in (estate.layout.microvms.iterdir() if estate.layout.microvms.is_dir() else ())]  # fmt: skip
    return found + [Found(MicrovmId(path.name.removesuffix(SAVED)), False, False, simulated_vm.saved_at(path))
                    for path in (estate.simulated / "microvms").glob(f"*{SAVED}")]  # fmt: skip


def used_by_living(estate: Estate, records: frozenset[str]) -> set[str]:
    """Keys of what the VMs need that live on while no service runs, and that the next start will take over."""
    used: set[str] = set()
    slots = slots_of(estate)
    for run_dir in estate.layout.run_dir.iterdir() if estate.layout.run_dir.is_dir() else ():
        note = read_note(run_dir)
        if note is None or note.kind is not Owner.MICROVM or not note.is_placed or note.slot not in slots:
            continue
        if f"microvm:{note.owner}" not in records or find_process(run_dir) is None:
            continue
        if not MicrovmFiles(estate.layout.microvms / note.owner).live_disk.exists():
            continue
        used |= {f"run:{run_dir}", f"slot:{note.slot}", f"placed:{note.owner}", f"base:{note.owner}:{note.base}"}
    return used
