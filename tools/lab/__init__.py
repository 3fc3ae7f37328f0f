"""`./dev lab`: an emulated machine whose CPU has virtualization, and in it the tests that need a real KVM.

Few development and CI machines can run a guest on KVM, so the engine that production uses would be tested nowhere.
QEMU's software emulation gives its CPU AMD's SVM with nested paging: inside, Linux has a /dev/kvm that works, and
Firecracker and QEMU run on it as they do on hardware, only slower.
"""
