// Package netlink speaks to the kernel over a netlink socket: one request, all its answers.
package netlink

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// SockDiag is the netlink family of socket diagnostics (linux/netlink.h).
const SockDiag = 4

// answerTimeout bounds how long a request waits for the kernel, which answers at once or never.
var answerTimeout = syscall.Timeval{Sec: 5}

// Conn is one netlink socket. It is for one goroutine at a time.
type Conn struct {
	fd       int
	sequence uint32
	buffer   []byte
}

// Dial opens a socket of a netlink family in the calling thread's network namespace.
func Dial(family int) (*Conn, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket of family %d: %w", family, err)
	}
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &answerTimeout); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("bound netlink answers: %w", err)
	}
	return &Conn{fd: fd, buffer: make([]byte, 64<<10)}, nil
}

// Close gives the socket back.
func (c *Conn) Close() { syscall.Close(c.fd) }

// Do sends one request that the kernel acknowledges. The error is the kernel's errno.
func (c *Conn) Do(kind, flags uint16, body []byte) error {
	return c.exchange(kind, flags|syscall.NLM_F_ACK, body, func([]byte) {})
}

// Dump asks for a listing and calls each with the body of every entry. Entries are valid during the call only.
func (c *Conn) Dump(kind uint16, body []byte, each func(entry []byte)) error {
	return c.exchange(kind, syscall.NLM_F_DUMP, body, each)
}

func (c *Conn) exchange(kind, flags uint16, body []byte, each func(entry []byte)) error {
	c.sequence++
	request := make([]byte, syscall.NLMSG_HDRLEN, syscall.NLMSG_HDRLEN+len(body))
	binary.NativeEndian.PutUint32(request[0:], uint32(syscall.NLMSG_HDRLEN+len(body)))
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], flags|syscall.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(request[8:], c.sequence)
	request = append(request, body...)
	if err := syscall.Sendto(c.fd, request, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	for {
		size, _, err := syscall.Recvfrom(c.fd, c.buffer, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(c.buffer[:size])
		if err != nil {
			return err
		}
		for _, message := range messages {
			if message.Header.Seq != c.sequence {
				continue
			}
			switch message.Header.Type {
			case syscall.NLMSG_DONE:
				return nil
			case syscall.NLMSG_ERROR:
				return answered(message.Data)
			}
			each(message.Data)
		}
	}
}

// answered reads the errno of an NLMSG_ERROR; zero is the acknowledgement.
func answered(data []byte) error {
	if len(data) < 4 {
		return syscall.EPROTO
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// Attribute packs one route attribute: length, type, value, padded to four bytes.
func Attribute(kind uint16, value []byte) []byte {
	length := 4 + len(value)
	packed := make([]byte, (length+3)&^3)
	binary.NativeEndian.PutUint16(packed[0:], uint16(length))
	binary.NativeEndian.PutUint16(packed[2:], kind)
	copy(packed[4:], value)
	return packed
}
