package layer

import (
	"os"
	"syscall"

	"torpor/guest/internal/kernel"
)

// remove applies a whiteout.
func (p place) remove(name string) error {
	if p.isNew {
		return nil
	}
	return removeTree(p.to, name)
}

// removeTree removes an entry of a directory with all that is in it. Nothing there is fine.
func removeTree(above *os.File, name string) error {
	switch err := syscall.Unlinkat(int(above.Fd()), name); err {
	case nil, syscall.ENOENT:
		return nil
	case syscall.EISDIR:
	default:
		return err
	}
	if err := kernel.Rmdirat(int(above.Fd()), name); err != syscall.ENOTEMPTY {
		return err
	}
	directory, err := openDirectory(above, name)
	if err != nil {
		return err
	}
	defer directory.Close()
	if err := empty(directory); err != nil {
		return err
	}
	return kernel.Rmdirat(int(above.Fd()), name)
}

// empty removes all that is in a directory.
func empty(directory *os.File) error {
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return cause(err)
	}
	for _, name := range names {
		if err := removeTree(directory, name); err != nil {
			return err
		}
	}
	return nil
}
