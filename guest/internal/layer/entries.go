package layer

import (
	"fmt"
	"path"
	"syscall"

	"torpor/guest/internal/kernel"
)

// file applies a regular file.
func (a *applier) file(at place, name string) (err error) {
	from, err := syscall.Openat(int(at.from.Fd()), name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer syscall.Close(from)
	var wanted syscall.Stat_t
	if err := syscall.Fstat(from, &wanted); err != nil {
		return err
	}
	if isPlaced, err := a.link(at, name, &wanted); isPlaced || err != nil {
		return err
	}
	given, err := a.read(kernel.OpenNode(from))
	if err != nil {
		return err
	}
	if given.isWhiteout && wanted.Size == 0 {
		return at.remove(name)
	}
	to, err := at.create(name, wanted.Mode)
	if err != nil {
		return err
	}
	defer func() {
		if failed := syscall.Close(to); err == nil {
			err = failed
		}
	}()
	if err := fill(to, from, &wanted); err != nil {
		return err
	}
	a.remember(at, name, &wanted)
	return a.dress(to, &wanted, given.kept)
}

// create makes a new file: the old one may have other names, which keep it.
func (p place) create(name string, mode uint32) (to int, err error) {
	const flags = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_EXCL | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	err = p.replace(name, func() error {
		to, err = syscall.Openat(int(p.to.Fd()), name, flags, mode&0o777)
		return err
	})
	return to, err
}

// special applies what is neither a directory nor a regular file nor a socket.
func (a *applier) special(at place, name string) error {
	wanted, err := kernel.Fstatat(int(at.from.Fd()), name)
	if err != nil {
		return err
	}
	if wanted.Mode&syscall.S_IFMT == syscall.S_IFCHR && wanted.Rdev == 0 {
		return at.remove(name) // a whiteout
	}
	if isPlaced, err := a.link(at, name, &wanted); isPlaced || err != nil {
		return err
	}
	source, err := nodeIn(at.from, name)
	if err != nil {
		return err
	}
	given, err := a.read(source)
	if err != nil {
		return err
	}
	if err := at.makeSpecial(name, &wanted); err != nil {
		return err
	}
	a.remember(at, name, &wanted)
	return a.dressSpecial(at, name, &wanted, given.kept)
}

func (p place) makeSpecial(name string, wanted *syscall.Stat_t) error {
	to := int(p.to.Fd())
	if wanted.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return p.replace(name, func() error { return syscall.Mknodat(to, name, wanted.Mode, int(wanted.Rdev)) })
	}
	target, err := kernel.Readlinkat(int(p.from.Fd()), name)
	if err != nil {
		return err
	}
	return p.replace(name, func() error { return kernel.Symlink(target, to, name) })
}

// link applies a file of the layer that has been applied under another name.
func (a *applier) link(at place, name string, wanted *syscall.Stat_t) (isPlaced bool, err error) {
	if wanted.Nlink < 2 {
		return false, nil
	}
	first, isPlaced := a.placed[inodeOf(wanted)]
	if !isPlaced {
		return false, nil
	}
	// All directories on the way to the first name are the layer's, so that none is a link in the target.
	return true, at.replace(name, func() error {
		return kernel.Linkat(int(a.root.Fd()), first, int(at.to.Fd()), name)
	})
}

func (a *applier) remember(at place, name string, wanted *syscall.Stat_t) {
	if wanted.Nlink > 1 {
		a.placed[inodeOf(wanted)] = path.Join(at.path, name)
	}
}

func inodeOf(stat *syscall.Stat_t) inode { return inode{uint64(stat.Dev), stat.Ino} }

// replace makes something where nothing is, or, when there is, where something was.
func (p place) replace(name string, make func() error) error {
	err := make()
	if err != syscall.EEXIST {
		return err
	}
	if err := removeTree(p.to, name); err != nil {
		return err
	}
	return make()
}
