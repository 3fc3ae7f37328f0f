package layer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"torpor/guest/internal/kernel"
)

// ErrNotWhole says that a layer holds less than it stands for: the rest of a file is in another layer, in a place that
// only a mount looks for.
var ErrNotWhole = errors.New("the layer is not whole")

const (
	ownPrefix  = "trusted.overlay." // what overlayfs notes for itself and never shows
	opaque     = ownPrefix + "opaque"
	whiteout   = ownPrefix + "whiteout"
	metacopy   = ownPrefix + "metacopy"
	redirect   = ownPrefix + "redirect"
	defaultACL = "system.posix_acl_default"
)

type attribute struct {
	name, value string
}

// attributes are the extended ones of a file in a layer.
type attributes struct {
	kept                 []attribute
	isOpaque, isWhiteout bool
}

// nodeIn is an entry of a directory. By way of /proc: no system call before Linux 6.13 takes a directory and a name.
func nodeIn(directory *os.File, name string) (kernel.Node, error) {
	return kernel.NamedNode(fmt.Sprintf("/proc/self/fd/%d/%s", directory.Fd(), name))
}

func (a *applier) read(node kernel.Node) (attributes, error) {
	names, err := a.list(node)
	if err != nil {
		return attributes{}, err
	}
	var given attributes
	for _, name := range names {
		switch {
		case name == metacopy || name == redirect:
			return given, fmt.Errorf("%w: it has %s", ErrNotWhole, name)
		case name == whiteout:
			given.isWhiteout = true
		case name != opaque && strings.HasPrefix(name, ownPrefix):
			continue
		}
		value, err := node.Attribute(name, &a.scratch)
		if err != nil {
			return given, fmt.Errorf("read attribute %q: %w", name, err)
		}
		if name == opaque {
			given.isOpaque = value == "y" // "x" says that there may be whiteouts which are attributes
		} else if name != whiteout {
			given.kept = append(given.kept, attribute{name, value})
		}
	}
	return given, nil
}

func (a *applier) list(node kernel.Node) ([]string, error) {
	names, err := node.ListAttributes(&a.scratch)
	if err == syscall.ENOTSUP {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return names, nil
}

// strip takes away attributes that are not to be kept. The default ACL goes too, until dress puts it back: what is made
// in the directory would inherit it.
func (a *applier) strip(node kernel.Node, kept []attribute) error {
	names, err := a.list(node)
	if err != nil {
		return err
	}
	for _, name := range names {
		isKept := slices.ContainsFunc(kept, func(one attribute) bool { return one.name == name })
		if isKept && name != defaultACL {
			continue
		}
		if err := node.RemoveAttribute(name); err != nil {
			return fmt.Errorf("remove attribute %q: %w", name, err)
		}
	}
	return nil
}

// dress gives an open file what the layer's has beside content. In this order: a new owner takes set-ID bits and
// capabilities away, and a mode changes an ACL.
func (a *applier) dress(to int, wanted *syscall.Stat_t, kept []attribute) error {
	var found syscall.Stat_t
	if err := syscall.Fstat(to, &found); err != nil {
		return err
	}
	if found.Uid != wanted.Uid || found.Gid != wanted.Gid {
		if err := syscall.Fchown(to, int(wanted.Uid), int(wanted.Gid)); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if found.Mode != wanted.Mode {
		if err := syscall.Fchmod(to, wanted.Mode&^syscall.S_IFMT); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := attach(kernel.OpenNode(to), kept); err != nil {
		return err
	}
	if err := kernel.Futimens(to, timesOf(wanted)); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// dressSpecial does what dress does to what cannot be opened.
func (a *applier) dressSpecial(at place, name string, wanted *syscall.Stat_t, kept []attribute) error {
	to := int(at.to.Fd())
	if err := syscall.Fchownat(to, name, int(wanted.Uid), int(wanted.Gid), kernel.NoFollow); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if wanted.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		if err := syscall.Fchmodat(to, name, wanted.Mode&^syscall.S_IFMT, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	node, err := nodeIn(at.to, name)
	if err != nil {
		return err
	}
	if err := attach(node, kept); err != nil {
		return err
	}
	if err := kernel.Utimensat(to, name, timesOf(wanted)); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func attach(node kernel.Node, kept []attribute) error {
	for _, one := range kept {
		if err := node.SetAttribute(one.name, one.value); err != nil {
			return fmt.Errorf("set attribute %q: %w", one.name, err)
		}
	}
	return nil
}

func timesOf(stat *syscall.Stat_t) kernel.Times {
	return kernel.Times{Accessed: stat.Atim, Modified: stat.Mtim}
}
