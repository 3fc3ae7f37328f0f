package main

import (
	"fmt"
	"io"
	"syscall"

	"torpor/guest/internal/layer"
)

// command is the agent when it is not the first process. It returns the exit code.
func command(args []string, errors io.Writer) int {
	if len(args) == 0 || args[0] != "apply-layers" {
		fmt.Fprintln(errors, "torpor-agent is the first process of a guest and nothing else")
		return 2
	}
	return applyLayers(args[1:], errors)
}

func applyLayers(args []string, errors io.Writer) int {
	if len(args) < 2 {
		fmt.Fprintln(errors, "usage: apply-layers TARGET LAYER...")
		return 2
	}
	syscall.Umask(0)
	if err := layer.Apply(args[0], args[1:]...); err != nil {
		fmt.Fprintln(errors, err)
		return 1
	}
	return 0
}
