package kernel

import (
	"syscall"
	"unsafe"
)

// Flags of the calls that take a directory and a name in it (linux/fcntl.h).
const (
	// NoFollow is AT_SYMLINK_NOFOLLOW.
	NoFollow        = 0x100
	removeDirectory = 0x200
)

// Fstatat describes what name is in the directory dirfd; a link is not followed.
func Fstatat(dirfd int, name string) (syscall.Stat_t, error) {
	var found syscall.Stat_t
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return found, err
	}
	_, _, errno := syscall.Syscall6(sysFstatat, uintptr(dirfd), uintptr(unsafe.Pointer(at)),
		uintptr(unsafe.Pointer(&found)), NoFollow, 0, 0)
	if errno != 0 {
		return found, errno
	}
	return found, nil
}

// Readlinkat gives what the symbolic link name in the directory dirfd points to, or dirfd itself when name is empty.
func Readlinkat(dirfd int, name string) (string, error) {
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	target := make([]byte, syscall.PathMax)
	size, _, errno := syscall.Syscall6(syscall.SYS_READLINKAT, uintptr(dirfd), uintptr(unsafe.Pointer(at)),
		uintptr(unsafe.Pointer(&target[0])), uintptr(len(target)), 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(target[:size]), nil
}

// Linkat gives the file that oldName is under oldDirfd one more name; a link in oldName's last place is not followed.
func Linkat(oldDirfd int, oldName string, dirfd int, name string) error {
	from, err := syscall.BytePtrFromString(oldName)
	if err != nil {
		return err
	}
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_LINKAT, uintptr(oldDirfd), uintptr(unsafe.Pointer(from)),
		uintptr(dirfd), uintptr(unsafe.Pointer(at)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Rmdirat removes the empty directory name from the directory dirfd.
func Rmdirat(dirfd int, name string) error {
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(dirfd), uintptr(unsafe.Pointer(at)), removeDirectory)
	if errno != 0 {
		return errno
	}
	return nil
}

// Times are when a file was last read and last written.
type Times struct {
	Accessed, Modified syscall.Timespec
}

// Futimens sets the times of an open file.
func Futimens(fd int, times Times) error {
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Utimensat sets the times of what name is in the directory dirfd; a link is not followed.
func Utimensat(dirfd int, name string, times Times) error {
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(dirfd), uintptr(unsafe.Pointer(at)),
		uintptr(unsafe.Pointer(&times)), NoFollow, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
