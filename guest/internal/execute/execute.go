// Package execute runs a command and passes its output on while it comes.
package execute

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"torpor/guest/internal/process"
)

// Event is one thing that happened to a command: output, its end, or why it could not be started.
type Event struct {
	Stream   string `json:"stream,omitempty"`
	Data     []byte `json:"data,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Launch starts the command with three open files as its standard streams.
type Launch func(stdin, stdout, stderr *os.File) (*process.Child, error)

const (
	readSize = 32 << 10
	// outputGrace is how long output may still come after the command ended, from what it left running.
	outputGrace = 500 * time.Millisecond
)

// InGuest starts a command in the agent's own root.
func InGuest(registry *process.Registry, args, env []string, cwd string) Launch {
	return func(stdin, stdout, stderr *os.File) (*process.Child, error) {
		command := exec.Command(args[0], args[1:]...)
		command.Env = append(os.Environ(), env...)
		command.Dir = cwd
		command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
		return registry.Start(command)
	}
}

// Run starts a command and calls emit, never twice at once, until it has ended. When the context ends or emit fails,
// the command's group is killed. The error is that of the start.
func Run(ctx context.Context, launch Launch, input []byte, emit func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	child, outputs, err := start(launch, input)
	if err != nil {
		return err
	}
	var turn sync.Mutex
	send := func(event Event) {
		turn.Lock()
		defer turn.Unlock()
		if ctx.Err() != nil || emit(event) != nil {
			cancel()
		}
	}
	var copies sync.WaitGroup
	for i, stream := range []string{"stdout", "stderr"} {
		copies.Go(func() { copyOut(outputs[i], func(data []byte) { send(Event{Stream: stream, Data: data}) }) })
	}
	select {
	case <-child.Done():
	case <-ctx.Done():
		child.Signal(syscall.SIGKILL, true)
		<-child.Done()
	}
	for _, output := range outputs {
		output.SetReadDeadline(time.Now().Add(outputGrace))
	}
	copies.Wait()
	code := child.ExitCode()
	send(Event{ExitCode: &code})
	return nil
}

// start makes the pipes of a command and feeds its input. The caller reads the outputs to their end.
func start(launch Launch, input []byte) (*process.Child, []*os.File, error) {
	child, streams, err := Open(launch)
	if err != nil {
		return nil, nil, err
	}
	go func() {
		streams[0].Write(input) // fails when the command does not want it all
		streams[0].Close()
	}()
	go func() {
		<-child.Done() // what it left running may hold the other end open without reading
		streams[0].SetWriteDeadline(time.Now())
	}()
	return child, streams[1:], nil
}

// Open starts a command with pipes and returns the other ends of its input, output and error.
func Open(launch Launch) (*process.Child, []*os.File, error) {
	var ours, theirs []*os.File
	closeAll := func(files []*os.File) {
		for _, file := range files {
			file.Close()
		}
	}
	defer func() { closeAll(theirs) }()
	for range 3 {
		reader, writer, err := os.Pipe()
		if err != nil {
			closeAll(ours)
			return nil, nil, err
		}
		if len(theirs) == 0 {
			reader, writer = writer, reader // standard input is written by the agent
		}
		ours, theirs = append(ours, reader), append(theirs, writer)
	}
	child, err := launch(theirs[0], theirs[1], theirs[2])
	if err != nil {
		closeAll(ours)
		return nil, nil, err
	}
	return child, ours, nil
}

// copyOut passes on what comes out of a pipe and closes it.
func copyOut(from *os.File, emit func([]byte)) {
	defer from.Close()
	buffer := make([]byte, readSize)
	for {
		size, err := from.Read(buffer)
		if size > 0 {
			emit(buffer[:size])
		}
		if err != nil {
			return
		}
	}
}
