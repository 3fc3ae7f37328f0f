package kernel

import (
	"strings"
	"syscall"
	"unsafe"
)

// MaxAttribute is the most that the kernel lets an extended attribute, or the list of a file's, be long.
const MaxAttribute = 64 << 10

// Node is a file whose extended attributes are wanted.
type Node struct {
	fd   uintptr
	path *byte // nil: the open file fd
}

// OpenNode is an open file; O_PATH is not enough.
func OpenNode(fd int) Node { return Node{fd: uintptr(fd)} }

// NamedNode is what a path names, which may be a link.
func NamedNode(path string) (Node, error) {
	name, err := syscall.BytePtrFromString(path)
	return Node{path: name}, err
}

// ListAttributes gives the names of the node's attributes. The buffer is scratch.
func (n Node) ListAttributes(buffer *[MaxAttribute]byte) ([]string, error) {
	var size uintptr
	var errno syscall.Errno
	if n.path == nil {
		size, _, errno = syscall.Syscall(syscall.SYS_FLISTXATTR, n.fd, uintptr(unsafe.Pointer(buffer)), MaxAttribute)
	} else {
		size, _, errno = syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(n.path)),
			uintptr(unsafe.Pointer(buffer)), MaxAttribute)
	}
	if errno != 0 {
		return nil, errno
	}
	if size == 0 {
		return nil, nil
	}
	return strings.Split(string(buffer[:size-1]), "\x00"), nil
}

// Attribute gives the value of one. The buffer is scratch.
func (n Node) Attribute(name string, buffer *[MaxAttribute]byte) (string, error) {
	size, err := n.call(syscall.SYS_FGETXATTR, syscall.SYS_LGETXATTR, name, unsafe.Pointer(buffer), MaxAttribute)
	if err != nil {
		return "", err
	}
	return string(buffer[:size]), nil
}

// SetAttribute gives the node an attribute, or one that it has another value.
func (n Node) SetAttribute(name, value string) error {
	text := unsafe.Pointer(unsafe.StringData(value))
	_, err := n.call(syscall.SYS_FSETXATTR, syscall.SYS_LSETXATTR, name, text, len(value))
	return err
}

// RemoveAttribute takes an attribute away.
func (n Node) RemoveAttribute(name string) error {
	_, err := n.call(syscall.SYS_FREMOVEXATTR, syscall.SYS_LREMOVEXATTR, name, nil, 0)
	return err
}

// call makes the system call for an open file, or its sibling for a path. Their last argument, flags, is always 0.
func (n Node) call(open, named uintptr, name string, value unsafe.Pointer, size int) (uintptr, error) {
	at, err := syscall.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	var result uintptr
	var errno syscall.Errno
	if n.path == nil {
		result, _, errno = syscall.Syscall6(open, n.fd, uintptr(unsafe.Pointer(at)), uintptr(value), uintptr(size), 0, 0)
	} else {
		result, _, errno = syscall.Syscall6(named, uintptr(unsafe.Pointer(n.path)), uintptr(unsafe.Pointer(at)),
			uintptr(value), uintptr(size), 0, 0)
	}
	if errno != 0 {
		return 0, errno
	}
	return result, nil
}
