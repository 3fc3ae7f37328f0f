package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLayersAreAppliedByCommand(t *testing.T) {
	top := t.TempDir()
	target, lower, upper := filepath.Join(top, "target"), filepath.Join(top, "lower"), filepath.Join(top, "upper")
	for _, directory := range []string{target, lower, upper} {
		if err := os.Mkdir(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(directory+"/file", []byte(directory), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	var said strings.Builder
	if code := command([]string{"apply-layers", target, lower, upper}, &said); code != 0 || said.Len() > 0 {
		t.Fatal(code, said.String())
	}
	if content, err := os.ReadFile(target + "/file"); err != nil || string(content) != upper {
		t.Fatal(string(content), err)
	}
}

func TestAFailureIsOneLineAndAnExitCode(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none\n")
	for _, one := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "the first process of a guest"},
		{[]string{"something"}, 2, "the first process of a guest"},
		{[]string{"apply-layers"}, 2, "usage: apply-layers TARGET LAYER..."},
		{[]string{"apply-layers", t.TempDir()}, 2, "usage: "},
		{[]string{"apply-layers", t.TempDir(), none}, 1, `none\n": no such file or directory`},
		{[]string{"apply-layers", none, t.TempDir()}, 1, `none\n": no such file or directory`},
	} {
		var said strings.Builder
		code := command(one.args, &said)
		if text := said.String(); code != one.code || !strings.Contains(text, one.says) ||
			strings.Index(text, "\n") != len(text)-1 {
			t.Errorf("%q: %d %q", one.args, code, text)
		}
	}
}
