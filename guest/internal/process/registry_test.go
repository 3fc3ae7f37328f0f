package process

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var registry = NewRegistry() // it reaps every child of the test binary

func TestOutputIsWhatACommandWrote(t *testing.T) {
	command := exec.Command("/bin/sh", "-c", "cat; echo err >&2; exit 4")
	command.Stdin = strings.NewReader("in\n")
	output, err := registry.Output(command)
	if string(output) != "in\nerr\n" || err == nil || !strings.Contains(err.Error(), "ended with 4") {
		t.Fatalf("%q, %v", output, err)
	}
}

func TestOutputDoesNotWaitForWhatACommandLeftRunning(t *testing.T) {
	started := time.Now()
	if _, err := registry.Output(exec.Command("/bin/sh", "-c", "sleep 30 & echo $!")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Fatalf("took %s", took)
	}
}

func TestASignalKillsTheWholeGroup(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/bin/sh", "-c", "sleep 100 & wait")
	command.Stdout = writer
	child, err := registry.Start(command)
	writer.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Signal(syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	<-child.Done()
	if child.ExitCode() != 128+9 {
		t.Fatalf("exit code %d", child.ExitCode())
	}
	reader.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := reader.Read(make([]byte, 1)); os.IsTimeout(err) {
		t.Fatal("the child's child lives")
	}
	if err := child.Signal(syscall.SIGKILL, true); err != nil {
		t.Fatalf("signal to the dead: %v", err)
	}
}

func TestAnOrphanThatDiedBeforeItWasAdoptedKeepsItsExitCode(t *testing.T) {
	const subreaper = 36 // PR_SET_CHILD_SUBREAPER: like PID 1, this process gets the orphans
	if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, subreaper, 1, 0); errno != 0 {
		t.Skip(errno)
	}
	// What the shell becomes does not reap: its child comes here, dead already or alive.
	for _, script := range []string{"(exit 5) & echo $!; exec sleep 0.2", "(sleep 0.3; exit 5) >&- & echo $!; exec true"} {
		forget := registry.Expect()
		output, err := registry.Output(exec.Command("/bin/sh", "-c", script))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(output)))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the dead one is reaped now, as it may be before it is adopted
		child, err := registry.Adopt(pid)
		forget()
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		<-child.Done()
		if child.ExitCode() != 5 {
			t.Fatalf("%s: exit code %d", script, child.ExitCode())
		}
	}
}

func TestNobodyIsNotAdopted(t *testing.T) {
	if _, err := registry.Adopt(1 << 22); err == nil {
		t.Fatal("adopted")
	}
}
