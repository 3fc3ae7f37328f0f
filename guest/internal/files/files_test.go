package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// roots makes a root with a directory beside it that nothing may reach.
func roots(t *testing.T) (root *Root, inside, outside string) {
	t.Helper()
	top := t.TempDir()
	inside, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, directory := range []string{inside, outside} {
		if err := os.Mkdir(directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	if _, _, err := root.Open("nothing"); errors.Is(err, syscall.ENOSYS) {
		t.Skip("this kernel has no openat2")
	}
	return root, inside, outside
}

func content(t *testing.T, root *Root, name string) string {
	t.Helper()
	file, _, err := root.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAFileIsWrittenWithItsParentsAndItsMode(t *testing.T) {
	root, inside, _ := roots(t)
	for _, text := range []string{"first", "second, longer"} {
		size, err := root.Write("/a/b/../c/file", 0o751, strings.NewReader(text))
		if err != nil || size != int64(len(text)) {
			t.Fatal(size, err)
		}
		if got := content(t, root, "a/c/file"); got != text {
			t.Fatalf("%q", got)
		}
	}
	found, err := os.Stat(filepath.Join(inside, "a/c/file"))
	if err != nil || found.Mode() != 0o751 {
		t.Fatal(found, err)
	}
	if left, _ := os.ReadDir(filepath.Join(inside, "a/c")); len(left) != 1 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestNoLinkLeadsOutOfTheRoot(t *testing.T) {
	root, inside, outside := roots(t)
	os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644)
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(inside, "file"))
	os.Symlink(outside, filepath.Join(inside, "absolute"))
	os.Symlink("../outside", filepath.Join(inside, "relative"))
	for _, name := range []string{"file", "absolute/secret", "relative/secret", "../outside/secret"} {
		if file, _, err := root.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: %v %v", name, file, err)
		}
	}
	for _, name := range []string{"file", "absolute/new", "relative/new", "../outside/new"} {
		root.Write(name, 0o644, strings.NewReader("x")) // inside the root, or not at all
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Fatalf("outside has %v", left)
	}
	if text, _ := os.ReadFile(filepath.Join(outside, "secret")); string(text) != "secret" {
		t.Fatalf("secret is %q", text)
	}
}

func TestAnAbsoluteLinkMeansAPlaceInTheRoot(t *testing.T) {
	root, inside, _ := roots(t)
	os.Mkdir(filepath.Join(inside, "real"), 0o755)
	os.Symlink("/real", filepath.Join(inside, "link"))
	if _, err := root.Write("link/file", 0o644, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, root, "real/file"); got != "x" {
		t.Fatal(got)
	}
}

func TestOnlyRegularFilesAreRead(t *testing.T) {
	root, inside, _ := roots(t)
	if err := syscall.Mkfifo(filepath.Join(inside, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "/"} {
		if _, _, err := root.Open(name); !errors.Is(err, ErrNotRegular) {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func TestAFailedWriteLeavesTheOldFile(t *testing.T) {
	root, inside, _ := roots(t)
	os.WriteFile(filepath.Join(inside, "file"), []byte("old"), 0o644)
	broken := io.MultiReader(strings.NewReader("new"), failing{})
	if _, err := root.Write("file", 0o644, broken); err == nil {
		t.Fatal("written")
	}
	if left, _ := os.ReadDir(inside); len(left) != 1 || content(t, root, "file") != "old" {
		t.Fatalf("left: %v", left)
	}
	for _, name := range []string{"", "/", "directory/"} {
		if _, err := root.Write(name, 0o644, strings.NewReader("")); !errors.Is(err, syscall.EISDIR) {
			t.Fatalf("%q: %v", name, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
