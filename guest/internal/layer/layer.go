// Package layer applies the layers of an overlay to a directory tree: it becomes what the mount would show.
//
// Nobody changes the trees meanwhile, but whoever made them may have meant harm: every call names an entry of an open
// directory, and no link is followed.
package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"torpor/guest/internal/kernel"
)

// Apply applies layers, each the upper directory of an overlay, to the tree target, the lowest first. Sockets are left
// out. The file mode creation mask had better be 0: each bit in it costs a call a file.
func Apply(target string, layers ...string) error {
	to, err := os.OpenFile(target, syscall.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("apply layers: open target %q: %w", target, cause(err))
	}
	defer to.Close()
	for _, one := range layers {
		if err := applyOne(to, one); err != nil {
			return fmt.Errorf("apply layer %q: %w", one, err)
		}
	}
	return nil
}

func applyOne(to *os.File, layer string) error {
	from, err := os.OpenFile(layer, syscall.O_DIRECTORY, 0)
	if err != nil {
		return cause(err)
	}
	defer from.Close()
	a := applier{root: to, placed: map[inode]string{}}
	return a.merge(place{from: from, to: to, path: "."})
}

// cause takes the path out of an error of package os: it is not quoted, and a name may hold a newline.
func cause(err error) error {
	var full *fs.PathError
	if errors.As(err, &full) {
		return full.Err
	}
	return err
}

// applier applies one layer.
type applier struct {
	root    *os.File         // the whole target
	placed  map[inode]string // the first names of files that have several
	scratch [kernel.MaxAttribute]byte
}

type inode struct {
	device, number uint64
}

// place is a directory of the layer beside the target's.
type place struct {
	from, to *os.File
	path     string // of both, relative to the roots
	isNew    bool   // the target's has no content but the layer's
}

func (p place) failed(act, name string, err error) error {
	return fmt.Errorf("%s %q: %w", act, path.Join(p.path, name), err)
}

// merge applies a directory whose counterpart is there.
func (a *applier) merge(at place) error {
	var wanted syscall.Stat_t
	if err := syscall.Fstat(int(at.from.Fd()), &wanted); err != nil {
		return at.failed("read", "", err)
	}
	given, err := a.read(kernel.OpenNode(int(at.from.Fd())))
	if err != nil {
		return at.failed("read", "", err)
	}
	if at.isNew, err = a.prepare(at, given); err != nil {
		return at.failed("prepare", "", err)
	}
	entries, err := at.from.ReadDir(-1)
	if err != nil {
		return at.failed("read", "", cause(err))
	}
	for _, entry := range entries {
		if err := a.entry(at, entry); err != nil {
			return err
		}
	}
	// Last: entries change the times, and a default ACL would be inherited by them.
	if err := a.dress(int(at.to.Fd()), &wanted, given.kept); err != nil {
		return at.failed("write", "", err)
	}
	return nil
}

// prepare takes away what the target's directory has and may not keep, and says whether it is as good as new.
func (a *applier) prepare(at place, given attributes) (isNew bool, err error) {
	if at.isNew {
		return true, nil
	}
	if err := a.strip(kernel.OpenNode(int(at.to.Fd())), given.kept); err != nil {
		return false, err
	}
	// The kernel looks for no mark of opaqueness on the root of a layer.
	if !given.isOpaque || at.path == "." {
		return false, nil
	}
	return true, empty(at.to)
}

func (a *applier) entry(at place, entry fs.DirEntry) error {
	name, act := entry.Name(), ""
	var err error
	switch kind := entry.Type(); {
	case kind.IsDir():
		return a.directory(at, name)
	case kind.IsRegular():
		act, err = "write", a.file(at, name)
	case kind&fs.ModeSocket != 0:
		act, err = "remove", at.remove(name) // it hides what lies below even though it is left out
	default:
		act, err = "make", a.special(at, name)
	}
	if err != nil {
		return at.failed(act, name, err)
	}
	return nil
}

func (a *applier) directory(at place, name string) error {
	from, err := openDirectory(at.from, name)
	if err != nil {
		return at.failed("read", name, err)
	}
	defer from.Close()
	to, isNew, err := at.counterpart(name)
	if err != nil {
		return at.failed("make", name, err)
	}
	defer to.Close()
	return a.merge(place{from, to, path.Join(at.path, name), isNew})
}

// counterpart opens the target's directory of that name, made now unless there is one.
func (p place) counterpart(name string) (to *os.File, isNew bool, err error) {
	if !p.isNew {
		to, err = openDirectory(p.to, name)
		if err != syscall.ENOENT && err != syscall.ENOTDIR && err != syscall.ELOOP {
			return to, false, err
		}
	}
	err = p.replace(name, func() error { return syscall.Mkdirat(int(p.to.Fd()), name, 0o700) })
	if err != nil {
		return nil, false, err
	}
	to, err = openDirectory(p.to, name)
	return to, true, err
}

func openDirectory(above *os.File, name string) (*os.File, error) {
	const flags = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	fd, err := syscall.Openat(int(above.Fd()), name, flags, 0)
	if err != nil {
		return nil, err
	}
	// By its whole name: where a file system does not say what entries are, ReadDir asks for them by path.
	return os.NewFile(uintptr(fd), path.Join(above.Name(), name)), nil
}
