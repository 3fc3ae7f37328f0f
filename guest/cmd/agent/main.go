// Command agent is PID 1 of every guest: it sets the guest up and answers the host (PROTOCOL.md). As any
// other process it is a command of builds.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"torpor/guest/internal/boot"
	"torpor/guest/internal/container"
	"torpor/guest/internal/modules"
	"torpor/guest/internal/network"
	"torpor/guest/internal/power"
	"torpor/guest/internal/process"
	"torpor/guest/internal/server"
	"torpor/guest/internal/stream"
)

const (
	version = "0.2.0"

	moduleList      = "/lib/modules/load-order"
	disk            = "/dev/vda"
	applicationRoot = "/application"
	searchPath      = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

func main() {
	if os.Getpid() != 1 {
		os.Exit(command(os.Args[1:], os.Stderr))
	}
	commandLine, err := run()
	report(fmt.Sprintf("the guest cannot go on: %v", err))
	report(fmt.Sprintf("power off: %v", power.Off(commandLine)))
	select {} // the end of PID 1 would be a kernel panic that hides these lines
}

// run serves the host; it returns only when the guest is of no use.
func run() (commandLine string, err error) {
	if err := errors.Join(boot.PivotableRoot(), boot.Mount()); err != nil {
		return "", err
	}
	openConsole()
	commandLine, err = boot.CommandLine()
	if err != nil {
		return "", err
	}
	mode, err := boot.ModeOf(commandLine)
	if err != nil {
		return commandLine, err
	}
	if mode == boot.Probe {
		fmt.Println("TORPOR-PROBE-OK")
		return commandLine, power.Off(commandLine)
	}
	os.Setenv("PATH", searchPath)
	os.Setenv("HOME", "/root")
	syscall.Sethostname([]byte("torpor"))
	if err := process.Protect(); err != nil {
		report(err.Error())
	}
	registry := process.NewRegistry()
	if err := connect(registry); err != nil {
		return commandLine, err
	}
	if err := mountDisk(mode); err != nil {
		return commandLine, err
	}
	return commandLine, serve(mode, registry, commandLine)
}

// connect loads the drivers and brings the network up.
func connect(registry *process.Registry) error {
	if err := modules.Load(moduleList, report); err != nil {
		return err
	}
	if err := network.Up(); err != nil {
		return err
	}
	if err := network.Tune(); err != nil {
		return err
	}
	return network.Filter(registry)
}

func mountDisk(mode boot.Mode) error {
	if mode == boot.Application {
		return boot.Disk(disk, applicationRoot, "ext4", false)
	}
	if err := boot.EnterBuilder(disk); err != nil {
		return err
	}
	return os.MkdirAll("/root", 0o700)
}

func serve(mode boot.Mode, registry *process.Registry, commandLine string) error {
	if err := os.WriteFile("/etc/resolv.conf", []byte(network.Resolver), 0o644); err != nil {
		return fmt.Errorf("set resolver: %w", err)
	}
	log := stream.NewLog(time.Now)
	agent := &server.Server{
		Version:     version,
		Mode:        mode,
		Registry:    registry,
		Log:         log,
		Application: container.New(applicationRoot, registry, log, network.Resolver),
		PowerOff: func() {
			report(fmt.Sprintf("power off: %v", power.Off(commandLine)))
		},
	}
	door := netip.AddrPortFrom(network.AgentAddress, network.Port)
	listener, err := server.Listen(context.Background(), door, network.Gateway)
	if err != nil {
		return err
	}
	report("ready: " + string(mode))
	return agent.Serve(listener)
}

// openConsole makes the console the standard streams: the kernel had none to give before /dev was mounted.
func openConsole() {
	console, err := syscall.Open("/dev/console", syscall.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return
	}
	for fd := range 3 {
		syscall.Dup3(console, fd, 0)
	}
	if console > 2 {
		syscall.Close(console)
	}
}

func report(line string) { fmt.Println("torpor-agent: " + line) }
