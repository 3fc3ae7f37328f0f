// Package clock sets the guest's wall clock after a restore.
//
// Only CLOCK_REALTIME moves. CLOCK_MONOTONIC goes on from where the snapshot stopped it: Linux offers no way to set it,
// unlike the jump spec 6.3 records.
package clock

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

const realtime = 0 // CLOCK_REALTIME

// Set moves the wall clock.
func Set(to time.Time) error {
	moment := syscall.NsecToTimespec(to.UnixNano())
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_SETTIME, realtime, uintptr(unsafe.Pointer(&moment)), 0)
	if errno != 0 {
		return fmt.Errorf("set guest clock to %s: %w", to.UTC().Format(time.RFC3339Nano), errno)
	}
	return nil
}
