// Package process starts commands and reaps every child of the guest's PID 1.
//
// PID 1 inherits orphans, so one loop waits for any child. It would also take the exit status of the agent's own
// commands away from os/exec; therefore commands are started and waited for through the Registry only.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Registry knows the children whose exit status somebody wants.
type Registry struct {
	mu        sync.Mutex
	children  map[int]*Child
	expecting int
	strays    map[int]syscall.WaitStatus // of unknown children, kept only while somebody expects to adopt one
}

// NewRegistry reaps from now on, until the process ends.
func NewRegistry() *Registry {
	registry := &Registry{children: map[int]*Child{}, strays: map[int]syscall.WaitStatus{}}
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, syscall.SIGCHLD)
	go func() {
		for range deaths {
			registry.reap()
		}
	}()
	return registry
}

func (r *Registry) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if child, known := r.children[pid]; known {
			delete(r.children, pid)
			child.finish(status)
		} else if r.expecting > 0 {
			r.strays[pid] = status
		}
	}
}

// Start starts a command whose standard streams are files or nil, in a session of its own.
func (r *Registry) Start(command *exec.Cmd) (*Child, error) {
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	r.mu.Lock() // held over the fork: the child cannot be reaped before it is known
	defer r.mu.Unlock()
	if err := command.Start(); err != nil {
		return nil, err
	}
	pid := command.Process.Pid
	command.Process.Release()
	setVictim(strconv.Itoa(pid), "0") // best effort: without /proc there is no protection to undo
	child := &Child{registry: r, Pid: pid, done: make(chan struct{})}
	r.children[pid] = child
	return child, nil
}

// Protect keeps the kernel from ending this process when memory is short; what it starts is not protected.
func Protect() error {
	if err := setVictim("self", "-1000"); err != nil {
		return fmt.Errorf("protect the agent from lack of memory: %w", err)
	}
	return nil
}

func setVictim(process, score string) error {
	return os.WriteFile("/proc/"+process+"/oom_score_adj", []byte(score), 0o644)
}

// Expect keeps the exit status of unknown children until the returned function is called: between learning the pid of
// an orphan and adopting it, it may already have died.
func (r *Registry) Expect() (forget func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expecting++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.expecting--; r.expecting == 0 {
			clear(r.strays)
		}
	})
}

// Adopt makes an orphan that came to this process a known child. Call it inside Expect.
func (r *Registry) Adopt(pid int) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	child := &Child{registry: r, Pid: pid, done: make(chan struct{})}
	if status, died := r.strays[pid]; died {
		delete(r.strays, pid)
		child.finish(status)
		return child, nil
	}
	if err := syscall.Kill(pid, 0); err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", pid, err)
	}
	r.children[pid] = child
	return child, nil
}

// outputGrace is how long output may still come after a command has ended, from what it left behind.
const outputGrace = time.Second

// maxOutput bounds what Output keeps of a command's output, in bytes.
const maxOutput = 256 << 10

// Output runs a short command of the guest's own and returns what it wrote. Stdin may be any reader.
func (r *Registry) Output(command *exec.Cmd) ([]byte, error) {
	if command.Stdin != nil {
		stdin, err := feed(command.Stdin)
		if err != nil {
			return nil, err
		}
		defer stdin.Close()
		command.Stdin = stdin
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	command.Stdout, command.Stderr = writer, writer
	child, err := r.Start(command)
	writer.Close()
	if err != nil {
		return nil, err
	}
	output := make(chan []byte, 1)
	go func() {
		var kept bytes.Buffer
		io.Copy(&kept, io.LimitReader(reader, maxOutput))
		io.Copy(io.Discard, reader)
		output <- kept.Bytes()
	}()
	<-child.Done()
	reader.SetReadDeadline(time.Now().Add(outputGrace))
	written := <-output
	if code := child.ExitCode(); code != 0 {
		return written, fmt.Errorf("%s ended with %d", command.Path, code)
	}
	return written, nil
}

// feed returns the reading end of a pipe that carries what from holds.
func feed(from io.Reader) (*os.File, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer writer.Close()
		io.Copy(writer, from)
	}()
	return reader, nil
}

// Child is a process this one waits for.
type Child struct {
	Pid      int
	registry *Registry
	done     chan struct{}
	status   syscall.WaitStatus
}

func (c *Child) finish(status syscall.WaitStatus) {
	c.status = status
	close(c.done)
}

// Done is closed when the process has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// ExitCode is the code of a process that is Done, 128 plus the signal when one killed it.
func (c *Child) ExitCode() int {
	if c.status.Signaled() {
		return 128 + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}

// Signal sends a signal to the process, or to its whole group. A process that is gone is no error: until it is reaped,
// which happens under the same lock, neither number can be another's.
func (c *Child) Signal(signal syscall.Signal, group bool) error {
	c.registry.mu.Lock()
	defer c.registry.mu.Unlock()
	if _, lives := c.registry.children[c.Pid]; !lives {
		return nil
	}
	target := c.Pid
	if group {
		// Asked now: crun starts what it leaves behind in a group that only the kernel knows.
		found, err := syscall.Getpgid(c.Pid)
		if err == nil && found > 1 && found != syscall.Getpgrp() {
			target = -found
		}
	}
	if err := syscall.Kill(target, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", c.Pid, err)
	}
	return nil
}
