package modules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAMissingModuleIsReportedAndSkipped(t *testing.T) {
	list := filepath.Join(t.TempDir(), "load-order")
	if err := os.WriteFile(list, []byte("# drivers\n\none.ko\nkernel/two.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var said []string
	if err := Load(list, func(line string) { said = append(said, line) }); err != nil {
		t.Fatal(err)
	}
	if len(said) != 2 || !strings.Contains(said[1], "kernel/two.ko") {
		t.Fatalf("%q", said)
	}
}

func TestALackingListIsAnError(t *testing.T) {
	if err := Load(filepath.Join(t.TempDir(), "none"), func(string) {}); err == nil {
		t.Fatal("loaded")
	}
}
