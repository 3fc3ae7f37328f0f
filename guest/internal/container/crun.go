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

	"torpor/guest/internal/process"
)

// Exec is one more process in the application's container.
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

func (a *Application) crun(args ...string) error {
	_, err := a.run(command(args...))
	return err
}

// run waits for a crun command, whose group it returns. Its error says what crun complained about.
func (a *Application) run(command *exec.Cmd) (group int, err error) {
	log := logOf(command)
	defer os.Remove(log)
	child, err := a.registry.Start(command)
	if err != nil {
		return 0, err
	}
	<-child.Done()
	if child.ExitCode() == 0 {
		return child.Pid, nil
	}
	complaint, _ := os.ReadFile(log)
	if text := strings.TrimSpace(string(complaint)); text != "" {
		return 0, errors.New(text[:min(len(text), 4096)])
	}
	return 0, fmt.Errorf("crun ended with %d", child.ExitCode())
}

// adopt runs a crun command that leaves a process behind, and makes that process a known child. A process that runs
// besides the application's is in the group of the crun that set it up; the application is in its own.
func (a *Application) adopt(command *exec.Cmd, pidFile string) (*process.Child, error) {
	group, err := a.run(command)
	if err != nil {
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
	return a.registry.Adopt(pid, group)
}

// Launch gives what starts that process, with three open files as its standard streams.
func (a *Application) Launch(order Exec) func(stdin, stdout, stderr *os.File) (*process.Child, error) {
	return func(stdin, stdout, stderr *os.File) (*process.Child, error) {
		return a.Exec(order, stdin, stdout, stderr)
	}
}

// Exec starts a process in the container, in a session of its own, with these standard streams. It has the
// application's environment and capabilities; "" is root.
func (a *Application) Exec(order Exec, stdin, stdout, stderr *os.File) (*process.Child, error) {
	a.mu.Lock()
	start, isRunning := a.start, a.child != nil && !a.exited
	a.mu.Unlock()
	if !isRunning {
		return nil, ErrNotRunning
	}
	root, err := a.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	user, err := resolve(root, order.User)
	if err != nil {
		return nil, err
	}
	base := filepath.Join("/run/torpor", fmt.Sprintf("exec-%d", runs.Add(1)))
	defer os.Remove(base + ".json")
	defer os.Remove(base + ".pid")
	env := environment(merge(start.Env, order.Env), user.home)
	if err := writeJSON(base+".json", task(order.Args, env, order.Cwd, user, start.AllCapabilities)); err != nil {
		return nil, err
	}
	forget := a.registry.Expect()
	defer forget()
	command := command("exec", "--detach", "--process", base+".json", "--pid-file", base+".pid", name)
	command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
	return a.adopt(command, base+".pid")
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
