// Package power ends the guest.
package power

import (
	"strings"
	"syscall"
)

// Off writes the disks and switches the machine off; it returns only when the kernel refuses.
//
// A machine started with `reboot=` on its command line has no power switch (Firecracker): there a restart ends the VMM.
func Off(commandLine string) error {
	syscall.Sync()
	if strings.Contains(" "+commandLine, " reboot=") {
		return syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	}
	return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
