"""What /proc/cpuinfo tells."""

from __future__ import annotations

from torpor.vmm.cpu import can_run_stock_kernels, host_model, model_for, model_of

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme svm
"""
ARM = """processor\t: 0
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""


def test_a_model_is_vendor_family_model_and_stepping() -> None:
    assert model_of(f"{AMD}\nprocessor\t: 1\n") == "AuthenticAMD family 25 model 1 stepping 1"
    assert model_of(ARM) == "implementer 0x41 architecture 8 variant 0x3 part 0xd0c revision 1"
    assert model_of("") == "unknown"


def test_an_emulated_guest_fits_every_processor() -> None:
    assert model_for("tcg") == ""
    assert model_for("kvm") == host_model() != ""


def test_a_processor_without_virtualization_of_its_own_runs_no_stock_kernel() -> None:
    assert can_run_stock_kernels(AMD)
    assert not can_run_stock_kernels(AMD.replace(" svm", ""))
    assert can_run_stock_kernels(ARM)
