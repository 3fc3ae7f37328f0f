// Package terminal is the agent's end of a pseudo-terminal that crun opened in the application's container.
package terminal

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"torpor/guest/internal/kernel"
)

// handOverTimeout is how long crun may take to send a terminal after it was asked to.
const handOverTimeout = 10 * time.Second

// Socket is where crun hands a terminal over.
type Socket struct {
	listener *net.UnixListener
}

// Listen opens a socket at a path.
func Listen(path string) (*Socket, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for a terminal: %w", err)
	}
	return &Socket{listener}, nil
}

// Close removes the socket.
func (s *Socket) Close() { s.listener.Close() }

// Receive takes the terminal that was sent. Call it after the sender is done: it does not wait long.
func (s *Socket) Receive() (*os.File, error) {
	s.listener.SetDeadline(time.Now().Add(handOverTimeout))
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(handOverTimeout))
	name, control := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
	_, size, _, _, err := conn.ReadMsgUnix(name, control)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	fd, err := descriptor(control[:size])
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	syscall.CloseOnExec(fd)
	syscall.SetNonblock(fd, true) // so that a read ends when the file is closed
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// descriptor finds the one file descriptor in a control message.
func descriptor(control []byte) (int, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, errors.New("no descriptor came")
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// Resize tells the programs on a terminal its size.
func Resize(terminal *os.File, columns, rows uint16) error {
	size := [4]uint16{rows, columns} // struct winsize; the last two are pixels, which nobody knows
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	outer := raw.Control(func(fd uintptr) {
		err = kernel.Ioctl(fd, syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size)))
	})
	return errors.Join(outer, err)
}
