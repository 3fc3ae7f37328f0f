// Package modules loads the kernel modules the guest needs, in the order the initramfs lists them.
package modules

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"torpor/guest/internal/kernel"
)

// Load loads every module that list names, one path a line, relative to the directory of the list or absolute.
// A module that is missing or refused is reported and skipped: a guest without it may still do its work.
func Load(list string, report func(string)) error {
	file, err := os.Open(list)
	if err != nil {
		return fmt.Errorf("read module list: %w", err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name := strings.TrimSpace(lines.Text())
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if err := load(locate(filepath.Dir(list), name)); err != nil {
			report(fmt.Sprintf("load module %s: %v", name, err))
		}
	}
	return nil
}

func locate(directory, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(directory, name)
}

func load(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("skipped, not in the initramfs")
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := kernel.FinitModule(file.Fd()); err != nil && err != syscall.EEXIST {
		return err
	}
	return nil
}
