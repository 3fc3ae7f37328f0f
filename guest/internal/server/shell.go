package server

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"torpor/guest/internal/container"
	"torpor/guest/internal/terminal"
)

const (
	shellProtocol = "torpor-shell"

	// Kinds of frames the host sends: one byte kind, four bytes length (big-endian), then so many bytes.
	frameInput  = 0
	frameResize = 1 // columns and rows, two bytes each, big-endian

	maxFrame = 1 << 20 // bytes
)

// shell opens a shell on a terminal in the application's container (spec 7) and joins it to the connection.
func (s *Server) shell(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != shellProtocol {
		return refuse(http.StatusBadRequest, "open shell: needs Upgrade: %s", shellProtocol)
	}
	args, err := s.shellProgram()
	if err != nil {
		return err
	}
	child, end, err := s.Application.Shell(container.Exec{Args: args, Env: []string{"TERM=xterm", "PS1=λ $ "}})
	if err != nil {
		return fmt.Errorf("open shell: %w", err)
	}
	defer child.Signal(syscall.SIGHUP, false)
	defer end.Close()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("open shell: %w", err)
	}
	defer conn.Close()
	go func() {
		<-child.Done() // its jobs may hold the terminal for ever
		end.SetReadDeadline(time.Now().Add(lastWords))
	}()
	join(conn, buffered.Reader, end)
	return nil
}

// shellProgram is bash where the application has it; its start-up files would replace the prompt.
func (s *Server) shellProgram() ([]string, error) {
	root, err := s.Application.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, _, err := root.Open("/bin/bash")
	if err != nil {
		return []string{"/bin/sh"}, nil
	}
	return []string{"/bin/bash", "--norc"}, file.Close()
}

// join carries bytes both ways until the shell ends or the host hangs up.
func join(conn net.Conn, input *bufio.Reader, end *os.File) {
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + shellProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return
	}
	go func() {
		defer end.Close() // the read below ends, and the shell is hung up on
		for frame(input, end) == nil {
		}
	}()
	io.Copy(conn, end)
}

// frame carries out one frame from the host.
func frame(input *bufio.Reader, end *os.File) error {
	var head [5]byte
	if _, err := io.ReadFull(input, head[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head[1:])
	switch {
	case head[0] == frameInput && length <= maxFrame:
		_, err := io.CopyN(end, input, int64(length))
		return err
	case head[0] == frameResize && length == 4:
		var size [4]byte
		if _, err := io.ReadFull(input, size[:]); err != nil {
			return err
		}
		return terminal.Resize(end, binary.BigEndian.Uint16(size[0:]), binary.BigEndian.Uint16(size[2:]))
	}
	return errors.New("read frame: unknown kind or wrong length")
}
