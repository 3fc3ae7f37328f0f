package container

import (
	"slices"
	"testing"
)

// numbers of linux/capability.h
var capabilityNumbers = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

func mask(names []string) (mask uint64) {
	for _, name := range names {
		mask |= 1 << slices.Index(capabilityNumbers, name[len("CAP_"):])
	}
	return mask
}

func TestTheCapabilitiesAreThoseOfTheSpec(t *testing.T) {
	if got := mask(defaultCapabilities); got != 0xa80425fb {
		t.Errorf("default %x", got)
	}
	if got := mask(allCapabilities); got != 0x1ffffffffff {
		t.Errorf("all %x", got)
	}
}

func TestAllCapabilitiesOpenTheGuestAndTheDefaultDoesNot(t *testing.T) {
	order := Start{Args: []string{"a"}, Hostname: "h"}
	config := configure(order, identity{uid: 5}, "/root-disk")
	isCgroup := func(mount ociMount) bool { return mount.Destination == "/sys/fs/cgroup" }
	if len(config.Linux.MaskedPaths) == 0 || len(config.Linux.ReadonlyPaths) == 0 || len(config.Linux.Devices) != 0 ||
		slices.ContainsFunc(config.Mounts, isCgroup) || config.Process.Cwd != "/" || config.Process.User.UID != 5 {
		t.Errorf("default: %+v", config)
	}
	order.AllCapabilities = true
	config = configure(order, identity{}, "/root-disk")
	if len(config.Linux.MaskedPaths) != 0 || len(config.Linux.ReadonlyPaths) != 0 ||
		config.Linux.Devices[0].Path != "/dev/fuse" || !slices.ContainsFunc(config.Mounts, isCgroup) {
		t.Errorf("all: %+v", config)
	}
	for _, namespace := range config.Linux.Namespaces {
		if namespace.Type == "network" {
			t.Error("the application must have the guest's network")
		}
	}
}
