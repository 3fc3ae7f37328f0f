// Package container runs the application as an OCI container inside the guest, with crun.
//
// The container has the guest's network, and namespaces of its own for everything else. crun only sets it up: the
// application is then a child of PID 1, which learns its exit code, and no process of crun's stays.
package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"torpor/guest/internal/files"
	"torpor/guest/internal/process"
	"torpor/guest/internal/stream"
)

// Start is how the application is to run.
type Start struct {
	Args            []string `json:"args"`
	Env             []string `json:"env"`
	Cwd             string   `json:"cwd"`
	User            string   `json:"user"`
	AllCapabilities bool     `json:"all_capabilities"`
	Hostname        string   `json:"hostname"`
}

// State says what became of the application: none, running or exited.
type State struct {
	State    string `json:"state"`
	ExitCode int    `json:"exit_code"`
}

// ErrRunning says that the application runs already; ErrNotRunning that it does not.
var (
	ErrRunning    = errors.New("the application is running")
	ErrNotRunning = errors.New("the application is not running")
)

const (
	crun   = "/usr/bin/crun"
	name   = "app"
	bundle = "/run/torpor/app"
	// outputGrace is how long output may still come after the application ended, from what it left behind.
	outputGrace = time.Second
)

// Application is the one container of the guest. Its root is a mounted disk.
type Application struct {
	root     string
	registry *process.Registry
	log      *stream.Log
	resolver string

	mu     sync.Mutex // held while it starts, too: a second start waits and is then refused
	start  Start
	child  *process.Child // nil until it was started once
	ended  chan struct{}  // closed when the exit code is in the log
	exited bool
}

// New describes an application that is not running yet.
func New(root string, registry *process.Registry, log *stream.Log, resolver string) *Application {
	return &Application{root: root, registry: registry, log: log, resolver: resolver}
}

// State looks at the application now.
func (a *Application) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.child == nil:
		return State{State: "none"}
	case a.exited:
		return State{State: "exited", ExitCode: a.child.ExitCode()}
	}
	return State{State: "running"}
}

// Start starts the application and returns when its process runs.
func (a *Application) Start(order Start) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.child != nil && !a.exited {
		return ErrRunning
	}
	if len(order.Args) == 0 {
		return errors.New("start application: it has neither ENTRYPOINT nor CMD")
	}
	if err := a.prepare(order); err != nil {
		return err
	}
	child, outputs, err := a.create()
	if err != nil {
		return fmt.Errorf("start application: %w", err)
	}
	a.start, a.child, a.exited, a.ended = order, child, false, make(chan struct{})
	go a.watch(child, outputs, a.ended)
	if err := a.crun("start", name); err != nil {
		child.Signal(syscall.SIGKILL, false)
		return fmt.Errorf("start application: %w", err)
	}
	return nil
}

// prepare writes the bundle and the files that a container's /etc gets from its host.
func (a *Application) prepare(order Start) error {
	root, err := files.OpenRoot(a.root)
	if err != nil {
		return fmt.Errorf("start application: %w", err)
	}
	defer root.Close()
	user, err := resolve(root, order.User)
	if err != nil {
		return fmt.Errorf("start application: %w", err)
	}
	// No ::1 for localhost: a server that binds the name must end up where the endpoint's traffic arrives.
	hosts := "127.0.0.1\tlocalhost\n::1\tip6-localhost ip6-loopback\n"
	if order.Hostname != "" {
		hosts += "127.0.0.1\t" + order.Hostname + "\n"
	}
	for path, content := range map[string]string{
		"/etc/resolv.conf": a.resolver, "/etc/hosts": hosts, "/etc/hostname": order.Hostname + "\n",
	} {
		if _, err := root.Write(path, 0o644, strings.NewReader(content)); err != nil {
			return fmt.Errorf("start application: %w", err)
		}
	}
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return fmt.Errorf("start application: %w", err)
	}
	return writeJSON(filepath.Join(bundle, "config.json"), configure(order, user, a.root))
}

// create sets the container up; its process waits for `crun start` before it becomes the application.
func (a *Application) create() (*process.Child, []*os.File, error) {
	a.crun("delete", "--force", name) // what an earlier run left; nothing is fine
	outputs, inputs, err := pipes()
	if err != nil {
		return nil, nil, err
	}
	defer closeAll(inputs)
	forget := a.registry.Expect()
	defer forget()
	pidFile := filepath.Join(bundle, "pid")
	command := command("create", "--bundle", bundle, "--pid-file", pidFile, name)
	command.Stdout, command.Stderr = inputs[0], inputs[1]
	child, err := a.adopt(command, pidFile)
	if err != nil {
		closeAll(outputs)
		return nil, nil, err
	}
	return child, outputs, nil
}

// watch copies the application's output until it ends, and puts its exit code behind it.
func (a *Application) watch(child *process.Child, outputs []*os.File, ended chan struct{}) {
	var copies sync.WaitGroup
	for i, stream := range []string{"stdout", "stderr"} {
		copies.Go(func() { a.log.Copy(stream, outputs[i]) })
	}
	<-child.Done()
	for _, output := range outputs {
		output.SetReadDeadline(time.Now().Add(outputGrace))
	}
	copies.Wait()
	closeAll(outputs)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.exited = true
	a.log.Exit(child.ExitCode())
	close(ended)
}

// Stop asks the application to end, makes it when it has not after the timeout, and returns its exit code.
func (a *Application) Stop(timeout time.Duration) (int, error) {
	a.mu.Lock()
	child, ended := a.child, a.ended
	a.mu.Unlock()
	if child == nil {
		return 0, ErrNotRunning
	}
	if err := child.Signal(syscall.SIGTERM, false); err != nil {
		return 0, err
	}
	select {
	case <-ended:
	case <-time.After(timeout):
		if err := child.Signal(syscall.SIGKILL, false); err != nil {
			return 0, err
		}
		<-ended
	}
	return child.ExitCode(), nil
}

// Root opens the application's root: as it sees it while it runs, its disk when it does not.
func (a *Application) Root() (*files.Root, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.child != nil && !a.exited {
		if root, err := files.OpenRoot(fmt.Sprintf("/proc/%d/root", a.child.Pid)); err == nil {
			return root, nil
		}
	}
	return files.OpenRoot(a.root)
}

func pipes() (outputs, inputs []*os.File, err error) {
	for range 2 {
		reader, writer, err := os.Pipe()
		if err != nil {
			closeAll(append(outputs, inputs...))
			return nil, nil, err
		}
		outputs, inputs = append(outputs, reader), append(inputs, writer)
	}
	return outputs, inputs, nil
}

func closeAll(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}

func writeJSON(path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
