package connections

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"torpor/guest/internal/kernel"
)

// bringUp sets a device's IFF_UP by ioctl.
func bringUp(socket int, device string) error {
	request := make([]byte, 40) // struct ifreq: name, then flags
	copy(request, device)
	binary.NativeEndian.PutUint16(request[16:], syscall.IFF_UP)
	return kernel.Ioctl(uintptr(socket), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request[0])))
}
