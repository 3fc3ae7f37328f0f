package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"torpor/guest/internal/kernel"
)

// ErrUnpackable says that an archive holds something that is not unpacked: a device, or a name that leads outside.
var ErrUnpackable = errors.New("the archive holds what is not unpacked")

// Counted is what an archive held.
type Counted struct {
	Files int64 `json:"files"` // and links
	Bytes int64 `json:"bytes"`
}

// Pack is a file or directory that is about to be packed.
type Pack struct {
	root *Root
	top  *os.File
	info fs.FileInfo
}

// OpenPack finds what is to be packed.
func (r *Root) OpenPack(name string) (*Pack, error) {
	top, err := r.openIn(int(r.directory.Fd()), name, kernel.OpenPath, 0)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	found, err := top.Stat()
	if err == nil && !found.IsDir() && !found.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		top.Close()
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	return &Pack{r, top, found}, nil
}

// Close gives it back.
func (p *Pack) Close() { p.top.Close() }

// Write writes the file, or the directory with all that is in it on the same file system, as a tar archive whose names
// are relative to it; itself it is called ".". Devices, sockets and named pipes are left out.
func (p *Pack) Write(to io.Writer) error {
	packer := packer{p.root, tar.NewWriter(to), device(p.info)}
	if err := packer.add(p.top, p.info, "."); err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	return packer.tar.Close()
}

type packer struct {
	root   *Root
	tar    *tar.Writer
	device uint64
}

func device(info fs.FileInfo) uint64 {
	if known, isKnown := info.Sys().(*syscall.Stat_t); isKnown {
		return uint64(known.Dev)
	}
	return 0
}

// add writes what an O_PATH descriptor names.
func (p *packer) add(at *os.File, info fs.FileInfo, name string) error {
	header := &tar.Header{
		Name: name, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Format: tar.FormatPAX,
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		header.Typeflag = tar.TypeDir
		if err := p.tar.WriteHeader(header); err != nil {
			return err
		}
		return p.addContent(at, name)
	case mode.IsRegular():
		return p.addFile(at, header)
	case mode&fs.ModeSymlink != 0:
		target, err := kernel.Readlink(at.Fd())
		if err != nil {
			return err
		}
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
		return p.tar.WriteHeader(header)
	}
	return nil
}

func (p *packer) addFile(at *os.File, header *tar.Header) error {
	// By way of /proc: the descriptor says which file, whatever has its name now.
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	// What grows meanwhile is cut; what shrinks is an error, since its size is out already.
	_, err = io.CopyN(p.tar, file, header.Size)
	return err
}

func (p *packer) addContent(at *os.File, name string) error {
	directory, err := p.root.openIn(int(at.Fd()), ".", syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer directory.Close()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, below := range names {
		if err := p.addEntry(directory, below, name+"/"+below); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) addEntry(directory *os.File, below, name string) error {
	entry, err := p.root.openIn(int(directory.Fd()), below, kernel.OpenPath|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone since the directory was read
	} else if err != nil {
		return err
	}
	defer entry.Close()
	info, err := entry.Stat()
	if err != nil || device(info) != p.device {
		return err
	}
	return p.add(entry, info, name)
}

// Unpack makes what a tar archive as Pack writes it holds at name, or, where name is a directory or ends in a slash, in it
// under base. Files are replaced one by one, each at once.
func (r *Root) Unpack(name, base string, from io.Reader) (Counted, error) {
	counted := Counted{}
	target, err := r.targetOf(name, base)
	if err != nil {
		return counted, fmt.Errorf("unpack into %s: %w", name, err)
	}
	archive := tar.NewReader(from)
	modes := map[string]fs.FileMode{}
	for entries := 0; ; entries++ {
		header, err := archive.Next()
		if err == io.EOF && entries > 0 {
			break
		}
		if err == nil {
			err = r.unpackOne(target, header, archive, modes, &counted)
		}
		if err != nil {
			return counted, fmt.Errorf("unpack into %s: %w", target, err)
		}
	}
	// At the end: a directory may be closed even to who unpacks it.
	for directory, mode := range modes {
		if err := r.setMode(directory, mode); err != nil {
			return counted, fmt.Errorf("unpack into %s: %w", target, err)
		}
	}
	return counted, nil
}

func (r *Root) targetOf(name, base string) (string, error) {
	directory, err := r.openIn(int(r.directory.Fd()), name, kernel.OpenPath|syscall.O_DIRECTORY, 0)
	if err == nil {
		directory.Close()
	} else if !strings.HasSuffix(name, "/") {
		return path.Clean("/" + name), nil
	}
	if base == "" || base == "." || base == ".." || strings.Contains(base, "/") {
		return "", fmt.Errorf("%q is no name: %w", base, ErrUnpackable)
	}
	return path.Join("/"+name, base), nil
}

func (r *Root) unpackOne(target string, header *tar.Header, content io.Reader, modes map[string]fs.FileMode,
	counted *Counted) error {
	if !filepath.IsLocal(header.Name) {
		return fmt.Errorf("%q: %w", header.Name, ErrUnpackable)
	}
	place := path.Join(target, header.Name)
	mode := fs.FileMode(header.Mode) & fs.ModePerm
	switch header.Typeflag {
	case tar.TypeDir:
		directory, err := r.MakeDirectory(place)
		if err != nil {
			return err
		}
		modes[place] = mode
		return directory.Close()
	case tar.TypeReg:
		size, err := r.Write(place, mode, content)
		counted.Files++
		counted.Bytes += size
		return err
	case tar.TypeSymlink:
		counted.Files++
		return r.link(header.Linkname, place)
	}
	return fmt.Errorf("%q: %w", header.Name, ErrUnpackable)
}

// link puts a symbolic link in place of whatever is there but a directory.
func (r *Root) link(target, name string) error {
	parent, last, err := r.parentOf(name)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := syscall.Unlinkat(int(parent.Fd()), last); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return kernel.Symlink(target, int(parent.Fd()), last)
}

func (r *Root) setMode(name string, mode fs.FileMode) error {
	directory, err := r.openIn(int(r.directory.Fd()), name, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Chmod(mode)
}
