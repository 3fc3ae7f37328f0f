package layer

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"torpor/guest/internal/kernel"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func mount(t *testing.T, kind, target, options string) error {
	t.Helper()
	err := syscall.Mount("layer-test", target, kind, 0, options)
	if err == nil {
		t.Cleanup(func() { syscall.Unmount(target, syscall.MNT_DETACH) })
	}
	return err
}

// directories makes them in one, and gives their whole names.
func directories(t *testing.T, above string, names ...string) []string {
	t.Helper()
	var made []string
	for _, name := range names {
		path := filepath.Join(above, name)
		must(t, os.MkdirAll(path, 0o755))
		made = append(made, path)
	}
	return made
}

// ground is a directory on a file system that layers of an overlay can lie on.
func ground(t *testing.T) string {
	t.Helper()
	needsRoot(t)
	top := t.TempDir()
	try := func() error {
		made := directories(t, top, "try", "try/lower", "try/upper", "try/work", "try/merged")
		err := syscall.Mount("layer-test", made[4], "overlay", 0, overlayOptions(made[1:2], made[2], made[3]))
		if err == nil {
			err = syscall.Unmount(made[4], 0)
		}
		os.RemoveAll(made[0])
		return err
	}
	err := try()
	if err != nil && mount(t, "tmpfs", top, "") == nil {
		err = try()
	}
	if err != nil {
		t.Skipf("mount an overlay: %v", err)
	}
	return top
}

func overlayOptions(lowersTopFirst []string, upper, work string) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off",
		strings.Join(lowersTopFirst, ":"), upper, work)
}

// stack is a tree with layers over it that were made by a real overlay.
type stack struct {
	ground, base string
	layers       []string // the lowest first
}

func newStack(t *testing.T) *stack {
	t.Helper()
	top := ground(t)
	return &stack{ground: top, base: directories(t, top, "base")[0]}
}

// add makes one more layer of what change does to the mount, and returns what the mount shows then.
func (s *stack) add(t *testing.T, change func(merged string)) map[string]string {
	t.Helper()
	name := fmt.Sprintf("layer-%d", len(s.layers))
	made := directories(t, s.ground, name, "work-"+name, "merged-"+name)
	lowers := append(slices.Clone(s.layers), s.base)
	if len(s.layers) > 0 {
		lowers = append(reversed(s.layers), s.base)
	}
	must(t, mount(t, "overlay", made[2], overlayOptions(lowers, made[0], made[1])))
	change(made[2])
	s.layers = append(s.layers, made[0])
	shown := described(t, made[2])
	must(t, syscall.Unmount(made[2], 0))
	return shown
}

func reversed(of []string) []string {
	turned := slices.Clone(of)
	slices.Reverse(turned)
	return turned
}

// applied gives a copy of the base with all layers on it.
func (s *stack) applied(t *testing.T) string {
	t.Helper()
	target := filepath.Join(s.ground, "target")
	if said, err := exec.Command("cp", "-a", s.base, target).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	must(t, Apply(target, s.layers...))
	return target
}

// sameLinks checks that what is in the uppermost layer has as many names in the target.
func (s *stack) sameLinks(t *testing.T, target string) {
	t.Helper()
	top := s.layers[len(s.layers)-1]
	for name := range described(t, top) {
		var wanted, got syscall.Stat_t
		must(t, syscall.Lstat(filepath.Join(top, name), &wanted))
		if kind := wanted.Mode & syscall.S_IFMT; kind == syscall.S_IFDIR || kind == syscall.S_IFCHR && wanted.Rdev == 0 {
			continue
		}
		must(t, syscall.Lstat(filepath.Join(target, name), &got))
		if got.Nlink != wanted.Nlink {
			t.Errorf("%q has %d names, not %d", name, got.Nlink, wanted.Nlink)
		}
	}
}

// described says of everything in a tree what it is; sockets are left out.
func described(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.Type()&os.ModeSocket != 0 {
			return err
		}
		name, _ := filepath.Rel(root, path)
		found[name] = describe(t, path)
		return nil
	}))
	return found
}

func describe(t *testing.T, path string) string {
	t.Helper()
	var stat syscall.Stat_t
	must(t, syscall.Lstat(path, &stat))
	text := fmt.Sprintf("mode %o owner %d:%d written %d.%09d rdev %d attributes %q", stat.Mode, stat.Uid, stat.Gid,
		stat.Mtim.Sec, stat.Mtim.Nsec, stat.Rdev, attributesOf(t, path))
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		content, err := os.ReadFile(path)
		must(t, err)
		text += fmt.Sprintf(" size %d content %x", stat.Size, sha256.Sum256(content))
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		must(t, err)
		text += fmt.Sprintf(" to %q", target)
	}
	return text
}

func attributesOf(t *testing.T, path string) []string {
	t.Helper()
	var buffer [kernel.MaxAttribute]byte
	node, err := kernel.NamedNode(path)
	must(t, err)
	names, err := node.ListAttributes(&buffer)
	must(t, err)
	var all []string
	for _, name := range names {
		if strings.HasPrefix(name, ownPrefix) {
			continue
		}
		value, err := node.Attribute(name, &buffer)
		must(t, err)
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return all
}

func compare(t *testing.T, wanted, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if got[name] != wanted[name] {
			t.Errorf("%q\n is %s\nnot %s", name, got[name], wanted[name])
		}
	}
	for name := range got {
		if _, isWanted := wanted[name]; !isWanted {
			t.Errorf("%q is there", name)
		}
	}
}

// attach gives a file an attribute where its file system has such.
func setAttribute(t *testing.T, path, name, value string) {
	t.Helper()
	node, err := kernel.NamedNode(path)
	must(t, err)
	if err := node.SetAttribute(name, value); err == syscall.ENOTSUP {
		t.Logf("no attribute %s here", name)
	} else if err != nil {
		t.Fatalf("%s: %s: %v", path, name, err)
	}
}

func removeAttribute(t *testing.T, path, name string) {
	t.Helper()
	node, err := kernel.NamedNode(path)
	must(t, err)
	if err := node.RemoveAttribute(name); err != nil && err != syscall.ENOTSUP && err != syscall.ENODATA {
		t.Fatalf("%s: %s: %v", path, name, err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}
