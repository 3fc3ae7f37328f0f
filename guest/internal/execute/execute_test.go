package execute

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"torpor/guest/internal/process"
)

var registry = process.NewRegistry()

func shell(script string) Launch {
	return InGuest(registry, []string{"/bin/sh", "-c", script}, []string{"COLOUR=red"}, "/")
}

// collect runs a command and returns its output by stream and its exit code, -1 without one.
func collect(t *testing.T, ctx context.Context, launch Launch, input string) (map[string]string, int) {
	t.Helper()
	output, code := map[string]string{}, -1
	err := Run(ctx, launch, []byte(input), func(event Event) error {
		output[event.Stream] += string(event.Data)
		if event.ExitCode != nil {
			code = *event.ExitCode
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return output, code
}

func TestOutputAndExitCodeArePassedOn(t *testing.T) {
	output, code := collect(t, t.Context(), shell("cat; echo $COLOUR >&2; pwd; exit 3"), "input\n")
	if output["stdout"] != "input\n/\n" || output["stderr"] != "red\n" || code != 3 {
		t.Fatalf("%v, %d", output, code)
	}
}

func TestMuchInputAndOutputIsPassedOnWhole(t *testing.T) {
	text := strings.Repeat("0123456789", 200_000)
	output, code := collect(t, t.Context(), shell("cat"), text)
	if output["stdout"] != text || code != 0 {
		t.Fatalf("%d bytes, %d", len(output["stdout"]), code)
	}
}

func TestACommandThatDoesNotWantItsInputEnds(t *testing.T) {
	_, code := collect(t, t.Context(), shell("exec true"), strings.Repeat("x", 1<<20))
	if code != 0 {
		t.Fatal(code)
	}
}

func TestTheCommandIsKilledWhenNobodyListens(t *testing.T) {
	started := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	collect(t, ctx, shell("sleep 100; echo late"), "")
	err := Run(t.Context(), shell("echo a; sleep 100"), nil, func(Event) error { return errors.New("gone") })
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Fatalf("took %s", took)
	}
}

func TestACommandThatCannotBeStartedIsAnError(t *testing.T) {
	launch := InGuest(registry, []string{"no-such-command"}, nil, "/")
	err := Run(t.Context(), launch, nil, func(Event) error { return nil })
	if err == nil {
		t.Fatal("started")
	}
}
