// Package boot makes a bare kernel with an initramfs into a system that programs can run in.
package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// Mode says what the guest is for.
type Mode string

// The modes of the kernel command line's torpor.mode.
const (
	Application Mode = "application"
	Builder     Mode = "builder"
	Probe       Mode = "probe"
)

// CommandLine reads the kernel's command line.
func CommandLine() (string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("read kernel command line: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// ModeOf finds the mode in a kernel command line; the last one counts, as for the kernel's own words.
func ModeOf(commandLine string) (Mode, error) {
	mode := Mode("")
	for word := range strings.FieldsSeq(commandLine) {
		if value, found := strings.CutPrefix(word, "torpor.mode="); found {
			mode = Mode(value)
		}
	}
	switch mode {
	case Application, Builder, Probe:
		return mode, nil
	}
	return "", fmt.Errorf("find torpor.mode on the kernel command line: %q is none", mode)
}

type mount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

const (
	noExec  = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	noSetID = syscall.MS_NOSUID | syscall.MS_NODEV
)

var systemMounts = []mount{
	{"proc", "/proc", "proc", noExec, ""},
	{"sysfs", "/sys", "sysfs", noExec, ""},
	{"devtmpfs", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666"},
	{"shm", "/dev/shm", "tmpfs", noSetID, "mode=1777,size=65536k"},
	{"run", "/run", "tmpfs", noSetID, "mode=0755"},
	{"tmp", "/tmp", "tmpfs", noSetID, "mode=1777"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", noExec, ""},
}

// PivotableRoot puts a second mount of the initramfs over the first.
//
// The kernel's own root file system cannot be pivoted away from, and pivot_root is how crun locks a container in.
func PivotableRoot() error {
	const place = "/.root"
	if err := os.MkdirAll(place, 0o755); err != nil {
		return fmt.Errorf("prepare root: %w", err)
	}
	if err := syscall.Mount("/", place, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	return moveToRoot(place)
}

// Mount mounts what every Linux system has.
func Mount() error {
	for _, one := range systemMounts {
		if err := mountAt(one); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	return os.MkdirAll("/run/torpor", 0o700)
}

func mountAt(one mount) error {
	if err := os.MkdirAll(one.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", one.target, err)
	}
	if err := syscall.Mount(one.source, one.target, one.kind, one.flags, one.options); err != nil {
		return fmt.Errorf("mount %s: %w", one.target, err)
	}
	return nil
}

// deviceTimeout is how long a disk may take to appear: the kernel finds disks while programs run already.
const deviceTimeout = 5 * time.Second

// Disk mounts a disk, waiting for the device and making the target.
func Disk(device, target, kind string, readOnly bool) error {
	for deadline := time.Now().Add(deviceTimeout); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(device); err == nil {
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", device, err)
		}
	}
	flags := uintptr(syscall.MS_NOATIME)
	if readOnly {
		flags |= syscall.MS_RDONLY
	}
	return mountAt(mount{device, target, kind, flags, ""})
}

// EnterBuilder makes the builder system the root: its disk stays as it is, a tmpfs over it takes what is written.
func EnterBuilder(device string) error {
	const place = "/.builder"
	if err := mountAt(mount{"builder", place, "tmpfs", 0, "mode=0755"}); err != nil {
		return err
	}
	if err := Disk(device, place+"/lower", "ext4", true); err != nil {
		return err
	}
	for _, name := range []string{"/upper", "/work"} {
		if err := os.Mkdir(place+name, 0o755); err != nil {
			return fmt.Errorf("prepare builder: %w", err)
		}
	}
	root := place + "/root"
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", place, place, place)
	if err := mountAt(mount{"builder", root, "overlay", 0, options}); err != nil {
		return err
	}
	for _, name := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} { // with what is mounted in them
		if err := mountAt(mount{name, root + name, "", syscall.MS_MOVE, ""}); err != nil {
			return err
		}
	}
	return moveToRoot(root)
}

// moveToRoot makes a mount the root of everything.
func moveToRoot(place string) error {
	if err := os.Chdir(place); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("change root: move mount: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}
