package layer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"torpor/guest/internal/kernel"
)

// pair makes a target and a layer with a directory beside them that nothing may reach.
func pair(t *testing.T) (target, layer, outside string) {
	t.Helper()
	made := directories(t, t.TempDir(), "target", "layer", "outside")
	return made[0], made[1], made[2]
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

func TestNoLinkLeadsOutOfTheTarget(t *testing.T) {
	target, layer, outside := pair(t)
	write(t, outside+"/kept", "outside")
	for _, name := range []string{"as-directory", "as-file", "deep/as-directory", "gone"} {
		must(t, os.MkdirAll(filepath.Dir(target+"/"+name), 0o755))
		must(t, os.Symlink(outside, target+"/"+name))
	}
	must(t, os.Symlink(outside+"/kept", target+"/file"))
	write(t, layer+"/as-directory/evil", "")
	write(t, layer+"/as-directory/kept", "evil")
	write(t, layer+"/as-file", "evil")
	write(t, layer+"/deep/as-directory/kept/evil", "evil")
	write(t, layer+"/file", "evil")
	must(t, os.Symlink("..", layer+"/gone"))
	must(t, Apply(target, layer))

	if left, _ := os.ReadDir(outside); len(left) != 1 || contentOf(t, outside+"/kept") != "outside" {
		t.Fatalf("outside has %v", left)
	}
	if got := contentOf(t, target+"/deep/as-directory/kept/evil"); got != "evil" {
		t.Fatal(got)
	}
	if to, _ := os.Readlink(target + "/gone"); to != ".." {
		t.Fatal(to)
	}
}

func TestADirectoryThatIsALinkInTheTargetIsNotEmptied(t *testing.T) {
	needsRoot(t)
	target, layer, outside := pair(t)
	write(t, outside+"/kept", "")
	must(t, os.Symlink(outside, target+"/directory"))
	must(t, os.Mkdir(layer+"/directory", 0o755))
	setAttribute(t, layer+"/directory", opaque, "y")
	must(t, Apply(target, layer))
	if _, err := os.Stat(outside + "/kept"); err != nil {
		t.Fatal(err)
	}
	if found, err := os.Lstat(target + "/directory"); err != nil || !found.IsDir() {
		t.Fatal(found, err)
	}
}

func TestOtherNamesOfAReplacedFileKeepItsContent(t *testing.T) {
	target, layer, outside := pair(t)
	write(t, outside+"/old", "old")
	must(t, os.Link(outside+"/old", target+"/file"))
	must(t, os.Link(outside+"/old", target+"/twin"))
	write(t, layer+"/file", "new")
	must(t, Apply(target, layer))
	for path, wanted := range map[string]string{target + "/file": "new", target + "/twin": "old", outside + "/old": "old"} {
		if got := contentOf(t, path); got != wanted {
			t.Errorf("%s: %s", path, got)
		}
	}
}

func TestTimesAreTheLayers(t *testing.T) {
	target, layer, _ := pair(t)
	write(t, layer+"/directory/file", "")
	must(t, os.Symlink("nowhere", layer+"/link"))
	must(t, syscall.Mkfifo(layer+"/pipe", 0o600))
	names := []string{"directory/file", "directory", "link", "pipe", "."}
	wanted := map[string]kernel.Times{}
	for i, name := range names {
		second := int64(i - 2)
		wanted[name] = kernel.Times{
			Accessed: syscall.Timespec{Sec: second, Nsec: 1}, Modified: syscall.Timespec{Sec: second, Nsec: 999999999},
		}
		must(t, kernel.Utimensat(-1, filepath.Join(layer, name), wanted[name]))
	}
	must(t, Apply(target, layer))
	for _, name := range names {
		var stat syscall.Stat_t
		must(t, syscall.Lstat(filepath.Join(target, name), &stat))
		if got := timesOf(&stat); got != wanted[name] {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWhiteoutsMayBeAttributes(t *testing.T) {
	needsRoot(t)
	target, layer, _ := pair(t)
	for _, name := range []string{"directory/gone/deep", "directory/kept"} {
		write(t, target+"/"+name, "old")
	}
	for _, name := range []string{"gone", "kept", "never-there"} {
		write(t, layer+"/directory/"+name, strings.Repeat("new", len(name)%2)) // only what is empty is a whiteout
		setAttribute(t, layer+"/directory/"+name, whiteout, "")
	}
	write(t, layer+"/directory/kept", "new")
	setAttribute(t, layer+"/directory", opaque, "x")
	must(t, Apply(target, layer))
	if left, _ := os.ReadDir(target + "/directory"); len(left) != 2 || contentOf(t, target+"/directory/kept") != "new" {
		t.Fatal(left)
	}
}

func TestALayerThatIsNotWholeIsRefused(t *testing.T) {
	needsRoot(t)
	for _, mark := range []string{metacopy, redirect} {
		target, layer, _ := pair(t)
		write(t, layer+"/directory/bad\nname", "")
		setAttribute(t, layer+"/directory/bad\nname", mark, "/elsewhere")
		err := Apply(target, layer)
		if !errors.Is(err, ErrNotWhole) || !strings.Contains(err.Error(), `"directory/bad\nname"`) ||
			!strings.Contains(err.Error(), mark) {
			t.Fatal(err)
		}
		if _, err := os.Lstat(target + "/directory/bad\nname"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal("it was applied")
		}
	}
}

func TestWhatIsNoDirectoryIsNamed(t *testing.T) {
	target, layer, outside := pair(t)
	write(t, outside+"/file", "")
	for _, one := range []struct {
		target, layer, named string
		wanted               error
	}{
		{target, outside + "/none\n", `/none\n"`, syscall.ENOENT},
		{target, outside + "/file", `/outside/file"`, syscall.ENOTDIR},
		{outside + "/none", layer, `/outside/none"`, syscall.ENOENT},
		{outside + "/file", layer, `/outside/file"`, syscall.ENOTDIR},
	} {
		err := Apply(one.target, one.layer)
		if !errors.Is(err, one.wanted) || strings.Count(err.Error(), one.named) != 1 || strings.Contains(err.Error(), "\n") {
			t.Error(err)
		}
	}
}

func TestAFullDiskIsSaid(t *testing.T) {
	needsRoot(t)
	target, layer, _ := pair(t)
	if err := mount(t, "tmpfs", target, "size=1m"); err != nil {
		t.Skip(err)
	}
	write(t, layer+"/directory/large", strings.Repeat("x", 2<<20))
	err := Apply(target, layer)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") ||
		!strings.Contains(err.Error(), `"directory/large"`) {
		t.Fatal(err)
	}
}

func TestHolesAreKept(t *testing.T) {
	target, layer, _ := pair(t)
	holes(t, layer+"/holes")
	must(t, os.Truncate(layer+"/holes", 3*holeSize+1))
	write(t, layer+"/nothing but a hole", "")
	must(t, os.Truncate(layer+"/nothing but a hole", holeSize))
	write(t, layer+"/grown", "data")
	must(t, os.Truncate(layer+"/grown", 5000))
	must(t, Apply(target, layer))
	for _, name := range []string{"holes", "nothing but a hole", "grown"} {
		var wanted, got syscall.Stat_t
		must(t, syscall.Stat(layer+"/"+name, &wanted))
		must(t, syscall.Stat(target+"/"+name, &got))
		if got.Blocks > wanted.Blocks || contentOf(t, layer+"/"+name) != contentOf(t, target+"/"+name) {
			t.Errorf("%s has %d blocks, not %d", name, got.Blocks, wanted.Blocks)
		}
	}
}
