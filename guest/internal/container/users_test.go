package container

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"torpor/guest/internal/files"
)

func accounts(t *testing.T, passwd, group string) *files.Root {
	t.Helper()
	directory := t.TempDir()
	if err := os.Mkdir(filepath.Join(directory, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(directory, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := files.OpenRoot(directory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	return root
}

func TestAUserIsFoundByNameOrNumberWithItsGroups(t *testing.T) {
	root := accounts(t, "root:x:0:0:root:/root:/bin/sh\nnot a line\nann:x:1000:100::/home/ann:/bin/sh\n",
		"root:x:0:\nusers:x:100:ann\naudio:x:29:bob,ann\nvideo:x:44:bob\n")
	for user, wanted := range map[string]identity{
		"":           {0, 0, nil, "/root"},
		"ann":        {1000, 100, []uint32{29}, "/home/ann"},
		"1000":       {1000, 100, []uint32{29}, "/home/ann"},
		"ann:video":  {1000, 44, nil, "/home/ann"},
		"1234":       {1234, 0, nil, "/"},
		"1234:4321":  {1234, 4321, nil, "/"},
		"ann:":       {1000, 100, []uint32{29}, "/home/ann"},
		"1000:audio": {1000, 29, nil, "/home/ann"},
	} {
		got, err := resolve(root, user)
		if err != nil || got.uid != wanted.uid || got.gid != wanted.gid || got.home != wanted.home ||
			!slices.Equal(got.groups, wanted.groups) {
			t.Errorf("%q: %+v, %v", user, got, err)
		}
	}
	for _, user := range []string{"nobody", "ann:nogroup", "-1", "99999999999"} {
		if got, err := resolve(root, user); err == nil {
			t.Errorf("%q: %+v", user, got)
		}
	}
}

func TestWithoutAccountsOnlyNumbersWork(t *testing.T) {
	root, err := files.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got, err := resolve(root, "5:6"); err != nil || got.uid != 5 || got.gid != 6 {
		t.Fatal(got, err)
	}
	if _, err := resolve(root, "ann"); err == nil {
		t.Fatal("found")
	}
}

func TestTheEnvironmentIsTheImagesWithPathAndHome(t *testing.T) {
	if got := environment([]string{"A=b"}, "/h"); !slices.Equal(got, []string{"A=b", "PATH=" + defaultPath, "HOME=/h"}) {
		t.Fatal(got)
	}
	if got := environment([]string{"HOME=/x", "PATH=/bin"}, "/h"); !slices.Equal(got, []string{"HOME=/x", "PATH=/bin"}) {
		t.Fatal(got)
	}
	if got := merge([]string{"A=1", "B=2"}, []string{"A=3", "C=4"}); !slices.Equal(got, []string{"B=2", "A=3", "C=4"}) {
		t.Fatal(got)
	}
}
