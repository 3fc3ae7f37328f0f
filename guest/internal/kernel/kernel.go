// Package kernel calls the system calls that Go's standard library does not know.
package kernel

import (
	"syscall"
	"unsafe"
)

// Flags of openat2's resolve member (linux/openat2.h).
const (
	ResolveNoMagicLinks = 0x02
	ResolveInRoot       = 0x10
)

const (
	// OpenPath is O_PATH: a descriptor that names a file without opening it.
	OpenPath = 0x200000
	// openat2 is 437 on every architecture: system calls since 424 share one numbering.
	sysOpenat2    = 437
	sysPidfdOpen  = 434
	sysPidfdGetfd = 438
)

// How is the kernel's struct open_how.
type How struct {
	Flags   uint64
	Mode    uint64
	Resolve uint64
}

// Openat2 opens path under the directory dirfd as how says.
func Openat2(dirfd int, path string, how How) (int, error) {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	for {
		fd, _, errno := syscall.Syscall6(sysOpenat2, uintptr(dirfd), uintptr(unsafe.Pointer(name)),
			uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case syscall.EINTR, syscall.EAGAIN: // EAGAIN: a rename elsewhere raced with the walk
			continue
		}
		return -1, errno
	}
}

// FinitModule loads the kernel module in an open file.
func FinitModule(fd uintptr) error {
	parameters := [1]byte{}
	_, _, errno := syscall.Syscall(sysFinitModule, fd, uintptr(unsafe.Pointer(&parameters[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Ioctl passes one argument to a device.
func Ioctl(fd, request, argument uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, argument); errno != 0 {
		return errno
	}
	return nil
}

// Setns moves the calling thread into a namespace; lock the goroutine to its thread first.
func Setns(fd uintptr, kind uintptr) error {
	if _, _, errno := syscall.RawSyscall(sysSetns, fd, kind, 0); errno != 0 {
		return errno
	}
	return nil
}

// Syncfs writes the file system that fd lies on.
func Syncfs(fd uintptr) error {
	if _, _, errno := syscall.Syscall(sysSyncfs, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// tcpEstablished is TCP_ESTABLISHED of linux/tcp_states.h.
const tcpEstablished = 1

// HasHungUp says whether the other end of a TCP connection has closed it, read or unread.
func HasHungUp(conn syscall.RawConn) bool {
	var state [1]byte // the first member of struct tcp_info
	size := uint32(len(state))
	var errno syscall.Errno
	err := conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, syscall.TCP_INFO,
			uintptr(unsafe.Pointer(&state)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return err != nil || errno != 0 || state[0] != tcpEstablished
}

// Readlink gives what the symbolic link that fd names with O_PATH points to.
func Readlink(fd uintptr) (string, error) { return Readlinkat(int(fd), "") }

// Symlink makes a symbolic link in the directory dirfd.
func Symlink(target string, dirfd int, name string) error {
	from, err := syscall.BytePtrFromString(target)
	if err != nil {
		return err
	}
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(from)), uintptr(dirfd),
		uintptr(unsafe.Pointer(at)))
	if errno != 0 {
		return errno
	}
	return nil
}

// PidfdOpen gives a descriptor of a process.
func PidfdOpen(process int) (int, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(process), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// PidfdGetfd copies a descriptor of the process that owner stands for.
func PidfdGetfd(owner, descriptor int) (int, error) {
	fd, _, errno := syscall.Syscall(sysPidfdGetfd, uintptr(owner), uintptr(descriptor), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
