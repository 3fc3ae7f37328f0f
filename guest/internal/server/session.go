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
	"sync"
	"syscall"
	"time"

	"torpor/guest/internal/container"
	"torpor/guest/internal/execute"
	"torpor/guest/internal/kernel"
	"torpor/guest/internal/process"
	"torpor/guest/internal/terminal"
)

const (
	sessionProtocol = "torpor-session"

	// Kinds of frames, after which come four bytes length (big-endian) and so many bytes. From the host:
	frameInput  = 0
	frameResize = 1 // columns and rows, two bytes each, big-endian
	frameEnd    = 2 // of the input
	// From the guest:
	frameStdout = 0
	frameStderr = 1
	frameExit   = 2 // the exit code, one byte; the last frame

	maxFrame = 1 << 20 // bytes
	readSize = 32 << 10

	// lookEvery is how often an agent that waits for a program to take its input looks whether the host is still there.
	lookEvery = time.Second
)

// sessionOrder is what to run in the application's container, a shell when there are no args.
type sessionOrder struct {
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"`
	User     string   `json:"user"`
	Terminal bool     `json:"terminal"`
}

// program is a running command and the agent's ends of its streams.
type program struct {
	child      *process.Child
	input      *os.File
	outputs    []*os.File // standard output, and standard error unless there is a terminal
	isTerminal bool
}

// session runs a command whose streams are frames of the connection, both ways at once.
func (s *Server) session(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != sessionProtocol {
		return refuse(http.StatusBadRequest, "open session: needs Upgrade: %s", sessionProtocol)
	}
	order, err := read[sessionOrder](w, r)
	if err != nil {
		return err
	}
	running, err := s.open(order)
	if errors.Is(err, container.ErrNotRunning) {
		return err
	} else if err != nil {
		return refusal{http.StatusUnprocessableEntity, fmt.Errorf("open session: %w", err)}
	}
	defer running.end()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer conn.Close()
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + sessionProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return nil
	}
	running.join(conn, buffered.Reader)
	return nil
}

func (s *Server) open(order sessionOrder) (*program, error) {
	task := container.Exec{Args: order.Args, Env: order.Env, Cwd: order.Cwd, User: order.User}
	if len(task.Args) == 0 {
		args, err := s.shellProgram()
		if err != nil {
			return nil, err
		}
		task.Args = args
		task.Env = append([]string{"PS1=λ $ "}, task.Env...)
	}
	if !order.Terminal {
		child, streams, err := execute.Open(s.Application.Launch(task))
		if err != nil {
			return nil, err
		}
		return &program{child, streams[0], streams[1:], false}, nil
	}
	task.Env = append([]string{"TERM=xterm"}, task.Env...)
	child, end, err := s.Application.Shell(task)
	if err != nil {
		return nil, err
	}
	return &program{child, end, []*os.File{end}, true}, nil
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

// end hangs up on what still runs. A program on a terminal may outlive that, as after any hang-up; another may not.
func (p *program) end() {
	if p.isTerminal {
		p.child.Signal(syscall.SIGHUP, false)
	} else {
		p.child.Signal(syscall.SIGKILL, true)
	}
	p.input.Close()
	for _, output := range p.outputs {
		output.Close()
	}
}

// join carries frames until the program ends, which is told, or the host hangs up.
func (p *program) join(conn net.Conn, input *bufio.Reader) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for p.take(input) == nil {
		}
	}()
	var turn sync.Mutex
	send := func(kind byte, content []byte) error {
		turn.Lock()
		defer turn.Unlock()
		head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content)))
		_, err := (&net.Buffers{head, content}).WriteTo(conn)
		return err
	}
	copied := make(chan struct{})
	var copies sync.WaitGroup
	for i, output := range p.outputs {
		copies.Go(func() { pump(output, func(data []byte) error { return send(byte(i), data) }) })
	}
	go func() {
		copies.Wait()
		close(copied)
	}()
	if !p.awaitEnd(conn, gone) {
		return
	}
	p.input.SetWriteDeadline(time.Now()) // what it left running may hold the other end open without reading
	for _, output := range p.outputs {
		output.SetReadDeadline(time.Now().Add(lastWords)) // its jobs may hold the terminal for ever
	}
	select {
	case <-copied:
		send(frameExit, []byte{byte(p.child.ExitCode())})
	case <-gone:
	}
}

// awaitEnd returns whether the program has ended; false when the host went first.
func (p *program) awaitEnd(conn net.Conn, gone <-chan struct{}) bool {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-p.child.Done():
			return true
		case <-gone:
			return false
		case <-look.C:
			// Its frames are not read while the program does not take its input.
			if hasHungUp(conn) {
				return false
			}
		}
	}
}

// take carries out one frame from the host. Input that the program does not want is no error.
func (p *program) take(input *bufio.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(input, head[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head[1:])
	switch {
	case head[0] == frameInput && length <= maxFrame:
		content := make([]byte, length)
		if _, err := io.ReadFull(input, content); err != nil {
			return err
		}
		p.input.Write(content)
		return nil
	case head[0] == frameEnd && length == 0:
		if p.isTerminal {
			p.input.Write([]byte{4}) // Ctrl-D
		} else {
			p.input.Close()
		}
		return nil
	case head[0] == frameResize && length == 4 && p.isTerminal:
		var size [4]byte
		if _, err := io.ReadFull(input, size[:]); err != nil {
			return err
		}
		return terminal.Resize(p.input, binary.BigEndian.Uint16(size[0:]), binary.BigEndian.Uint16(size[2:]))
	}
	return errors.New("read frame: unknown kind or wrong length")
}

// pump passes on what a program writes until its end, or until nobody takes it.
func pump(from *os.File, send func([]byte) error) {
	buffer := make([]byte, readSize)
	for {
		size, err := from.Read(buffer)
		if size > 0 && send(buffer[:size]) != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(from, buffer, send)
		}
		if err != nil {
			return
		}
	}
}

// drain passes on what an ended program has written and a slow host has not taken yet.
func drain(from *os.File, buffer []byte, send func([]byte) error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	for passed := 0; passed < maxFrame; {
		size := 0
		raw.Control(func(fd uintptr) { size, _ = syscall.Read(int(fd), buffer) })
		if size <= 0 || send(buffer[:size]) != nil {
			return
		}
		passed += size
	}
}

func hasHungUp(conn net.Conn) bool {
	if known, isKnown := conn.(*knownConn); isKnown {
		conn = known.Conn
	}
	tcp, isTCP := conn.(*net.TCPConn)
	if !isTCP {
		return false
	}
	raw, err := tcp.SyscallConn()
	return err == nil && kernel.HasHungUp(raw)
}
