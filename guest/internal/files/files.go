// Package files reads and writes files under a root directory, which no link in it leads out of.
//
// The root may be a container's: its content is the application's and may change while the agent walks it.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"torpor/guest/internal/kernel"
)

// Root is an open directory that paths are resolved in.
type Root struct {
	directory *os.File
}

// OpenRoot opens the directory that path names, following it wherever it leads, even into another mount namespace.
func OpenRoot(path string) (*Root, error) {
	directory, err := os.OpenFile(path, kernel.OpenPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	return &Root{directory}, nil
}

// Close gives the root back.
func (r *Root) Close() { r.directory.Close() }

// ErrNotRegular says that a path names something that is no regular file.
var ErrNotRegular = errors.New("not a regular file")

// Open opens a regular file to be read.
func (r *Root) Open(name string) (*os.File, fs.FileInfo, error) {
	// O_NONBLOCK: a named pipe must not hold the agent until somebody writes it.
	file, err := r.openIn(int(r.directory.Fd()), name, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	found, err := file.Stat()
	if err == nil && !found.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	return file, found, nil
}

// Write replaces a file, making its parents, so that a reader sees the old content or the whole new one.
func (r *Root) Write(name string, mode fs.FileMode, from io.Reader) (int64, error) {
	parent, last, err := r.parentOf(name)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	defer parent.Close()
	temporary := fmt.Sprintf(".%.200s.torpor-%x", last, parent.Fd())
	fd := int(parent.Fd())
	syscall.Unlinkat(fd, temporary)
	file, err := r.openIn(fd, temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	size, err := fill(file, mode, from)
	if err == nil {
		err = syscall.Renameat(fd, temporary, fd, last)
	}
	if err != nil {
		syscall.Unlinkat(fd, temporary)
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	return size, nil
}

func fill(file *os.File, mode fs.FileMode, from io.Reader) (int64, error) {
	size, err := io.Copy(file, from)
	if err == nil {
		err = file.Chmod(mode) // not by open: the umask would take bits away
	}
	return size, errors.Join(err, file.Close())
}

// parentOf opens the directory a path's last name lies in, making it and its parents.
func (r *Root) parentOf(name string) (*os.File, string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" || strings.HasSuffix(name, "/") {
		return nil, "", syscall.EISDIR
	}
	directory, last := path.Split(clean)
	parent, err := r.MakeDirectory(directory)
	return parent, last, err
}

// MakeDirectory opens a directory, making it and its parents where they are missing.
func (r *Root) MakeDirectory(name string) (*os.File, error) {
	const flags = kernel.OpenPath | syscall.O_DIRECTORY
	root := int(r.directory.Fd())
	if directory, err := r.openIn(root, name, flags, 0); !errors.Is(err, syscall.ENOENT) {
		return directory, err
	}
	above, err := r.openIn(root, ".", flags, 0)
	if err != nil {
		return nil, err
	}
	walked := ""
	for step := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		walked += "/" + step
		next, err := r.openIn(root, walked, flags, 0)
		if errors.Is(err, syscall.ENOENT) {
			if err = syscall.Mkdirat(int(above.Fd()), step, 0o755); err == nil || errors.Is(err, syscall.EEXIST) {
				next, err = r.openIn(root, walked, flags, 0)
			}
		}
		above.Close()
		if err != nil {
			return nil, err
		}
		above = next
	}
	return above, nil
}

// openIn resolves name in a directory as if that were the root of everything.
func (r *Root) openIn(directory int, name string, flags int, mode uint32) (*os.File, error) {
	if name == "" {
		name = "."
	}
	fd, err := kernel.Openat2(directory, name, kernel.How{
		Flags: uint64(flags | syscall.O_CLOEXEC), Mode: uint64(mode),
		Resolve: kernel.ResolveInRoot | kernel.ResolveNoMagicLinks,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
