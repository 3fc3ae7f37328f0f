package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func packed(t *testing.T, root *Root, name string) *bytes.Buffer {
	t.Helper()
	pack, err := root.OpenPack(name)
	if err != nil {
		t.Fatal(err)
	}
	defer pack.Close()
	var archive bytes.Buffer
	if err := pack.Write(&archive); err != nil {
		t.Fatal(err)
	}
	return &archive
}

func put(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestADirectoryIsPackedAndUnpackedAsItWas(t *testing.T) {
	root, inside, outside := roots(t)
	put(t, inside+"/app/bin/run", "#!/bin/sh", 0o755)
	put(t, inside+"/app/empty", "", 0o600)
	os.Mkdir(inside+"/app/closed", 0o755)
	os.Chmod(inside+"/app/closed", 0o500)
	os.Symlink("bin/run", inside+"/app/link")
	os.Symlink(outside, inside+"/app/away")
	syscall.Mkfifo(inside+"/app/pipe", 0o600)
	put(t, outside+"/secret", "secret", 0o644)

	counted, err := root.Unpack("/copy", "x", packed(t, root, "/app"))
	if err != nil || counted.Files != 4 || counted.Bytes != 9 {
		t.Fatal(counted, err)
	}
	if content(t, root, "/copy/bin/run") != "#!/bin/sh" {
		t.Fatal("content")
	}
	for name, mode := range map[string]fs.FileMode{"bin/run": 0o755, "empty": 0o600, "closed": 0o500 | fs.ModeDir} {
		if found, err := os.Stat(inside + "/copy/" + name); err != nil || found.Mode() != mode {
			t.Fatal(name, found.Mode(), err)
		}
	}
	if target, err := os.Readlink(inside + "/copy/away"); err != nil || target != outside {
		t.Fatal(target, err)
	}
	if _, err := os.Lstat(inside + "/copy/pipe"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a named pipe was packed")
	}
}

func TestWhereAnArchiveGoesIsAsCpHasIt(t *testing.T) {
	root, inside, _ := roots(t)
	put(t, inside+"/file", "content", 0o644)
	os.Mkdir(inside+"/there", 0o755)
	for to, expected := range map[string]string{"/there": "/there/name", "/new": "/new", "/made/": "/made/name"} {
		if _, err := root.Unpack(to, "name", packed(t, root, "/file")); err != nil {
			t.Fatal(err)
		}
		if content(t, root, expected) != "content" {
			t.Fatal(to)
		}
	}
	for _, base := range []string{"", ".", "..", "a/b"} {
		if _, err := root.Unpack("/there", base, packed(t, root, "/file")); !errors.Is(err, ErrUnpackable) {
			t.Fatal(base, err)
		}
	}
}

func TestAnArchiveLeadsNowhereOutside(t *testing.T) {
	root, inside, outside := roots(t)
	os.Symlink(outside, inside+"/away")
	for _, header := range []tar.Header{
		{Name: "../evil", Typeflag: tar.TypeReg}, {Name: "/evil", Typeflag: tar.TypeReg},
		{Name: "evil", Typeflag: tar.TypeChar}, {Name: "evil", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
	} {
		var archive bytes.Buffer
		writer := tar.NewWriter(&archive)
		writer.WriteHeader(&header)
		writer.Close()
		if _, err := root.Unpack("/there/", "x", &archive); !errors.Is(err, ErrUnpackable) {
			t.Fatal(header.Name, err)
		}
	}
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	writer.WriteHeader(&tar.Header{Name: "./away/evil", Typeflag: tar.TypeReg, Size: 1, Mode: 0o644})
	writer.Write([]byte("x"))
	writer.Close()
	root.Unpack("/", "x", &archive) // where it goes inside does not matter
	if found, _ := os.ReadDir(outside); len(found) != 0 {
		t.Fatal("it was written outside")
	}
}

func TestWhatIsNoArchiveOrIsCutShortIsAnError(t *testing.T) {
	root, inside, _ := roots(t)
	put(t, inside+"/file", strings.Repeat("x", 4096), 0o644)
	whole := packed(t, root, "/file").Bytes()
	for name, bad := range map[string][]byte{
		"no archive": bytes.Repeat([]byte("x"), 1024), "cut in a header": whole[:700], "cut in a file": whole[:3000],
	} {
		if counted, err := root.Unpack("/there/", "x", bytes.NewReader(bad)); err == nil {
			t.Fatal(name, counted)
		}
	}
	if _, err := root.OpenPack("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
