package layer

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	capability = "security.capability"
	// bindService is CAP_NET_BIND_SERVICE as struct vfs_cap_data of revision 2 has it, effective.
	bindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	accessACL   = "system.posix_acl_access"
)

// acl is an access control list for one user more than the mode knows.
func acl(user byte) string {
	entries := [][]byte{
		{1, 0, 7, 0, 255, 255, 255, 255}, {2, 0, 6, 0, user, 0, 0, 0}, {4, 0, 5, 0, 255, 255, 255, 255},
		{16, 0, 7, 0, 255, 255, 255, 255}, {32, 0, 1, 0, 255, 255, 255, 255},
	}
	text := "\x02\x00\x00\x00"
	for _, entry := range entries {
		text += string(entry)
	}
	return text
}

// outsideOf is where links out of a tree lead. Never to the real root: code that followed them would empty the machine.
func outsideOf(tree string) string { return filepath.Join(filepath.Dir(tree), "outside") }

// checkOutside checks that nothing was done there.
func checkOutside(t *testing.T, tree string) {
	t.Helper()
	left, err := os.ReadDir(outsideOf(tree))
	if err != nil || len(left) != 1 || contentOf(t, outsideOf(tree)+"/kept") != "outside" {
		t.Errorf("a link led out of the target: %v %v", left, err)
	}
}

// fillBase makes a tree with something for every change.
func fillBase(t *testing.T, base string) {
	for _, name := range []string{
		"kept/deep/file", "gone-file", "gone/deep/file", "to-file/inside", "to-directory", "to-link/inside", "again/old",
		"again/deep/old", "grown/old", "chmod", "chown/inside", "twin-a", "attributes/file", "sticky/old", "named-socket",
		"metadata only/file", "link-over-file", "pipe-over-directory/deep/inside", "default-acl/old", "lost-acl/old",
		"directory-over-pipe-base", "touched", "shared/old", "with space/new\nline", "bytes\xff\xfe/\x80", "replaced-acl/old",
	} {
		write(t, filepath.Join(base, name), "base of "+name)
	}
	must(t, os.Link(base+"/twin-a", base+"/twin-b"))
	must(t, os.Link(base+"/twin-a", base+"/twin-c"))
	must(t, os.Symlink("kept", base+"/link-to-directory"))
	write(t, outsideOf(base)+"/kept", "outside")
	must(t, os.Symlink(outsideOf(base), base+"/away"))
	must(t, os.Symlink("kept/deep/file", base+"/link-to-file"))
	must(t, syscall.Mkfifo(base+"/pipe", 0o600))
	must(t, os.Chmod(base+"/sticky", 0o777|os.ModeSticky))
	must(t, os.Chown(base+"/shared", 0, 50))
	must(t, os.Chmod(base+"/shared", 0o775|os.ModeSetgid))
	setAttribute(t, base+"/attributes", "user.directory", "old")
	setAttribute(t, base+"/attributes", "trusted.directory", "old")
	setAttribute(t, base+"/attributes/file", "user.file", "old")
	for _, name := range []string{"default-acl", "lost-acl", "replaced-acl"} {
		setAttribute(t, base+"/"+name, defaultACL, acl(7))
		setAttribute(t, base+"/"+name, accessACL, acl(7))
	}
}

// changeKinds replaces everything by something else.
func changeKinds(t *testing.T, merged string) {
	must(t, os.Remove(merged+"/gone-file"))
	for _, name := range []string{"gone", "to-file", "to-link", "again", "pipe-over-directory"} {
		must(t, os.RemoveAll(merged+"/"+name))
	}
	for _, name := range []string{"to-directory", "link-to-directory", "away", "link-over-file", "pipe", "named-socket"} {
		must(t, os.Remove(merged+"/"+name))
	}
	write(t, merged+"/to-file", "was a directory")
	write(t, merged+"/to-directory/inside", "was a file")
	must(t, os.Symlink("kept", merged+"/to-link"))
	write(t, merged+"/again/new", "in a directory made again")
	write(t, merged+"/again/deep/new", "in another")
	write(t, merged+"/link-to-directory/inside", "was a link")
	write(t, merged+"/away/evil", "was a link out of the tree")
	must(t, os.Symlink("/nowhere\n\xff", merged+"/link-over-file"))
	must(t, syscall.Mkfifo(merged+"/pipe-over-directory", 0o640))
	write(t, merged+"/pipe/inside", "was a pipe")
	socket, err := net.Listen("unix", merged+"/named-socket")
	must(t, err)
	socket.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, socket.Close())
	must(t, syscall.Mknod(merged+"/device", syscall.S_IFCHR|0o660, 5<<8|1))
	must(t, syscall.Mknod(merged+"/disk", syscall.S_IFBLK|0o640, 259<<8|7))
	write(t, merged+"/with space/new\nline", "changed")
	write(t, merged+"/with space/\x01\xc3(", "new")
	must(t, os.RemoveAll(merged+"/bytes\xff\xfe/\x80"))
	write(t, merged+"/bytes\xff\xfe/\x81", "")
}

// changeMetadata changes what is not content.
func changeMetadata(t *testing.T, merged string) {
	write(t, merged+"/program", "program")
	must(t, os.Chown(merged+"/program", 12, 34))
	must(t, os.Chmod(merged+"/program", 0o755|os.ModeSetuid|os.ModeSetgid))
	write(t, merged+"/server", "server")
	must(t, os.Chown(merged+"/server", 12, 34))
	setAttribute(t, merged+"/server", capability, bindService)
	must(t, os.Chmod(merged+"/chmod", 0))
	must(t, os.Chown(merged+"/chown", 1000, 1000))
	must(t, os.Lchown(merged+"/to-link", 1000, 1001))
	must(t, os.Chmod(merged+"/sticky", 0o700|os.ModeSetgid))
	must(t, os.Chmod(merged+"/metadata only", 0o500))
	removeAttribute(t, merged+"/attributes", "user.directory")
	setAttribute(t, merged+"/attributes", "trusted.other", "")
	removeAttribute(t, merged+"/attributes/file", "user.file")
	setAttribute(t, merged+"/attributes/file", "user.new\n", strings.Repeat("x", 300))
	setAttribute(t, merged+"/to-link", "trusted.link", "yes")
	setAttribute(t, merged+"/device", "trusted.device", "yes")
	write(t, merged+"/default-acl/inherits", "")
	must(t, os.Mkdir(merged+"/default-acl/inherits-too", 0o755))
	write(t, merged+"/default-acl/without", "")
	removeAttribute(t, merged+"/default-acl/without", accessACL)
	removeAttribute(t, merged+"/lost-acl", defaultACL)
	removeAttribute(t, merged+"/lost-acl", accessACL)
	write(t, merged+"/lost-acl/new", "")
	setAttribute(t, merged+"/replaced-acl", accessACL, acl(8))
	write(t, merged+"/shared/new", "has the directory's group")
	write(t, merged+"/shared/roots", "has not")
	must(t, os.Mkdir(merged+"/shared/below", 0o755))
	must(t, os.Chown(merged+"/shared/roots", 0, 0))
	old := time.Unix(-5, 123456789)
	must(t, os.Chtimes(merged+"/touched", old, old))
	must(t, os.Chmod(merged, 0o751))
	must(t, os.Chown(merged, 3, 4))
	setAttribute(t, merged, "trusted.root", "yes")
	must(t, os.Chtimes(merged, old, old))
}

func changeLinks(t *testing.T, merged string) {
	must(t, os.Link(merged+"/kept/deep/file", merged+"/linked-with-base"))
	write(t, merged+"/grown/one", "one")
	for _, name := range []string{"/grown/two", "/another", "/again/deep/three"} {
		must(t, os.Link(merged+"/grown/one", merged+name))
	}
	must(t, os.Symlink("one", merged+"/grown/link"))
	must(t, os.Link(merged+"/grown/link", merged+"/link-twin"))
	must(t, os.Link(merged+"/pipe-over-directory", merged+"/pipe-twin"))
	write(t, merged+"/twin-b", "a twin no longer")
	holes(t, merged+"/sparse")
}

const holeSize = 8 << 20

// holes makes a file that begins and ends with a hole and has one between.
func holes(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	must(t, err)
	for _, offset := range []int64{holeSize, 2*holeSize + 12345} {
		_, err := file.WriteAt([]byte("data"), offset)
		must(t, err)
	}
	must(t, file.Truncate(3*holeSize))
	must(t, file.Close())
}

func TestATreeBecomesWhatTheMountShows(t *testing.T) {
	stack := newStack(t)
	fillBase(t, stack.base)
	shown := stack.add(t, func(merged string) {
		changeKinds(t, merged)
		changeMetadata(t, merged)
		changeLinks(t, merged)
	})
	target := stack.applied(t)
	compare(t, shown, described(t, target))
	stack.sameLinks(t, target)
	checkOutside(t, target)
	var stat syscall.Stat_t
	must(t, syscall.Stat(target+"/sparse", &stat))
	if size := stat.Blocks * blockSize; size > 1<<20 {
		t.Errorf("a file of holes has %d bytes", size)
	}
}

func TestLayersAreAppliedInTheirOrder(t *testing.T) {
	stack := newStack(t)
	fillBase(t, stack.base)
	stack.add(t, func(merged string) {
		changeKinds(t, merged)
		changeMetadata(t, merged)
		changeLinks(t, merged)
	})
	shown := stack.add(t, func(merged string) {
		for _, name := range []string{
			"kept", "again", "to-file", "device", "grown/two", "to-link", "away", "named-socket",
		} {
			must(t, os.RemoveAll(merged+"/"+name))
		}
		write(t, merged+"/again/newest", "made a third time")
		write(t, merged+"/gone/file", "back again")
		write(t, merged+"/to-file/inside", "a directory again")
		must(t, os.Symlink(outsideOf(merged), merged+"/away"))
		must(t, os.Link(merged+"/another", merged+"/linked-once-more"))
		must(t, os.Chmod(merged+"/shared", 0o700))
		removeAttribute(t, merged+"/attributes", "trusted.other")
		write(t, merged+"/named-socket", "a file again")
	})
	target := stack.applied(t)
	checkOutside(t, target)
	compare(t, shown, described(t, target))
	stack.sameLinks(t, target)
}

func TestAMarkOnTheRootOfALayerHidesNothing(t *testing.T) {
	stack := newStack(t)
	write(t, stack.base+"/file", "base")
	stack.add(t, func(merged string) { write(t, merged+"/new", "new") })
	setAttribute(t, stack.layers[0], opaque, "y")
	shown := stack.add(t, func(merged string) { write(t, merged+"/newer", "newer") })
	if len(shown) != 4 {
		t.Fatal(shown)
	}
	compare(t, shown, described(t, stack.applied(t)))
}

func TestWhateverWasDoneTheTreeBecomesWhatTheMountShows(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			stack := newStack(t)
			vandal := vandal{rand.New(rand.NewPCG(seed, 0)), stack.base}
			vandal.act(200)
			var shown map[string]string
			for range 3 {
				shown = stack.add(t, func(merged string) {
					vandal.root = merged
					vandal.act(80)
				})
			}
			target := stack.applied(t)
			compare(t, shown, described(t, target))
			stack.sameLinks(t, target)
		})
	}
}

// vandal does anything to a tree. Much of it fails; what it comes to is what counts.
type vandal struct {
	*rand.Rand
	root string
}

func (v vandal) act(times int) {
	for range times {
		v.actions()[v.IntN(len(v.actions()))](v.path())
	}
}

func (v vandal) path() string {
	path := v.root
	for range 1 + v.IntN(3) {
		path += "/" + []string{"a", "b", "c", "d\n", "\xff"}[v.IntN(5)]
	}
	return path
}

func (v vandal) write(path string, flags int) {
	// Without O_NONBLOCK it would wait for who reads a pipe.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NONBLOCK|flags, 0o666)
	if err != nil {
		return
	}
	file.WriteString(strings.Repeat("x", v.IntN(10000)))
	file.Close()
}

func (v vandal) remove(path string) {
	// RemoveAll opens what lies above, and would wait for who writes a pipe.
	if above, err := os.Stat(filepath.Dir(path)); err == nil && above.IsDir() {
		os.RemoveAll(path)
	}
}

func (v vandal) actions() []func(path string) {
	mode := uint32(v.IntN(0o10000))
	name := []string{"user.a", "trusted.b", capability, accessACL, defaultACL}[v.IntN(5)]
	value := map[string]string{capability: bindService, accessACL: acl(9), defaultACL: acl(10)}[name]
	return []func(path string){
		func(path string) { v.write(path, os.O_TRUNC) },
		func(path string) { os.Remove(path); v.write(path, os.O_EXCL) },
		func(path string) { os.MkdirAll(path, 0o777) },
		func(path string) { os.MkdirAll(path, 0o700) },
		v.remove,
		func(path string) { v.remove(path); os.MkdirAll(path, 0o755) },
		func(path string) { os.Symlink(strings.TrimPrefix(v.path(), v.root+"/"), path) }, // away from lower layers
		func(path string) { os.Link(v.path(), path) },
		func(path string) { os.Rename(v.path(), path) },
		func(path string) { syscall.Mkfifo(path, mode) },
		func(path string) { syscall.Mknod(path, syscall.S_IFCHR|mode, 1<<8|3) },
		func(path string) { syscall.Fchmodat(-1, path, mode, 0) },
		func(path string) { os.Lchown(path, v.IntN(3), v.IntN(3)) },
		func(path string) { os.Truncate(path, int64(v.IntN(100000))) },
		func(path string) { syscall.Setxattr(path, name, []byte(value), 0) },
		func(path string) { syscall.Removexattr(path, name) },
	}
}
