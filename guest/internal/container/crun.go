package container

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"torpor/guest/internal/process"
	"torpor/guest/internal/terminal"
)

// Exec is one more process in the application's container; as the user "" it runs as root.
type Exec struct {
	Args []string
	Env  []string
	Cwd  string
	User string
}

var runs atomic.Int64 // numbers the files of crun's runs

// command is a run of crun whose complaints go to a file of their own: its standard error is the application's.
func command(args ...string) *exec.Cmd {
	log := filepath.Join("/run/torpor", fmt.Sprintf("crun-%d.log", runs.Add(1)))
	options := []string{"--root", "/run/crun", "--cgroup-manager", "cgroupfs", "--log", log, "--log-format", "text"}
	return exec.Command(crun, append(options, args...)...)
}

func logOf(command *exec.Cmd) string { return command.Args[slices.Index(command.Args, "--log")+1] }

func (a *Application) crun(args ...string) error { return a.run(command(args...)) }

// run waits for a crun command. Its error says what crun complained about.
func (a *Application) run(command *exec.Cmd) error {
	log := logOf(command)
	defer os.Remove(log)
	child, err := a.registry.Start(command)
	if err != nil {
		return err
	}
	<-child.Done()
	if child.ExitCode() == 0 {
		return nil
	}
	complaint, _ := os.ReadFile(log)
	if text := strings.TrimSpace(string(complaint)); text != "" {
		return errors.New(text[:min(len(text), 4096)])
	}
	return fmt.Errorf("crun ended with %d", child.ExitCode())
}

// adopt runs a crun command that leaves a process behind, and makes that process a known child.
func (a *Application) adopt(command *exec.Cmd, pidFile string) (*process.Child, error) {
	if err := a.run(command); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, err
	}
	return a.registry.Adopt(pid)
}

// Launch gives what starts a process in the container, with three open files as its standard streams. It has the
// application's environment and capabilities.
func (a *Application) Launch(order Exec) func(stdin, stdout, stderr *os.File) (*process.Child, error) {
	return func(stdin, stdout, stderr *os.File) (*process.Child, error) {
		return a.exec(order, false, func(command *exec.Cmd) {
			command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
		})
	}
}

// Shell starts a process in the container that has a terminal of its own, and returns the terminal's other end.
func (a *Application) Shell(order Exec) (*process.Child, *os.File, error) {
	path := filepath.Join("/run/torpor", fmt.Sprintf("terminal-%d", runs.Add(1)))
	socket, err := terminal.Listen(path)
	if err != nil {
		return nil, nil, err
	}
	defer socket.Close()
	child, err := a.exec(order, true, func(command *exec.Cmd) {
		command.Args = slices.Insert(command.Args, len(command.Args)-1, "--console-socket", path)
	})
	if err != nil {
		return nil, nil, err
	}
	end, err := socket.Receive()
	if err != nil {
		child.Signal(syscall.SIGKILL, false)
		return nil, nil, err
	}
	return child, end, nil
}

func (a *Application) exec(order Exec, hasTerminal bool, complete func(*exec.Cmd)) (*process.Child, error) {
	a.mu.Lock()
	start, isRunning := a.start, a.child != nil && !a.exited
	a.mu.Unlock()
	if !isRunning {
		return nil, ErrNotRunning
	}
	base := filepath.Join("/run/torpor", fmt.Sprintf("exec-%d", runs.Add(1)))
	defer os.Remove(base + ".json")
	defer os.Remove(base + ".pid")
	task, err := a.describe(order, start)
	if err != nil {
		return nil, err
	}
	task.Terminal = hasTerminal
	if err := writeJSON(base+".json", task); err != nil {
		return nil, err
	}
	forget := a.registry.Expect()
	defer forget()
	command := command("exec", "--detach", "--process", base+".json", "--pid-file", base+".pid", name)
	complete(command)
	return a.adopt(command, base+".pid")
}

// describe is what the container is to run besides the application.
func (a *Application) describe(order Exec, start Start) (ociProcess, error) {
	root, err := a.Root()
	if err != nil {
		return ociProcess{}, err
	}
	defer root.Close()
	user, err := resolve(root, order.User)
	if err != nil {
		return ociProcess{}, err
	}
	env := environment(merge(start.Env, order.Env), user.home)
	return task(order.Args, env, order.Cwd, user, start.AllCapabilities), nil
}

// merge lets later variables replace earlier ones of the same name.
func merge(earlier, later []string) []string {
	merged := slices.Clone(earlier)
	for _, variable := range later {
		name, _, _ := strings.Cut(variable, "=")
		merged = slices.DeleteFunc(merged, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		merged = append(merged, variable)
	}
	return merged
}
