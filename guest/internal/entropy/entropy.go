// Package entropy makes the kernel's random generator of a restored guest different from that of every other clone.
package entropy

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"torpor/guest/internal/kernel"
)

// Requests of linux/random.h; both architectures number them alike.
const (
	addEntropy = 0x40085203 // RNDADDENTROPY
	reseedCrng = 0x5207     // RNDRESEEDCRNG
)

// Reseed mixes the seed into the kernel's pool, credits it, and has every generator take its key from the pool anew.
func Reseed(seed []byte) error {
	device, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("reseed random generator: %w", err)
	}
	defer device.Close()
	credit := pool(seed)
	if err := kernel.Ioctl(device.Fd(), addEntropy, uintptr(unsafe.Pointer(&credit[0]))); err != nil {
		return fmt.Errorf("add %d bytes of entropy: %w", len(seed), err)
	}
	if err := kernel.Ioctl(device.Fd(), reseedCrng, 0); err != nil {
		return fmt.Errorf("reseed random generator: %w", err)
	}
	return nil
}

// pool packs struct rand_pool_info: entropy in bits, size in bytes, the bytes.
func pool(seed []byte) []byte {
	packed := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(packed[0:], uint32(8*len(seed)))
	binary.NativeEndian.PutUint32(packed[4:], uint32(len(seed)))
	return append(packed, seed...)
}
